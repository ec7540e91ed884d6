"""One member holds every partition, and the one that held them last keeps them."""

from types import SimpleNamespace
from typing import Any

import pytest

from trainer.adapters.sole_assignor import SoleAssignor

CLUSTER = SimpleNamespace(partitions_for_topic=lambda _topic: {0, 1, 2, 3})


def assigned(**told: bytes) -> dict[str, list[int]]:
    """Return the partitions of each member, given what each told the group."""
    members = [
        SimpleNamespace(member_id=name, metadata=SimpleNamespace(topics=["pairs"], user_data=user_data))
        for name, user_data in told.items()
    ]
    plan: dict[str, Any] = SoleAssignor().assign(CLUSTER, members)
    return {
        name: [one for _, partitions in given.assigned_partitions for one in partitions] for name, given in plan.items()
    }


@pytest.mark.parametrize(
    ("told", "holder"),
    [
        ({"a": b"-1"}, "a"),
        ({"a": b"3", "b": b"-1", "c": b"-1"}, "a"),
        ({"a": b"3", "b": b"5"}, "b"),
        ({"a": b"", "b": b"junk", "c": b"0"}, "c"),
        ({"a": b"9", "b": b"10"}, "b"),
    ],
)
def test_the_newest_holder_gets_everything_and_the_others_nothing(told: dict[str, bytes], holder: str) -> None:
    """A stalled trainer that comes back tells an older generation and stands by."""
    plan = assigned(**told)
    assert plan.pop(holder) == [0, 1, 2, 3]
    assert not any(plan.values())


def test_a_member_remembers_when_it_held_the_partitions() -> None:
    """What it tells at the next join is the generation of its last non-empty assignment."""
    assignor = SoleAssignor()
    assert assignor.metadata({"pairs"}).user_data == b"-1"
    assignor.on_assignment(SimpleNamespace(assigned_partitions=[("pairs", [0, 1])]), 4)
    assignor.on_assignment(SimpleNamespace(assigned_partitions=[("pairs", [])]), 5)
    assert assignor.metadata({"pairs"}).user_data == b"4"
