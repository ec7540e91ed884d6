"""The trainer's group: one member is assigned everything, knows what it is assigned, and stops once it lost it."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from contracts.errors import DependencyDown, TransientError
from contracts.structs import TrainingSearch, encode
from contracts.topics import CURATED_PAIRS, PREFERENCE_PAIRS, TRAINING_SEARCHES
from service.follow import PATIENCE_S
from service.settings import Settings
from tests.support.pairs import preference_pair
from tests.support.trainer import search_number
from trainer.adapters import log_source
from trainer.adapters.log_source import KafkaLog, SoleAssignor

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


def named(place: TopicPartition) -> str:
    """Return a partition's place as offsets name it."""
    return f"{place.topic}/{place.partition}"


TOPICS: dict[str, set[int]] = {topic: {0, 1} for topic in (TRAINING_SEARCHES, PREFERENCE_PAIRS, CURATED_PAIRS)}


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
        self.positions: dict[str, int] = {}
        self.committed: list[dict[str, int]] = []
        self.begins: dict[str, int] = {}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return a topic's partitions."""
        return self._topics.get(topic)

    def subscribe(self, _topics: list[str], listener: object) -> None:
        """Keep the listener."""
        self.listener = listener

    def assign(self, *numbers: int) -> None:
        """Answer the member's join with some partitions of every topic."""
        self._assigned = {TopicPartition(topic, number) for topic in self._topics for number in numbers}
        self.listener.on_partitions_assigned(self._assigned)

    def lose(self) -> None:
        """Go on without the member, as after a stall."""
        self.listener.on_partitions_lost(self._assigned)

    def assignment(self) -> set[TopicPartition]:
        """Return what was assigned."""
        return self._assigned

    def seek(self, place: TopicPartition, offset: int) -> None:
        """Go to an offset."""
        self.positions[named(place)] = offset

    def seek_to_beginning(self, place: TopicPartition) -> None:
        """Go to the beginning."""
        self.positions[named(place)] = self.begins.get(named(place), 0)

    def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offsets that are left."""
        return {place: self.begins.get(named(place), 0) for place in places}

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where each partition ends."""
        return dict.fromkeys(places, 100)

    def poll(self, **_: int) -> dict[TopicPartition, list[Any]]:
        """Return what is to be fetched, once."""
        fetched, self.fetched = self.fetched, {}
        return fetched

    def commit(self, offsets: Mapping[TopicPartition, Any]) -> None:
        """Keep the offsets."""
        self.committed.append({named(place): kept.offset for place, kept in offsets.items()})


SETTINGS = Settings(kafka_bootstrap="127.0.0.1:9")
Member = tuple[KafkaLog, FakeConsumer]


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Member:
    """Give a trainer that has just subscribed, and its consumer."""
    consumer = FakeConsumer(TOPICS)
    monkeypatch.setattr(log_source, "KafkaConsumer", lambda **_: consumer)
    return KafkaLog(SETTINGS, SimpleNamespace()), consumer


def record(
    topic: str, offset: int, value: bytes, *, key: bytes = b"", headers: list[tuple[str, bytes]] | None = None
) -> Any:
    """Return a record as a consumer gives it."""
    return SimpleNamespace(
        topic=topic, partition=0, offset=offset, key=key, value=value, timestamp=7, headers=headers or []
    )


def pair(offset: int) -> Any:
    """Return the record of a pair."""
    return record(PREFERENCE_PAIRS, offset, preference_pair(f"s-{offset}").model_dump_json().encode())


def test_a_trainer_is_not_ready_before_the_group_has_assigned_it_everything(member: Member) -> None:
    """It says whether the group is silent or another trainer has the pairs."""
    source, consumer = member
    assert not source.join()
    assert source.not_reading() == "the consumer group has not assigned partitions yet"
    consumer.assign()
    assert not source.join()
    assert source.not_reading() == "another trainer is assigned the searches and pairs; standing by"
    consumer.assign(0, 1)
    assert source.join()
    assert source.not_reading() is None


