"""The roll-out loop on a store in memory: roll-outs, refusals, and a crash after every single step."""

from collections.abc import Iterable

import pytest

from contracts.catalog import PointVersion
from contracts.errors import InvariantError, TransientError, UsageError
from indexer.catalog.base_vectors import BaseProduct
from indexer.points import Owner, ProductPoint
from indexer.rollout.checks import MissingPoints
from indexer.store import ProductStore
from tests.support.indexer_fakes import Deployment, assert_serves_release_1, base_product, first_target, release_1
from tests.support.indexing import product_release, query_release


def test_the_first_start_serves_what_is_known_already(shop: Deployment) -> None:
    """The collection of release 0 is complete before anything else, deletions included."""
    assert shop.topic.history == [(0, 0)]
    assert shop.store.counts("products-r0") == (599, 1)
    assert shop.store.alias_target("products") == "products-r0"
    assert shop.store.metadata("products-r0")["base_version"] == shop.encoder.base_version


def test_a_product_release_is_rolled_out_and_the_pair_switches_once(shop: Deployment) -> None:
    """One switch, from the old releases to the new ones; the old collection stays for a rollback."""
    release_1(shop)
    shop.run(shop.new_process())
    assert_serves_release_1(shop)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.collections() == ["products-r0", "products-r1"]
    assert [target.collection for target in shop.loop.targets.current()] == ["products-r1"]


def test_writes_made_during_the_fill_are_not_overwritten_by_it(shop: Deployment) -> None:
    """A newer version written by the catalogue loop stays, though the fill took the older one before."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(2):
        shop.step(loop)
    newer = base_product(shop.encoder, "P-599", 7, "new fridge")
    shop.vectors.apply(newer)
    for target in shop.loop.targets.current():
        shop.store.write(target.collection, target.points([newer]))
    shop.run(loop)
    assert shop.store.versions("products-r1")["P-599"] == PointVersion(7, 1)
    assert shop.store.versions("products-r0")["P-599"] == PointVersion(7, 0)


def test_query_releases_go_on_during_a_roll_out(shop: Deployment) -> None:
    """A query head for the releases in force is served between two batches of the fill."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(2):
        shop.step(loop)
    shop.topic.add(query_release(2, shop.encoder))
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (2, 0), (1, 1)]


def test_a_product_release_waits_for_its_query_release(shop: Deployment) -> None:
    """The new collection is ready and not in force; when the query head comes the pair switches."""
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.counts("products-r1") == (599, 1)
    shop.topic.add(query_release(1, shop.encoder, product_release=1))
    shop.run(loop)
    assert_serves_release_1(shop)


def test_damaged_releases_are_refused_and_sound_ones_served(shop: Deployment) -> None:
    """Weights that are not finite, or of another encoder, never come into force; nothing stops for them."""
    infinite = query_release(1, shop.encoder, scale=float("inf"))
    shop.topic.add(infinite, query_release(2, shop.encoder))
    shop.topic.add(product_release(1, shop.encoder, query_release=3, scale=float("nan")))
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (2, 0)]
    assert shop.store.collections() == ["products-r0"]


def test_a_collection_that_fails_its_checks_is_given_up_and_dropped(shop: Deployment) -> None:
    """After five checks the release is refused; the old releases go on, the next release is tried."""
    release_1(shop)
    shop.store.answers = False
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.collections() == ["products-r0"]
    assert [target.collection for target in shop.loop.targets.current()] == ["products-r0"]
    shop.store.answers = True
    shop.topic.add(product_release(2, shop.encoder, query_release=5), query_release(5, shop.encoder, product_release=2))
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (5, 2)]


def test_a_missing_point_is_found_by_the_check_and_filled_in(shop: Deployment) -> None:
    """The check notices what the fill could not know of, and writes it."""
    release_1(shop)
    stray = base_product(shop.encoder, "P-stray")
    loop = shop.new_process()
    loop.settle()
    for _ in range(4):
        shop.step(loop)
    shop.vectors.apply(stray)
    (in_force, _) = shop.loop.targets.current()
    shop.store.write(in_force.collection, in_force.points([stray]))
    shop.run(loop)
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
        shop.log.before_end = self._read

    def write(self, changed: BaseProduct) -> None:
        """Write a change as that indexer does."""
        self._unread.append(changed)
        target = first_target(self._shop.encoder)
        self._shop.store.write(target.collection, target.points([changed]))

    def _read(self) -> None:
        """Read the base vectors to their end."""
        while self._unread:
            self._shop.vectors.apply(self._unread.pop())


def test_a_change_that_only_the_old_collection_has_is_found_by_the_check(shop: Deployment) -> None:
    """Numbers that match hide an old version: every product is compared, with all that stands on the topic by then."""
    elsewhere = Elsewhere(shop)
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    loop = shop.new_process()
    loop.settle()
    for _ in range(4):
        shop.step(loop)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.run(loop)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_a_change_that_only_the_old_collection_has_is_made_good_after_the_switch(shop: Deployment) -> None:
    """Whatever came after the check is in the new collection before anything else happens."""
    elsewhere = Elsewhere(shop)
    shop.topic.add(product_release(1, shop.encoder, query_release=1))
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.topic.add(query_release(1, shop.encoder, product_release=1))
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_what_a_leader_left_that_ended_at_the_switch_is_made_good_by_the_next(shop: Deployment) -> None:
    """An indexer that ran all along and leads now compares the collection that came into force meanwhile."""
    elsewhere = Elsewhere(shop)
    successor = shop.new_process()
    successor.settle()
    release_1(shop)
    leader = shop.new_process()
    leader.settle()
    while shop.topic.history == [(0, 0)]:
        shop.step(leader)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.leads = False
    shop.run(successor)
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(1, 1)
    shop.leads = True
    shop.run(successor)
    assert shop.store.versions("products-r1")["P-5"] == PointVersion(7, 1)


