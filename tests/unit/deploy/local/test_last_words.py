"""Why a process ended: the last error that its log holds."""

from pathlib import Path

import pytest

from deploy.local.last_words import last_words, read_tail


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (
            '{"event":"a"}\n{"event":"stopped","error":"port 1 is in use","fix":"free it"}\n',
            "port 1 is in use; fix: free it",
        ),
        ('{"event":"crashed","error":"ValueError()"}\n{"event":"bye"}\n', "ValueError()"),
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: no torch\n",
            "ModuleNotFoundError: no torch",
        ),
        ("", ""),
        ("[1, 2]\n", "[1, 2]"),
    ],
)
def test_the_last_error_is_found(tail: str, expected: str) -> None:
    """Our own log lines give cause and fix; anything else gives its last line."""
    assert last_words(tail) == expected


def test_words_of_an_earlier_life_are_not_read(tmp_path: Path) -> None:
    """What was in the log before the process started is not why it ended."""
    log = tmp_path / "x.log"
    log.write_text("old error\nnew\n", encoding="ascii")
    assert read_tail(log, since=len("old error\n")) == "new\n"


def test_a_log_that_is_missing_says_nothing(tmp_path: Path) -> None:
    """Asking for the end of a log that was never written is no failure."""
    assert read_tail(tmp_path / "none.log") == ""
