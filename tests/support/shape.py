"""The shape of a code base: how many modules, how long, how much is comment, docstring and private helper.

`python -m tests.support.shape` measures the product and is part of `make check`; with folders as arguments it measures
those, which is how the code bases that this one looks up to were measured. Upper limits alone split code and never
merge it again, so the median has a lower limit and the number of modules an upper one.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from typing_extensions import override

MOST_MODULE_LINES: Final = 400
MOST_FUNCTION_LINES: Final = 60
MOST_MODULES: Final = 180
LEAST_MEDIAN_LINES: Final = 120
MOST_LINES: Final = 24_000
GOALS_BIND: Final = False
"""Whether a missed goal fails the check, or is only printed; limits of modules and functions always bind."""

_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Shape:
    """What was measured of some modules, empty ones included.

    `lines` counts blank ones, the median of a module does not. Comments are lines that are a comment alone, of all that
    are not blank; private functions begin with one underscore; `return_ratio` is of the docstrings of functions.
    """

    modules: int
    lines: int
    median_lines: float
    comment_ratio: float
    private_ratio: float
    documented_ratio: float
    return_ratio: float

    @override
    def __str__(self) -> str:
        """One row, in the order of the table in `docs/experiments.md`."""
        ratios = (self.comment_ratio, self.private_ratio, self.documented_ratio, self.return_ratio)
        shown = " ".join(f"{name} {ratio:.1%}," for name, ratio in zip(_RATIO_NAMES, ratios, strict=True))
        return f"{self.modules} modules, median {self.median_lines:g} lines, {self.lines} lines, {shown[:-1]}"

    def complaints(self) -> Iterator[str]:
        """Give one line for each goal that is missed."""
        if self.modules > MOST_MODULES:
            yield f"{self.modules} modules, at most {MOST_MODULES}: merge those that only one other imports"
        if self.median_lines < LEAST_MEDIAN_LINES:
            yield f"median module {self.median_lines:g} lines, at least {LEAST_MEDIAN_LINES}: merge before you split"
        if self.lines > MOST_LINES:
            yield f"{self.lines} lines, at most {MOST_LINES}: remove a concept"


_RATIO_NAMES: Final = ("comments", "private functions", "functions with docstring", "docstrings opening with Return")


def shape_of(texts: Iterable[str]) -> Shape:
    """Measure the texts of modules."""
    modules = list(texts)
    lines = [line for text in modules for line in text.splitlines()]
    filled = [sum(bool(line.strip()) for line in text.splitlines()) for text in modules]
    functions = [node for text in modules for node in ast.walk(ast.parse(text)) if isinstance(node, _FUNCTION)]
    docstrings = [found for node in functions if (found := ast.get_docstring(node))]
    private = [node for node in functions if node.name.startswith("_") and not node.name.startswith("__")]
    returns = [text for text in docstrings if text.split()[0] in {"Return", "Returns"}]
    comments = sum(map(_comment_lines, modules))
    return Shape(
        modules=len(modules),
        lines=len(lines),
        median_lines=median(filled) if filled else 0,
        comment_ratio=comments / max(sum(filled), 1),
        private_ratio=len(private) / max(len(functions), 1),
        documented_ratio=len(docstrings) / max(len(functions), 1),
        return_ratio=len(returns) / max(len(docstrings), 1),
    )


def _comment_lines(text: str) -> int:
    """Count lines that are a comment alone."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens)


def oversized(path: Path, text: str) -> Iterator[str]:
    """Give one line for the module if it is too long, and one for each of its functions that is."""
    lines = len(text.splitlines())
    if lines > MOST_MODULE_LINES:
        yield f"{path}: {lines} lines, at most {MOST_MODULE_LINES}; split it by purpose"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _FUNCTION) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MOST_FUNCTION_LINES}"


def main(folders: list[str]) -> int:
    """Measure folders, or check the project; return 1 where it misses a limit."""
    if folders:
        for folder in folders:
            paths = sorted(Path(folder).rglob("*.py"))
            sys.stdout.write(f"{folder}: {shape_of(path.read_text(encoding='utf-8') for path in paths)}\n")
        return 0
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    texts = {path: path.read_text(encoding="utf-8") for name in listed.split("\0") if (path := Path(name)).is_file()}
    shape = shape_of(text for path, text in texts.items() if path.parts[0] != "tests")
    found = [line for path, text in texts.items() for line in oversized(path, text)]
    missed = [line if GOALS_BIND else f"{line} (an aim; no failure)" for line in shape.complaints()]
    sys.stdout.writelines(f"{line}\n" for line in (f"product: {shape}", *found, *missed))
    return 1 if found or (GOALS_BIND and missed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
