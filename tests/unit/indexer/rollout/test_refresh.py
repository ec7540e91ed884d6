"""What a collection lacks, and the check of a new one: what fails it, what does not."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from typing_extensions import override

from contracts.catalog import PointVersion
from contracts.errors import CheckFailed, DependencyDown
from indexer.catalog.base_vectors import SHORTEST_KEPT_MS, BaseProduct, BaseVectors
from indexer.points import ProductPoint, Target
from indexer.rollout.collections import check_collection
from indexer.rollout.refresh import BATCH, Refresh, forget_deletions
from indexer.store import StoredPoint
from tests.support.indexer_fakes import FlakyStore, Log, base_product, first_target, whole
from tests.support.indexing import product_release
from tests.support.tiny_encoder import TinyEncoder

R0 = "products-r0"
R1 = "products-r1"


class Filled:
    """A new collection, filled with twenty products.

    Args:
        store: that holds it.
    """

    def __init__(self, store: FlakyStore | None = None) -> None:
        self.encoder = TinyEncoder()
        self.store = store or FlakyStore()
        self.vectors = BaseVectors()
        self.target = Target(R1, 1, product_release(1, self.encoder).product_tower())
        for number in range(20):
            self.vectors.apply(base_product(self.encoder, f"P-{number}", title=f"fridge {number}"))
        self.store.ensure_collection(R1, self.encoder.dim + 1)
        self.products = whole(self.vectors)
        self.store.write(R1, self.target.points(self.products))
        self.written = self.store.stored(R1)

    def check(self) -> None:
        """Check it."""
        probes = np.ones((2, self.encoder.dim + 1), dtype=np.float32)
        check_collection(self.target, self.written, store=self.store, known=lambda: self.vectors, probes=probes)


def test_a_collection_that_is_whole_passes() -> None:
    """Every product is there in its newest version, found by queries."""
    Filled().check()


def test_changes_that_arrive_meanwhile_do_not_fail_the_check() -> None:
    """New products, newer versions and deletions by other indexers: their base vectors come before their points."""
    it = Filled()
    changes = [
        base_product(it.encoder, "P-new"),
        base_product(it.encoder, "P-3", 2, "large fridge"),
        BaseProduct("P-4", 1, it.encoder.base_version),
    ]
    for change in changes:
        it.vectors.apply(change)
    it.store.write(R1, it.target.points(changes))
    it.check()


def test_a_product_that_is_not_there_fails_the_check() -> None:
    """With the number and one that is lacking."""
    it = Filled()
    it.written["P-lost"] = StoredPoint(PointVersion(1, 1), 0.0)
    with pytest.raises(CheckFailed, match="products-r1 lacks 1 of 21 products, P-lost for one"):
        it.check()


def test_an_old_version_fails_the_check() -> None:
    """It would stay for ever."""
    it = Filled()
    it.written["P-7"] = StoredPoint(PointVersion(2, 1), 0.0)
    with pytest.raises(CheckFailed, match="lacks 1 of 20 products, P-7 for one"):
        it.check()


def test_a_product_that_nobody_sent_fails_the_check() -> None:
    """A collection of that name from another life holds strangers."""
    it = Filled()
    it.store.write(R1, it.target.points([base_product(it.encoder, "P-stranger")]))
    with pytest.raises(CheckFailed, match="holds 1 products that nobody sent, P-stranger for one"):
        it.check()


def test_a_vector_that_is_not_the_one_of_its_product_fails_the_check() -> None:
    """Every product is there, in its newest version; one of them would be found by the wrong queries."""
    it = Filled()
    (point,) = it.target.points([it.products[7]])
    assert point.vector is not None
    turned = replace(point, product_release=2, vector=[-number for number in point.vector])
    it.store.write(R1, [turned])
    it.target = Target(R1, 2, it.target.tower)
    it.store.write(R1, it.target.points(it.products))
    with pytest.raises(CheckFailed, match="products-r1: vector of P-7 differs by"):
        it.check()


class Forgetful(FlakyStore):
    """A store that no longer has what it has just listed."""

    @override
    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Find nothing."""
        return {}


def test_a_product_that_vanishes_during_the_check_fails_it() -> None:
    """It was there when versions were compared, and is gone when vectors are."""
    with pytest.raises(CheckFailed, match="products-r1 lacks product P-"):
        Filled(Forgetful()).check()


def test_a_collection_that_does_not_answer_fails_the_check() -> None:
    """As search will ask it."""
    it = Filled()
    it.store.answers = False
    with pytest.raises(CheckFailed, match="answered 0 of 2 shadow queries"):
        it.check()


