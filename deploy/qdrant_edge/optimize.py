"""A process of its own that builds the graph of a closed shard: `python -m deploy.qdrant_edge.optimize PARENT FOLDER`.

`optimize` keeps the interpreter's lock for its whole time, so no process that answers can call it. This one takes
little from whoever else wants the processors, and ends with its parent.
"""

import os
import sys
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from deploy.local.supervised_process import die_with_parent

POLITENESS: Final = 10
"""Niceness: about a tenth of a processor that others want as well; with the least of all it might never be done."""


def main(argv: list[str]) -> None:
    """End with the parent, be polite, and build."""
    parent, folder = argv
    die_with_parent(int(parent))
    os.nice(POLITENESS)
    build(Path(folder))


def build(folder: Path) -> None:
    """Build the graph of a closed shard as its own configuration asks for it, and write it out."""
    shard = edge.EdgeShard.load(str(folder))
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main(sys.argv[1:])
