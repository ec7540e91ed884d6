"""Reads our own documentation for the tests that hold it to the code: fences, tables, links, code spans."""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_FENCE: Final = re.compile(r"^ *```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```[ \t]*$", re.MULTILINE | re.DOTALL)
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_LINK: Final = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
SHELLS: Final = ("bash", "sh", "console")
MADE: Final = frozenset({"__pycache__", "build", "dist"})


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block.

    Args:
        path: of the document.
        line: on which it begins.
        language: first word after the backticks.
        name: second word: a file's name, where the block is one.
        text: what stands in it.
    """

    path: Path
    line: int
    language: str
    name: str
    text: str

    @property
    def where(self) -> str:
        """Return document and line, for messages and test ids."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the heading that it stands under, its columns and its rows, each cell without outer blanks."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@cache
def tracked_files() -> list[Path]:
    """Return every file that git knows, as paths from the root; without git, every file that is not made by a tool."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return sorted(path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and not _is_made(path))
    return sorted({Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()})


def _is_made(path: Path) -> bool:
    """Return whether a file lies in a folder that tools make."""
    folders = path.relative_to(ROOT).parts[:-1]
    return any(name in MADE or name.endswith(".egg-info") or name.startswith(".") for name in folders)


def documents() -> list[Path]:
    """Return every Markdown document of the project."""
    return [ROOT / path for path in tracked_files() if path.suffix == ".md"]


def fences(path: Path, *languages: str) -> list[Fence]:
    """Return a document's fenced blocks, of the named languages where any are named."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, name = match["info"].strip().partition(" ")
        if not languages or language in languages:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Fence(path, line, language, name.strip(), textwrap.dedent(match["text"])))
    return found


def prose(path: Path) -> str:
    """Return a document without its fenced blocks, lines kept."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"))


def code_spans(path: Path) -> list[str]:
    """Return what stands between single backticks."""
    return _SPAN.findall(prose(path))


def shell_lines(path: Path) -> list[str]:
    """Return the commands of a document's shell blocks, continued lines joined, prompts and comments cut off."""
    lines: list[str] = []
    for fence in fences(path, *SHELLS):
        joined = fence.text.replace("\\\n", " ")
        lines += [re.sub(r"(^|\s)#.*$", "", line.strip().removeprefix("$ ")).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def links(path: Path) -> list[str]:
    """Return the targets of a document's links."""
    return _LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, made as forges make them."""
    return {anchor_of(heading) for heading in re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE)}


def anchor_of(heading: str) -> str:
    """Return a heading's anchor.

    >>> anchor_of("The way of one `click`: a tour")
    'the-way-of-one-click-a-tour'
    """
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def sections(path: Path) -> dict[str, str]:
    """Return heading -> the text below it, up to the next heading of any level; fences are kept."""
    parts = re.split(r"^#+ +(.+?) *$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(path: Path) -> Iterator[Table]:
    """Yield a document's tables."""
    heading, block = "", list[tuple[str, ...]]()
    for line in [*prose(path).splitlines(), ""]:
        if line.startswith("|"):
            block.append(_cells(line))
        elif block:
            yield Table(heading, block[0], tuple(block[2:]))
            block = []
        if line.startswith("#"):
            heading = line.lstrip("#").strip()


def _cells(line: str) -> tuple[str, ...]:
    """Return the cells of a table's line; a bar inside a cell has a backslash before it."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner))


def unquoted(cell: str) -> str:
    """Return a cell without its backticks."""
    return cell.strip("`")
