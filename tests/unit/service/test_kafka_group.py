"""The repair of a forgotten join."""

from types import SimpleNamespace

import pytest

from service.kafka_group import keep_joining


@pytest.mark.parametrize(("rejoining", "asked"), [(True, 1), (False, 0)])
def test_a_join_in_progress_is_taken_up_and_a_settled_group_left_alone(rejoining: bool, asked: int) -> None:
    """Only a member that is in the middle of joining asks again."""
    calls: list[None] = []
    coordinator = SimpleNamespace(rejoining=rejoining, request_rejoin=lambda: calls.append(None))
    keep_joining(SimpleNamespace(_coordinator=coordinator))
    assert len(calls) == asked


def test_a_consumer_without_a_group_is_left_alone() -> None:
    """A reader that assigns its own partitions has no coordinator to ask."""
    keep_joining(SimpleNamespace(_coordinator=None))
