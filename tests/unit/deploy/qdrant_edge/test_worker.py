"""The one thread that speaks to the engine."""

import asyncio
import threading

import pytest

from deploy.qdrant_edge.worker import Worker


async def test_calls_run_in_order_on_one_thread() -> None:
    """However many are asked for at once, they run one after another as asked."""
    worker, ran = Worker(), []

    def call(number: int) -> str:
        """Note the call and name its thread."""
        ran.append(number)
        return threading.current_thread().name

    names = await asyncio.gather(*(worker.run(call, number) for number in range(50)))
    assert ran == list(range(50))
    assert len(set(names)) == 1
    assert names[0] != threading.current_thread().name
    worker.close()


async def test_failure_reaches_the_caller_only() -> None:
    """What a call raises is its caller's; the next call runs."""
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 1, 0)
    assert await worker.run(divmod, 7, 2) == (3, 1)
    worker.close()


async def test_caller_that_leaves_does_not_stop_the_others() -> None:
    """A client that goes away while its call runs leaves the thread to the next."""
    worker, begun, end = Worker(), threading.Event(), threading.Event()

    def slow() -> bool:
        """Hold the thread until told."""
        begun.set()
        return end.wait(10)

    task = asyncio.create_task(worker.run(slow))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end.set()
    assert await worker.run(divmod, 7, 2) == (3, 1)
    worker.close()
