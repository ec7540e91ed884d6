"""Every command that the documentation names exists, with the options that it shows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from millrace.cli import app
from tests.support.markdown import ROOT, code_spans, documents, prose, shell_lines

COMMAND = re.compile(r"(?:^|[\s(;&|/])millrace((?: +(?:--?[a-z][a-z-]*|[a-z]+))*)")
MAKE = re.compile(r"(?:^|[\s;&|])make ([a-z-]+)")
ROOT_COMMAND: Any = typer.main.get_command(app)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def named_commands() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each `millrace ...` of the documentation as its words, where it was found."""
    for path in documents():
        for text in [*code_spans(path), *shell_lines(path)]:
            for match in COMMAND.finditer(text):
                yield path, tuple(match[1].split())


@dataclass(frozen=True, slots=True)
class Found:
    """What words behind `millrace` lead to.

    Args:
        options: what it takes.
        rest: words left over: arguments and options.
    """

    options: frozenset[str]
    rest: tuple[str, ...]


def resolve(words: tuple[str, ...]) -> Found:
    """Return what words lead to.

    Raises:
        KeyError: there is no command of that name.
    """
    command: Any = ROOT_COMMAND
    rest = list(words)
    while (commands := getattr(command, "commands", None)) and rest and not rest[0].startswith("-"):
        command = commands[rest.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return Found(frozenset(options) | {"-h", "--help"}, tuple(rest))


def test_documentation_names_commands() -> None:
    """The search for commands finds those of the README, so that the tests below can fail."""
    found = {words[:1] for path, words in named_commands() if path.name == "README.md"}
    assert {("up",), ("lag",), ("ledger",), ("status",), ("freshness",), ("doctor",)} <= found


def test_every_command_in_the_documentation_exists() -> None:
    """A `millrace` command in code is one of the command line's."""
    wrong = []
    for path, words in named_commands():
        try:
            resolve(words)
        except KeyError:
            wrong.append((path.name, words))
    assert wrong == []


def test_every_option_in_the_documentation_exists() -> None:
    """An option written behind a command is one that the command takes."""
    wrong = []
    for path, words in named_commands():
        found = resolve(words)
        wrong += [(path.name, words, word) for word in found.rest if word[0] == "-" and word not in found.options]
    assert wrong == []


def test_every_make_target_in_the_documentation_exists() -> None:
    """A `make` target in code stands in the Makefile."""
    wrong = []
    for path in documents():
        for text in [*code_spans(path), *shell_lines(path)]:
            wrong += [(path.name, target) for target in MAKE.findall(text) if target not in TARGETS]
    assert wrong == []


def test_every_make_target_is_documented() -> None:
    """Every target that `make help` shows is explained to contributors."""
    shown = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    named = {target for text in code_spans(ROOT / "CONTRIBUTING.md") for target in MAKE.findall(text)}
    assert shown - named == set()


def test_process_commands_in_the_documentation_can_be_run() -> None:
    """A `python -m` in the documentation names a module that is here."""
    wrong = []
    for path in documents():
        for module in re.findall(r"python -m ([a-z_.]+[a-z_])", prose(path)):
            place = ROOT / module.replace(".", "/")
            if not (place / "__main__.py").exists() and not place.with_suffix(".py").exists():
                wrong.append((path.name, module))
    assert [name for name in wrong if name[1] not in {"pip", "pytest", "venv"}] == []
