"""A second collection: when it is needed, how it is filled, and what never happens to those of others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from qdrant_client import models
from structlog.testing import capture_logs

from contracts.errors import InvariantError, UsageError
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.planning import payload_of
from indexer.points import Owner, ProductPoint
from indexer.ports import Stopped
from indexer.qdrant import VECTOR_NAME
from indexer.rollout import collections
from indexer.rollout.collections import OwnCollections
from indexer.store import ProductStore
from tests.support.indexer_fakes import (
    OWNER,
    Deployment,
    Log,
    assert_serves_release_1,
    base_product,
    in_force,
    release_1,
    told,
    whole,
)
from tests.support.indexing import product, product_release, query_release
from tests.support.tiny_encoder import TinyEncoder

R0, R1 = "products-r0", "products-r1"


def test_a_collection_of_another_owner_is_never_touched(shop: Deployment) -> None:
    """A second deployment under the same names fills nothing in it and does not drop it."""
    theirs = ProductStore(shop.store._client, owner=Owner("another-cluster", ""))
    serving = shop.topic.serving()
    assert serving is not None
    theirs.ensure_collection(R1, shop.encoder.dim + 1)
    shop.topic.put_in_force(serving.model_copy(update={"collection": R1}))
    loop = shop.new_process()
    with pytest.raises(UsageError, match="belongs to another-cluster/"):
        loop.settle()
    assert shop.store.collections() == [R0, R1]
    assert shop.store.counts(R1) == (0, 0)


def earlier_collection(shop: Deployment, name: str) -> None:
    """Make a collection as an earlier version of Millrace did: unit vectors, nearest by cosine."""
    params = {VECTOR_NAME: models.VectorParams(size=shop.encoder.dim, distance=models.Distance.COSINE)}
    metadata = {"base_version": shop.encoder.base_version, "owner": OWNER.name}
    shop.store._client.create_collection(name, vectors_config=params, metadata=metadata)


def test_a_collection_of_an_earlier_version_is_replaced_by_a_second_one(shop: Deployment) -> None:
    """It is answered from until the second is full; then it stays until the next product release, and goes."""
    earlier_collection(shop, "products-r3")
    serving = shop.topic.serving()
    assert serving is not None
    shop.topic.put_in_force(serving.model_copy(update={"product_release": 3, "collection": "products-r3"}))
    before = shop.topic.serving()
    loop = shop.new_process()
    loop.settle()
    assert before is not None
    assert in_force(shop) == (0, 0, "products-r4")
    assert shop.topic.serving().previous_collection == "products-r3"  # type: ignore[union-attr]
    assert shop.store.counts("products-r4") == (599, 1)
    assert shop.store.alias_target("products") == "products-r4"
    shop.run(loop)
    assert shop.store.collections() == ["products-r3", "products-r4"]
    release_1(shop)
    shop.run(loop)
    assert_serves_release_1(shop, collection="products-r4")
    assert shop.store.collections() == ["products-r4"]


def test_a_second_collection_that_was_begun_is_filled_on(shop: Deployment) -> None:
    """A process that ends in the middle leaves it to the next; the releases that can be used stay in force."""
    release_1(shop)
    shop.run(shop.new_process())
    shop.store._client.delete_collection(R0)
    earlier_collection(shop, R0)
    pauses: list[float] = []

    def stop(seconds: float) -> bool:
        """Ask to stop after the third batch."""
        pauses.append(seconds)
        return len(pauses) == 3

    with pytest.raises(Stopped):
        shop.new_process(pause=stop).settle()
    assert in_force(shop) == (1, 1, R0)
    assert 0 < shop.store.counts(R1).live < 599
    shop.store.writes.clear()
    shop.new_process().settle()
    assert sum(len(ids) for _, ids in shop.store.writes) == 600 - 3 * 64
    assert_serves_release_1(shop, collection=R1)


def another_base(shop: Deployment) -> None:
    """Let the catalogue be encoded by another base, of another width."""
    shop.encoder = TinyEncoder(dim=12)
    shop.vectors = BaseVectors()
    shop.log = Log(shop.vectors)
    shop.fill(600)
    shop.vectors.apply(BaseProduct("P-0", 2, shop.encoder.base_version))


def test_another_base_gets_a_second_collection_and_releases_of_its_own(shop: Deployment) -> None:
    """It begins with release 0, those over the old base are no candidates, and the next of its own come into force."""
    release_1(shop)
    shop.run(shop.new_process())
    another_base(shop)
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    assert in_force(shop) == (0, 0, R1)
    assert loop.newest_refused() is None
    shop.topic.add(product_release(2, shop.encoder), query_release(2, shop.encoder))
    shop.run(loop)
    assert in_force(shop) == (2, 2, R1)
    assert shop.store.collections() == [R1]


def test_an_indexer_of_the_old_base_ends_when_another_base_comes_into_force(shop: Deployment) -> None:
    """Its vectors would be found by the wrong queries."""
    old = shop.new_process()
    old.settle()
    encoder, shop_vectors = shop.encoder, shop.vectors
    another_base(shop)
    shop.new_process().settle()
    assert (encoder, shop_vectors) != (shop.encoder, shop.vectors)
    with pytest.raises(UsageError, match="is in force and holds vectors of tiny/12/t1, not of tiny/16/t1"):
        shop.step(old)


def test_a_second_collection_is_put_in_force_with_its_graph(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the store has built it, the first collection answers; what the shop changes meanwhile is in both."""
    monkeypatch.setattr(collections, "GRAPH_WITHIN_S", 10.0)
    another_base(shop)
    shop.store.looks_until_optimized = 4
    in_force_while_waiting: set[tuple[int, int, str]] = set()

    def wait(seconds: float) -> bool:
        """Let the shop change a product while the graph is built."""
        if seconds == collections.GRAPH_LOOK_S:
            in_force_while_waiting.add(in_force(shop))
            shop.vectors.apply(base_product(shop.encoder, "P-3", 7, "loud fridge"))
        return False

    shop.new_process(pause=wait).settle()
    assert in_force_while_waiting == {(0, 0, R0)}
    assert in_force(shop) == (0, 0, R1)
    assert shop.store.retrieve(R1, ["P-3"])["P-3"].version == 7
    assert shop.store.looks_until_optimized == -1


