"""What the indexer knows of `models`: newest pair, releases by key, and nothing that cannot be read."""

from typing import Any

import pytest

from contracts import wire
from contracts.errors import TransientError
from contracts.releases import SERVING_KEY, Serving, release_key
from indexer.adapters import models_topic
from indexer.adapters.models_topic import ModelsTopic
from service.settings import Settings
from tests.support.indexing import NOW_MS, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import pack


class Topic:
    """`models` as the indexer sees it, without Kafka: what is produced comes back, unless told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        self.echoes = True
        self.models = ModelsTopic(Settings(kafka_bootstrap="nowhere:1"), object(), self._note)
        monkeypatch.setattr(models_topic, "produce_all", self._produce)
        monkeypatch.setattr(models_topic, "SHOWN_WITHIN_S", 0.05)

    def _note(self) -> None:
        """Count a change."""
        self.changes += 1

    def _produce(self, _producer: object, records: list[Any]) -> None:
        """Hand records over as the follower would."""
        for record in records if self.echoes else []:
            self.models.apply(record.key, record.value, NOW_MS)


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    """An empty topic."""
    return Topic(monkeypatch)


def serving(query_release: int, published_at: int) -> Serving:
    """Return a pair."""
    return Serving(query_release=query_release, product_release=0, collection="products-r0", published_at=published_at)


def test_releases_come_and_go_by_key(topic: Topic) -> None:
    """A tombstone removes a release; each change is told."""
    value = pack(query_release(3, TinyEncoder()))
    key = release_key("query", 3)
    topic.models.apply(key, value, NOW_MS)
    assert topic.models.value(key) == value
    assert [manifest.release for manifest in topic.models.view().manifests.values()] == [3]
    topic.models.apply(key, None, NOW_MS)
    assert topic.models.value(key) is None
    assert not topic.models.view().manifests
    assert topic.changes == 2


def test_a_release_that_cannot_be_read_is_passed_over(topic: Topic) -> None:
    """The follower goes on: one bad record must not keep the others from being served."""
    topic.models.apply(b"query-4", b"no release", NOW_MS)
    topic.models.apply(SERVING_KEY, b"{", NOW_MS)
    assert topic.models.value(b"query-4") is None
    assert topic.models.view().serving is None
    assert topic.changes == 2


def test_an_older_pair_that_is_read_again_moves_nothing(topic: Topic) -> None:
    """A follower that begins again hands over what was in force long ago."""
    for pair in (serving(5, NOW_MS), serving(1, NOW_MS - 9), serving(2, NOW_MS - 8)):
        topic.models.apply(SERVING_KEY, wire.encode(pair), NOW_MS)
    assert topic.models.view().serving == serving(5, NOW_MS)


def test_every_switch_of_the_collection_is_counted(topic: Topic) -> None:
    """Whoever looks late sees that it went away and came back; a query release or a repeat is no switch."""
    there = serving(2, NOW_MS + 2).model_copy(update={"collection": "products-r1"})
    pairs = serving(0, NOW_MS), serving(1, NOW_MS + 1), there, there, serving(3, NOW_MS + 3), serving(0, NOW_MS)
    seen = []
    for pair in pairs:
        topic.models.apply(SERVING_KEY, wire.encode(pair), NOW_MS)
        seen.append(topic.models.view().switches)
    assert seen == [1, 1, 2, 2, 3, 3]


def test_publishing_returns_once_the_topic_shows_it(topic: Topic) -> None:
    """Every decision goes by the topic alone."""
    topic.models.publish(serving(1, NOW_MS))
    assert topic.models.view().serving == serving(1, NOW_MS)


def test_a_pair_that_does_not_appear_is_not_in_force(topic: Topic) -> None:
    """The step is repeated later."""
    topic.echoes = False
    with pytest.raises(TransientError, match="does not show"):
        topic.models.publish(serving(1, NOW_MS))
