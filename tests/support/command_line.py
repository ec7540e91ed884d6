"""The command line in a test's own process, on the test's own servers."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace import cli
from service.settings import Settings

Run = Callable[..., int]


def command_line(settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: Path, *group: str) -> Run:
    """Return a function that runs commands of a group in a folder and returns their exit code.

    Args:
        settings: of the deployment.
        monkeypatch: of the test.
        folder: without a settings file.
        group: words that come before those of each command.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in settings.as_environ().items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> int:
        """Run `millrace` with these words."""
        monkeypatch.setattr(sys, "argv", ["millrace", *group, *words])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call
