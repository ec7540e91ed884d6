"""The Makefile and CI: the targets that people are promised, described, and refused by name where not built."""

import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
READ_BY_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKEFILES", "GNUMAKEFLAGS", "ARGS", "PYTHON"}
TARGETS = [
    "setup",
    "format",
    "lint",
    "types",
    "imports",
    "test",
    "check",
    "demo",
    "up",
    "down",
    "bench",
    "faults",
    "soak",
    "help",
    "lock",
]


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make in the repository, apart from the make that may run these tests and from the variables it reads."""
    environ = {name: value for name, value in os.environ.items() if name not in READ_BY_MAKE}
    return subprocess.run(
        ["make", *arguments], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )


def test_help_describes_every_target() -> None:
    """`make` alone lists each target with what it does."""
    described = dict(re.findall(r"^make (\w+) +(.+)$", make().stdout, flags=re.MULTILINE))
    assert sorted(described) == sorted(TARGETS)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", ".venv/bin/millrace demo --seed 3"),
        ("soak", ".venv/bin/python -m tests.faults.soak --seed 3"),
        ("test", "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --seed 3"),
        ("up", ".venv/bin/millrace up --seed 3"),
        ("bench", ".venv/bin/millrace bench --seed 3"),
    ],
)
def test_targets_set_up_first_and_pass_arguments_on(target: str, command: str) -> None:
    """Each command comes after set-up and gets what stands in ARGS."""
    lines = make("-n", target, "ARGS=--seed 3").stdout.splitlines()
    assert "deploy/local/setup.sh" in lines[0]
    assert lines[-1] == command


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    """What CI runs is what the README tells people to run."""
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == ["set -eu", 'cd "$(dirname "$0")/.."', "make test"]
