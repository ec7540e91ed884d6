"""`up --detach`, `status` and `down` as functions: a deployment in the background, asked and stopped from outside."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import DependencyDown, UsageError
from deploy.local import state
from millrace import processes

pytestmark = pytest.mark.redis


@pytest.fixture
def own(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Give the settings of a deployment of this test's own, stopped afterwards."""
    overrides = {"data_dir": tmp_path / "data"}
    yield overrides
    processes.down(overrides)


def test_a_detached_up_is_ready_when_it_returns_and_gone_after_down(own: dict[str, Any]) -> None:
    """Up returns with everything ready, status asks it live, down ends it, and then nothing claims to run."""
    seen: list[tuple[str, str]] = []
    report = processes.up_detached(
        own, processes=["redis"], on_progress=lambda name, change, detail: seen.append((name, change))
    )
    (redis,) = report["processes"]
    assert (redis["name"], redis["state"], redis["reasons"]) == ("redis", "ready", [])
    assert seen[-1] == ("up", "ready")
    assert processes.status(own) == report
    assert processes.down(own) == {"stopped": True, "data_dir": str(own["data_dir"])}
    assert not state.is_running(own["data_dir"])
    with pytest.raises(ProcessLookupError):
        os.kill(redis["pid"], 0)


def test_a_second_detached_up_is_refused(own: dict[str, Any]) -> None:
    """The message names the process that runs; that one is left alone."""
    processes.up_detached(own, processes=["redis"])
    with pytest.raises(UsageError, match=str(state.holder_pid(own["data_dir"]))):
        processes.up_detached(own, processes=["redis"])
    assert processes.status(own)["processes"][0]["state"] == "ready"


def test_a_detached_up_that_fails_says_why(own: dict[str, Any]) -> None:
    """The cause, the fix and the kind of failure of the background process reach the caller."""
    with pytest.raises(DependencyDown, match="MILLRACE_REDIS_URL") as raised:
        processes.up_detached({**own, "redis_url": "redis://127.0.0.1:1/0"}, processes=["redis"])
    assert "unset that" in raised.value.fix
    assert not state.is_running(own["data_dir"])


def test_a_detached_up_with_a_wrong_name_is_a_usage_error(own: dict[str, Any]) -> None:
    """An unknown process is refused with the known ones, also through the background."""
    with pytest.raises(UsageError, match="shearch"):
        processes.up_detached(own, processes=["shearch"])


def test_status_asks_each_process_now(own: dict[str, Any]) -> None:
    """A server that froze after it was ready is shown as unready with the reason."""
    pid = processes.up_detached(own, processes=["redis"])["processes"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    (redis,) = processes.status(own)["processes"]
    os.kill(pid, signal.SIGCONT)
    assert redis["state"] == "unready"
    assert "Redis does not answer" in redis["reasons"][0]


def test_where_nothing_runs_everything_is_stopped(own: dict[str, Any]) -> None:
    """Status and down are no errors where nothing runs; each process is listed."""
    rows = processes.status(own)["processes"]
    assert {row["state"] for row in rows} == {"stopped"}
    assert {"kafka", "redis", "qdrant", "collector", "streams", "trainer", "indexer", "search", "page"} == {
        row["name"] for row in rows
    }
    assert processes.down(own)["stopped"] is False


def test_status_asks_what_the_settings_name_where_no_up_runs(own: dict[str, Any]) -> None:
    """Beside containers or other machines, the processes that MILLRACE_SCRAPE names are asked."""
    rows = processes.status({**own, "scrape": "search=http://127.0.0.1:1"})["processes"]
    assert [(row["name"], row["state"]) for row in rows] == [("search", "unready")]
    assert "does not answer" in rows[0]["reasons"][0]
