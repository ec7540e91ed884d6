"""The indexer on a real Kafka and a vector store in a process of its own: catalogue, releases, crashes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from structlog.testing import capture_logs

from contracts.topics import CATALOG, DEAD_LETTERS, PRODUCT_VECTORS
from indexer.app import serve
from indexer.store import ProductStore
from service.kafka import OutgoingRecord, consumer_config, produce_all, producer_config
from service.settings import Settings
from tests.support.indexing import (
    ServiceProcess,
    ServiceThread,
    Shop,
    catalogue_counts,
    deleted,
    in_words,
    product,
    product_release,
    query_release,
    running,
    serving_of,
    titles,
)
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.topics import read_compacted
from towers.encoder import BaseEncoder
from towers.features import keys_of
from towers.model import product_vectors

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]

SettingsFactory = Callable[..., Settings]

REFUSED = 'millrace_releases_total{decision="refused",tower="query"}'


@pytest.fixture
def process(own: Settings, tmp_path: Path) -> Iterator[ServiceProcess]:
    """Give an indexer that is ready, in a process of its own."""
    started = ServiceProcess("indexer", own, tmp_path / "indexer.log").start()
    yield started
    assert started.stop() == 0, started.log_text()[-3000:]


def dead_letters(settings: Settings) -> list[Any]:
    """Return the records of `dead-letters`."""
    with KafkaConsumer(**consumer_config(settings)) as consumer:
        partitions = [TopicPartition(settings.topic(DEAD_LETTERS), number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[Any] = []
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            found += [record for records in consumer.poll(timeout_ms=200).values() for record in records]
    return found


def test_a_first_start_serves_release_0_of_an_empty_collection(
    own: Settings, process: ServiceProcess, store: ProductStore
) -> None:
    """The first pair is published, and the alias and collection carry the deployment's prefix."""
    serving = serving_of(own)
    assert (serving.query_release, serving.product_release) == (0, 0)
    assert serving.collection == own.collection(0)
    assert store.alias_target(own.alias()) == own.collection(0)
    assert store.form(own.collection(0)).metadata["product_release"] == 0
    assert process.metric('millrace_release_in_force{tower="product"}') == 0
    assert process.stop() == 0
    assert [line["process"] for line in process.events("ended")] == ["indexer"]


def test_changes_become_searchable_and_deletions_gone_while_poison_is_set_aside(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, indexer: ServiceThread
) -> None:
    """Malformed records reach dead-letters as they came; every other change is applied; each record is counted."""
    shop.send(product("P-1", title="quiet fridge"), product("P-2", title="gaming laptop"))
    shop.send_raw((b"P-9", b'{"type":"product"'), (b"P-8", b'{"type":"product","product_id":"P-8"}'), (b"P-7", None))
    shop.send(product("P-3", title="red oven", price=10.0, brand="Kelto"), deleted("P-2", 2), product("P-2", 1))
    eventually(lambda: store.counts(own.collection(0)) == (2, 1), timeout_s=60, what="two products and a tombstone")
    assert set(titles(own, encoder, "fridge")) == {"quiet fridge", "red oven"}
    stored = store.retrieve(own.collection(0), ["P-3"])["P-3"]
    assert stored.payload["price"] == 10.0
    assert stored.payload["brand"] == "Kelto"
    assert stored.payload["base_version"] == encoder.base_version

    eventually(lambda: catalogue_counts(own) == (6, 2), timeout_s=30, what="every record counted")
    letters = {record.key: record for record in dead_letters(own)}
    assert set(letters) == {b"P-9", b"P-8"}
    headers = dict(letters[b"P-8"].headers)
    assert letters[b"P-8"].value == b'{"type":"product","product_id":"P-8"}'
    assert headers["millrace.origin.topic"] == b"catalog"
    assert headers["millrace.reason"] == b"missing"
    assert dict(letters[b"P-9"].headers)["millrace.reason"] == b"malformed_json"
    assert indexer.metric('millrace_freshness_seconds_count{path="product_to_search"}') >= 3


def test_what_unpacks_beyond_all_bounds_is_set_aside_and_ends_no_indexer(
    own: Settings, shop: Shop, store: ProductStore, indexer: ServiceThread
) -> None:
    """Kafka bounds a record as it is packed: neither its base vector nor its dead letter would fit a topic of ours."""
    too_large = b'{"type":"product","product_id":"B-1","version":1,"title":"fridge"}'.ljust(3_000_000)
    with KafkaProducer(**producer_config(own), compression_type="gzip") as packing:
        topic = own.topic(CATALOG)
        records = [(b"B-1", too_large), (b"B-2", too_large[1:]), (b"B" * 3_000_000, b"{")]
        produce_all(packing, [OutgoingRecord(topic, value, key) for key, value in records])
    shop.send(product("P-1"))
    eventually(lambda: catalogue_counts(own) == (1, 3), timeout_s=60, what="every record counted")
    assert store.counts(own.collection(0)) == (1, 0)
    letters = {record.key: (record.value, dict(record.headers)["millrace.reason"]) for record in dead_letters(own)}
    nothing = (b"", b"too_large")
    assert letters == {b"B-1": nothing, b"B-2": nothing, None: (b"", b"malformed_json")}


