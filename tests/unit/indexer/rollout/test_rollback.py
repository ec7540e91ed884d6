"""A rollback: an older query release is served at once, its quality follows, and what was taken back stays away."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from contracts import wire
from contracts.releases import ROLLBACK_KEY, Rollback, Serving, manifest_of
from indexer.catalog.base_vectors import BaseProduct
from tests.support.indexer_fakes import TIME_MS, Deployment, whole
from tests.support.indexing import product_release, query_release
from towers.release_files import Release


def ask(shop: Deployment, query: int, *, at: int = 1) -> None:
    """Ask for a rollback."""
    request = Rollback(query_release=query, requested_at=TIME_MS + at)
    shop.topic.apply(ROLLBACK_KEY, wire.encode(request))


def serving(shop: Deployment) -> Serving:
    """Return what is in force."""
    found = shop.topic.serving()
    assert found is not None
    return found


def child(release: int, parent: int, shop: Deployment) -> Release:
    """Return a query release that was trained from another."""
    made = query_release(release, shop.encoder)
    return replace(made, manifest=made.manifest.model_copy(update={"parent": parent}))


@pytest.fixture
def at_3(shop: Deployment) -> Deployment:
    """Serve query release 3 of product release 2; release 1 of both came before."""
    for query, product in ((1, 1), (3, 2)):
        shop.topic.add(
            product_release(product, shop.encoder), query_release(query, shop.encoder, product_release=product)
        )
        shop.run(shop.new_process())
    assert (serving(shop).query_release, serving(shop).product_release) == (3, 2)
    return shop


def assert_quality_of(shop: Deployment, product: int) -> None:
    """Check that points carry the quality of a product release, whatever its number is now."""
    tower = product_release(product, shop.encoder).product_tower()
    products = [one for one in whole(shop.vectors) if not one.is_deleted]
    wanted = tower.quality([one.product_id for one in products], [one.features for one in products])
    stored = shop.store.stored("products-r0")
    found = [stored[one.product_id].quality for one in products]
    np.testing.assert_allclose(found, wanted, atol=0.011)


def test_the_query_side_goes_back_first_then_the_quality_as_a_new_product_release(at_3: Deployment) -> None:
    """One step serves the older release; its quality comes under a number that points accept."""
    ask(at_3, 1)
    at_3.step()
    assert at_3.topic.history[-1] == (1, 2)
    at_3.run()
    in_force = serving(at_3)
    assert (in_force.query_release, in_force.product_release, in_force.withdrawn) == (1, 5, 3)
    assert in_force.reason == "rollback"
    manifest = manifest_of(at_3.topic.value("product-5") or b"")
    assert (manifest.parent, manifest.query_release) == (1, 1)
    assert_quality_of(at_3, 1)


def test_what_was_taken_back_does_not_return_and_a_newer_release_comes_into_force(at_3: Deployment) -> None:
    """Nor what was trained from it before the trainer noticed; restarts change nothing about it."""
    ask(at_3, 1)
    at_3.run()
    at_3.topic.add(child(4, 3, at_3))
    at_3.topic.add(child(5, 4, at_3))
    at_3.run(at_3.new_process())
    assert serving(at_3).query_release == 1
    at_3.topic.add(child(6, 1, at_3))
    at_3.run()
    at_3.topic.add(child(7, 6, at_3))
    at_3.run(at_3.new_process())
    assert (serving(at_3).query_release, serving(at_3).reason) == (7, "release")


def test_quality_that_came_with_what_was_taken_back_stays_away_too(at_3: Deployment) -> None:
    """A trainer may publish it after the rollback: its query release has no number above, but a parent that tells."""
    at_3.topic.add(query_release(2, at_3.encoder, product_release=2))
    ask(at_3, 2)
    at_3.run()
    before = serving(at_3).product_release
    late = product_release(before + 4, at_3.encoder, query_release=4)
    at_3.topic.add(child(4, 3, at_3), late)
    at_3.run(at_3.new_process())
    assert (serving(at_3).query_release, serving(at_3).product_release) == (2, before)


def test_a_rollback_in_the_middle_of_a_product_release_ends_it(at_3: Deployment) -> None:
    """What it has written already gets the older quality again."""
    at_3.topic.add(product_release(3, at_3.encoder))
    assert at_3.step()
    assert at_3.step()
    ask(at_3, 1)
    at_3.run()
    assert (serving(at_3).query_release, serving(at_3).product_release) == (1, 6)
    assert_quality_of(at_3, 1)


def test_a_rollback_to_the_untrained_release_takes_all_quality_back(at_3: Deployment) -> None:
    """Release 0 of both towers is built in."""
    ask(at_3, 0)
    at_3.run()
    assert (serving(at_3).query_release, serving(at_3).product_release) == (0, 5)
    stored = at_3.store.stored("products-r0").values()
    assert max(abs(point.quality) for point in stored) <= 0.01


def test_the_same_quality_is_not_released_again(shop: Deployment) -> None:
    """Both query releases belong to one product release: only the query side moves."""
    shop.topic.add(product_release(1, shop.encoder))
    shop.topic.add(*(query_release(number, shop.encoder, product_release=1) for number in (1, 2)))
    shop.run(shop.new_process())
    ask(shop, 1)
    shop.run()
    assert shop.topic.keys() == ["product-1", "query-1", "query-2"]
    assert (serving(shop).query_release, serving(shop).product_release) == (1, 1)


@pytest.mark.parametrize("late", [True, False])
def test_a_release_that_is_retired_while_it_is_gone_back_to_is_written_again(at_3: Deployment, late: bool) -> None:
    """The trainer's nulls come after the request, before or after it is carried out; whoever starts then finds all."""
    ask(at_3, 1)
    if late:
        at_3.step()
    for key in (b"query-1", b"product-1"):
        at_3.topic.apply(key, None)
    at_3.run()
    assert (serving(at_3).query_release, serving(at_3).product_release) == (1, 5)
    assert at_3.topic.overwritten() == {}
    assert_quality_of(at_3, 1)


