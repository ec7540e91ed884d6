"""The one thread that speaks to the engine: order, fairness, and what is not begun."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from deploy.qdrant_edge.worker import Kind, Worker
from tests.unit.deploy.qdrant_edge.conftest import Held, refused


class HandClock:
    """A clock that only calls move on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    """The worker's time."""
    return HandClock()


@pytest.fixture
def worker(clock: HandClock) -> Iterator[Worker]:
    """A worker whose calls take the time that they say."""
    started = Worker(clock)
    yield started
    started.close()


async def waiting(worker: Worker, kind: Kind, calls: list[Callable[[], None]]) -> list["asyncio.Task[None]"]:
    """Ask for calls that must wait, and return once all do."""
    tasks = [asyncio.create_task(worker.run(kind, call, must_run=True)) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_calls_of_a_kind_run_in_order_on_a_thread_of_their_own(worker: Worker) -> None:
    """However many are asked for at once, they run one after another as asked."""
    ran: list[int] = []

    def call(number: int) -> str:
        """Note the call and name its thread."""
        ran.append(number)
        return threading.current_thread().name

    asked = (worker.run(Kind.READ, partial(call, number), must_run=True) for number in range(50))
    names = set(await asyncio.gather(*asked))
    assert ran == list(range(50))
    assert names == {"edge"}


async def test_no_two_calls_run_at_once(worker: Worker) -> None:
    """The engine is never in two calls, whatever their kinds: two that wait for each other to begin never meet."""
    meeting = threading.Barrier(2, timeout=0.2)
    calls = [worker.run(kind, meeting.wait) for kind in (Kind.READ, Kind.READ, Kind.WRITE, Kind.WRITE)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [threading.BrokenBarrierError] * 4


async def test_failure_reaches_the_caller_only(worker: Worker) -> None:
    """What a call raises is its caller's; the next call runs."""
    with pytest.raises(ZeroDivisionError):
        await worker.run(Kind.READ, partial(divmod, 1, 0))
    assert await worker.run(Kind.READ, partial(divmod, 7, 2)) == (3, 1)


async def test_call_that_began_is_finished_for_nobody(worker: Worker) -> None:
    """A client that goes away while its call runs leaves the thread to the next."""
    held = Held(worker)
    await held.begun()
    held.task.cancel()
    await held.let_go()
    assert await worker.run(Kind.READ, partial(divmod, 7, 2)) == (3, 1)


async def test_call_that_nobody_waits_for_is_not_begun(worker: Worker) -> None:
    """A client that goes away before its turn frees its place, and its call never runs."""
    ran: list[str] = []
    held = Held(worker)
    await held.begun()
    gone, stays = await waiting(worker, Kind.READ, [partial(ran.append, "gone"), partial(ran.append, "stays")])
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await held.let_go()
    await stays
    assert ran == ["stays"]


async def test_call_whose_time_is_over_is_not_begun(worker: Worker, clock: HandClock) -> None:
    """A call that waited as long as its caller would is refused as too late; one with more time runs."""
    ran: list[str] = []
    held = Held(worker)
    await held.begun()
    late = asyncio.create_task(worker.run(Kind.READ, partial(ran.append, "late"), timeout_s=2))
    patient = asyncio.create_task(worker.run(Kind.READ, partial(ran.append, "patient"), timeout_s=3))
    await asyncio.sleep(0)
    clock.now_s += 2
    await held.let_go()
    with refused(408, "Timeout"):
        await late
    await patient
    assert ran == ["patient"]


@pytest.mark.parametrize("kind", Kind)
async def test_no_more_wait_than_may(worker: Worker, kind: Kind) -> None:
    """One call more than may wait is refused at once, of its kind only; when there is space again it is taken."""
    _, most_jobs = kind.value
    other = next(entry for entry in Kind if entry is not kind)
    held = Held(worker)
    await held.begun()
    tasks = await waiting(worker, kind, [lambda: None] * most_jobs)
    with refused(503, "overloaded"):
        await worker.run(kind, lambda: None)
    taken = asyncio.create_task(worker.run(other, lambda: None))
    tasks.pop().cancel()
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(worker.run(kind, lambda: None)))
    await asyncio.sleep(0)
    await held.let_go()
    await asyncio.gather(*tasks, taken)


async def test_slow_calls_wait_for_no_longer_than_quick_ones(worker: Worker, clock: HandClock) -> None:
    """What may wait is a time: where a call takes a twentieth of a second, few may wait, and all if it takes none."""

    def takes(seconds: float) -> None:
        """Take so long."""
        clock.now_s += seconds

    for _ in range(100):
        await worker.run(Kind.READ, partial(takes, 0.05))
    held = Held(worker)
    await held.begun()
    tasks = await waiting(worker, Kind.READ, [lambda: None] * 2)
    tasks.append(asyncio.create_task(worker.run(Kind.READ, lambda: None)))
    await asyncio.sleep(0)
    with refused(503):
        worker.admit(Kind.READ)
    await held.let_go()
    await asyncio.gather(*tasks)
    worker.admit(Kind.READ)


async def test_both_kinds_get_half_of_the_time(worker: Worker, clock: HandClock) -> None:
    """While both wait, ten short reads pass for each write that takes ten times as long."""
    ran: list[str] = []

    def call(name: str, seconds: float) -> None:
        """Note the call and take so long."""
        ran.append(name)
        clock.now_s += seconds

    for _ in range(50):  # what one kind used while the other asked for nothing is no debt
        await worker.run(Kind.READ, partial(call, "alone", 1.0))
    ran.clear()
    held = Held(worker)
    await held.begun()
    reads = await waiting(worker, Kind.READ, [partial(call, "read", 1.0)] * 100)
    writes = await waiting(worker, Kind.WRITE, [partial(call, "write", 10.0)] * 10)
    await held.let_go()
    await asyncio.gather(*reads, *writes)
    for number in range(1, 11):
        assert ran[: 11 * number].count("write") == number


async def test_closing_finishes_what_was_asked_for(worker: Worker) -> None:
    """What waits when the worker is closed is done first."""
    held = Held(worker)
    await held.begun()
    ran: list[str] = []
    tasks = await waiting(worker, Kind.WRITE, [partial(ran.append, "done")])
    closing = asyncio.create_task(asyncio.to_thread(worker.close))
    await held.let_go()
    await asyncio.gather(*tasks, closing)
    assert ran == ["done"]
