"""The roll-out loop on a store in memory: product releases in place, refusals, fences, a second collection."""

from collections.abc import Iterable

import numpy as np
import pytest
from qdrant_client import models

from contracts.catalog import PointVersion
from contracts.errors import InvariantError, TransientError
from indexer.catalog.base_vectors import BaseProduct
from indexer.points import InForce, ProductPoint
from indexer.rollout.refresh import Refresh
from tests.support.indexer_fakes import (
    Deployment,
    assert_serves_release_1,
    base_product,
    first_target,
    in_force,
    release_1,
)
from tests.support.indexing import product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release, release_tensors, weights_sha256

R0, R1 = "products-r0", "products-r1"


def test_the_first_start_serves_what_is_known_already(shop: Deployment) -> None:
    """The collection of release 0 is complete before anything else, deletions included."""
    assert shop.topic.history == [(0, 0)]
    assert shop.store.counts(R0) == (599, 1)
    assert shop.store.alias_target("products") == R0
    form = shop.store.form(R0)
    assert (form.width, form.distance) == (shop.encoder.dim + 1, models.Distance.DOT)
    assert form.metadata["base_version"] == shop.encoder.base_version


def test_a_product_release_is_written_in_place(shop: Deployment) -> None:
    """One collection before and after; the query release does not wait for it."""
    release_1(shop)
    shop.run(shop.new_process())
    assert_serves_release_1(shop)
    assert shop.topic.history == [(0, 0), (1, 0), (1, 1)]
    assert shop.store.collections() == [R0]
    assert shop.loop.target().in_force == InForce(R0, 1)


def test_only_products_whose_quality_moves_are_written(shop: Deployment) -> None:
    """Those that stay within a hundredth of a nat keep the point, and the release, that they have."""
    shop.vectors.apply(base_product(shop.encoder, "P-tv", title="tv 1"))
    loop = shop.new_process()
    loop.settle()
    shop.store.writes.clear()
    tower = product_release(1, shop.encoder, nats=0.0)
    tv = np.searchsorted(tower.tensors["features"], base_product(shop.encoder, "P-x", title="tv").features[0])
    for release, nats, written in ((1, 0.009, []), (2, 0.5, ["P-tv"]), (3, 0.508, []), (4, 0.52, ["P-tv"])):
        tensors = product_release(release, shop.encoder, nats=0.0)
        shop.topic.add(_with_word(tensors, int(tv), nats, shop.encoder))
        shop.run(loop)
        assert [one for _, ids in shop.store.writes for one in ids] == written
        assert in_force(shop) == (0, release, R0)
        shop.store.writes.clear()
    assert shop.store.versions(R0)["P-tv"] == PointVersion(1, 4)
    assert shop.store.versions(R0)["P-1"] == PointVersion(1, 0)


def _with_word(release: Release, word: int, nats: float, encoder: TinyEncoder) -> Release:
    """Return a product release in which one word has another quality."""
    tower = release.product_tower()
    tower.words[word] = nats
    tensors = release_tensors(tower, encoder)
    return Release(release.manifest.model_copy(update={"weights_sha256": weights_sha256(tensors)}), tensors)


def test_what_moves_most_is_written_first() -> None:
    """It changes most rankings."""
    shop = Deployment()
    for word in ("fridge", "tv", "oven"):
        for number in range(70):
            shop.vectors.apply(base_product(shop.encoder, f"{word}-{number}", title=f"{word} {number}"))
    loop = shop.new_process()
    loop.settle()
    shop.store.writes.clear()
    release = product_release(1, shop.encoder)
    shop.topic.add(release)
    shop.run(loop)
    tower = release.product_tower()
    quality = {
        word: abs(float(tower.quality(["x"], [base_product(shop.encoder, "x", title=word).features])[0]))
        for word in ("fridge", "tv", "oven")
    }
    order = [product_id.split("-")[0] for _, ids in shop.store.writes for product_id in ids]
    assert list(dict.fromkeys(order)) == sorted(quality, key=lambda word: -quality[word])
    assert len(order) == 210


def test_writes_made_during_a_refresh_are_not_overwritten_by_it(shop: Deployment) -> None:
    """A newer version written by the catalogue loop stays, and gets the new quality before all is done."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(3):
        shop.step(loop)
    newer = base_product(shop.encoder, "P-599", 7, "large fridge")
    shop.vectors.apply(newer)
    shop.store.write(R0, loop.target().points([newer]))
    assert shop.store.versions(R0)["P-599"] == PointVersion(7, 0)
    shop.run(loop)
    assert shop.store.versions(R0)["P-599"] == PointVersion(7, 1)
    assert_serves_release_1(shop)


def test_query_releases_go_on_during_a_refresh(shop: Deployment) -> None:
    """One is served between two batches, for it fits whatever quality products have."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(3):
        shop.step(loop)
    shop.topic.add(query_release(2, shop.encoder, product_release=9))
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (1, 0), (2, 0), (2, 1)]


