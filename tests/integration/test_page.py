"""The page as a process on a real Kafka: ready within seconds, honest while Kafka is away, gone when asked."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.local.supervisor import LocalMillrace
from service.kafka import ensure_topics
from streams.registry import group_topics
from tests.support.poll import eventually
from tests.support.ports import free_port

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
KAFKA_IS_DOWN = 'millrace_dependency_up{dependency="kafka"} 0.0'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMillrace]:
    """Give a Kafka of these tests' own, which may be stopped, with every topic and nothing on it."""
    with LocalMillrace(processes=["kafka"], data_dir=tmp_path_factory.mktemp("page-kafka"), environ={}) as running:
        ensure_topics(running.settings)
        yield running


class Page:
    """A page process.

    Args:
        environ: its settings.
        log_path: where its lines go.
        port: where it answers.
    """

    def __init__(self, environ: dict[str, str], log_path: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "millrace.page"],
                env={**os.environ, **environ, "MILLRACE_PORT": str(port), "MILLRACE_LOG_FORMAT": "json"},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body; 0 where nothing answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - our own http:// address
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def is_ready(self) -> bool:
        """Return whether it says that it is ready."""
        return self.get("/ready")[0] == 200

    def lines(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [orjson.loads(line) for line in self.log_path.read_bytes().splitlines()]

    def stop(self) -> int:
        """Ask it to end as a supervisor does and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


StartPage = Callable[[], Page]


@pytest.fixture
def start_page(broker: LocalMillrace, tmp_path: Path) -> Iterator[StartPage]:
    """Give a function that starts a page in front of that Kafka and returns it ready; all are ended afterwards."""
    started: list[Page] = []

    def start() -> Page:
        """Start one more."""
        started.append(Page(broker.env, tmp_path / f"page-{len(started)}.log", free_port()))
        eventually(started[-1].is_ready, timeout_s=60)
        return started[-1]

    yield start
    for page in started:
        page.process.kill()
        page.process.wait()


@pytest.fixture
def page(start_page: StartPage) -> Page:
    """Give a page that is ready."""
    return start_page()


def test_the_page_answers_within_seconds(page: Page) -> None:
    """It becomes ready, serves the document of an empty deployment and its metrics."""
    status, body = page.get("/api/snapshot")
    view = orjson.loads(body)
    assert (status, view["trouble"]) == (200, None)
    assert (view["ledger"]["events"]["balance"], view["ledger"]["searches"]["closed"]) == (0, 0)
    assert len(view["lag"]["partitions"]) == 4 * sum(map(len, group_topics().values()))
    assert view["releases"] == {"serving": None, "releases": [], "promoted": 0, "decisions": []}
    metrics = page.get("/metrics")[1].decode()
    assert 'millrace_ledger_balance_records{ledger="events"} 0.0' in metrics
    assert 'millrace_dependency_up{dependency="kafka"} 1.0' in metrics


def test_sigterm_ends_it_cleanly(page: Page) -> None:
    """Within the supervisor's patience, with exit code 0 and no failure of ours in its log."""
    assert page.stop() == 0
    events = [line["event"] for line in page.lines()]
    assert events[-1] == "ended"
    assert not {"crashed", "stopped", "stop_took_too_long"} & set(events)


def test_a_kafka_that_goes_away_is_said_and_waited_for(start_page: StartPage, broker: LocalMillrace) -> None:
    """Not ready with the reason, alive, nothing shown as if it held; a stop ends it, and another is current again."""
    page, stopped = start_page(), start_page()
    broker.stop("kafka")
    try:
        eventually(lambda: not page.is_ready() and not stopped.is_ready(), timeout_s=60)

        def without_kafka() -> bool:
            """All of Kafka is unknown, not only the part that was asked first, and the reason is that of the view."""
            (reason,) = orjson.loads(page.get("/ready")[1])["reasons"]
            status, body = page.get("/api/snapshot")
            view = orjson.loads(body)
            shown = (status, f"view: {view['trouble']}"[:11], view["ledger"]["events"]["balance"])
            return shown == (200, reason[:11], None) and set(view["unknown"]) == {"kafka"}

        eventually(without_kafka, timeout_s=60)
        assert page.get("/live")[0] == 200
        eventually(lambda: KAFKA_IS_DOWN in page.get("/metrics")[1].decode(), timeout_s=60)
        assert stopped.stop() == 0
    finally:
        broker.start("kafka")
    eventually(page.is_ready, timeout_s=60)
    assert orjson.loads(page.get("/api/snapshot")[1])["trouble"] is None


def test_a_busy_port_is_one_line_with_the_fix(broker: LocalMillrace, page: Page, tmp_path: Path) -> None:
    """A second page on the same port ends with the exit code of a dependency, and no traceback."""
    second = Page(broker.env, tmp_path / "second.log", int(page.url.rsplit(":", 1)[1]))
    assert second.process.wait(60) == 4
    (line,) = [line for line in second.lines() if line["level"] == "error"]
    assert "is in use" in line["error"]
    assert "MILLRACE_PORT" in line["fix"]
