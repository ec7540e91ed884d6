"""What runs Kafka here: a Java that is new enough, and Kafka's jars.

Maven fetches the jars once, from the committed pom, and each is checked against a committed checksum. They lie in
.cache/kafka/VERSION, whole or not at all. Only the standard library is used, because set-up runs before anything is
installed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from deploy.local import REPOSITORY

LEAST_JAVA: Final = 17
KAFKA_VERSION: Final = "4.3.0"
JAR_FOLDER: Final = REPOSITORY / ".cache" / "kafka" / KAFKA_VERSION
POM: Final = Path(__file__).with_name("kafka") / "pom.xml"
CHECKSUMS: Final = POM.with_name("checksums.txt")


class JarError(Exception):
    """Kafka's jars cannot be fetched, or are not the locked ones; the message is one line."""


def find_java() -> str | None:
    """Look for a Java of version 17 or newer, in JAVA_HOME and then in PATH."""
    home = os.environ.get("JAVA_HOME")
    candidates = [shutil.which("java", path=os.path.join(home, "bin")) if home else None, shutil.which("java")]
    return next((java for java in candidates if java is not None and _version(java) >= LEAST_JAVA), None)


def _version(java: str) -> int:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    if done.returncode != 0:  # macOS has a stub that only asks to install one
        return 0
    return main_version((done.stderr + done.stdout).decode("utf-8", "replace"))


def main_version(output: str) -> int:
    """Read the main version from what `java -version` printed.

    >>> main_version('openjdk version "17.0.15" 2025-04-15'), main_version('java version "1.8.0_391"')
    (17, 8)
    """
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found[1]) if found else 0


def read_checksums() -> dict[str, str]:
    """Return file name -> sha256 of every jar."""
    rows = (line.split() for line in CHECKSUMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {name: digest for digest, name in rows}


def write_checksums(folder: Path) -> None:
    """Lock the jars of a folder; part of `make lock`."""
    rows = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in sorted(folder.glob("*.jar"))]
    head = f"# sha256 of every jar of Kafka {KAFKA_VERSION} and what it needs, written by `make lock` from pom.xml."
    CHECKSUMS.write_text("\n".join([head, *rows, ""]), encoding="utf-8")


def verify(folder: Path, checksums: dict[str, str]) -> None:
    """Check that a folder holds exactly the locked jars."""
    found = {path.name: path for path in folder.glob("*.jar")}
    if missing := sorted(checksums.keys() - found.keys()):
        raise JarError(f"{folder} lacks {missing[0]} ({len(missing)} missing)")
    if extra := sorted(found.keys() - checksums.keys()):
        raise JarError(f"{folder} holds {extra[0]}, which is not in {CHECKSUMS.name}")
    for name, path in sorted(found.items()):
        if hashlib.sha256(path.read_bytes()).hexdigest() != checksums[name]:
            raise JarError(f"{path} is not the file that was locked: its sha256 differs from {CHECKSUMS.name}")


def are_complete() -> bool:
    """Return whether the jars are here; their contents were checked when they came."""
    return {path.name for path in JAR_FOLDER.glob("*.jar")} == read_checksums().keys()


def fetch(target: Path = JAR_FOLDER, *, maven: str = "mvn") -> None:
    """Fetch the jars by Maven, check them and put them in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as incoming:
        folder = Path(incoming) / "jars"
        copy_by_maven(folder, maven=maven)
        verify(folder, read_checksums())
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)


def copy_by_maven(folder: Path, *, maven: str = "mvn") -> None:
    """Copy every jar of the pom into a folder."""
    plugin = "org.apache.maven.plugins:maven-dependency-plugin"  # in the version that the pom pins
    goal = [f"{plugin}:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    command = [maven, "-q", "-B", "-ntp", "-Dstyle.color=never", "-f", str(POM), *goal]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise JarError(f"Maven failed: {_first_error((done.stdout + done.stderr).decode('utf-8', 'replace'))}")


def _first_error(output: str) -> str:
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    errors = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return next(filter(None, errors or lines), "no output")[:600]
