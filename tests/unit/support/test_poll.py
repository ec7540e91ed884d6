"""Waiting in tests: an answer, or a failure that says what was waited for."""

import pytest

from tests.support.poll import eventually, eventually_async


def test_the_first_truthy_answer_is_returned() -> None:
    """Falsy answers are asked again."""
    answers = iter([0, None, "", "here"])
    assert eventually(lambda: next(answers), interval_s=0.001) == "here"


def test_a_passed_deadline_fails_with_the_last_answer() -> None:
    """A reader of the failure sees what was still missing."""
    with pytest.raises(AssertionError, match=r"not within 0 s: three pairs; last answer: \[\]"):
        eventually(list, timeout_s=0, what="three pairs")


async def test_the_async_form_does_the_same() -> None:
    """It awaits the predicate and gives up alike."""
    answers = iter([False, True])

    async def ask() -> bool:
        """Return the next answer."""
        return next(answers)

    async def never() -> bool:
        """Say no."""
        return False

    assert await eventually_async(ask, interval_s=0.001)
    with pytest.raises(AssertionError, match="never"):
        await eventually_async(never, timeout_s=0)
