"""The check of a new collection on a store in memory: what fails it, what does not, and how much is held at once."""

from collections.abc import Iterable, Sequence

import numpy as np
from structlog.testing import capture_logs
from typing_extensions import override

from contracts.catalog import PointVersion
from indexer.adapters.qdrant import Counts
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.points import ProductPoint
from indexer.filling import BATCH, check_collection
from indexer.targets import Target
from tests.support.indexer_fakes import Deployment, FlakyStore, Shadow, base_product, first_target, release_1, run
from tests.support.tiny_encoder import TinyEncoder
from towers.heads import ProductHead


class Watched(FlakyStore):
    """A store that notes how many products were asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    @override
    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Note and answer."""
        self.asked.append(len(product_ids))
        return super().retrieve(collection, product_ids)


def test_a_check_after_which_everything_is_doubtful_reads_batch_by_batch() -> None:
    """Whole points of a whole catalogue would not fit into memory; what is asked for is at most one write's worth."""
    encoder, store, vectors = TinyEncoder(), Watched(), BaseVectors()
    count = 2 * BATCH + 10
    products = [base_product(encoder, f"P-{number}") for number in range(count)]
    for product in products:
        vectors.apply(product)
    for collection in ("products-r0", "products-r1"):
        store.ensure_collection(collection, encoder.dim)
    store.write("products-r0", first_target(encoder).points(products))
    check_collection(
        Target("products-r1", 1, ProductHead(encoder.dim)),
        "products-r0",
        store=store,
        vectors=vectors,
        catch_up=lambda: None,
        shadow=Shadow(),
        probes=np.zeros((2, encoder.dim), dtype=np.float32),
    )
    assert sum(store.asked) >= count
    assert max(store.asked) <= BATCH
    assert store.counts("products-r1").live == count


class Arrivals(FlakyStore):
    """A store into which a new product is written at every look, to the new collection one look later."""

    def __init__(self, shop: Deployment) -> None:
        super().__init__()
        self._shop = shop
        self._late: list[BaseProduct] = []
        self.count = 0
        self.are_coming = False

    @override
    def counts(self, collection: str) -> Counts:
        """Count after an arrival."""
        self._arrive()
        return super().counts(collection)

    @override
    def versions(self, collection: str) -> dict[str, PointVersion]:
        """Return versions between two arrivals."""
        self._arrive()
        found = super().versions(collection)
        self._arrive()
        return found

    def _arrive(self) -> None:
        """Write a product."""
        in_force, construction = self._shop.targets.in_force, self._shop.targets.construction
        if not self.are_coming or in_force is None or construction is None:
            return
        self.count += 1
        arrived = base_product(self._shop.encoder, f"N-{self.count}")
        self._shop.vectors.apply(arrived)
        self.write(in_force.collection, in_force.points([arrived]))
        self.write(construction.collection, construction.points(self._late))
        self._late = [arrived]


def test_steady_arrivals_of_new_products_do_not_fail_the_check() -> None:
    """It needs no quiet moment: what is younger than its beginning is not held against the new collection."""
    shop = Deployment()
    shop.fill(20)
    shop.store = store = Arrivals(shop)
    lane = shop.new_process()
    lane.settle()
    release_1(shop)
    store.are_coming = True
    run(lane)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert store.count >= 4
    assert len(store.versions("products-r1")) == 20 + store.count


class Lossy(FlakyStore):
    """A store whose second collection acknowledges one product and does not keep it."""

    @override
    def write(self, collection: str, points: Iterable[ProductPoint]) -> int:
        """Write all but that one."""
        kept = [point for point in points if (collection, point.product_id) != ("products-r1", "P-7")]
        return super().write(collection, kept)


def test_a_product_that_the_new_collection_does_not_keep_fails_the_check() -> None:
    """It was written and is not there: the release is refused, with the number and one that is lacking."""
    shop = Deployment()
    shop.fill(20)
    shop.store = Lossy()
    lane = shop.new_process()
    lane.settle()
    release_1(shop)
    with capture_logs() as lines:
        run(lane)
    failures = [line["error"] for line in lines if line["event"] == "rollout_check_failed"]
    assert failures == 5 * ["products-r1 lacks 1 of 20 products, P-7 for one"]
    assert shop.topic.history == [(0, 0)]


def test_a_product_that_only_the_collection_in_force_knows_fails_the_check(shop: Deployment) -> None:
    """Base vectors that lack what shoppers find now must not become the index."""
    release_1(shop)
    lane = shop.new_process()
    lane.settle()
    stray = base_product(shop.encoder, "P-stray")
    shop.store.write("products-r0", first_target(shop.encoder).points([stray]))
    with capture_logs() as lines:
        run(lane)
    assert "products-r1 lacks 1 of 601 products, P-stray for one" in {line.get("error") for line in lines}
    assert shop.topic.history == [(0, 0)]


def test_a_product_that_nobody_sent_fails_the_check(shop: Deployment) -> None:
    """A collection of that name from another life holds strangers: it is dropped, not served."""
    release_1(shop)
    shop.store.ensure_collection("products-r1", shop.encoder.dim)
    stranger = base_product(shop.encoder, "P-stranger")
    shop.store.write("products-r1", [stranger.point(1, stranger.vector)])
    lane = shop.new_process()
    lane.settle()
    with capture_logs() as lines:
        run(lane)
    assert "products-r1 holds 1 products that nobody sent, P-stranger for one" in {line.get("error") for line in lines}
    assert shop.topic.history == [(0, 0)]
    assert shop.store.collections() == ["products-r0"]
