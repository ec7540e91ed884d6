"""The models lane on a store in memory: roll-outs, refusals, and a crash after every single step."""

import numpy as np
import pytest

from contracts.catalog import PointVersion
from contracts.errors import InvariantError, TransientError
from indexer.core.base_vectors import BaseProduct
from tests.support.indexer_fakes import Deployment, base_product, first_target, release_1, run
from tests.support.indexing import product_release, query_release
from towers.heads import apply_head


def assert_serves_release_1(shop: Deployment) -> None:
    """Check that everything is at release 1, whole and right."""
    serving = shop.topic.serving
    assert serving is not None
    assert (serving.query_release, serving.product_release, serving.collection) == (1, 1, "products-r1")
    assert shop.store.alias_target("products") == "products-r1"
    assert shop.store.counts("products-r1") == (599, 1)
    head = product_release(1, shop.encoder, query_release=1).head()
    known = shop.vectors.get("P-5")
    assert known is not None
    assert known.vector is not None
    stored = shop.store.retrieve("products-r1", ["P-5"])["P-5"].vector
    np.testing.assert_allclose(np.array(stored), apply_head(head, known.vector[None])[0], atol=1e-5)


def test_the_first_start_serves_what_is_known_already(shop: Deployment) -> None:
    """The collection of release 0 is complete before anything else, deletions included."""
    assert shop.topic.history == [(0, 0)]
    assert shop.store.counts("products-r0") == (599, 1)
    assert shop.store.alias_target("products") == "products-r0"
    assert shop.store.metadata("products-r0")["base_version"] == shop.encoder.base_version


def test_a_product_release_is_rolled_out_and_the_pair_switches_once(shop: Deployment) -> None:
    """One switch, from the whole old pair to the whole new one; the old collection stays for a rollback."""
    release_1(shop)
    run(shop.new_process())
    assert_serves_release_1(shop)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.collections() == ["products-r0", "products-r1"]
    assert [target.collection for target in shop.targets.current()] == ["products-r1"]


def test_a_crash_after_any_step_ends_in_the_same_place(shop: Deployment) -> None:
    """For every step of a roll-out: end the process after it, start anew, and the roll-out completes."""
    release_1(shop)
    whole = run(shop.new_process())
    for crash_after in range(whole):
        again = Deployment()
        again.vectors = shop.vectors
        again.new_process().settle()
        release_1(again)
        dying = again.new_process()
        for _ in range(crash_after):
            dying.step()
        successor = again.new_process()
        successor.settle()
        run(successor)
        assert_serves_release_1(again)


def test_a_crash_between_alias_and_serving_is_healed(shop: Deployment) -> None:
    """Until the record is there the old pair is in force, and the alias names it again."""
    release_1(shop)
    shop.store.ensure_collection("products-r1", shop.encoder.dim)
    shop.store.publish_alias("products", "products-r1")
    lane = shop.new_process()
    lane.settle()
    lane.step()
    assert shop.store.alias_target("products") == "products-r0"
    run(lane)
    assert_serves_release_1(shop)


def test_writes_made_during_the_fill_are_not_overwritten_by_it(shop: Deployment) -> None:
    """A newer version written by the catalogue lane stays, though the fill took the older one before."""
    release_1(shop)
    lane = shop.new_process()
    lane.settle()
    for _ in range(2):
        lane.step()
    newer = base_product(shop.encoder, "P-599", 7, "new fridge")
    shop.vectors.apply(newer)
    for target in shop.targets.current():
        shop.store.write(target.collection, target.points([newer]))
    run(lane)
    assert shop.store.versions("products-r1")["P-599"] == PointVersion(7, 1)
    assert shop.store.versions("products-r0")["P-599"] == PointVersion(7, 0)


def test_query_releases_go_on_during_a_roll_out(shop: Deployment) -> None:
    """A query head for the pair in force is served between two batches of the fill."""
    release_1(shop)
    lane = shop.new_process()
    lane.settle()
    for _ in range(2):
        lane.step()
    shop.topic.add(query_release(2, shop.encoder))
    run(lane)
    assert shop.topic.history == [(0, 0), (2, 0), (1, 1)]


def test_a_product_release_waits_for_its_query_release(shop: Deployment) -> None:
    """The new collection is ready and not in force; when the query head comes the pair switches."""
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    lane = shop.new_process()
    lane.settle()
    run(lane)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.counts("products-r1") == (599, 1)
    shop.topic.add(query_release(1, shop.encoder, product_release=1))
    run(lane)
    assert_serves_release_1(shop)


def test_damaged_releases_are_refused_and_sound_ones_served(shop: Deployment) -> None:
    """Weights that are not finite, or of another encoder, never come into force; nothing stops for them."""
    infinite = query_release(1, shop.encoder, scale=float("inf"))
    shop.topic.add(infinite, query_release(2, shop.encoder))
    shop.topic.add(product_release(1, shop.encoder, query_release=3, scale=float("nan")))
    lane = shop.new_process()
    lane.settle()
    run(lane)
    assert shop.topic.history == [(0, 0), (2, 0)]
    assert shop.store.collections() == ["products-r0"]