def test_only_a_newer_version_changes_a_product(
    own: Settings, shop: Shop, store: ProductStore, indexer: ServiceThread
) -> None:
    """A newer version replaces the product, an older one is counted as stale, whatever the order of arrival."""
    shop.send(product("P-1", 5, "quiet fridge"))
    eventually(lambda: store.counts(own.collection(0)).live == 1, timeout_s=60)
    shop.send(product("P-1", 4, "old fridge"), product("P-1", 6, "new fridge", price=5.0))

    def title() -> str:
        return str(store.retrieve(own.collection(0), ["P-1"])["P-1"].payload["title"])

    eventually(lambda: title() == "new fridge", timeout_s=30)
    shop.send(product("P-1", 3, "oldest fridge"))
    eventually(lambda: catalogue_counts(own) == (4, 0), timeout_s=30)
    assert title() == "new fridge"
    assert indexer.metric('millrace_index_writes_total{kind="stale"}') >= 2


def test_a_query_release_is_served_and_a_broken_one_refused(
    own: Settings, shop: Shop, encoder: BaseEncoder, indexer: ServiceThread
) -> None:
    """A verified query release comes into force at once; one whose probe texts come out differently never does."""
    shop.release(query_release(1, encoder))
    eventually(lambda: serving_of(own).query_release == 1, timeout_s=30)
    refused = indexer.metric(REFUSED)
    wrong = query_release(2, encoder)
    wrong.tensors["probe_vectors"][0, 0] += 0.01
    shop.release(rehashed(wrong))
    eventually(lambda: indexer.metric(REFUSED) == refused + 1, timeout_s=30, what="the broken one is refused")
    shop.release(query_release(4, encoder))
    eventually(lambda: serving_of(own).query_release == 4, timeout_s=30)
    assert indexer.metric(REFUSED) == refused + 1


def rehashed(release: Any) -> Any:
    """Return a release whose digest fits its changed tensors."""
    from towers.release_files import Release, weights_sha256

    digest = weights_sha256(release.tensors)
    return Release(release.manifest.model_copy(update={"weights_sha256": digest}), release.tensors)


def test_a_product_release_is_written_in_place(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, indexer: ServiceThread
) -> None:
    """The one collection holds every product with its new quality, deletions stay deleted, then it is in force."""
    products = [product(f"P-{number}", title=in_words(number)) for number in range(300)]
    shop.send(*products, deleted("P-7", 2))
    collection = own.collection(0)
    eventually(lambda: store.counts(collection) == (299, 1), timeout_s=90)
    release = product_release(1, encoder)
    shop.release(query_release(1, encoder, product_release=1), release)
    shop.send(product("P-new", title="small oven"), product("P-1", 2, "large tv"), deleted("P-8", 2))
    eventually(lambda: serving_of(own).product_release == 1, timeout_s=90)

    serving = serving_of(own)
    assert (serving.query_release, serving.collection, serving.previous_collection) == (1, collection, None)
    assert store.alias_target(own.alias()) == collection
    assert [name for name in store.collections() if name.startswith(own.topic_prefix)] == [collection]
    eventually(lambda: store.counts(collection) == (299, 2), timeout_s=30)
    assert indexer.metric("millrace_rollover_progress_ratio") == 1
    tower = release.product_tower()
    texts = [in_words(3), "large tv", "small oven"]
    features = [keys_of(f"t:{word}" for word in text.split()) for text in texts]
    expected = product_vectors(encoder.encode(texts), tower.quality(["P-3", "P-1", "P-new"], features))

    def found() -> np.ndarray:
        """Read the three products."""
        stored = store.retrieve(collection, ["P-3", "P-1", "P-new"])
        return np.array([stored[one].vector for one in ("P-3", "P-1", "P-new")])

    eventually(lambda: np.allclose(found(), expected, atol=1e-4), timeout_s=30)


def test_an_indexer_killed_in_the_middle_of_a_refresh_completes_it_after_a_restart(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, process: ServiceProcess
) -> None:
    """SIGKILL while qualities are rewritten: the old releases stay in force, then all is at the new one."""
    count, collection = 3_000, own.collection(0)
    shop.send(*(product(f"P-{number}", title=in_words(number)) for number in range(count)))
    eventually(lambda: store.counts(collection).live == count, timeout_s=180, interval_s=0.5)
    release = product_release(1, encoder)
    shop.release(query_release(1, encoder, product_release=1), release)

    def begun() -> bool:
        """Tell whether the refresh is on its way."""
        return any(line["product_release"] == 1 for line in process.events("rollout_progress"))

    eventually(begun, timeout_s=60, interval_s=0.01)
    process.kill()
    assert serving_of(own).product_release == 0
    releases = {entry.product_release for entry in store.versions(collection).values()}
    assert releases == {0, 1}

    shop.send(deleted("P-5", 2), product("P-late", title="small oven"))
    process.start()
    eventually(lambda: serving_of(own).product_release == 1, timeout_s=120)
    eventually(lambda: store.counts(collection) == (count, 1), timeout_s=30)
    eventually(lambda: catalogue_counts(own) == (count + 2, 0), timeout_s=30)
    tower = release.product_tower()
    ids = [f"P-{number}" for number in range(count) if number != 5]
    features = [keys_of(f"t:{word}" for word in in_words(int(one[2:])).split()) for one in ids]
    wanted = dict(zip(ids, tower.quality(ids, features).tolist(), strict=True))

    def stale() -> list[str]:
        """Name the products whose quality is not the one in force."""
        stored = store.stored(collection)
        return [one for one, nats in wanted.items() if abs(stored[one].quality - nats) > 0.02]

    eventually(lambda: not stale(), timeout_s=30)