def test_a_newer_product_release_takes_the_place_of_one_in_the_middle(shop: Deployment) -> None:
    """What the first has written is compared with the second as anything else."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(4):
        shop.step(loop)
    shop.topic.add(product_release(2, shop.encoder, nats=1.0))
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (1, 0), (1, 2)]
    points = shop.store.retrieve(R0, [f"P-{number}" for number in range(1, 600)])
    assert {round(point.payload["quality"], 5) for point in points.values()} == {1.0}


def test_damaged_releases_are_refused_and_sound_ones_served(shop: Deployment) -> None:
    """Weights that are not finite, or of another encoder, never come into force; nothing stops for them."""
    infinite = query_release(1, shop.encoder, scale=float("inf"))
    shop.topic.add(infinite, query_release(2, shop.encoder))
    shop.topic.add(product_release(1, shop.encoder, nats=float("nan")))
    loop = shop.new_process()
    loop.settle()
    shop.store.writes.clear()
    shop.run(loop)
    assert shop.topic.history == [(0, 0), (2, 0)]
    assert shop.store.writes == []


def test_a_rollback_of_quality_is_a_new_release_of_old_weights(shop: Deployment) -> None:
    """Points refuse what is older: the old weights come back under the next number, within seconds."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    shop.run(loop)
    for number, nats in ((2, 4.0), (3, 1.0)):
        shop.topic.add(product_release(number, shop.encoder, nats=nats))
        shop.run(loop)
    shop.topic.add(product_release(4, shop.encoder, nats=4.0))
    shop.run(loop)
    assert in_force(shop) == (1, 4, R0)
    assert shop.store.retrieve(R0, ["P-5"])["P-5"].payload["quality"] == pytest.approx(4.0)


class Elsewhere:
    """Another indexer that does not know of a product release yet; this one has not read its base vectors yet.

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


def test_a_change_with_the_quality_of_the_old_release_is_made_good_after_the_record(shop: Deployment) -> None:
    """Whatever others wrote before they knew has the new quality before anything else happens."""
    elsewhere = Elsewhere(shop)
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    while shop.topic.history[-1] != (1, 1):
        shop.step(loop)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.run(loop)
    assert shop.store.versions(R0)["P-5"] == PointVersion(7, 1)
    assert_serves_release_1(shop)


def test_what_a_leader_left_that_ended_in_the_middle_is_made_good_by_the_next(shop: Deployment) -> None:
    """An indexer that ran all along compares the collection when it begins to lead."""
    elsewhere = Elsewhere(shop)
    successor = shop.new_process()
    successor.settle()
    release_1(shop)
    leader = shop.new_process()
    leader.settle()
    while shop.topic.history[-1] != (1, 1):
        shop.step(leader)
    elsewhere.write(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.leads = False
    shop.run(successor)
    assert shop.store.versions(R0)["P-5"] == PointVersion(7, 0)
    shop.leads = True
    shop.run(successor)
    assert shop.store.versions(R0)["P-5"] == PointVersion(7, 1)


def test_who_leads_again_knows_what_others_wrote_meanwhile(shop: Deployment) -> None:
    """It led before, and compares anew: what it remembers of the points is not what they are any more."""
    first = shop.new_process()
    first.settle()
    shop.run(first)
    second = shop.new_process()
    second.settle()
    shop.topic.add(product_release(1, shop.encoder, nats=3.0))
    shop.run(second)
    shop.leads = False
    shop.run(first)
    shop.leads = True
    shop.topic.add(product_release(2, shop.encoder, nats=0.0))
    shop.run(first)
    points = shop.store.retrieve(R0, ["P-1", "P-2"])
    assert [point.payload["quality"] for point in points.values()] == [0.0, 0.0]


def test_what_was_out_of_force_in_between_is_compared_again(shop: Deployment) -> None:
    """Two switches between two looks leave the names as they were, and changes behind."""
    loop = shop.new_process()
    loop.settle()
    serving = shop.topic.serving()
    assert serving is not None
    shop.topic.put_in_force(serving.model_copy(update={"product_release": 1}))
    shop.vectors.apply(base_product(shop.encoder, "P-5", 7, "large fridge"))
    shop.topic.put_in_force(serving)
    shop.run(loop)
    assert shop.store.versions(R0)["P-5"] == PointVersion(7, 0)


def test_who_does_not_lead_follows(shop: Deployment) -> None:
    """It moves nothing and publishes nothing; where its writes go moves with `serving`."""
    release_1(shop)
    shop.leads = False
    mine = shop.new_process()
    mine.settle()
    shop.run(mine)
    assert mine.target().in_force == InForce(R0, 0)
    assert shop.topic.history == [(0, 0)]
    shop.leads = True
    shop.run(shop.new_process())
    shop.leads = False
    shop.run(mine)
    assert mine.target().in_force == InForce(R0, 1)


def test_a_store_that_does_not_answer_is_asked_again(shop: Deployment) -> None:
    """A batch that failed is repeated: the refresh misses nothing."""
    release_1(shop)
    loop = shop.new_process()
    loop.settle()
    for _ in range(2):
        shop.step(loop)
    shop.store.failures = 1
    with pytest.raises(TransientError):
        shop.step(loop)
    shop.run(loop)
    assert_serves_release_1(shop)


def test_a_release_in_force_that_cannot_be_used_stops_the_start(shop: Deployment) -> None:
    """No other tower may stand in for it: products would have the quality of another release."""
    release_1(shop)
    shop.run(shop.new_process())
    serving = shop.topic.serving()
    assert serving is not None
    shop.topic.forget()
    shop.topic.put_in_force(serving)
    with pytest.raises(InvariantError, match="is in force and cannot be used"):
        shop.new_process().settle()


def test_a_refresh_leaves_the_store_to_its_searches_between_batches(
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
    monkeypatch.setattr(Refresh.__init__, "__kwdefaults__", {"window_s": 0.0, "monotonic_s": lambda: now_s[0]})
    shop.run(loop)
    assert_serves_release_1(shop)
    assert pauses == 10 * [0.125]


def test_a_refresh_does_not_pause_if_the_window_would_be_missed(shop: Deployment) -> None:
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
    assert pauses == 10 * [0.0]


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
    shop.topic.add(product_release(1, shop.encoder, nats=float("nan")))
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
