"""What every vector store must do alike: embedded, in memory, and a Qdrant server."""

import math
import threading
from itertools import permutations

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from typing_extensions import override

from contracts.catalog import PointVersion, point_id
from contracts.errors import InvariantError, MillraceError, TransientError
from contracts.http import Filters
from indexer.filters import KEYS_VERSION
from indexer.points import ProductPoint
from indexer.qdrant import FILTERED, LEXICAL, VECTOR_NAME
from indexer.search.retrieval import QdrantRetrieval
from indexer.store import Counts, ProductStore
from tests.conformance.conftest import DIM, Backend
from tests.support.poll import eventually
from towers.lexical import LEXICAL_VERSION

MADE_TODAY = {"product_release": 1, LEXICAL: LEXICAL_VERSION, FILTERED: KEYS_VERSION}
pytestmark = pytest.mark.qdrant


def vector(angle: float) -> list[float]:
    """Return a unit vector in the first two dimensions."""
    return [math.cos(angle), math.sin(angle), *[0.0] * (DIM - 2)]


def live(
    product_id: str, version: int, product_release: int = 1, *, angle: float = 0.0, **payload: object
) -> ProductPoint:
    """Return a product on sale."""
    return ProductPoint(product_id, version, product_release, vector(angle), {"title": f"v{version}", **payload})


def tombstone(product_id: str, version: int, product_release: int = 1) -> ProductPoint:
    """Return a deletion."""
    return ProductPoint(product_id, version, product_release, None)


ENDS_DELETED = (live("", 4, 3), live("", 5, 1), live("", 6, 9), tombstone("", 6, 0))
ENDS_LISTED = (live("", 4, 9), tombstone("", 5, 1), live("", 6, 1), live("", 6, 2))


def of(product_id: str, point: ProductPoint) -> ProductPoint:
    """Return the same write of another product."""
    return ProductPoint(product_id, point.version, point.product_release, point.vector, point.payload)


