"""An indexer whose servers go away, come back empty, or belong to somebody else."""

import threading
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError

from contracts.topics import CATALOG, PRODUCT_VECTORS
from indexer import app
from indexer.app import serve
from indexer.qdrant import connect
from indexer.store import OWNER, ProductStore
from service import follow
from service.kafka import admin, ensure_topics
from service.settings import Settings
from tests.support.indexing import (
    ServiceThread,
    Shop,
    catalogue_counts,
    deleted,
    in_words,
    product,
    running,
    titles,
)
from tests.support.poll import eventually
from tests.support.qdrant_process import QdrantProcess
from tests.support.topics import read_compacted
from towers.encoder import BaseEncoder

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]


@pytest.fixture
def own(own: Settings) -> Settings:
    """Give the settings of an indexer with all its servers, whose topics there are."""
    ensure_topics(own)
    return own


def make_anew(settings: Settings, topic: str) -> None:
    """Delete a topic and make it again."""
    name = settings.topic(topic)
    with admin(settings) as client:
        client.delete_topics([name])
        eventually(lambda: name not in client.list_topics(), timeout_s=30)
    ensure_topics(settings)


def test_an_empty_vector_store_is_filled_again_before_the_indexer_is_ready(
    own: Settings, shop: Shop, store: ProductStore, encoder: BaseEncoder
) -> None:
    """With the collection in force gone, a restart writes every product again from the base vectors."""
    with running(serve, own):
        shop.send(*(product(f"P-{number}", title=in_words(number)) for number in range(50)), deleted("P-3", 2))
        eventually(lambda: store.counts(own.collection(0)) == (49, 1), timeout_s=60)
    store.drop(own.collection(0))
    with running(serve, own):
        assert store.counts(own.collection(0)) == (49, 1)
        assert store.alias_target(own.alias()) == own.collection(0)
        assert titles(own, encoder, in_words(4), limit=1) == [in_words(4)]


def test_a_vector_store_that_is_away_holds_the_catalogue_and_loses_nothing(
    own: Settings, shop: Shop, store: ProductStore, indexer: ServiceThread, qdrant: QdrantProcess
) -> None:
    """While the store is away the indexer says so and waits; afterwards everything is written, once."""
    shop.send(product("P-1"))
    eventually(lambda: store.counts(own.collection(0)).live == 1, timeout_s=60)
    qdrant.kill()
    shop.send(product("P-2", title="red oven"), deleted("P-1", 2))
    eventually(lambda: "catalogue" in (indexer.not_ready() or ""), timeout_s=30, what="it says what it waits for")
    qdrant.start()
    eventually(lambda: store.counts(own.collection(0)) == (1, 1), timeout_s=60)
    eventually(lambda: indexer.not_ready() is None, timeout_s=30)
    assert catalogue_counts(own) == (3, 0)
    assert set(store.versions(own.collection(0))) == {"P-1", "P-2"}


def test_a_vector_store_that_is_gone_makes_an_idle_indexer_not_ready(
    own: Settings, indexer: ServiceThread, qdrant: QdrantProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sends anything, and it still says what is missing, in one line; afterwards it is ready again."""
    monkeypatch.setattr(app, "COUNT_EVERY_S", 0.5)
    qdrant.kill()
    eventually(lambda: "qdrant: Qdrant cannot be reached" in (indexer.not_ready() or ""), timeout_s=60)
    qdrant.start()
    eventually(lambda: indexer.not_ready() is None, timeout_s=60)


def test_a_kafka_that_is_gone_makes_an_idle_indexer_not_ready(
    own: Settings, indexer: ServiceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer whose broker is gone only falls silent; the indexer asks, and says so in one line."""
    gone, describe = threading.Event(), follow._described

    def described(client: Any, name: str) -> Any:
        """Describe a topic, unless the broker is gone."""
        if gone.is_set():
            raise KafkaConnectionError("no broker")
        return describe(client, name)

    monkeypatch.setattr(follow, "_described", described)
    gone.set()
    eventually(lambda: "kafka: Kafka" in (indexer.not_ready() or ""), timeout_s=60)
    gone.clear()
    eventually(lambda: indexer.not_ready() is None, timeout_s=60)


def test_a_second_deployment_on_one_vector_store_is_refused_or_takes_over_on_purpose(
    own: Settings, shop: Shop, store: ProductStore
) -> None:
    """An indexer that finds another Kafka's collections under its names ends with one line and touches nothing."""
    with running(serve, own):
        shop.send(product("P-1"))
        eventually(lambda: store.counts(own.collection(0)).live == 1, timeout_s=60)
    client = connect(own)
    client.update_collection(own.collection(0), metadata={OWNER: "another-cluster/"})
    with pytest.raises(AssertionError, match="belongs to another-cluster/"):
        ServiceThread(serve, own).start()
    assert store.counts(own.collection(0)).live == 1
    assert store.alias_target(own.alias()) == own.collection(0)
    with running(serve, own.model_copy(update={"qdrant_take_over": True})):
        assert store.counts(own.collection(0)).live == 1
        assert store.form(own.collection(0)).metadata[OWNER].endswith(f"/{own.topic_prefix}")
        assert store.alias_target(own.alias()) == own.collection(0)
    client.close()


def test_base_vectors_whose_topic_was_made_anew_are_there_again(
    own: Settings, shop: Shop, store: ProductStore, indexer: ServiceThread
) -> None:
    """What the indexer knows is all that is left of it: it is written to the new topic, and a restart finds it."""
    shop.send(*(product(f"P-{number}", title=in_words(number)) for number in range(30)), deleted("P-3", 2))
    eventually(lambda: store.counts(own.collection(0)) == (29, 1), timeout_s=60)
    make_anew(own, PRODUCT_VECTORS)
    eventually(lambda: len(read_compacted(own, PRODUCT_VECTORS)) == 30, timeout_s=60, interval_s=0.5)
    eventually(lambda: indexer.not_ready() is None, timeout_s=30)
    shop.send(product("P-new"))
    eventually(lambda: store.counts(own.collection(0)) == (30, 1), timeout_s=60)


def test_a_catalogue_that_was_made_anew_is_read_from_its_beginning(
    own: Settings, shop: Shop, store: ProductStore
) -> None:
    """The committed offsets lie behind its end: nothing of it is passed over, and the counts begin again."""
    with running(serve, own):
        shop.send(*(product(f"P-{number}") for number in range(20)))
        eventually(lambda: catalogue_counts(own) == (20, 0), timeout_s=60)
    make_anew(own, CATALOG)
    shop.send(*(product(f"N-{number}") for number in range(4)))
    with running(serve, own):
        eventually(lambda: store.counts(own.collection(0)).live == 24, timeout_s=60)
        eventually(lambda: catalogue_counts(own) == (4, 0), timeout_s=30)
