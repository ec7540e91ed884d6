"""One outage of a dependency: the metric, readiness and a single line in the log."""

import asyncio
from io import StringIO

import pytest
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown, TransientError
from contracts.telemetry import Process
from service import logging, metrics
from service.health import Dependency, probed


@pytest.fixture(autouse=True)
def _exposed() -> None:
    """Expose the metric."""
    metrics.initialise(Process.SEARCH)


def gauge(process: Process) -> float | None:
    """Return what the metric shows."""
    return REGISTRY.get_sample_value("millrace_dependency_up", {"dependency": process})


def test_an_outage_is_said_once_and_its_end_once() -> None:
    """However often a server fails, the log has one line for the outage and one for its end."""
    log = StringIO()
    logging.configure("test", stream=log)
    store = Dependency(Process.QDRANT, meaning="answers are remembered ones")
    for _ in range(5):
        store.failed(DependencyDown("Qdrant cannot be reached", fix="start it"))
    store.answered()
    store.answered()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert "dependency_down" in lines[0]
    assert "answers are remembered ones" in lines[0]
    assert "start it" in lines[0]
    assert "dependency_back" in lines[1]


def test_a_late_call_is_no_outage_if_others_were_answered_meanwhile() -> None:
    """What failed says nothing if a call beside it was answered since it began, else it does.

    Reads beside writes are not of one kind: a write that fails is told whatever else is answered.
    """
    store = Dependency(Process.QDRANT)
    began = store.answers
    store.answered()
    store.failed("no answer within the deadline", answers=began)
    assert gauge(Process.QDRANT) == 1
    store.failed("no space left")
    assert gauge(Process.QDRANT) == 0
    store.answered()
    store.failed("no answer within the deadline", answers=store.answers)
    assert gauge(Process.QDRANT) == 0


def test_the_metric_follows() -> None:
    """The gauge is 0 during an outage and 1 after an answer."""
    kafka = Dependency(Process.KAFKA)
    kafka.failed("no broker answers")
    assert gauge(Process.KAFKA) == 0
    kafka.answered()
    assert gauge(Process.KAFKA) == 1


def test_a_short_outage_is_no_reason_against_readiness() -> None:
    """Readiness waits as long as the patience says, then names the newest error."""
    now_s = [100.0]
    kafka = Dependency(Process.KAFKA, patience_s=8.0, monotonic_s=lambda: now_s[0])
    kafka.failed("Kafka does not answer at a:1")
    now_s[0] = 107.9
    assert kafka.not_ready() is None
    kafka.failed("Kafka does not answer at b:1")
    now_s[0] = 108.0
    assert kafka.not_ready() == "Kafka does not answer at b:1"
    kafka.answered()
    assert kafka.not_ready() is None


def test_a_watched_block_tells_an_outage_from_a_fault_of_ours() -> None:
    """Only errors of a missing server count as an outage; all are raised on."""
    redis = Dependency(Process.REDIS)
    states = []
    with pytest.raises(TransientError), redis.watched():
        raise TransientError("Redis timed out")
    states.append(redis.is_up)
    with redis.watched():
        pass
    states.append(redis.is_up)
    with pytest.raises(ZeroDivisionError), redis.watched():
        raise ZeroDivisionError
    states.append(redis.is_up)
    assert states == [False, True, True]


class Server:
    """Answers in turn with what was given, then with True, and tells what was known when it was asked."""

    def __init__(self, dependency: Dependency, *answers: bool | Exception) -> None:
        self._dependency = dependency
        self._answers = iter(answers)
        self.seen: asyncio.Queue[bool] = asyncio.Queue()

    async def ask(self) -> bool:
        """Give the next answer, or raise it."""
        await self.seen.put(self._dependency.is_up)
        answer = next(self._answers, True)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("error", [TransientError("gone"), ConnectionError("gone"), ZeroDivisionError()])
async def test_an_outage_without_traffic_begins_and_ends(error: Exception) -> None:
    """At night nobody sends anything: an alert must neither stay until morning nor wait for it, whatever failed."""
    dependency = Dependency(Process.REDIS)
    server = Server(dependency, error)
    async with probed(dependency, server.ask, every_s=0.001), asyncio.timeout(5):
        assert [await server.seen.get() for _ in range(3)] == [True, False, True]


async def test_an_answer_to_nothing_is_none() -> None:
    """If there is nothing to ask yet, an outage is not over."""
    dependency = Dependency(Process.QDRANT)
    dependency.failed("gone")
    server = Server(dependency, False, False)
    async with probed(dependency, server.ask, every_s=0.001), asyncio.timeout(5):
        assert [await server.seen.get() for _ in range(4)] == [False, False, False, True]


async def test_a_late_probe_is_no_outage_if_others_were_answered_meanwhile() -> None:
    """An event loop that was busy for a moment lets the probe's time run out, which says nothing of the server."""
    dependency = Dependency(Process.REDIS)
    asked = asyncio.Event()

    async def ask() -> bool:
        dependency.answered()
        asked.set()
        raise TimeoutError

    async with probed(dependency, ask, every_s=0.001), asyncio.timeout(5):
        for _ in range(2):
            asked.clear()
            await asked.wait()
            assert dependency.is_up


async def test_nobody_is_asked_of_whom_traffic_tells() -> None:
    """If searches fail and a cheaper question is answered, the log must not say down and back in turns."""
    dependency = Dependency(Process.QDRANT)
    server = Server(dependency)
    now_s = asyncio.get_running_loop().time
    async with probed(dependency, server.ask, every_s=0.001), asyncio.timeout(5):
        ends_s = now_s() + 0.05
        while now_s() < ends_s:
            dependency.failed("no answer within the deadline")
            await asyncio.sleep(0)
        assert server.seen.empty()
        assert [await server.seen.get() for _ in range(2)] == [False, True]
