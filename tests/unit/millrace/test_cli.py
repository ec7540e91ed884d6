"""The command line as published: nothing else is there, and every failure has its exit code."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
import typer
from kafka.errors import KafkaTimeoutError

from contracts.errors import CheckFailed, DependencyDown, InvariantError, MillraceError, TransientError, UsageError
from millrace import cli
from millrace.doctor import Check
from service.logging import get_logger
from service.settings import Settings

PUBLISHED = (
    "demo", "up", "down", "status", "doctor", "lag", "ledger", "search", "encode", "releases ls", "releases show",
    "releases diff", "releases promote", "releases rollback", "releases evaluate", "pairs ls", "pairs import",
    "pairs export", "pairs stats", "pairs explain", "propensities", "freshness", "replay", "dlq ls", "dlq show",
    "dlq replay", "golden import", "shop export", "experiment run", "bench", "schema export", "erase", "simulate",
    "backtest", "world prepare", "world make", "product show", "explain", "base prepare", "catalog import",
    "catalog vectors", "audit", "arms", "golden ls", "golden remove",
)  # fmt: skip
"""Sections 7 and 8 of the published interfaces, worlds, two that say why, the base change, the catalogue, and more."""
ROOT: Final = Path(cli.__file__).parents[1]
WRITES_FILES = {"world prepare", "world make", "shop export", "schema export", "demo", "simulate", "backtest"}
ROOT_COMMAND: Any = typer.main.get_command(cli.app)

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder: no settings file, no deployment; lines are wide enough not to be broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs the command line and returns its exit code."""

    def call(*words: str) -> int:
        """Run `millrace` with these words."""
        monkeypatch.setattr(sys, "argv", ["millrace", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


def leaves(command: Any = ROOT_COMMAND, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each command that the help shows, by its full name."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from leaves(below, (*path, name))
        elif not below.hidden:
            yield " ".join((*path, name)), below


BUILT = dict(leaves())


def test_what_is_built_is_what_is_published() -> None:
    """The help shows each published command, and no other."""
    assert set(BUILT) == set(PUBLISHED)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["status", "--json"], ["--version"], ["--help"]])
def test_output_that_has_no_room_is_named_as_such(words: list[str], unbuffered: str) -> None:
    """`millrace status > file` on a full disk: the data folder, where there is room, is not to blame."""
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "millrace", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 4
    assert ended.stderr.startswith("error: disk full: cannot write standard output\nfix: ")


def test_standard_output_is_not_blamed_for_what_another_write_had_no_room_for() -> None:
    """The system names no file if a write fails; temporary files are in the data folder."""
    failure = cli.meaning(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert failure is not None
    assert failure.message == f"disk full: cannot write {Settings().data_dir}"


@pytest.mark.parametrize("name", sorted(BUILT))
def test_help_shows_an_example(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command ends with one line that can be typed."""
    assert run(*name.split(), "--help") == 0
    assert f"Example: millrace {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(BUILT) - WRITES_FILES))
def test_what_prints_can_print_json(name: str) -> None:
    """Every command that prints takes `--json`."""
    assert "--json" in {option for parameter in BUILT[name].params for option in parameter.opts}


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("searchh", "fridge"), "search"),
        (("ledgr",), "ledger"),
        (("releases", "lst"), "ls"),
        (("shop", "exprt"), "export"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(
    words: tuple[str, ...], nearest: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt command exits with 2 and suggests the one that was meant, in groups as well."""
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert (printed.out, f"Did you mean '{nearest}'" in printed.err) == ("", True)


def test_an_unknown_option_is_refused_with_the_nearest(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt option exits with 2 and suggests the one that was meant."""
    assert run("lag", "--jsno") == 2
    assert "--json" in capsys.readouterr().err


def test_an_impossible_value_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A number out of its range exits with 2 and names the option."""
    assert run("search", "fridge", "-k", "0") == 2
    assert "'-k'" in capsys.readouterr().err


def test_version(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The version is one line on stdout."""
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("millrace 0.")


def test_without_arguments_the_help_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody who types only `millrace` learns where to begin."""
    run()
    printed = capsys.readouterr()
    assert "Begin with `millrace demo`" in printed.out + printed.err


FAILURES = [
    (MillraceError("it broke"), 1),
    (InvariantError("it broke"), 1),
    (UsageError("it broke"), 2),
    (CheckFailed("it broke"), 3),
    (DependencyDown("it broke"), 4),
    (TransientError("it broke"), 4),
    (KafkaTimeoutError("it broke"), 4),
    (ExceptionGroup("tasks", [DependencyDown("it broke")]), 4),
    (FileNotFoundError(2, "it broke", "folder/file"), 2),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_every_expected_failure_has_its_exit_code(
    failure: Exception, code: int, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails is said in one line on stderr, with the exit code of its kind and no traceback."""

    def fail() -> None:
        """Stand for any command."""
        raise failure

    monkeypatch.setattr(cli, "app", fail)
    assert run("anything") == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "it broke" in printed.err.splitlines()[0]


def test_what_is_logged_does_not_stand_among_what_is_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who reads JSON from standard output reads nothing else there; warnings are on standard error."""

    def work() -> NoReturn:
        """Stand for any command."""
        get_logger().info("base_encoder_found")
        get_logger().warning("dependency_down")
        raise SystemExit(0)

    monkeypatch.setattr(cli, "app", work)
    assert run("anything") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "dependency_down" in printed.err
    assert "base_encoder_found" not in printed.err


def test_what_a_kafka_client_says_of_its_connections_is_not_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines, as of a request that the end of a command cancels, are noise: a failure is one line of ours."""

    def work() -> NoReturn:
        """Stand for any command."""
        logging.getLogger("kafka.cluster").error("Metadata refresh: failed Cancelled")
        raise SystemExit(0)

    monkeypatch.setattr(cli, "app", work)
    assert run("anything") == 0
    assert capsys.readouterr().err == ""


def loaded_under_ctrl_c(folder: Path, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run the command, with Ctrl-C pressed while it is loaded."""
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'millrace.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n",
        encoding="ascii",
    )
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)


@pytest.mark.parametrize("command", [["-m", "millrace"], ["-c", "from millrace.__main__ import main; main()"]])
def test_ctrl_c_while_the_command_is_loaded_leaves_no_traceback(command: list[str], tmp_path: Path) -> None:
    """Loading takes a second or more; who gives up meanwhile sees what they see later."""
    ended = loaded_under_ctrl_c(tmp_path, [sys.executable, *command, "--version"])
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


def test_a_command_that_is_to_survive_ctrl_c_does_so_while_it_is_loaded(tmp_path: Path) -> None:
    """A shell that ignores the signal, as for what runs behind it, means the commands that it starts."""
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "millrace", "--version"]
    ended = loaded_under_ctrl_c(tmp_path, ignoring)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_no_proxy_of_the_shell_is_asked_for_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a firm's proxy every command still reaches what runs here, and the firm's exemptions stay."""
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "shop.example")
    assert run("--version") == 0
    assert os.environ["NO_PROXY"].split(",") == ["shop.example", "127.0.0.1", "localhost", "::1"]


def test_an_unforeseen_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is not dressed up as the user's."""

    def fail() -> None:
        """Stand for any command."""
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_json_is_all_there_is_on_stdout(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing check exits with 3; stdout is the JSON document, the message goes to stderr."""
    found = [Check("disk", "ok", "fine"), Check("kafka", "fail", "[bold]silent[/bold]", "start it")]
    monkeypatch.setattr("millrace.doctor.examine", lambda _settings: found)
    assert run("doctor", "--json") == 3
    printed = capsys.readouterr()
    assert [check["status"] for check in json.loads(printed.out)["checks"]] == ["ok", "fail"]
    assert printed.err.startswith("error: failed: kafka")


def test_what_servers_say_is_never_markup(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in a cause are shown as they are."""
    monkeypatch.setattr("millrace.doctor.examine", lambda _settings: [Check("kafka", "warn", "[bold]silent", "[/x]")])
    assert run("doctor") == 0
    assert "[bold]silent" in capsys.readouterr().out


def test_without_a_deployment_the_fix_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no Kafka is named and none runs, the fix is how to start one."""
    assert run("lag") == 2
    assert "millrace up" in capsys.readouterr().err


def test_a_misspelt_setting_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that does not exist is not ignored by commands either."""
    monkeypatch.setenv("MILLRACE_KAFKA_BOOTSTRAPP", "localhost:9092")
    assert run("ledger") == 2
    assert "MILLRACE_KAFKA_BOOTSTRAP" in capsys.readouterr().err
