"""The audit on a real Kafka and a vector store in a process of its own: it finds damage, and the repair mends it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kafka import KafkaProducer
from qdrant_client import QdrantClient, models

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, point_id
from contracts.errors import CheckFailed
from contracts.topics import CATALOG, PRODUCT_VECTORS
from indexer.app import serve
from indexer.audit import Repairs
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.sent import SentProducts
from indexer.points import Target
from indexer.qdrant import connect, to_struct
from indexer.store import ProductStore
from millrace.auditing import base_vectors_on_topic, open_auditor, run_audit, send_repairs
from millrace.exporting import VectorForm, export_vectors
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.support.indexing import ServiceThread, Shop, deleted, in_words, product, running
from tests.support.poll import eventually
from tests.support.topics import read_topic
from towers.encoder import BaseEncoder
from towers.model import ProductTower

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]


def audited(settings: Settings, *, sample: int = 100, repair: bool = False, yes: bool = False) -> dict[str, Any]:
    """Return the report of an audit that computes the numbers of many products again."""
    return run_audit(settings, lambda _what, _done, _of: None, sample=sample, repair=repair, yes=yes)


def differing(counts: dict[str, int]) -> dict[str, int]:
    """Return the kinds that were found."""
    return {str(kind): count for kind, count in counts.items() if count}


def fill(shop: Shop, store: ProductStore, indexer: ServiceThread, collection: str) -> None:
    """Index 40 products, one of which is deleted then; whoever leads has compared everything for the first time."""
    shop.send(*(product(f"P-{number}", 3, in_words(number)) for number in range(40)))
    shop.send(deleted("P-5", 4))
    eventually(lambda: store.counts(collection) == (39, 1), timeout_s=60, what="the products are indexed")
    counted = f'millrace_index_points{{collection="{collection}"}}'
    eventually(lambda: indexer.metric(counted) == 39, timeout_s=60, what="the loop of releases has nothing to do")


class Damage:
    """Writes past the indexer what it would never write.

    Args:
        settings: of the deployment.
        collection: in force.
    """

    def __init__(self, settings: Settings, collection: str, encoder: BaseEncoder) -> None:
        self._settings = settings
        self._collection = collection
        self._client: QdrantClient = connect(settings)
        self.known = base_vectors_on_topic(settings, [f"P-{number}" for number in range(40)], encoder.base_version)
        self._target = Target(collection, 0, ProductTower.untrained())

    def point(self, of: str, **changes: Any) -> None:
        """Write the point of a product with some of it changed, whatever is stored."""
        (point,) = self._target.points([self.known[of]])
        self._client.upsert(self._collection, [to_struct(replace(point, **changes))])

    def vector_of(self, product_id: str) -> np.ndarray:
        """Return the vector that its point should have."""
        (point,) = self._target.points([self.known[product_id]])
        return np.array(point.vector)

    def remove(self, product_id: str) -> None:
        """Take a point out of the index."""
        self._client.delete(self._collection, models.PointIdsList(points=[point_id(product_id)]))

    def base_vector(self, made: BaseProduct) -> None:
        """Write to `product-vectors`."""
        topic = self._settings.topic(PRODUCT_VECTORS)
        with KafkaProducer(**producer_config(self._settings)) as producer:
            record = OutgoingRecord(topic, wire.encode(made.to_message()), key=made.product_id.encode())
            produce_all(producer, [record])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def test_an_index_that_is_true_has_no_difference_and_is_exported(
    own: Settings, shop: Shop, store: ProductStore, encoder: BaseEncoder, indexer: ServiceThread, tmp_path: Path
) -> None:
    """Products, deletions and nulls as the indexer leaves them, every number computed again; the file has them all."""
    fill(shop, store, indexer, own.collection(0))
    shop.send_raw((b"P-6", None))
    eventually(lambda: store.counts(own.collection(0)) == (38, 2), timeout_s=30)
    report = audited(own)
    assert (differing(report["differences"]), report["products"], report["sampled"]) == ({}, 38, 38)
    path = tmp_path / "vectors.jsonl"
    exported = export_vectors(own, path, VectorForm.NUMBERS, lambda _what, _done, _of: None)
    assert (exported["products"], exported["width"]) == (38, encoder.dim + 1)
    lines = {line["product_id"]: line["vector"] for line in map(orjson.loads, path.read_bytes().splitlines())}
    assert lines.keys() == {f"P-{number}" for number in range(40)} - {"P-5", "P-6"}
    np.testing.assert_allclose(lines["P-1"][:-1], encoder.encode([in_words(1)])[0], atol=1e-5)


def test_each_damage_is_found_and_mended(
    own: Settings, shop: Shop, store: ProductStore, encoder: BaseEncoder, indexer: ServiceThread
) -> None:
    """What is missing, old, extra or damaged is named; after the repair nothing is left, and the numbers are right."""
    collection = own.collection(0)
    fill(shop, store, indexer, collection)
    damage = Damage(own, collection, encoder)
    damage.remove("P-1")
    damage.remove("P-5")
    damage.point("P-2", version=1)
    damage.point("P-3", vector=(-damage.vector_of("P-3")).tolist())
    damage.point("P-4", vector=[*damage.vector_of("P-4")[:-1], 0.3])
    damage.point("P-7", product_id="X-1")
    wrong = damage.known["P-8"]
    assert wrong.vector is not None
    damage.base_vector(replace(wrong, vector=np.roll(wrong.vector, 1)))
    damage.base_vector(replace(wrong, product_id="X-2"))
    report = audited(own, repair=True)
    assert differing(report["differences"]) == {
        "point_missing": 1, "point_no_tombstone": 1, "point_stale": 1, "point_wrong": 1, "quality_wrong": 1,
        "point_extra": 1, "vector_wrong": 1, "vector_extra": 1,
    }  # fmt: skip
    assert (report["repaired"], differing(report["left"])) == (8, {})
    found = store.retrieve(collection, ["P-1", "P-3", "P-4", "P-8", "X-1"])
    for product_id in ("P-1", "P-3", "P-4", "P-8"):
        np.testing.assert_allclose(found[product_id].vector or (), damage.vector_of(product_id), atol=1e-5)
    assert found["X-1"].is_tombstone
    assert differing(audited(own)["differences"]) == {}
    damage.close()


def test_a_lost_catalogue_is_not_repaired_by_emptying_the_shop(
    own: Settings, shop: Shop, store: ProductStore, encoder: BaseEncoder, indexer: ServiceThread
) -> None:
    """Much that nobody sent is there: nothing is deleted unless that is meant."""
    shop.send(product("P-0", 3))
    counted = f'millrace_index_points{{collection="{own.collection(0)}"}}'
    eventually(lambda: indexer.metric(counted) == 1, timeout_s=60)
    damage = Damage(own, own.collection(0), encoder)
    for number in range(3):
        damage.point("P-0", product_id=f"X-{number}")
    damage.close()
    with pytest.raises(CheckFailed):
        audited(own, sample=0, repair=True)
    assert store.counts(own.collection(0)).live == 4
    assert differing(audited(own, sample=0, repair=True, yes=True)["left"]) == {}


def test_a_repair_that_the_shop_has_overtaken_is_not_sent(own: Settings, shop: Shop) -> None:
    """Compaction keeps the last record of a key alone: it must be the shop's newer one."""
    shop.send(product("P-1", 3), product("P-2", 3))
    with open_auditor(own, with_numbers=False) as auditor:
        catalogue = SentProducts({"P-1", "P-2", "X-1", "X-2"})
        records = auditor.newest_records(catalogue)
    shop.send(product("P-1", 4), product("X-1", 1))
    repairs = Repairs(frozenset({"P-1", "P-2"}), {"X-1": 2, "X-2": 2})
    assert len(send_repairs(own, repairs, records, catalogue)) == 2
    records_now = [record for records_of_one in read_topic(own, CATALOG).values() for record in records_of_one]
    changes = {change.product_id: change for change in (CATALOG_CHANGE.validate_json(one.value) for one in records_now)}
    assert {name: (change.type, change.version) for name, change in changes.items()} == {
        "P-1": ("product", 4), "P-2": ("product", 3), "X-1": ("product", 1), "X-2": ("product_deleted", 2),
    }  # fmt: skip


def test_the_indexer_that_leads_audits_by_itself(own: Settings, shop: Shop, store: ProductStore) -> None:
    """What it found last is a metric, by kind; it repairs nothing by itself."""
    with running(serve, own.model_copy(update={"audit_interval_s": 0.5})) as service:
        fill(shop, store, service, own.collection(0))
        client = connect(own)
        client.delete(own.collection(0), models.PointIdsList(points=[point_id("P-1")]))
        client.close()
        kind = 'millrace_audit_differences{kind="point_missing"}'
        eventually(lambda: service.metric(kind) == 1, timeout_s=30, what="the audit finds it")
        assert service.metric("millrace_audit_last_success_timestamp_seconds") > 0
        assert store.counts(own.collection(0)).live == 38