@pytest.mark.parametrize("number", [2, 3, 9])
def test_a_rollback_that_cannot_be_is_refused_once(at_3: Deployment, number: int) -> None:
    """It never was, is in force, or is newer: what is in force stays so, and the request is answered for good."""
    ask(at_3, number)
    with capture_logs() as lines:
        at_3.run()
        at_3.topic.add(query_release(9, at_3.encoder))
        at_3.run(at_3.new_process())
    assert [line["query_release"] for line in lines if line["event"] == "rollback_refused"] == [number]
    assert (serving(at_3).query_release, serving(at_3).withdrawn) == (9, 0)
    assert serving(at_3).rollback_answered == TIME_MS + 1


def test_only_who_leads_rolls_back_and_a_crash_before_serving_repeats_it(at_3: Deployment) -> None:
    """A product release that was published before the crash is overtaken by one of the same weights."""
    ask(at_3, 1)
    at_3.leads = False
    at_3.run()
    assert serving(at_3).query_release == 3
    at_3.leads = True

    def crash(_serving: Serving, releases: Mapping[str, bytes]) -> None:
        """End before the last record is written."""
        for key, value in releases.items():
            at_3.topic.apply(key.encode(), value)
        raise KeyboardInterrupt

    dying = at_3.new_process(put_in_force=crash)
    with pytest.raises(KeyboardInterrupt):
        at_3.step(dying)
    at_3.run(at_3.new_process())
    assert (serving(at_3).query_release, serving(at_3).product_release) == (1, 8)
    assert_quality_of(at_3, 1)


def test_changes_of_the_catalogue_are_kept_while_it_goes_back(at_3: Deployment) -> None:
    """A deletion stays one."""
    at_3.vectors.apply(BaseProduct("P-7", 2, at_3.encoder.base_version))
    ask(at_3, 1)
    at_3.run(at_3.new_process())
    assert at_3.store.counts("products-r0") == (598, 2)


def test_a_second_rollback_with_nothing_released_between_is_told_from_the_first(at_3: Deployment) -> None:
    """Who follows `serving` tells rollbacks by `withdrawn`; and what was taken back cannot be asked for."""
    ask(at_3, 1)
    at_3.run()
    first = serving(at_3)
    ask(at_3, 0, at=2)
    at_3.run()
    second = serving(at_3)
    assert (first.query_release, second.query_release, second.withdrawn_above) == (1, 0, 0)
    assert second.withdrawn > first.withdrawn
    ask(at_3, 1, at=3)
    at_3.run()
    assert (serving(at_3).query_release, serving(at_3).withdrawn) == (0, second.withdrawn)
