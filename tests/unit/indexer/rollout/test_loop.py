"""The roll-out loop on a store in memory: roll-outs, refusals, and a crash after every single step."""

from collections.abc import Iterable

import numpy as np
import pytest

from contracts.errors import InvariantError, TransientError, UsageError
from contracts.releases import Serving
from contracts.versions import PointVersion
from indexer.catalog.base_vectors import BaseProduct
from indexer.points import Owner, ProductPoint
from indexer.rollout.checks import MissingPoints
from indexer.store import ProductStore
from tests.support.indexer_fakes import Deployment, base_product, first_target, release_1
from tests.support.indexing import product_release, query_release
from towers.heads import apply_head


def assert_serves_release_1(shop: Deployment) -> None:
    """Check that everything is at release 1, whole and right."""
    serving = shop.topic.serving()
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
    shop.run(shop.new_process())
    assert_serves_release_1(shop)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.collections() == ["products-r0", "products-r1"]
    assert [target.collection for target in shop.loop.targets.current()] == ["products-r1"]


def test_a_crash_after_any_step_ends_in_the_same_place(shop: Deployment) -> None:
    """For every step of a roll-out: end the process after it, start anew, and the roll-out completes."""
    release_1(shop)
    whole = shop.run(shop.new_process())
    for crash_after in range(whole):
        again = Deployment()
        again.vectors = again.log.known = shop.vectors
        again.new_process().settle()
        release_1(again)
        again.new_process()
        for _ in range(crash_after):
            again.step()
        again.new_process().settle()
        again.run()
        assert_serves_release_1(again)


class Crash(Exception):
    """The process ends here."""


def crash(*_arguments: object) -> None:
    """End the process."""
    raise Crash


def test_the_alias_is_never_ahead_of_serving(shop: Deployment) -> None:
    """A process that ends before the record is acknowledged has not moved the alias."""
    release_1(shop)
    loop = shop.new_process(put_in_force=crash)
    loop.settle()
    with pytest.raises(Crash):
        shop.run(loop)
    assert shop.topic.history == [(0, 0)]
    assert shop.store.alias_target("products") == "products-r0"


def test_the_first_alias_is_not_ahead_of_serving_either() -> None:
    """It appears once there is something to serve."""
    shop = Deployment()
    with pytest.raises(Crash):
        shop.new_process(put_in_force=crash).settle()
    assert shop.store.alias_target("products") is None


def test_an_alias_that_was_not_moved_follows_after_the_restart(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends right after the record leaves the alias behind; the next one moves it."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    with monkeypatch.context() as patch:
        patch.setattr(shop.store, "publish_alias", crash)
        with pytest.raises(Crash):
            shop.run(loop)
    assert shop.topic.history == [(0, 0), (1, 1)]
    assert shop.store.alias_target("products") == "products-r0"
    shop.new_process().settle()
    shop.run()
    assert_serves_release_1(shop)


def test_an_alias_that_somebody_moved_is_put_back(shop: Deployment) -> None:
    """What `serving` says is in force, and the alias names it again."""
    release_1(shop)
    shop.store.ensure_collection("products-r1", shop.encoder.dim)
    shop.store.publish_alias("products", "products-r1")
    loop = shop.new_process()
    loop.settle()
    shop.step(loop)
    assert shop.store.alias_target("products") == "products-r0"
    shop.run(loop)
    assert_serves_release_1(shop)


def test_models_that_were_lost_begin_again_with_a_collection_that_is_complete(shop: Deployment) -> None:
    """The first pair comes into force only when its collection has every product, as nobody can be served from less."""
    shop.store.drop("products-r0")
    shop.topic.forget()
    complete: list[int] = []

    def put_in_force(serving: Serving) -> None:
        """Note what the collection holds when the pair comes into force."""
        complete.append(shop.store.counts(serving.collection).live)
        shop.topic.put_in_force(serving)

    shop.new_process(put_in_force=put_in_force).settle()
    assert complete == [599]


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
    """A query head for the pair in force is served between two batches of the fill."""
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
    """After five checks the release is refused; the old pair goes on, the next release is tried."""
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


def read_what_is_written(shop: Deployment) -> None:
    """Let the base vectors follow what is written to `product-vectors`."""

    def read() -> None:
        """Read to the end."""
        for product in shop.log.vectors:
            shop.vectors.read(product)

    shop.log.before_end = read


def test_what_a_stalled_writer_has_overtaken_is_written_again_once(shop: Deployment) -> None:
    """Compaction would keep its older record alone: who leads writes the newest again, and rests when it is read."""
    newest = base_product(shop.encoder, "P-5", 7, "large fridge")
    shop.vectors.read(newest)
    shop.vectors.read(base_product(shop.encoder, "P-5", 6, "old fridge"))
    read_what_is_written(shop)
    shop.leads = False
    shop.run()
    assert shop.log.vectors == []
    shop.leads = True
    shop.run()
    assert shop.log.vectors == [newest]


def test_a_deletion_that_was_overtaken_is_written_again(shop: Deployment) -> None:
    """Else the product would come back with the next collection."""
    deletion = BaseProduct("P-5", 7, shop.encoder.base_version)
    shop.vectors.read(deletion)
    shop.vectors.read(base_product(shop.encoder, "P-5", 7))
    read_what_is_written(shop)
    shop.run()
    assert shop.log.vectors == [deletion]


def test_what_was_only_read_in_the_middle_is_not_written_again(shop: Deployment) -> None:
    """The newer record comes a moment later: at the end of the topic nothing is out of date."""
    newest = base_product(shop.encoder, "P-5", 7, "large fridge")
    shop.vectors.apply(newest)
    shop.vectors.read(base_product(shop.encoder, "P-5", 6, "old fridge"))
    shop.log.before_end = lambda: shop.vectors.read(newest)
    shop.run()
    assert shop.log.vectors == []


def test_base_vectors_whose_topic_was_made_anew_are_written_to_it(shop: Deployment) -> None:
    """They are all that is left of the catalogue's encoding; what others have written there already is not repeated."""
    shop.vectors.topic_is_new()
    shop.vectors.read(shop.vectors.get("P-1") or BaseProduct("P-1", 0, ""))
    read_what_is_written(shop)
    shop.run()
    assert len(shop.log.vectors) == 599
    assert "P-1" not in {product.product_id for product in shop.log.vectors}


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