def test_a_collection_that_was_out_of_force_in_between_is_compared_again(shop: Deployment) -> None:
    """Two switches between two looks leave the name as it was, and changes behind."""
    loop = shop.new_process()
    loop.settle()
    serving = shop.topic.serving()
    assert serving is not None
    shop.topic.put_in_force(serving.model_copy(update={"collection": "products-r1", "product_release": 1}))
    shop.vectors.apply(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.topic.put_in_force(serving)
    shop.run(loop)
    assert shop.store.versions("products-r0")["P-5"] == PointVersion(7, 0)


def test_who_does_not_lead_writes_along_and_follows(shop: Deployment) -> None:
    """It adds the new collection to its targets, fills nothing, publishes nothing, and moves with `serving`."""
    release_1(shop)
    shop.leads = False
    mine = shop.new_process()
    mine.settle()
    shop.run(mine)
    assert [target.collection for target in mine.targets.current()] == ["products-r0", "products-r1"]
    assert shop.store.counts("products-r1") == (0, 0)
    assert shop.topic.history == [(0, 0)]
    shop.leads = True
    shop.run(shop.new_process())
    shop.leads = False
    shop.run(mine)
    assert [target.collection for target in mine.targets.current()] == ["products-r1"]


def test_a_store_that_does_not_answer_is_asked_again(shop: Deployment) -> None:
    """A batch that failed is repeated: the fill misses nothing."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    shop.step(loop)
    shop.store.failures = 1
    with pytest.raises(TransientError):
        shop.step(loop)
    shop.run(loop)
    assert_serves_release_1(shop)


def test_a_release_in_force_that_cannot_be_used_stops_the_start(shop: Deployment) -> None:
    """No other head may stand in for it: vectors of two spaces would meet."""
    release_1(shop)
    shop.run(shop.new_process())
    shop.topic.apply(b"product-1", None)
    with pytest.raises(InvariantError, match="is in force and cannot be used"):
        shop.new_process().settle()


def test_a_fill_leaves_the_store_to_its_searches_between_batches(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as each write took; the last batch is followed by no more than that either."""
    now_s, pauses = [100.0], []

    def slow_write(collection: str, points: Iterable[ProductPoint]) -> int:
        """Write, which takes a while."""
        now_s[0] += 0.125
        return write(collection, points)

    def pause(seconds: float) -> bool:
        """Note a pause."""
        pauses.append(seconds)
        return False

    write = shop.store.write
    release_1(shop)
    loop = shop.new_process(pause=pause)
    loop.settle()
    monkeypatch.setattr(shop.store, "write", slow_write)
    monkeypatch.setattr(MissingPoints.__init__, "__kwdefaults__", {"window_s": 0.0, "monotonic_s": lambda: now_s[0]})
    shop.run(loop)
    assert_serves_release_1(shop)
    assert pauses == 3 * [0.125]


def test_a_fill_does_not_pause_if_the_window_would_be_missed(shop: Deployment) -> None:
    """The promise that the index is refreshed in time comes before the comfort of searches."""
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        """Note a pause."""
        pauses.append(seconds)
        return False

    release_1(shop)
    loop = shop.new_process(pause=pause, refresh_window_s=0.0)
    loop.settle()
    shop.run(loop)
    assert_serves_release_1(shop)
    assert pauses == 3 * [0.0]


def test_an_indexer_that_refuses_the_newest_release_says_so(shop: Deployment) -> None:
    """With the release and the cause, until a newer one comes into force."""
    loop = shop.new_process()
    loop.settle()
    assert loop.newest_refused() is None
    shop.topic.add(query_release(1, shop.encoder, scale=float("inf")))
    shop.run(loop)
    assert loop.newest_refused() == "query-1 was refused: it holds weights that are not finite"
    shop.topic.add(query_release(2, shop.encoder))
    shop.run(loop)
    assert loop.newest_refused() is None
    shop.topic.add(product_release(1, shop.encoder, query_release=3, scale=float("nan")))
    shop.run(loop)
    assert "product-1 was refused" in (loop.newest_refused() or "")
    shop.topic.apply(b"product-1", None)
    assert loop.newest_refused() is None


def test_an_indexer_that_cannot_read_the_newest_release_says_so(shop: Deployment) -> None:
    """It would serve an old one for ever and look well; a release that comes into force after it ends that."""
    loop = shop.new_process()
    loop.settle()
    shop.topic.apply(b"query-1", b"junk")
    shop.run(loop)
    assert (loop.newest_refused() or "").startswith("query-1 cannot be read: not a release file")
    shop.topic.add(query_release(2, shop.encoder))
    shop.run(loop)
    assert loop.newest_refused() is None
    shop.topic.apply(b"serving", b"{")
    assert (loop.newest_refused() or "").startswith("serving cannot be read")


def test_a_collection_of_another_owner_is_never_touched(shop: Deployment) -> None:
    """A second deployment under the same names builds nothing in it and does not drop it."""
    theirs = ProductStore(shop.store._client, owner=Owner("another-cluster", ""))
    theirs.ensure_collection("products-r1", shop.encoder.dim)
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    with pytest.raises(UsageError, match="belongs to another-cluster/"):
        shop.run(loop)
    assert shop.store.collections() == ["products-r0", "products-r1"]
    assert shop.store.counts("products-r1") == (0, 0)
