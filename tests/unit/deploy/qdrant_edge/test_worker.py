"""Who may speak to the engine and when: order, fairness, and what is not begun."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from deploy.qdrant_edge.worker import Kind, Worker
from tests.unit.deploy.qdrant_edge.conftest import refused


class HandClock:
    """A clock that only calls move on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def take(self, seconds: float) -> None:
        """Take so long."""
        self.now_s += seconds


@pytest.fixture
def clock() -> HandClock:
    """The worker's time."""
    return HandClock()


@pytest.fixture
def worker(clock: HandClock) -> Worker:
    """A worker that has not begun; calls take the time that they say."""
    return Worker(clock)


@asynccontextmanager
async def at_work(worker: Worker) -> AsyncIterator[None]:
    """Let a worker work on what was asked for before, and on what is asked for inside."""
    task = asyncio.create_task(worker.work())
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def asked(worker: Worker, kind: Kind, *calls: Callable[[], object]) -> list["asyncio.Task[object]"]:
    """Ask for calls, and return once they wait."""
    tasks = [asyncio.create_task(worker.run(kind, call, must_run=True)) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_calls_of_a_kind_run_in_the_order_of_asking(worker: Worker) -> None:
    """However many are asked for at once, they run one after another as asked, and each caller gets its own result."""
    ran: list[int] = []

    def call(number: int) -> int:
        """Note the call."""
        ran.append(number)
        return number

    async with at_work(worker):
        numbers = await asyncio.gather(*await asked(worker, Kind.READ, *(partial(call, n) for n in range(50))))
    assert numbers == ran == list(range(50))


async def test_every_call_runs_on_the_thread_of_the_event_loop(worker: Worker) -> None:
    """The engine is never in two calls, for there is one thread, whatever the kinds of the calls."""
    async with at_work(worker):
        calls = [worker.run(kind, threading.get_ident) for kind in (*Kind, *Kind)]
        assert set(await asyncio.gather(*calls)) == {threading.get_ident()}


async def test_the_event_loop_goes_on_between_two_calls(worker: Worker) -> None:
    """What came in while a call ran is read, and if need be refused, before the next call."""
    loop, order = asyncio.get_running_loop(), []

    def call(number: int) -> None:
        """Note the call, during which something comes in."""
        order.append(f"call {number}")
        loop.call_soon(order.append, f"came during {number}")

    async with at_work(worker):
        await asyncio.gather(*await asked(worker, Kind.READ, partial(call, 1), partial(call, 2)))
    assert order[:3] == ["call 1", "came during 1", "call 2"]


async def test_failure_reaches_the_caller_only(worker: Worker) -> None:
    """What a call raises is its caller's; the next call runs."""
    async with at_work(worker):
        with pytest.raises(ZeroDivisionError):
            await worker.run(Kind.READ, partial(divmod, 1, 0))
        assert await worker.run(Kind.READ, partial(divmod, 7, 2)) == (3, 1)


async def test_call_that_nobody_waits_for_is_not_begun(worker: Worker) -> None:
    """A caller that goes away before its turn frees its place at once, and its call never runs."""
    ran: list[str] = []
    gone, stays = await asked(worker, Kind.READ, partial(ran.append, "gone"), partial(ran.append, "stays"))
    gone.cancel()
    await asyncio.sleep(0)
    assert worker.waiting(Kind.READ) == 1
    async with at_work(worker):
        await stays
    assert ran == ["stays"]


async def test_caller_that_goes_away_as_its_turn_comes(worker: Worker) -> None:
    """A call whose caller is cancelled in the very moment of its turn is not begun and harms nobody."""
    ran: list[str] = []
    gone, stays = await asked(worker, Kind.READ, partial(ran.append, "gone"), partial(ran.append, "stays"))
    asyncio.get_running_loop().call_soon(gone.cancel)
    async with at_work(worker):
        await stays
    assert ran == ["stays"]


async def test_call_whose_time_is_over_is_not_begun(worker: Worker, clock: HandClock) -> None:
    """A call that waited as long as its caller would is refused as too late; one with more time runs."""
    ran: list[str] = []
    late = asyncio.create_task(worker.run(Kind.READ, partial(ran.append, "late"), timeout_s=2))
    patient = asyncio.create_task(worker.run(Kind.READ, partial(ran.append, "patient"), timeout_s=3))
    await asyncio.sleep(0)
    clock.take(2)
    async with at_work(worker):
        with refused(408, "Timeout"):
            await late
        await patient
    assert ran == ["patient"]


@pytest.mark.parametrize("kind", Kind)
async def test_no_more_wait_than_may(worker: Worker, kind: Kind) -> None:
    """One call more than may wait is refused at once, of its kind only; when there is space again it is taken."""
    _, most_calls = kind.value
    other = next(entry for entry in Kind if entry is not kind)
    tasks = await asked(worker, kind, *[lambda: None] * most_calls)
    with refused(503, f"{most_calls} {kind.name.lower()}s wait"):
        await worker.run(kind, lambda: None)
    worker.admit(other)
    tasks.pop().cancel()
    await asyncio.sleep(0)
    worker.admit(kind)
    async with at_work(worker):
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(("takes_s", "may_wait"), [(0.1, 3), (0.03, 9), (0.0, 200)])
async def test_what_may_wait_is_a_time(worker: Worker, clock: HandClock, takes_s: float, may_wait: int) -> None:
    """The longer calls have been, the fewer may wait; a single one always may."""
    async with at_work(worker):
        for _ in range(200):
            await worker.run(Kind.READ, partial(clock.take, takes_s))
    tasks = []
    for _ in range(may_wait):
        worker.admit(Kind.READ)
        tasks += await asked(worker, Kind.READ, lambda: None)
    if takes_s:
        with refused(503):
            worker.admit(Kind.READ)
    async with at_work(worker):
        await asyncio.gather(*tasks)


async def test_both_kinds_get_half_of_the_time(worker: Worker, clock: HandClock) -> None:
    """While both wait, ten short reads pass for each write that takes ten times as long."""
    ran: list[str] = []

    def call(name: str, seconds: float) -> None:
        """Note the call and take so long."""
        ran.append(name)
        clock.take(seconds)

    async with at_work(worker):
        for _ in range(50):  # what one kind used while the other asked for nothing is no debt
            await worker.run(Kind.READ, partial(call, "alone", 1.0))
    ran.clear()
    reads = await asked(worker, Kind.READ, *[partial(call, "read", 1.0)] * 100)
    writes = await asked(worker, Kind.WRITE, *[partial(call, "write", 10.0)] * 10)
    async with at_work(worker):
        await asyncio.gather(*reads, *writes)
    for number in range(1, 11):
        assert ran[: 11 * number].count("write") == number


async def test_what_is_held_waits_while_the_other_kind_runs(worker: Worker) -> None:
    """Nothing of a kind that is held begins, even what was asked for before; all of it runs afterwards, in order."""
    ran: list[str] = []
    writes = await asked(worker, Kind.WRITE, partial(ran.append, "before"))
    async with at_work(worker):
        with worker.holding(Kind.WRITE):
            writes += await asked(worker, Kind.WRITE, partial(ran.append, "while held"))
            await worker.run(Kind.READ, partial(ran.append, "read"))
        await asyncio.gather(*writes)
    assert ran == ["read", "before", "while held"]
