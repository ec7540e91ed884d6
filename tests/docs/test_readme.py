"""The README is true: its tree is the real one, its test command is what CI runs, its stops exist."""

import re

from tests.support.markdown import ROOT, fences, sections, tracked_files

README = ROOT / "README.md"
ORDER = "The way of one click"


def shown_tree() -> set[str]:
    """Return the names in the README's tree, folders with a slash."""
    (fence,) = [one for one in fences(README, "text") if one.name == "tree"]
    return {line.split()[0] for line in fence.text.splitlines() if line and not line.startswith(" ")}


def real_tree() -> set[str]:
    """Return what lies at the top of the project, folders with a slash; hidden files apart."""
    tops = {f"{path.parts[0]}/" if len(path.parts) > 1 else path.parts[0] for path in tracked_files()}
    return {name for name in tops if not name.startswith(".")}


def test_tree_equals_the_real_one() -> None:
    """The layout in the README shows every file and folder at the top, and no other."""
    assert shown_tree() == real_tree()


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    """`.ci/run` calls the command that the README gives for the tests, and nothing else."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert "make test" in [
        line.split("#")[0].strip() for fence in fences(README, "bash") for line in fence.text.splitlines()
    ]


def test_two_commands_stand_before_everything_else() -> None:
    """The first block of commands in the README is `make demo` and `make test`."""
    first = fences(README, "bash")[0]
    commands = [line.split("#")[0].strip() for line in first.text.splitlines()]
    assert [line for line in commands if line.startswith("make")] == ["make demo", "make test"]


def test_reading_order_shows_a_record_at_every_stop() -> None:
    """Each stop of the reading order names a file and shows one record."""
    stops = re.split(r"^\d+\. ", sections(README)[ORDER], flags=re.MULTILINE)[1:]
    assert len(stops) >= 12
    for stop in stops:
        (path,) = re.findall(r"^\[`([^`]+)`\]", stop)
        assert (ROOT / path).is_file(), path
        assert len(re.findall(r"^ *```json", stop, re.MULTILINE)) == 1, path


def test_flow_is_drawn_in_plain_text() -> None:
    """The picture of the flow can be read without a renderer and names every process of ours."""
    (picture,) = [one.text for one in fences(README, "text") if one.name == "flow"]
    for process in ("collector", "join", "pairs", "trainer", "indexer", "search", "Qdrant"):
        assert process in picture
