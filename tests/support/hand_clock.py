"""Time that passes only when a test says so."""

import asyncio

import pytest


class HandClock:
    """A monotonic clock that is moved by hand, of its own or for the running event loop too."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the running event loop go by this clock: its timeouts end when the clock is moved, never by waiting."""
        loop = asyncio.get_running_loop()
        self.now_s = loop.time()
        monkeypatch.setattr(loop, "time", self)

    async def move(self, seconds: float) -> None:
        """Let all that was begun come to where it waits, then let time pass, and what is due by then happen."""
        await settle()
        self.now_s += seconds
        await settle()


async def settle(turns: int = 50) -> None:
    """Let everything happen that can happen without time passing and without a thread."""
    for _ in range(turns):
        await asyncio.sleep(0)