def test_a_graph_that_is_never_built_is_not_waited_for_without_end(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches that scan are slow and right; a base that never comes into force is neither."""
    monkeypatch.setattr(collections, "GRAPH_WITHIN_S", 3.0)
    another_base(shop)
    shop.store.looks_until_optimized = 1_000
    shop.new_process().settle()
    assert in_force(shop) == (0, 0, R1)


def test_a_second_collection_that_is_not_whole_never_comes_into_force(shop: Deployment) -> None:
    """The indexer ends with the reason, and what was in force goes on."""
    another_base(shop)
    shop.store.answers = False
    with pytest.raises(InvariantError, match="must not come into force: products-r1 answered 0 of 16 shadow queries"):
        shop.new_process().settle()
    assert shop.topic.history == [(0, 0)]
    assert shop.store.alias_target("products") == R0


def test_a_second_collection_that_does_not_get_full_is_given_up(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line that says how far it came; what was in force goes on."""
    monkeypatch.setattr(collections, "FILL_WITHIN_S", -1.0)
    another_base(shop)
    with pytest.raises(InvariantError, match="products-r1 has 0 of 600 points after"):
        shop.new_process().settle()
    assert shop.topic.history == [(0, 0)]


def test_points_from_before_models_was_lost_do_not_keep_new_releases_out(shop: Deployment) -> None:
    """Their product release is higher than any that comes next: they are left, and another collection begins."""
    release_1(shop)
    shop.run(shop.new_process())
    shop.topic.forget()
    loop = shop.new_process()
    loop.settle()
    release_1(shop)
    shop.run(loop)
    assert_serves_release_1(shop, collection=R1)
    assert shop.store.collections() == [R1]


def test_the_kept_collection_receives_deletions_and_what_changes_nothing_of_a_text(shop: Deployment) -> None:
    """Its points keep their own vectors, quality and release; a new text waits; a dropped one needs none."""
    former = shop.encoder
    another_base(shop)
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    target = loop.target()
    assert (target.collection, target.kept) == (R1, R0)
    priced = product("P-1", 2, "fridge 1", price=9.0)
    same, other = (base_product(shop.encoder, one.product_id, 2, one.title) for one in (priced, product("P-2", 2)))
    same = replace(same, payload=payload_of(priced))
    before = shop.store.retrieve(R0, ["P-1", "P-2"])
    points = target.points([same, other, BaseProduct("P-3", 2, shop.encoder.base_version)])
    shop.store.carry_over(R0, points)
    found = shop.store.retrieve(R0, ["P-1", "P-2", "P-3"])
    assert (found["P-1"].version, found["P-1"].payload["price"]) == (2, 9.0)
    assert found["P-1"].vector == before["P-1"].vector
    assert found["P-1"].payload["base_version"] == former.base_version
    assert found["P-2"] == before["P-2"]
    assert found["P-3"].is_tombstone
    again = replace(same, payload=payload_of(product("P-1", 2, "fridge 1", price=7.0)))
    for product_ids, price in ((frozenset[str](), 9.0), (frozenset({"P-1"}), 7.0)):
        shop.store.carry_over(R0, target.points([again]), again=product_ids)
        assert shop.store.retrieve(R0, ["P-1"])["P-1"].payload["price"] == price
    shop.store.drop(R0)
    shop.store.carry_over(R0, points)
    assert not shop.store.exists(R0)


def test_a_kept_collection_is_gone_before_nobody_names_it(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that ends between the two leaves no collection that none will ever drop."""
    another_base(shop)
    loop = shop.new_process()
    loop.settle()
    shop.topic.add(product_release(2, shop.encoder), query_release(2, shop.encoder, product_release=2))
    named: list[bool] = []
    put = shop.topic.put_in_force

    def note_and_put(*given: Any) -> None:
        """Note whether the kept collection is there."""
        named.append(shop.store.exists(R0))
        put(*given)

    monkeypatch.setattr(loop, "_put_in_force", note_and_put)
    shop.run(loop)
    assert named == [True, False]
    assert shop.store.collections() == [R1]


def test_base_vectors_that_were_lost_are_taken_from_the_index(shop: Deployment) -> None:
    """Those of some products, or all of them with their deletions, as they were; and their quality moves again."""
    before = {product.product_id: product for product in whole(shop.vectors)}
    for lost in (range(600), range(0, 600, 7)):
        names = {f"P-{number}" for number in lost}
        left = BaseVectors(shop.encoder.base_version)
        for product_id, kept in before.items():
            if product_id not in names:
                left.apply(kept)
        shop.vectors, shop.log = left, Log(left)
        with capture_logs() as lines:
            shop.new_process().settle()
        assert {one.product_id for one in shop.log.vectors} == names
        assert told(*(left.get(one) for one in before)) == told(*before.values())
        said = [line["products"] for line in lines if line["event"] == "base_vectors_taken_from_index"]
        assert said == [len(names)]
    release_1(shop)
    shop.run()
    assert_serves_release_1(shop)


def test_points_that_are_no_products_of_ours_are_left_and_named_once(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our fields, or of another width under our base: what took nothing from the index does not say it did."""
    ours = next(point for point in shop.store.all_points(R0) if point.vector is not None)
    no_fields = replace(ours, product_id="X-1", payload={})
    shop.store.write(R0, [no_fields, replace(ours, product_id="X-2")])
    retrieve = shop.store.retrieve

    def cut(collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Give the vector of one product without its first number."""
        found = retrieve(collection, product_ids)
        return {one: replace(point, vector=point.vector[1:]) for one, point in found.items() if point.vector}

    monkeypatch.setattr(shop.store, "retrieve", cut)
    held = OwnCollections(shop.store, OWNER, log=shop.log, encoder=shop.encoder, pause=lambda _seconds: False)
    with capture_logs() as lines:
        for _ in range(2):
            held.complete(R0, shop.store.stored(R0))
    assert [(line["event"], line["points"], line["product_ids"]) for line in lines] == [
        ("points_left_alone", 2, ["X-1", "X-2"])
    ]
    assert not shop.log.vectors


def test_a_second_collection_is_not_filled_with_nothing_if_base_vectors_were_lost(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the shop would not be found any more once it is in force."""
    for module in ("qdrant", "store"):
        monkeypatch.setattr(f"indexer.{module}.KEYS_VERSION", 99)
    shop.vectors = BaseVectors()
    shop.log = Log(shop.vectors)
    shop.new_process().settle()
    assert in_force(shop) == (0, 0, R1)
    assert shop.store.counts(R1) == (599, 1)
