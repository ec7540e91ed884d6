"""The size guard of `make check`."""

from pathlib import Path

from tests.support.sizes import MOST_FUNCTION_LINES, MOST_MODULE_LINES, oversized


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
