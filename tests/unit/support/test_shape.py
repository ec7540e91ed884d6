"""The guard of `make check` over modules, functions and the shape of the whole."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import shape
from tests.support.shape import (
    LEAST_MEDIAN_LINES,
    MOST_FUNCTION_LINES,
    MOST_LINES,
    MOST_MODULE_LINES,
    MOST_MODULES,
    main,
    oversized,
    shape_of,
)

AT_THE_GOALS = replace(
    shape_of([]), modules=MOST_MODULES, lines=MOST_LINES, median_lines=LEAST_MEDIAN_LINES, comment_ratio=0.5
)


def test_what_fits_passes() -> None:
    """A module and a function at the limit are no finding."""
    body = "def f():\n" + "    x = 1\n" * (MOST_FUNCTION_LINES - 1)
    text = body + "y = 1\n" * (MOST_MODULE_LINES - MOST_FUNCTION_LINES)
    assert list(oversized(Path("m.py"), text)) == []


def test_a_long_module_and_a_long_function_are_named() -> None:
    """Each finding says where and what the limit is."""
    text = "x = 1\ndef f():\n" + "    x = 1\n" * MOST_MODULE_LINES
    module, function = oversized(Path("m.py"), text)
    assert module.startswith(f"m.py: {MOST_MODULE_LINES + 2} lines, at most {MOST_MODULE_LINES}")
    assert function.startswith("m.py:2: f has ")


def test_a_code_base_at_its_goals_has_no_complaint() -> None:
    """The goals themselves are allowed."""
    assert list(AT_THE_GOALS.complaints()) == []


@pytest.mark.parametrize(
    ("missed", "says"),
    [
        ({"modules": MOST_MODULES + 1}, f"{MOST_MODULES + 1} modules, at most {MOST_MODULES}"),
        ({"median_lines": LEAST_MEDIAN_LINES - 0.5}, f"119.5 lines, at least {LEAST_MEDIAN_LINES}"),
        ({"lines": MOST_LINES + 1}, f"{MOST_LINES + 1} lines, at most {MOST_LINES}"),
    ],
)
def test_each_missed_goal_is_one_complaint(missed: dict[str, int], says: str) -> None:
    """It names the goal and what was measured."""
    (complaint,) = replace(AT_THE_GOALS, **missed).complaints()
    assert says in complaint


def test_a_shape_counts_what_its_names_say() -> None:
    """Blank lines count for the whole and not for a module; a string with a number sign is no comment."""
    first = '# alone\nx = "# none"  # beside\n\ndef _f():\n    """Return it."""\n'
    second = 'def f():\n    """Give it."""\n\n\ndef g():\n    pass\n'
    found = shape_of([first, second, ""])
    assert (found.modules, found.lines, found.median_lines) == (3, 11, 4)
    assert (found.comment_ratio, found.private_ratio) == (1 / 8, 1 / 3)
    assert (found.documented_ratio, found.return_ratio) == (2 / 3, 1 / 2)
    assert str(found).startswith("3 modules, median 4 lines, 11 lines, comments 12.5%, private functions 33.3%, ")


def test_given_folders_are_measured_and_never_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So other code bases can be compared with this one."""
    (tmp_path / "m.py").write_text("x = 1\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 1 modules, median 1 lines, 1 lines")


@pytest.mark.parametrize(
    ("module_lines", "goals_bind", "fails"),
    [(1, False, 0), (1, True, 1), (MOST_MODULE_LINES + 1, False, 1)],
)
def test_sizes_always_bind_and_goals_when_they_are_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module_lines: int, goals_bind: bool, fails: int
) -> None:
    """A module that is too long fails the check; a median that is too small does if goals bind."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "m.py").write_text("x = 1\n" * module_lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shape, "GOALS_BIND", goals_bind)
    assert main([]) == fails
