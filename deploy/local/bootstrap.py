"""`make setup` installs all that Millrace needs on a machine that has only Python and make; `make lock` pins it.

Missing system packages if that is allowed, a virtual environment from a lock with hashes, Kafka's jars from a list with
checksums. Each step runs only when it has something to do, so that the second time takes a moment. Only the standard
library is used.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local import REPOSITORY, kafka_jars

LEAST: Final = (3, 11)
BELOW: Final = (3, 14)
HEARTBEAT_S: Final = 15.0
ATTEMPTS: Final = 2  # registries hiccup
SHOWN_LINES: Final = 4
APT_LOCK_WAIT_S: Final = 300  # a fresh machine may be updating itself
SYSTEM_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
LOCKED_EXTRAS: Final = {
    "all": ("all", "dev"),
    "full": ("all",),
    "light": ("collector", "streams", "cli"),
}
"""Lock -> extras of pyproject.toml: the developer's machine, and the two container images."""


class SetupError(Exception):
    """Set-up cannot go on; the message is one line with the fix."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that the system must have: in words, as Debian packages (the best first), as a Homebrew formula."""

    what: str
    debian: tuple[str, ...]
    brew: str


JAVA: Final = Need(
    "Java 17 or newer",
    ("openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless"),
    "openjdk@17",
)
MAVEN: Final = Need("Maven", ("maven",), "maven")
REDIS: Final = Need("redis-server", ("redis-server",), "redis")


class Layout:
    """Where set-up finds and puts things in a repository."""

    def __init__(self, root: Path = REPOSITORY) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.stamp = self.venv / "millrace-setup"  # holds the fingerprint of what was installed
        self.cache = root / ".cache"
        self.log = self.cache / "setup.log"

    def lock(self, name: str) -> Path:
        """A lock file with hashes."""
        return self.root / "locks" / f"{name}.txt"

    def fingerprint(self) -> str:
        """Summarise what the packages depend on: when it changes they must be installed again."""
        digest = hashlib.sha256(f"{sys.version_info[:2]}\n".encode())
        for path in (self.lock("uv"), self.lock("all"), self.root / "pyproject.toml"):
            digest.update(path.read_bytes())
        return digest.hexdigest()


def say(text: str) -> None:
    """Print one line of progress."""
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


def run(layout: Layout, command: Sequence[str | Path]) -> None:
    """Run one command, and again if it fails the first time; what it says goes into the log.

    Raises:
        SetupError: it failed each time; the message holds what it said last.
    """
    begin = layout.log.stat().st_size if layout.log.exists() else 0
    for _ in range(ATTEMPTS):
        if _run_once(layout, [str(part) for part in command]) == 0:
            return
    words = [Path(part).name if os.sep in str(part) else str(part) for part in command]
    shown = " ".join(word for word in words if not word.startswith("-"))[:80]
    said = layout.log.read_bytes()[begin:].decode("utf-8", "replace").splitlines()[1:]
    last = " | ".join([line.strip() for line in said if line.strip()][-SHOWN_LINES:])[:600]
    raise SetupError(f"{shown} failed: {last or 'it said nothing'} (all of it: {layout.log})")


