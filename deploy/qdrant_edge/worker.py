"""The one thread that speaks to Edge.

Edge holds the interpreter's lock while it works, so more threads would not make it faster, and one thread keeps writes
in the order in which they came. The event loop stays free to answer `/live` between two calls.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls one after another, in the order of asking, on a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge")

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call after those already asked for, and return what it returns.

        A client that goes away does not undo its write: a call that began is finished.
        """
        return await asyncio.wrap_future(self._executor.submit(call, *args, **kwargs))

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        self._executor.shutdown(wait=True)
