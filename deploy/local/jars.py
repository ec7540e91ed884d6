"""Kafka's jars: fetched once by Maven from the committed pom, each checked against a committed checksum.

They lie in .cache/kafka/VERSION, whole or not at all: a folder that is not complete never gets that name. Only the
standard library is used, because this runs before anything is installed.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

KAFKA_VERSION: Final = "4.3.0"
REPOSITORY: Final = Path(__file__).resolve().parents[2]
JAR_FOLDER: Final = REPOSITORY / ".cache" / "kafka" / KAFKA_VERSION
POM: Final = Path(__file__).with_name("kafka") / "pom.xml"
CHECKSUMS: Final = POM.with_name("checksums.txt")


class JarError(Exception):
    """Kafka's jars could not be brought here, or are not the ones that were locked."""


def read_checksums(path: Path = CHECKSUMS) -> dict[str, str]:
    """Return file name -> sha256 of every jar."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: digest for digest, name in rows}


def verify(folder: Path, checksums: dict[str, str]) -> None:
    """Check that a folder holds exactly the jars that were locked.

    Raises:
        JarError: one is missing, one too many, or one differs.
    """
    found = {path.name: path for path in folder.glob("*.jar")}
    if missing := sorted(checksums.keys() - found.keys()):
        raise JarError(f"{folder} lacks {missing[0]} ({len(missing)} missing)")
    if extra := sorted(found.keys() - checksums.keys()):
        raise JarError(f"{folder} holds {extra[0]}, which is not in {CHECKSUMS.name}")
    for name, path in sorted(found.items()):
        if hashlib.sha256(path.read_bytes()).hexdigest() != checksums[name]:
            raise JarError(f"{path} is not the file that was locked: its sha256 differs from {CHECKSUMS.name}")


def are_complete(folder: Path = JAR_FOLDER) -> bool:
    """Return whether the jars are here; their contents were checked when they came."""
    return folder.is_dir() and {path.name for path in folder.glob("*.jar")} == read_checksums().keys()


def fetch(target: Path = JAR_FOLDER, *, maven: str = "mvn") -> None:
    """Bring the jars here by Maven, check them and put them in place.

    Raises:
        JarError: Maven failed, or what came is not what was locked.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as incoming:
        folder = Path(incoming) / "jars"
        copy_by_maven(folder, maven=maven)
        verify(folder, read_checksums())
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)


def copy_by_maven(folder: Path, *, maven: str = "mvn") -> None:
    """Copy every jar of the pom into a folder.

    Raises:
        JarError: with Maven's own first error.
    """
    plugin = "org.apache.maven.plugins:maven-dependency-plugin"  # in the version that the pom pins
    goal = [f"{plugin}:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    command = [maven, "-q", "-B", "-ntp", "-Dstyle.color=never", "-f", str(POM), *goal]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise JarError(f"Maven failed: {_first_error(done.stdout + done.stderr)}")


def _first_error(output: str) -> str:
    """Return the line of Maven's output that says what is wrong."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    errors = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return next(filter(None, errors or lines), "no output")[:600]


def write_checksums(folder: Path, path: Path = CHECKSUMS) -> None:
    """Lock the jars of a folder; part of `make lock`."""
    rows = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in sorted(folder.glob("*.jar"))]
    head = f"# sha256 of every jar of Kafka {KAFKA_VERSION} and what it needs, written by `make lock` from pom.xml."
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
