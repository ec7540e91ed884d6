"""The trainer's group: one member is assigned everything, knows what it is assigned, and stops once it lost it."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from contracts.errors import DependencyDown, TransientError
from contracts.topics import PREFERENCE_PAIRS
from service.follow import PATIENCE_S
from service.settings import Settings
from tests.support.trainer import pair_number
from trainer.adapters import pairs_source
from trainer.adapters.pairs_source import KafkaPairs, SoleAssignor

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


class FakeConsumer:
    """A group's member as kafka-python has it; the test is the group.

    Args:
        topics: partitions by topic.
    """

    def __init__(self, topics: Mapping[str, set[int]]) -> None:
        self._topics = topics
        self.is_alone = False
        """Whether no broker answers for the group."""
        self._coordinator = SimpleNamespace(coordinator_unknown=lambda: self.is_alone, rejoining=False)
        self._assigned: set[TopicPartition] = set()
        self.listener: Any = None
        self.fetched: dict[TopicPartition, list[Any]] = {}
        self.positions: dict[int, int] = {}
        self.committed: list[dict[int, int]] = []

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return a topic's partitions."""
        return self._topics.get(topic)

    def subscribe(self, _topics: list[str], listener: object) -> None:
        """Keep the listener."""
        self.listener = listener

    def assign(self, *numbers: int) -> None:
        """Answer the member's join."""
        self._assigned = {TopicPartition(PREFERENCE_PAIRS, number) for number in numbers}
        self.listener.on_partitions_assigned(self._assigned)

    def lose(self) -> None:
        """Go on without the member, as after a stall."""
        self.listener.on_partitions_lost(self._assigned)

    def assignment(self) -> set[TopicPartition]:
        """Return what was assigned."""
        return self._assigned

    def seek(self, place: TopicPartition, offset: int) -> None:
        """Go to an offset."""
        self.positions[place.partition] = offset

    def seek_to_beginning(self, place: TopicPartition) -> None:
        """Go to the beginning."""
        self.positions[place.partition] = 0

    def poll(self, **_: int) -> dict[TopicPartition, list[Any]]:
        """Return what is to be fetched, once."""
        fetched, self.fetched = self.fetched, {}
        return fetched

    def commit(self, offsets: Mapping[TopicPartition, Any]) -> None:
        """Keep the offsets."""
        self.committed.append({place.partition: kept.offset for place, kept in offsets.items()})


SETTINGS = Settings(kafka_bootstrap="127.0.0.1:9")
Member = tuple[KafkaPairs, FakeConsumer]


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Member:
    """Give a trainer that has just subscribed, and its consumer."""
    consumer = FakeConsumer({PREFERENCE_PAIRS: {0, 1}})
    monkeypatch.setattr(pairs_source, "KafkaConsumer", lambda **_: consumer)
    return KafkaPairs(SETTINGS, SimpleNamespace()), consumer


def record(partition: int, offset: int) -> Any:
    """Return a record of a pair as a consumer gives it."""
    value = pair_number(offset).model_dump_json().encode()
    return SimpleNamespace(partition=partition, offset=offset, key=b"", value=value)


def test_a_trainer_is_not_ready_before_the_group_has_assigned_it_everything(member: Member) -> None:
    """It says whether the group is silent or another trainer has the pairs."""
    source, consumer = member
    assert not source.join()
    assert source.not_reading() == "the consumer group has not assigned partitions yet"
    consumer.assign()
    assert not source.join()
    assert source.not_reading() == "another trainer is assigned the preference pairs; standing by"
    consumer.assign(0, 1)
    assert source.join()
    assert source.not_reading() is None


def test_it_does_not_join_before_it_knows_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the leader might assign it nothing and go on so for minutes."""
    monkeypatch.setattr(pairs_source, "KafkaConsumer", lambda **_: FakeConsumer({}))
    with pytest.raises(DependencyDown, match="does not know the topic preference-pairs"):
        KafkaPairs(SETTINGS, SimpleNamespace())


def test_reading_goes_on_at_the_checkpoint_whenever_partitions_are_assigned(member: Member) -> None:
    """What was fetched before the checkpoint is known is passed over; afterwards each record is given once."""
    source, consumer = member
    consumer.assign(0, 1)
    consumer.fetched = {TopicPartition(PREFERENCE_PAIRS, 0): [record(0, 0)]}
    source.join()
    source.seek({0: 5})
    assert consumer.positions == {0: 5, 1: 0}
    consumer.fetched = {TopicPartition(PREFERENCE_PAIRS, 0): [record(0, 5), record(0, 6)]}
    assert [found.offset for found in source.poll(0.0)] == [5, 6]
    consumer.assign(0, 1)
    assert consumer.positions == {0: 7, 1: 0}
    source.commit({0: 7})
    assert consumer.committed == [{0: 7}]


@pytest.mark.parametrize("moved", [FakeConsumer.assign, FakeConsumer.lose], ids=["assigned nothing", "lost"])
def test_a_trainer_that_may_have_a_successor_stops(member: Member, moved: Callable[[FakeConsumer], None]) -> None:
    """Also if the partitions come back: another may have trained and released since, which its state does not know."""
    source, consumer = member
    consumer.assign(0, 1)
    source.seek({})
    moved(consumer)
    if moved is FakeConsumer.lose:
        consumer.assign(0, 1)
    with pytest.raises(TransientError, match="another trainer"):
        source.poll(0.0)
    with pytest.raises(TransientError, match="another trainer"):
        source.commit({0: 1})
    assert consumer.committed == []


def test_without_a_coordinator_a_trainer_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A poll without a broker only falls silent; a moment without a coordinator is no outage."""
    consumer, now_s = FakeConsumer({PREFERENCE_PAIRS: {0}}), [100.0]
    monkeypatch.setattr(pairs_source, "KafkaConsumer", lambda **_: consumer)
    source = KafkaPairs(SETTINGS, SimpleNamespace(), monotonic_s=lambda: now_s[0])
    consumer.assign(0)
    consumer.is_alone = True
    now_s[0] += PATIENCE_S
    source.join()
    assert source.not_reading() is None
    now_s[0] += 0.1
    source.join()
    assert source.not_reading() == "group millrace-trainer has had no coordinator for 5 s"
    consumer.is_alone = False
    source.join()
    assert source.not_reading() is None