def test_a_collection_that_fails_its_checks_is_given_up_and_dropped(shop: Deployment) -> None:
    """After five checks the release is refused; the old pair goes on, the next release is tried."""
    release_1(shop)
    shop.shadow.answers = False
    lane = shop.new_process()
    lane.settle()
    run(lane)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.collections() == ["products-r0"]
    assert [target.collection for target in shop.targets.current()] == ["products-r0"]
    shop.shadow.answers = True
    shop.topic.add(product_release(2, shop.encoder, query_release=5), query_release(5, shop.encoder, product_release=2))
    run(lane)
    assert shop.topic.history == [(0, 0), (5, 2)]


def test_a_missing_point_is_found_by_the_check_and_filled_in(shop: Deployment) -> None:
    """The check notices what the fill could not know of, and writes it."""
    release_1(shop)
    stray = base_product(shop.encoder, "P-stray")
    lane = shop.new_process()
    lane.settle()
    for _ in range(4):
        lane.step()
    shop.vectors.apply(stray)
    (in_force, _) = shop.targets.current()
    shop.store.write(in_force.collection, in_force.points([stray]))
    run(lane)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.versions("products-r1")["P-stray"] == PointVersion(1, 1)


class Elsewhere:
    """Another indexer that writes to the collection in force only; this one has not read its base vectors yet.

    Args:
        shop: the deployment.
    """

    def __init__(self, shop: Deployment) -> None:
        self._shop = shop
        self._unread: list[BaseProduct] = []

    def write(self, changed: BaseProduct) -> None:
        """Write a change as that indexer does."""
        self._unread.append(changed)
        target = first_target(self._shop.encoder)
        self._shop.store.write(target.collection, target.points([changed]))

    def catch_up(self) -> None:
        """Read the base vectors to their end."""
        while self._unread:
            self._shop.vectors.apply(self._unread.pop())


def test_a_change_that_only_the_old_collection_has_is_found_by_the_check(shop: Deployment) -> None:
    """Numbers that match hide an old version: every product is compared, with all that stands on the topic by then."""
    elsewhere = Elsewhere(shop)
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    lane = shop.new_process(catch_up=elsewhere.catch_up)
    lane.settle()
    for _ in range(4):
        lane.step()
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    run(lane)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_a_change_that_only_the_old_collection_has_is_made_good_after_the_switch(shop: Deployment) -> None:
    """Whatever came after the check is in the new collection before anything else happens."""
    elsewhere = Elsewhere(shop)
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    lane = shop.new_process(catch_up=elsewhere.catch_up)
    lane.settle()
    run(lane)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.topic.add(query_release(1, shop.encoder, product_release=1))
    run(lane)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_what_a_leader_left_that_ended_at_the_switch_is_made_good_by_the_next(shop: Deployment) -> None:
    """An indexer that ran all along and leads now compares the collection that came into force meanwhile."""
    elsewhere = Elsewhere(shop)
    leads = False
    successor = shop.new_process(catch_up=elsewhere.catch_up, leads=lambda: leads)
    successor.settle()
    release_1(shop)
    leader = shop.new_process(catch_up=elsewhere.catch_up)
    leader.settle()
    while shop.topic.history == [(0, 0)]:
        leader.step()
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    run(successor)
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(1, 1)
    leads = True
    run(successor)
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_a_collection_that_was_out_of_force_in_between_is_compared_again(shop: Deployment) -> None:
    """Two switches between two looks leave the name as it was, and changes behind."""
    elsewhere = Elsewhere(shop)
    lane = shop.new_process(catch_up=elsewhere.catch_up)
    lane.settle()
    serving = shop.topic.serving
    assert serving is not None
    shop.topic.publish(serving.model_copy(update={"collection": "products-r1", "product_release": 1}))
    shop.vectors.apply(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.topic.publish(serving)
    run(lane)
    assert shop.store.versions("products-r0")["P-5"] == PointVersion(7, 0)


def test_who_does_not_lead_writes_along_and_follows(shop: Deployment) -> None:
    """It adds the new collection to its targets, fills nothing, publishes nothing, and moves with `serving`."""
    release_1(shop)
    shop.leads = False
    lane = shop.new_process()
    lane.settle()
    run(lane)
    assert [target.collection for target in shop.targets.current()] == ["products-r0", "products-r1"]
    assert shop.store.counts("products-r1") == (0, 0)
    assert shop.topic.history == [(0, 0)]
    mine = shop.targets
    shop.leads = True
    run(shop.new_process())
    shop.leads = False
    run(lane)
    assert [target.collection for target in mine.current()] == ["products-r1"]


def test_a_store_that_does_not_answer_is_asked_again(shop: Deployment) -> None:
    """A batch that failed is repeated: the fill misses nothing."""
    release_1(shop)
    lane = shop.new_process()
    lane.settle()
    lane.step()
    shop.store.failures = 1
    with pytest.raises(TransientError):
        lane.step()
    run(lane)
    assert_serves_release_1(shop)


def test_a_release_in_force_that_cannot_be_used_stops_the_start(shop: Deployment) -> None:
    """No other head may stand in for it: vectors of two spaces would meet."""
    release_1(shop)
    run(shop.new_process())
    shop.topic.remove(b"product-1")
    with pytest.raises(InvariantError, match="is in force and cannot be used"):
        shop.new_process().settle()