class TestVectorStore:
    """One suite over every backend."""

    @pytest.mark.parametrize("writes", [ENDS_DELETED, ENDS_LISTED], ids=["ends deleted", "ends listed"])
    def test_newest_write_wins_in_every_order(
        self, store: ProductStore, collection: str, writes: tuple[ProductPoint, ...]
    ) -> None:
        """Four writes of one product end alike in all 24 orders, sent one by one."""
        orders = {f"P-{number}": order for number, order in enumerate(permutations(writes))}
        for product_id, order in orders.items():
            for point in order:
                store.write(collection, [of(product_id, point)])
        self._all_hold(store, collection, list(orders), writes[-1])

    @pytest.mark.parametrize("writes", [ENDS_DELETED, ENDS_LISTED], ids=["ends deleted", "ends listed"])
    def test_newest_write_wins_in_mixed_requests(
        self, store: ProductStore, collection: str, writes: tuple[ProductPoint, ...]
    ) -> None:
        """The same holds where one request carries products of different versions."""
        orders = {f"P-{number}": order for number, order in enumerate(permutations(writes))}
        for step in range(len(writes)):
            store.write(collection, [of(product_id, order[step]) for product_id, order in orders.items()])
        self._all_hold(store, collection, list(orders), writes[-1])

    @staticmethod
    def _all_hold(store: ProductStore, collection: str, product_ids: list[str], last: ProductPoint) -> None:
        """Check that every product ended as the newest write left it."""
        stored = store.retrieve(collection, product_ids)
        assert {product_id: point.point_version for product_id, point in stored.items()} == dict.fromkeys(
            product_ids, last.point_version
        )
        assert {point.is_tombstone for point in stored.values()} == {last.is_tombstone}
        assert {point.payload.get("title") for point in stored.values()} == {last.payload.get("title")}

    def test_late_older_upsert_bounces_off_tombstone(self, store: ProductStore, collection: str) -> None:
        """A deleted product stays deleted when an older version of it arrives late, by whatever release."""
        store.write(collection, [live("P-1", 3), tombstone("P-1", 5)])
        store.write(collection, [live("P-1", 4, 99)])
        assert store.retrieve(collection, ["P-1"])["P-1"].is_tombstone
        assert store.counts(collection) == Counts(live=0, tombstones=1)

    def test_later_listing_wins_over_tombstone(
        self, store: ProductStore, client: QdrantClient, collection: str
    ) -> None:
        """A product listed again after its deletion is found again."""
        store.write(collection, [tombstone("P-1", 5)])
        store.write(collection, [live("P-1", 6, brand="Acme")])
        assert store.counts(collection) == Counts(live=1, tombstones=0)
        assert found(client, collection) == ["P-1"]

    def test_tombstone_is_never_found(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """A tombstone has no vector, so no search returns it, with or without a filter."""
        store.write(collection, [live("P-1", 1), live("P-2", 1), tombstone("P-2", 2)])
        assert found(client, collection) == ["P-1"]

    def test_replay_changes_nothing(self, store: ProductStore, collection: str) -> None:
        """Writing the same points again, shuffled with older ones, leaves the same state."""
        points = [live(f"P-{number}", 10 + number) for number in range(40)]
        store.write(collection, points)
        before = store.versions(collection)
        store.write(collection, [*reversed(points), *(live(f"P-{number}", 5) for number in range(40))])
        assert store.versions(collection) == before

    def test_duplicate_ids_in_one_write_keep_the_newest(self, store: ProductStore, collection: str) -> None:
        """Of several points of one product in one write the newest is stored, wherever it stands."""
        sent = store.write(collection, [live("P-1", 4), live("P-1", 6, 2), live("P-1", 6, 1), live("P-1", 5, 9)])
        assert sent == 1
        assert store.versions(collection) == {"P-1": PointVersion(6, 2)}

    def test_refresh_by_a_newer_release_is_accepted(self, store: ProductStore, collection: str) -> None:
        """The same product version under a newer product release replaces the vector, an older release does not."""
        store.write(collection, [live("P-1", 5, 1, angle=0.1)])
        store.write(collection, [live("P-1", 5, 3, angle=0.3)])
        store.write(collection, [live("P-1", 5, 2, angle=0.2)])
        stored = store.retrieve(collection, ["P-1"])["P-1"]
        assert stored.point_version == PointVersion(5, 3)
        assert stored.vector == pytest.approx(vector(0.3), abs=1e-6)

    def test_version_as_large_as_allowed_still_orders(self, store: ProductStore, collection: str) -> None:
        """Versions just below 2^53 are told apart by one."""
        largest = 2**53 - 1
        store.write(collection, [live("P-1", largest - 1)])
        store.write(collection, [live("P-1", largest)])
        store.write(collection, [live("P-1", largest - 1, 9)])
        assert store.versions(collection) == {"P-1": PointVersion(largest, 1)}

    def test_more_points_than_a_batch(self, store: ProductStore, collection: str) -> None:
        """A write larger than a batch arrives whole; each point is told once, tombstones included."""
        store.write(collection, [live(f"P-{number}", 1 + number % 3) for number in range(100)])
        store.write(collection, [tombstone(f"P-{number}", 9) for number in range(10)])
        assert store.counts(collection) == Counts(live=90, tombstones=10)
        seen = list(store.stored(collection))
        assert sorted(seen) == sorted(f"P-{number}" for number in range(100))

    def test_alias_is_created_moved_and_resolved(
        self, store: ProductStore, client: QdrantClient, collection: str
    ) -> None:
        """An alias answers queries as its collection does, and creating it again moves it."""
        alias, second = f"{collection}-alias", f"{collection}-second"
        store.ensure_collection(second, DIM)
        try:
            store.write(collection, [live("P-1", 1)])
            store.write(second, [live("P-2", 1)])
            store.publish_alias(alias, collection)
            assert (found(client, alias), store.alias_target(alias)) == (["P-1"], collection)
            store.publish_alias(alias, second)
            assert (found(client, alias), store.alias_target(alias)) == (["P-2"], second)
        finally:
            store.drop(second)

    def test_alias_goes_with_its_collection(self, store: ProductStore, collection: str) -> None:
        """Dropping a collection takes its aliases along; dropping it again is harmless."""
        doomed = f"{collection}-doomed"
        store.ensure_collection(doomed, DIM)
        store.publish_alias(f"{doomed}-alias", doomed)
        store.drop(doomed)
        store.drop(doomed)
        assert store.alias_target(f"{doomed}-alias") is None
        assert doomed not in store.collections()

    def test_ensure_is_idempotent_and_keeps_metadata(self, store: ProductStore, collection: str) -> None:
        """A second ensure makes nothing and leaves points and metadata alone."""
        store.write(collection, [live("P-1", 1)])
        assert store.ensure_collection(collection, DIM, metadata={"product_release": 2}) is False
        assert store.form(collection).metadata == MADE_TODAY
        assert store.counts(collection).live == 1

    def test_wrong_dimension_is_refused(self, store: ProductStore, collection: str) -> None:
        """A vector that does not fit is refused and nothing of its request is stored."""
        wrong = ProductPoint("P-2", 1, 1, [1.0, 0.0], {})
        with pytest.raises(InvariantError):
            store.write(collection, [live("P-1", 1), wrong])
        assert "P-2" not in store.versions(collection)

    def test_missing_collection_is_refused(self, store: ProductStore, collection: str) -> None:
        """A write to a collection that is not there is an error, not a new collection."""
        with pytest.raises(InvariantError):
            store.write(f"{collection}-absent", [live("P-1", 1)])
        assert f"{collection}-absent" not in store.collections()

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            (models.FieldCondition(key="brand", match=models.MatchAny(any=["Acme", "Bolt"])), {"P-1", "P-2", "P-4"}),
            (models.FieldCondition(key="price", range=models.Range(lte=200.0)), {"P-1", "P-2"}),
            (models.FieldCondition(key="price", range=models.Range(gt=100.0, lt=300.0)), {"P-2"}),
            (models.FieldCondition(key="in_stock", match=models.MatchValue(value=1)), {"P-1", "P-3", "P-4"}),
            (models.FieldCondition(key="category", match=models.MatchValue(value="Fridges")), {"P-1", "P-3"}),
            (models.FieldCondition(key="locale", match=models.MatchValue(value="en-IN")), {"P-1", "P-2"}),
            (models.FieldCondition(key="brand", match=models.MatchExcept(**{"except": ["Acme"]})), {"P-2", "P-3"}),
            (models.IsEmptyCondition(is_empty=models.PayloadField(key="seller_id")), {"P-2", "P-3", "P-4"}),
            (models.HasIdCondition(has_id=[point_id("P-3")]), {"P-3"}),
            (models.Filter(should=[models.HasIdCondition(has_id=[point_id("P-2")])]), {"P-2"}),
        ],
        ids=["brand", "price", "open range", "stock", "category", "locale", "except", "empty", "id", "nested"],
    )
    def test_filters(
        self,
        store: ProductStore,
        client: QdrantClient,
        collection: str,
        condition: models.Condition,
        expected: set[str],
    ) -> None:
        """Each filter that search offers lets through what it should, and nothing else."""
        store.write(collection, CATALOGUE)
        assert set(found(client, collection, models.Filter(must=[condition]))) == expected
        everything = {point.product_id for point in CATALOGUE}
        assert set(found(client, collection, models.Filter(must_not=[condition]))) == everything - expected
        assert client.count(collection, models.Filter(must=[condition])).count == len(expected)

    async def test_total_of_filters_that_hang_together(
        self, backend: Backend, store: ProductStore, collection: str
    ) -> None:
        """Search counts what meets all filters, also where one filter says much about another."""
        if backend.url is None:
            pytest.skip("memory: it counts exactly, and no second client reaches it")
        kinds = [("Acme", "Fridges"), ("Bolt", "Ovens"), ("Core", "Audio")]
        keys = [{"brand": [brand.lower()], "category": [kind.lower()]} for brand, kind in kinds]
        store.write(collection, [live(f"P-{number}", 1, keys=keys[number % len(keys)]) for number in range(300)])
        client = AsyncQdrantClient(url=backend.url, check_compatibility=False)
        retrieval = QdrantRetrieval(client)
        asked = [Filters(brand=("Acme",), category=kind) for kind in ("Fridges", "Ovens")]
        assert [await retrieval.count(collection, filters) for filters in asked] == [100, 0]
        await client.close()

    def test_order_scores_and_limit(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """Hits come best first with their score, as many as asked for, after the offset."""
        store.write(collection, [live(f"P-{number}", 1, angle=number / 10) for number in range(8)])
        answer = client.query_points(collection, query=vector(0.0), using=VECTOR_NAME, limit=3, offset=1)
        assert [(point.payload or {})["product_id"] for point in answer.points] == ["P-1", "P-2", "P-3"]
        assert [point.score for point in answer.points] == pytest.approx(
            [math.cos(number / 10) for number in (1, 2, 3)], abs=1e-5
        )

    def test_prefetch_and_formula(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """A formula reorders the prefetched candidates; a missing field takes its default."""
        store.write(
            collection, [live("P-1", 1, angle=0.0), live("P-2", 1, angle=0.1, priority=1.0), live("P-3", 1, angle=0.2)]
        )
        boost = models.MultExpression(mult=[0.5, "priority"])
        answer = client.query_points(
            collection,
            prefetch=models.Prefetch(query=vector(0.0), using=VECTOR_NAME, limit=3),
            query=models.FormulaQuery(formula=models.SumExpression(sum=["$score", boost]), defaults={"priority": 0.0}),
            limit=3,
        )
        assert [(point.payload or {})["product_id"] for point in answer.points] == ["P-2", "P-1", "P-3"]
        assert answer.points[0].score == pytest.approx(math.cos(0.1) + 0.5, abs=1e-5)

    def test_filter_inside_prefetch(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """A filter inside the prefetch bounds what the formula sees."""
        store.write(collection, CATALOGUE)
        in_stock = models.Filter(must=[models.FieldCondition(key="in_stock", match=models.MatchValue(value=1))])
        answer = client.query_points(
            collection,
            prefetch=models.Prefetch(query=vector(0.0), using=VECTOR_NAME, limit=10, filter=in_stock),
            query=models.FormulaQuery(formula=models.SumExpression(sum=["$score", 1.0])),
            limit=10,
        )
        assert {(point.payload or {})["product_id"] for point in answer.points} == {"P-1", "P-3", "P-4"}

    def test_one_hit_per_variant_group(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """Grouping by parent gives each group once, best group first, with its best hit."""
        store.write(
            collection,
            [live(f"P-{number}", 1, angle=number / 10, parent_id=f"V-{number // 3}") for number in range(9)],
        )
        answer = client.query_points_groups(
            collection, group_by="parent_id", query=vector(0.0), using=VECTOR_NAME, limit=3, group_size=1
        )
        hits = [(group.id, [(point.payload or {})["product_id"] for point in group.hits]) for group in answer.groups]
        assert hits == [("V-0", ["P-0"]), ("V-1", ["P-3"]), ("V-2", ["P-6"])]

    def test_batch_of_queries(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """Several queries of one request are answered in their order."""
        store.write(collection, [live("P-1", 1, angle=0.0), live("P-2", 1, angle=1.5)])
        requests = [models.QueryRequest(query=vector(angle), using=VECTOR_NAME, limit=1) for angle in (1.5, 0.0)]
        answers = client.query_batch_points(collection, requests)
        assert [answer.points[0].id for answer in answers] == [point_id("P-2"), point_id("P-1")]

    def test_retrieve_gives_what_was_written(self, store: ProductStore, collection: str) -> None:
        """A point comes back as it was written, absent ones are left out."""
        written = live("P-1", 1, angle=0.5, brand="Acme", category=["A", "B"], price=9.5, seller_id=None)
        store.write(collection, [written])
        stored = store.retrieve(collection, ["P-1", "P-404"])
        assert set(stored) == {"P-1"}
        assert stored["P-1"].vector == pytest.approx(written.vector, abs=1e-6)
        assert stored["P-1"].payload == written.payload

    def test_scroll_pages_with_offset(self, store: ProductStore, client: QdrantClient, collection: str) -> None:
        """Scroll pages cover every point once and end with no offset."""
        store.write(collection, [live(f"P-{number}", 1) for number in range(10)])
        first, offset = client.scroll(collection, limit=6)
        assert offset is not None
        second, end = client.scroll(collection, limit=6, offset=offset)
        assert end is None
        assert len({record.id for record in (*first, *second)}) == 10

    def test_acknowledged_writes_survive_a_kill(self, backend: Backend, store: ProductStore, collection: str) -> None:
        """What was acknowledged is there after SIGKILL: points, tombstones, alias, metadata, newer-only rule."""
        if backend.process is None:
            pytest.skip(f"{backend.name}: nothing of it survives a kill, or it is not ours to kill")
        alias = f"{collection}-alias"
        store.publish_alias(alias, collection)
        store.write(collection, [live(f"P-{number}", 5) for number in range(50)])
        store.write(collection, [tombstone("P-0", 6)])
        backend.kill_and_restart()
        store.wait_until_answering(10)
        assert store.counts(alias) == Counts(live=49, tombstones=1)
        assert store.form(collection).metadata == MADE_TODAY
        store.write(collection, [live("P-0", 5, 9), live("P-1", 4, 9)])
        after = store.versions(alias)
        assert (after["P-0"], after["P-1"]) == (PointVersion(6, 1, deleted=True), PointVersion(5, 1))

    def test_kill_while_writing_loses_nothing_acknowledged(
        self, backend: Backend, store: ProductStore, collection: str
    ) -> None:
        """Each of several kills falls while writes arrive; what was acknowledged before it is there after it."""
        if backend.process is None:
            pytest.skip(f"{backend.name}: nothing of it survives a kill, or it is not ours to kill")
        first = 1
        for _ in range(3):
            writer = _Writer(store, collection, first)
            writer.start()
            eventually(lambda: writer.acknowledged >= first + 5, what="writes arrive")  # noqa: B023 -- asked at once
            backend.process.kill()
            writer.join()
            assert isinstance(writer.failure, TransientError)
            backend.process.start()
            stored = {version.version for version in store.versions(collection).values()}
            assert len(stored) == 1
            assert stored.pop() in {writer.acknowledged, writer.acknowledged + 1}
            first = writer.acknowledged + 2

    def test_bool_match(self, backend: Backend, client: QdrantClient, collection: str) -> None:
        """True and false match what is stored as such."""
        for name, flag in (("P-1", True), ("P-2", False)):
            struct = models.PointStruct(
                id=point_id(name), vector={VECTOR_NAME: vector(0.0)}, payload={"product_id": name, "flag": flag}
            )
            client.upsert(collection, [struct])
        for name, flag in (("P-1", True), ("P-2", False)):
            condition = models.FieldCondition(key="flag", match=models.MatchValue(value=flag))
            assert found(client, collection, models.Filter(must=[condition])) == [name], backend.name


class _Writer(threading.Thread):
    """Writes the same products in ever newer versions until the store is gone."""

    def __init__(self, store: ProductStore, collection: str, first: int) -> None:
        super().__init__(daemon=True)
        self._store, self._collection, self._version = store, collection, first
        self.acknowledged = 0
        self.failure: Exception | None = None

    @override
    def run(self) -> None:
        """Write until a write fails."""
        try:
            while True:
                self._store.write(self._collection, [live(f"P-{number}", self._version) for number in range(10)])
                self.acknowledged = self._version
                self._version += 1
        except MillraceError as exc:
            self.failure = exc


CATALOGUE = [
    live(
        "P-1", 1, brand="Acme", price=100.0, in_stock=1, category=["Kitchen", "Fridges"], locale="en-IN", seller_id="S"
    ),
    live("P-2", 1, brand="Bolt", price=200.0, in_stock=0, category=["Kitchen", "Ovens"], locale="en-IN"),
    live("P-3", 1, brand="Core", price=300.0, in_stock=1, category=["Kitchen", "Fridges"], locale="hi-IN"),
    live("P-4", 1, brand="Acme", price=400.0, in_stock=1, category=["Audio"], locale="hi-IN"),
]


def found(client: QdrantClient, collection: str, chosen: models.Filter | None = None) -> list[str]:
    """Return the product ids that a search finds, best first."""
    answer = client.query_points(
        collection, query=vector(0.0), using=VECTOR_NAME, query_filter=chosen, limit=50, with_payload=True
    )
    return [(point.payload or {})["product_id"] for point in answer.points]
