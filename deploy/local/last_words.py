"""Why a process ended, from the last lines of its log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 16 * 1024
LONGEST: Final = 400

Explain = Callable[[str], str]
"""Takes the end of a log and returns one line that says why the process ended, empty where it says nothing."""


def read_tail(path: Path, since: int = 0) -> str:
    """Return the end of a log, no more than was written since an offset; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_words(tail: str) -> str:
    """Return the last error of one of our processes: its cause and its fix, or its last line.

    >>> last_words('{"event":"stopped","error":"port 1 is in use","fix":"free it"}')
    'port 1 is in use; fix: free it'
    """
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    for line in reversed(lines):
        if (words := _error_of(line)) is not None:
            return words
        if not line.startswith("{"):
            break
    return lines[-1][:LONGEST] if lines else ""


def _error_of(line: str) -> str | None:
    """Return what a JSON log line says went wrong, or None where it is not one or says nothing."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(fields, dict) or "error" not in fields:
        return None
    return f"{fields['error']}; fix: {fields['fix']}" if fields.get("fix") else str(fields["error"])
