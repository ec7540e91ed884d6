"""`make lock`: pin every package with its hashes, and Kafka's jars with their checksums.

Locks name no registry: an installation uses the one that the machine is set up for.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from deploy.local import jars
from deploy.local.bootstrap import Layout

EXTRAS: Final = {
    "all": ("all", "dev"),
    "full": ("all",),
    "light": ("collector", "streams", "cli"),
}
"""Lock -> extras of pyproject.toml: the developer's machine, and the two container images."""

OPTIONS: Final = ("--generate-hashes", "--universal", "--no-emit-index-url", "--no-emit-find-links", "--quiet")


def compile_lock(layout: Layout, name: str, source: Path, *options: str) -> None:
    """Write one lock; versions that it already has stay unless `--upgrade` is among the options."""
    command = [str(layout.venv / "bin" / "uv"), "pip", "compile", *OPTIONS, "--custom-compile-command", "make lock"]
    target = str(layout.lock(name).relative_to(layout.root))
    subprocess.run(
        [*command, *options, str(source.relative_to(layout.root)), "-o", target], check=True, cwd=layout.root
    )


def main(arguments: list[str]) -> int:
    """Write every lock; the arguments, such as `--upgrade`, go to the compiler."""
    layout = Layout()
    compile_lock(layout, "uv", layout.root / "locks" / "uv.in", *arguments)
    for name, extras in EXTRAS.items():
        chosen = [option for extra in extras for option in ("--extra", extra)]
        same = ["--constraint", "locks/all.txt"] if name != "all" else arguments
        compile_lock(layout, name, layout.root / "pyproject.toml", *chosen, *same)
    with tempfile.TemporaryDirectory() as folder:
        jars.copy_by_maven(Path(folder))
        jars.write_checksums(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
