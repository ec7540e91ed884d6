"""The size guard of `make check`: a module above 400 lines or a function above 60 wants to be two.

Small pieces can be read whole; where one grows past the limit, a second purpose has usually crept in.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_MODULE_LINES = 400
MOST_FUNCTION_LINES = 60


def oversized(path: Path, text: str) -> Iterator[str]:
    """Give one line for the module if it is too long, and one for each of its functions that is."""
    lines = len(text.splitlines())
    if lines > MOST_MODULE_LINES:
        yield f"{path}: {lines} lines, at most {MOST_MODULE_LINES}; split it by purpose"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MOST_FUNCTION_LINES}"


def main() -> int:
    """Check every Python file that git knows or would take; return 1 where one is too long."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name]
    found = [line for path in paths if path.exists() for line in oversized(path, path.read_text(encoding="utf-8"))]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
