"""A process that ends anywhere on the way: what is in force, where the alias points, and what the next one does."""

import pytest

from contracts.releases import Serving
from tests.support.indexer_fakes import Deployment, assert_serves_release_1, release_1


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
