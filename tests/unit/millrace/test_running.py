"""Commands that start, stop and ask after a deployment: what they refuse, and what they print where."""

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from deploy.local.state import ProcessState, UpState
from deploy.local.supervised_process import State
from millrace import asking, processes, running

REPORT = {"processes": [{"name": "search", "state": "ready", "pid": 7, "port": 8081, "restarts": 0, "reasons": []}]}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, where no deployment is."""
    monkeypatch.chdir(tmp_path)


def test_up_runs_one_or_three_brokers() -> None:
    """Two voters would be worse than one."""
    with pytest.raises(UsageError, match="--brokers 2"):
        running.up(brokers=2)


def test_up_prints_its_json_when_all_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the foreground, too, the document is there before the command ends; progress goes to stderr."""
    seen: list[str] = []

    def up(**options: Any) -> None:
        """Be ready, then go on."""
        options["on_progress"]("search", "starting", "")
        options["on_ready"](REPORT)
        seen.append(capsys.readouterr().out)

    monkeypatch.setattr(processes, "up", up)
    running.up(json=True)
    assert json.loads(seen[0]) == REPORT


@pytest.mark.parametrize(("stopped", "words"), [(True, "stopped"), (False, "nothing ran")])
def test_down_says_what_it_did(
    stopped: bool, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody who stops nothing learns so; `--json` says it on stdout."""
    monkeypatch.setattr(processes, "down", lambda: {"stopped": stopped, "data_dir": "/data"})
    running.down()
    assert words in capsys.readouterr().err
    running.down(json=True)
    assert json.loads(capsys.readouterr().out) == {"stopped": stopped, "data_dir": "/data"}


def test_status_where_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Every process is listed as stopped; what cannot be known is empty, and that is no error."""
    running.status(json=True)
    report = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in report["processes"]} == {"stopped"}
    assert (report["releases"], report["lag"], report["unknown"]) == ({}, {}, {})
    unmeasured = {"p50": None, "p99": None}
    assert report["freshness_s"] == {"click_to_search": unmeasured, "product_to_search": unmeasured}


def test_where_nothing_runs_status_says_what_starts_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new user finds the next command; nobody else is told."""
    running.status()
    assert "`millrace up`" in capsys.readouterr().err
    monkeypatch.setattr(
        running, "status_report", lambda: {**REPORT, "releases": {}, "lag": {}, "unknown": {}, "freshness_s": {}}
    )
    running.status()
    assert "`millrace up`" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "told"),
    [(State.STARTING, ["trainer: nothing is read"]), (State.BACKING_OFF, ["exit code 1", "trainer: nothing is read"])],
)
def test_what_a_starting_process_waits_for_is_told_once(
    state: State, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor asked the same a moment ago; why a process ended is told beside what it says now."""
    detail = "exit code 1" if state is State.BACKING_OFF else "trainer: the base encoder is being loaded"
    process = ProcessState("trainer", state.value, 7, 9102, 0, detail)
    monkeypatch.setattr(processes, "read_state", lambda _folder: UpState(1, (process,)))
    monkeypatch.setattr(processes, "scrape_targets", lambda _settings: {"trainer": "http://127.0.0.1:9102"})
    monkeypatch.setattr(processes, "http_problem", lambda _url: "trainer: nothing is read")
    (row,) = processes.status()["processes"]
    assert row["reasons"] == told


def test_status_outlives_a_kafka_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status is asked most when something is down: the rest is still shown, and what is missing is said."""
    monkeypatch.setenv("MILLRACE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr(asking, "KAFKA_WAIT_S", 0.0)
    running.status()
    printed = capsys.readouterr()
    assert "stopped" in printed.out
    assert "kafka not known: Kafka does not answer at 127.0.0.1:1" in printed.out


def test_status_is_a_table_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Releases, lag and freshness stand below the processes, each where it is known."""
    report: dict[str, Any] = {
        **REPORT,
        "releases": {"serving": {"query_release": 7, "product_release": 2}},
        "lag": {
            "join": {"records": 1_234, "held": 0, "worst_partition": 0},
            "indexer": {"records": None, "held": None, "worst_partition": None},
        },
        "unknown": {"catalog": "Kafka does not know it"},
        "freshness_s": {"click_to_search": {"p50": 9.0, "p99": 21.5}, "product_to_search": {"p50": None, "p99": None}},
    }
    monkeypatch.setattr(running, "status_report", lambda: report)
    running.status()
    printed = capsys.readouterr().out
    assert "8081" in printed
    assert "in force: query release 7, product release 2" in printed
    assert "lag of join: 1,234 records" in printed
    assert "lag of indexer: not known" in printed
    assert "catalog not known: Kafka does not know it" in printed
    assert "click to search: p50 9.0 s, p99 21.5 s" in printed
    assert "product to search" not in printed


def test_schemas_are_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are there, and the folder is named on stderr."""
    running.schema_export(tmp_path / "schemas")
    assert list((tmp_path / "schemas").glob("*.json"))
    assert str(tmp_path / "schemas") in capsys.readouterr().err.replace("\n", "")