def _run_once(layout: Layout, command: list[str]) -> int:
    """Run a command and return its exit code, with a line now and then that shows that it lives."""
    started = time.monotonic()
    with layout.log.open("ab") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=layout.root
            )
        except OSError as error:
            raise SetupError(f"cannot run {command[0]}: {error.strerror}") from error
        with process:
            while True:
                try:
                    return process.wait(HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    say(f"    still at it, {time.monotonic() - started:.0f} s")


def venv_is_good(layout: Layout) -> bool:
    """Tell whether the virtual environment works, belongs to this folder and to a Python that we support."""
    try:
        made_for = (layout.venv / "bin" / "activate").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if str(layout.venv) not in made_for and str(layout.venv.resolve()) not in made_for:
        return False  # it was moved: its scripts point to where it was
    question = f"import sys; sys.exit(not ({LEAST} <= sys.version_info[:2] < {BELOW}))"
    try:
        return subprocess.run([layout.python, "-I", "-c", question], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def packages_are_installed(layout: Layout) -> bool:
    """Tell whether the virtual environment holds what the locks say."""
    try:
        return layout.stamp.read_text(encoding="ascii") == layout.fingerprint()
    except OSError:
        return False


def venv_need(version: tuple[int, int]) -> Need:
    """Name what makes virtual environments for a version of Python."""
    name = f"python{version[0]}.{version[1]}"
    return Need(f"{name}'s venv", (f"{name}-venv", "python3-venv"), f"python@{version[0]}.{version[1]}")


def missing_packages(layout: Layout) -> list[Need]:
    """List what the steps to come need from the system and do not find."""
    needs = []
    if not venv_is_good(layout) and importlib.util.find_spec("ensurepip") is None:
        needs.append(venv_need(sys.version_info[:2]))
    if kafka_jars.find_java() is None:
        needs.append(JAVA)
    if not kafka_jars.are_complete() and shutil.which("mvn") is None:
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


def install_system_packages(layout: Layout, needs: Sequence[Need]) -> None:
    """Install what the system lacks from its own sources, or say what to install.

    Raises:
        SetupError: it may not be installed here, or an installation failed.
    """
    before = privilege()
    if before is None:
        raise SetupError(how_to_install(needs))
    wait = f"DPkg::Lock::Timeout={APT_LOCK_WAIT_S}"
    apt = [*before, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", wait]
    run(layout, [*apt, "update"])
    packages = [next((name for name in need.debian if _is_known(name)), need.debian[-1]) for need in needs]
    run(layout, [*apt, "install", "-y", "--no-install-recommends", *packages])


def _is_known(package: str) -> bool:
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


def make_venv(layout: Layout) -> None:
    """Make the virtual environment anew."""
    if layout.venv.is_symlink():
        layout.venv.unlink()
    elif layout.venv.exists():
        shutil.rmtree(layout.venv)
    run(layout, [sys.executable, "-m", "venv", layout.venv])


def install_packages(layout: Layout) -> None:
    """Install the locked packages and Millrace itself, which stays editable."""
    pip: list[str | Path] = [layout.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    run(layout, [*pip, "--require-hashes", "-r", layout.lock("uv")])
    uv: list[str | Path] = [layout.venv / "bin" / "uv", "pip", "install", "--python", layout.python]
    run(layout, [*uv, "--require-hashes", "-r", layout.lock("all")])
    run(layout, [*uv, "--no-deps", "--no-build-isolation", "-e", layout.root])
    layout.stamp.write_text(layout.fingerprint(), encoding="ascii")


@contextmanager
def one_at_a_time(layout: Layout) -> Iterator[None]:
    """Keep set-ups of one folder apart: wait while another is under way."""
    layout.cache.mkdir(exist_ok=True)
    with (layout.cache / "setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this folder")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def timed(name: str, step: Callable[[], None]) -> None:
    """Run one step, with a line before and after."""
    say(f"{name} ...")
    started = time.monotonic()
    step()
    say(f"    done in {time.monotonic() - started:.1f} s")


def set_up(layout: Layout) -> None:
    """Run each step that has something to do.

    Raises:
        SetupError: one failed.
        JarError: Kafka's jars could not be fetched, or are not the locked ones.
    """
    if needs := missing_packages(layout):
        names = ", ".join(need.what for need in needs)
        timed(f"system packages: {names}", lambda: install_system_packages(layout, needs))
        if still := missing_packages(layout):
            raise SetupError(how_to_install(still))
    if not venv_is_good(layout):
        version = ".".join(str(part) for part in sys.version_info[:2])
        timed(f"virtual environment with Python {version}", lambda: make_venv(layout))
    if not packages_are_installed(layout):
        timed("Python packages (some minutes and 6 GB the first time)", lambda: install_packages(layout))
    if not kafka_jars.are_complete():
        timed(f"Apache Kafka {kafka_jars.KAFKA_VERSION}", kafka_jars.fetch)


def configure_uv(layout: Layout) -> None:
    """Let uv work behind a firm's proxy, on slow lines and for users without a home folder; what is set stays."""
    os.environ.setdefault("UV_HTTP_TIMEOUT", "180")
    if SYSTEM_CERTIFICATES.exists():
        os.environ.setdefault("UV_SYSTEM_CERTS", "true")
    if not os.environ.get("HOME"):
        os.environ.setdefault("UV_CACHE_DIR", str(layout.cache / "uv"))


def lock_everything(layout: Layout, options: Sequence[str]) -> None:
    """Pin every package with its hashes, and Kafka's jars with their checksums.

    Locks name no registry: an installation uses the one that the machine is set up for. A version that a lock already
    has stays, unless `--upgrade` is among the options.
    """
    _compile_lock(layout, "uv", "locks/uv.in", options)
    for name, extras in LOCKED_EXTRAS.items():
        chosen = [option for extra in extras for option in ("--extra", extra)]
        same = ["--constraint", "locks/all.txt"] if name != "all" else options
        _compile_lock(layout, name, "pyproject.toml", [*chosen, *same])
    with tempfile.TemporaryDirectory() as folder:
        kafka_jars.copy_by_maven(Path(folder))
        kafka_jars.write_checksums(Path(folder))


def _compile_lock(layout: Layout, name: str, source: str, options: Sequence[str]) -> None:
    form = ["--generate-hashes", "--universal", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    uv = [str(layout.venv / "bin" / "uv"), "pip", "compile", *form, "--custom-compile-command", "make lock", *options]
    target = str(layout.lock(name).relative_to(layout.root))
    subprocess.run([*uv, source, "-o", target], check=True, cwd=layout.root)


def main(arguments: Sequence[str]) -> int:
    """Set up, or pin with `lock OPTIONS...`; every expected failure is one line and exit code 4."""
    layout, started = Layout(), time.monotonic()
    configure_uv(layout)
    try:
        if arguments[:1] == ["lock"]:
            lock_everything(layout, arguments[1:])
        else:
            with one_at_a_time(layout):
                set_up(layout)
    except (SetupError, kafka_jars.JarError) as error:
        say(str(error))
        return 4
    except subprocess.CalledProcessError as error:
        return error.returncode  # it said itself what is wrong
    except OSError as error:
        say(f"{error.filename or layout.root}: {error.strerror}; is the disk full, or the folder not writable?")
        return 4
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130
    say(f"in place ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