def test_a_new_product_is_found_ahead_of_a_bulk_load_and_a_kill_right_then_loses_nothing(
    own: Settings, shop: Shop, store: ProductStore, process: ServiceProcess
) -> None:
    """It stands last in the topic and does not wait; after SIGKILL every record is worked off and counted once."""
    count, collection = 3_000, own.collection(0)
    shop.send(*(product(f"P-{number}", title=in_words(number)) for number in range(count)))
    shop.send(product("N-1", title="small oven"), deleted("P-7", 2))

    def both_applied() -> bool:
        """Tell whether the new product and the deletion, last in their topic, have come into the index."""
        stored = store.retrieve(collection, ["N-1", "P-7"])
        return len(stored) == 2 and stored["P-7"].is_tombstone

    eventually(both_applied, timeout_s=60, interval_s=0.01)
    process.kill()
    assert store.counts(collection).live < count / 2
    process.start()
    eventually(lambda: catalogue_counts(own) == (count + 2, 0), timeout_s=180)
    assert store.counts(collection) == (count, 1)


def test_a_deletion_is_forgotten_everywhere_after_its_time_and_not_before(
    own: Settings, shop: Shop, store: ProductStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within it an older state stays out; then point, base vector and memory end, and the product may come anew."""
    monkeypatch.setattr("indexer.catalog.base_vectors.SHORTEST_KEPT_MS", 1_000)
    collection = own.collection(0)
    with running(serve, own):
        shop.send(product("P-1", 5), product("P-2", 1), deleted("P-1", 6))
        eventually(lambda: store.counts(collection) == (1, 1), timeout_s=60)
        shop.send(product("P-1", 5))
        eventually(lambda: catalogue_counts(own) == (4, 0), timeout_s=30)
        assert store.counts(collection) == (1, 1)
    soon = own.model_copy(update={"deletions_kept_s": 2.0, "port": free_port()})
    with running(serve, soon), capture_logs() as lines:
        eventually(lambda: store.counts(collection) == (1, 0), timeout_s=60, what="no tombstone")
        eventually(lambda: {key for _, key in read_compacted(own, PRODUCT_VECTORS)} == {b"P-2"}, timeout_s=30)
        shop.send(product("P-1", 7))
        eventually(lambda: store.counts(collection) == (2, 0), timeout_s=30)
    assert [line["products"] for line in lines if line["event"] == "deletions_forgotten"] == [1]


def test_a_null_deletes_a_product_and_a_higher_version_brings_it_back(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, indexer: ServiceThread
) -> None:
    """As change-data-capture sends it; a restart and what is read again change nothing about it."""
    collection = own.collection(0)
    shop.send(product("P-1", 5, "quiet fridge"), product("P-2", 1, "gaming laptop"))
    shop.send_raw((b"P-1", None), (b"P-9", None))
    eventually(lambda: store.counts(collection) == (1, 1), timeout_s=60, what="the product is gone")
    assert titles(own, encoder, "quiet fridge") == ["gaming laptop"]
    shop.send(product("P-1", 5, "quiet fridge"), product("P-1", 4, "old fridge"))
    eventually(lambda: catalogue_counts(own) == (6, 0), timeout_s=30)
    assert store.counts(collection) == (1, 1)
    assert indexer.metric('millrace_index_writes_total{kind="same_version"}') >= 1
    shop.send(product("P-1", 6, "quiet fridge"))
    eventually(lambda: store.counts(collection) == (2, 0), timeout_s=30, what="a higher version is there again")


def test_an_indexer_that_refuses_the_newest_release_is_not_ready(
    own: Settings, shop: Shop, encoder: BaseEncoder, indexer: ServiceThread
) -> None:
    """It names the release and the cause until a newer one is in force."""
    shop.release(query_release(1, encoder, scale=float("inf")))
    reason = "releases: query-1 was refused: it holds weights that are not finite"
    eventually(lambda: reason in (indexer.not_ready() or ""), timeout_s=30)
    shop.release(query_release(2, encoder))
    eventually(lambda: indexer.not_ready() is None, timeout_s=30)