def test_a_large_fill_is_written_in_small_batches() -> None:
    """A search that comes meanwhile waits for one of them at most."""
    encoder, store, vectors = TinyEncoder(), FlakyStore(), BaseVectors()
    count = 2 * BATCH + 10
    for number in range(count):
        vectors.apply(base_product(encoder, f"P-{number}"))
    store.ensure_collection("products-r0", encoder.dim + 1)
    fill = Refresh(first_target(encoder), store, vectors, {})
    while not fill.is_done:
        fill.write_batch()
    assert [len(ids) for _, ids in store.writes] == [BATCH, BATCH, 10]
    assert store.counts("products-r0").live == count


def test_what_changes_before_its_turn_is_written_as_it_became_and_what_is_forgotten_is_passed_over() -> None:
    """The catalogue loop writes the change too: the same point, whoever is first."""
    it = Filled()
    it.store.drop(R1)
    it.store.ensure_collection(R1, it.encoder.dim + 1)
    it.vectors.read(BaseProduct("P-4", 2, it.encoder.base_version), written_at_ms=0)
    stored = it.store.stored(R1)
    refresh = Refresh(it.target, it.store, it.vectors, stored)
    it.vectors.read(base_product(it.encoder, "P-3", 2, "large fridge"))
    it.vectors.read_null("P-4", SHORTEST_KEPT_MS)
    refresh.write_batch()
    assert (refresh.is_done, refresh.total) == (True, 20)
    found = it.store.stored(R1)
    assert found.keys() == {f"P-{number}" for number in range(20)} - {"P-4"}
    assert found["P-3"].version == PointVersion(2, 1)
    assert {name: one.order for name, one in stored.items()} == {name: one.order for name, one in found.items()}


def test_a_point_that_is_ahead_is_left_alone() -> None:
    """A leader that ended in the middle of a release that was taken back left it: an older one cannot replace it."""
    it = Filled()
    before = it.store.retrieve(R1, ["P-3"])["P-3"]
    refresh = Refresh(first_target(it.encoder, R1), it.store, it.vectors, it.store.stored(R1))
    assert refresh.total == 0
    assert it.store.retrieve(R1, ["P-3"])["P-3"] == before


def test_a_deletion_of_the_same_version_replaces_the_product() -> None:
    """A null deletes a product under its own version: the collection must hold the deletion, whatever its release."""
    it = Filled()
    it.vectors.apply(BaseProduct("P-3", 1, it.encoder.base_version))
    refresh = Refresh(it.target, it.store, it.vectors, it.store.stored(R1))
    assert refresh.total == 1
    refresh.write_batch()
    assert it.store.versions(R1)["P-3"] == PointVersion(1, 1, deleted=True)
    assert Refresh(it.target, it.store, it.vectors, it.store.stored(R1)).total == 0


def test_old_deletions_end_in_the_store_before_their_base_vectors_and_newer_ones_stay() -> None:
    """A leader that ends between the two leaves what the next one finds; a product that came back is not touched.

    They end in the kept collection too, and are remembered until nobody knows of them: else they were written again.
    """
    it = Filled()
    it.store.ensure_collection(R0, it.encoder.dim + 1)
    it.target = replace(it.target, kept=R0)
    gone, back = (BaseProduct(f"P-{number}", 2, it.encoder.base_version) for number in (1, 2))
    for product in (gone, back):
        it.vectors.read(product, written_at_ms=1_000)
    it.vectors.read(BaseProduct("P-3", 2, it.encoder.base_version), written_at_ms=9_000)
    it.store.write(R1, it.target.points(whole(it.vectors)))
    it.store.write(R0, it.target.points(whole(it.vectors)))
    it.store.write(R1, it.target.points([base_product(it.encoder, "P-2", 3)]))
    log, stored = Log(it.vectors, failures=1), it.store.stored(R1)
    with pytest.raises(DependencyDown):
        forget_deletions(it.target, it.store, log, stored, before_ms=5_000)
    assert it.store.counts(R1) == (18, 1)
    remembered: list[bool] = []
    log.before_end = lambda: remembered.append("P-1" in stored)
    forget_deletions(it.target, it.store, log, stored, before_ms=5_000)
    assert log.forgotten == ["P-1", "P-2"]
    assert it.store.stored(R1).keys() == {f"P-{number}" for number in range(20)} - {"P-1"}
    assert it.store.stored(R0).keys() == {f"P-{number}" for number in range(20)} - {"P-1", "P-2"}
    assert remembered == [True]
    assert "P-1" not in stored
