"""What set-up needs from the operating system: found, installed if that is allowed, or else named in one line.

Only the standard library is used, because this runs before anything is installed.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.local.kafka_jars import find_java

Run = Callable[[Sequence[str]], None]
"""Runs a command and shows progress; raises if it fails."""

JAVA_CANDIDATES: Final = ("openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless")
LOCK_WAIT_S: Final = 300  # a fresh machine may be updating itself


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that the system must have.

    Args:
        what: in words.
        debian: package names in order of preference.
        brew: the formula on macOS.
    """

    what: str
    debian: tuple[str, ...]
    brew: str


JAVA: Final = Need("Java 17 or newer", JAVA_CANDIDATES, "openjdk@17")
MAVEN: Final = Need("Maven", ("maven",), "maven")
REDIS: Final = Need("redis-server", ("redis-server",), "redis")


def venv_need(version: tuple[int, int]) -> Need:
    """Name what makes virtual environments for a version of Python."""
    name = f"python{version[0]}.{version[1]}"
    return Need(f"{name}'s venv", (f"{name}-venv", "python3-venv"), f"python@{version[0]}.{version[1]}")


def missing(*, venv: Need | None, jars: bool) -> list[Need]:
    """List what the system lacks.

    Args:
        venv: what makes a virtual environment, if one must be made and cannot be.
        jars: True if Kafka's jars must be fetched.
    """
    needs = [venv] if venv is not None else []
    if find_java() is None:
        needs.append(JAVA)
    if jars and shutil.which("mvn") is None:
        needs.append(MAVEN)
    if shutil.which("redis-server") is None:
        needs.append(REDIS)
    return needs


def privilege() -> list[str] | None:
    """Return what to put before a command that installs packages, or None if we may not install any."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return ["sudo", "-n"] if asked.returncode == 0 else None


def install(needs: Iterable[Need], before: Sequence[str], run: Run) -> None:
    """Install packages from the system's own sources.

    Args:
        needs: what is missing.
        before: as `privilege` returned it.
        run: runs one command.
    """
    apt = [
        *before,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-q",
        "-o",
        f"DPkg::Lock::Timeout={LOCK_WAIT_S}",
    ]
    run([*apt, "update"])
    packages = [next((name for name in need.debian if _is_known(name)), need.debian[-1]) for need in needs]
    run([*apt, "install", "-y", "--no-install-recommends", *packages])


def _is_known(package: str) -> bool:
    """Ask whether the system's sources have an installable package of that name."""
    shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, check=False)
    lines = shown.stdout.decode("utf-8", "replace").splitlines()
    candidates = [line.split(":", 1)[1].strip() for line in lines if "Candidate:" in line]
    return bool(candidates) and candidates[0] != "(none)"


def how_to_install(needs: Sequence[Need]) -> str:
    """Say in one line what to install by hand."""
    debian = " ".join(need.debian[-1] for need in needs)
    brew = " ".join(need.brew for need in needs)
    return (
        f"install {', '.join(need.what for need in needs)} (Debian and Ubuntu: sudo apt-get install {debian}; "
        f"macOS: brew install {brew}; or by Docker, which needs none of them: docker compose up)"
    )
