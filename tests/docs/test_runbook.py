"""The runbook knows the lines that the processes print: each is one that the code can say."""

import ast
import re
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from tests.support.markdown import ROOT, sections, tables, tracked_files

OPERATIONS = ROOT / "docs/operations.md"
SOURCES = ("contracts", "service", "towers", "streams", "trainer", "indexer", "millrace", "deploy")
SITUATIONS = (
    "A server is missing",
    "A port is busy",
    "The disk is full",
    "The hub cannot be reached",
    "Kafka refuses the session timeout",
    "A ledger does not balance",
    "Lag grows",
    "A safety check holds a release back",
    "Search is degraded",
    "A roll-out is stuck",
)


def runbook_lines() -> list[str]:
    """Return every line that the runbook explains: the first column of the tables headed `the line`."""
    return [row[0].strip("`") for table in tables(OPERATIONS) if table.columns[0] == "the line" for row in table.rows]


def pattern_of(node: ast.expr) -> str | None:
    """Return a pattern for what a string expression can become, None for what is no text of ours."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            re.escape(part.value) if isinstance(part, ast.Constant) and isinstance(part.value, str) else ".*"
            for part in node.values
        )
    return None


def texts_of(path: Path) -> Iterator[str]:
    """Yield a pattern for every text in a module that is long enough to be a sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            pattern = pattern_of(node)
            if pattern is not None and len(pattern.replace(".*", "").strip()) >= 10:
                yield pattern


PATTERNS = [
    re.compile(pattern, re.DOTALL)
    for path in tracked_files()
    if path.suffix == ".py" and path.parts[0] in SOURCES
    for pattern in texts_of(ROOT / path)
]


@pytest.mark.parametrize("line", runbook_lines())
def test_every_line_of_the_runbook_is_one_that_the_code_prints(line: str) -> None:
    """A line that the runbook explains stands in the code, word for word but for its values."""
    assert any(pattern.fullmatch(line) for pattern in PATTERNS), line


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_has_a_page(situation: str) -> None:
    """What can go wrong in operation has a section that says what to do."""
    assert len(sections(OPERATIONS)[situation].split()) >= 30


def raised_in(path: Path, errors: Set[str]) -> Iterator[str]:
    """Yield a pattern for the message of every error of the named kinds that a module makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors and node.args:
            pattern = pattern_of(node.args[0])
            if pattern is not None and len(pattern.replace(".*", "")) >= 10:
                yield pattern


PROCESSES = dict.fromkeys(
    ("service", "towers", "streams", "trainer", "indexer"),
    frozenset({"DependencyDown", "UsageError", "InvariantError", "CheckFailed"}),
)
"""Package -> the errors that operators see in its logs; `deploy` also refuses wrong calls, which are for developers."""


@pytest.mark.parametrize(("package", "errors"), [*PROCESSES.items(), ("deploy", frozenset({"DependencyDown"}))])
def test_no_line_of_a_process_is_missing_from_the_runbook(package: str, errors: frozenset[str]) -> None:
    """Every error that ends a process, or keeps it from starting, is explained in the runbook."""
    lines = runbook_lines()
    missing = {
        f"{path}: {pattern}"
        for path in tracked_files()
        if path.suffix == ".py" and path.parts[0] == package
        for pattern in raised_in(ROOT / path, errors)
        if not any(re.fullmatch(pattern, line, re.DOTALL) for line in lines)
    }
    assert sorted(missing) == []
