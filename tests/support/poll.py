"""Waiting in tests: ask again until it holds or the deadline has passed, never sleep and hope."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], *, timeout_s: float = 10.0, interval_s: float = 0.05, what: str = "") -> T:
    """Return the predicate's first truthy answer.

    Args:
        predicate: asked until its answer is truthy; what it raises ends the wait.
        timeout_s: how long at most.
        interval_s: pause between two questions.
        what: what is waited for, for the failure's message.

    Raises:
        AssertionError: the deadline passed; the message holds the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_late(what or _name(predicate), timeout_s, answer))
        time.sleep(interval_s)
    return answer


async def eventually_async(
    predicate: Callable[[], Awaitable[T]], *, timeout_s: float = 10.0, interval_s: float = 0.05, what: str = ""
) -> T:
    """Return the awaited predicate's first truthy answer; the event loop runs on meanwhile.

    Raises:
        AssertionError: the deadline passed; the message holds the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := await predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_late(what or _name(predicate), timeout_s, answer))
        await asyncio.sleep(interval_s)
    return answer


def _name(predicate: object) -> str:
    """Return a predicate's name for a message."""
    return getattr(predicate, "__name__", repr(predicate))


def _late(what: str, timeout_s: float, answer: object) -> str:
    """Return the message of a wait that did not end."""
    return f"not within {timeout_s:g} s: {what}; last answer: {answer!r}"