def test_it_does_not_join_before_it_knows_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the leader might assign it nothing and go on so for minutes."""
    monkeypatch.setattr(log_source, "KafkaConsumer", lambda **_: FakeConsumer({TRAINING_SEARCHES: {0}}))
    with pytest.raises(DependencyDown, match="does not know the topic preference-pairs"):
        KafkaLog(SETTINGS, SimpleNamespace())


def test_reading_goes_on_at_the_checkpoint_whenever_partitions_are_assigned(member: Member) -> None:
    """What was fetched before the checkpoint is known is passed over; afterwards each record is given once."""
    source, consumer = member
    consumer.assign(0, 1)
    place = TopicPartition(PREFERENCE_PAIRS, 0)
    consumer.fetched = {place: [pair(0)]}
    source.join()
    told = source.seek({named(place): 5})
    assert consumer.positions == told
    assert told == {f"{topic}/{number}": 0 for topic in TOPICS for number in (0, 1)} | {named(place): 5}
    consumer.fetched = {place: [pair(5), pair(6)]}
    assert [found.offset for found in source.poll(0.0)] == [5, 6]
    consumer.assign(0, 1)
    assert consumer.positions == {**told, named(place): 7}
    source.commit({named(place): 7, "other/0": 9})
    assert consumer.committed == [{named(place): 7}]


def test_records_that_are_gone_are_not_waited_for(member: Member) -> None:
    """Retention ate them, or the topic was made anew: reading begins where there is something to read."""
    source, consumer = member
    consumer.assign(0)
    eaten, anew = f"{TRAINING_SEARCHES}/0", f"{PREFERENCE_PAIRS}/0"
    consumer.begins = {eaten: 40}
    told = source.seek({eaten: 5, anew: 4_000})
    assert (told[eaten], told[anew]) == (40, 0)
    assert source.ends() == dict.fromkeys(told, 100)


def test_each_topic_gives_its_own_content(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, pairs, curated pairs; what breaks its contract is set aside and has none."""
    source, consumer = member
    letters: list[Any] = []
    monkeypatch.setattr(log_source, "produce_all", lambda _producer, records: letters.extend(records))
    consumer.assign(0, 1)
    source.seek({})
    search = search_number(3)
    written = [
        record(TRAINING_SEARCHES, 0, encode(search)),
        record(TRAINING_SEARCHES, 1, b'{"search_id": 1}'),
        pair(0),
        record(CURATED_PAIRS, 0, b'{"query":"gift","chosen":"P-1","rejected_text":"dull"}'),
        record(CURATED_PAIRS, 1, b"{}"),
        record(CURATED_PAIRS, 2, b'{"query":"gift","chosen":"P-1","rejected_text":"dull"}'.ljust(3_000_000)),
        record(CURATED_PAIRS, 3, b"{", key=b"k" * 3_000_000),
    ]
    for one in written:
        consumer.fetched.setdefault(TopicPartition(one.topic, 0), []).append(one)
    found = source.poll(0.0)
    assert [(one.place, one.offset, one.time_ms) for one in found] == [
        (f"{one.topic}/0", one.offset, 7) for one in written
    ]
    assert isinstance(found[0].content, TrainingSearch)
    assert encode(found[0].content) == encode(search)
    assert [one.content is None for one in found] == [False, True, False, False, True, True, True]
    assert [letter.topic for letter in letters] == ["dead-letters"] * 4
    assert [letter.value for letter in letters] == [b'{"search_id": 1}', b"{}", b"", b""]
    assert letters[-1].key is None


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
        source.commit({f"{PREFERENCE_PAIRS}/0": 1})
    assert consumer.committed == []


def test_without_a_coordinator_a_trainer_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A poll without a broker only falls silent; a moment without a coordinator is no outage."""
    consumer, now_s = FakeConsumer(TOPICS), [100.0]
    monkeypatch.setattr(log_source, "KafkaConsumer", lambda **_: consumer)
    source = KafkaLog(SETTINGS, SimpleNamespace(), monotonic_s=lambda: now_s[0])
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
