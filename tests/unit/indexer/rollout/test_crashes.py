"""A process that ends anywhere on the way: what is in force, where the alias points, and what the next one does."""

import pytest

from contracts.releases import Serving
from indexer.store import ProductStore
from tests.support.indexer_fakes import OWNER, Deployment, assert_serves_release_1, release_1


def test_a_crash_after_any_step_ends_in_the_same_place(shop: Deployment) -> None:
    """For every step of a refresh: end the process after it, start anew, and everything is at the new release."""
    release_1(shop)
    whole = shop.run(shop.new_process())
    assert whole > 10
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


@pytest.mark.parametrize("crash_after", [0, 3, 9])
def test_a_crash_while_a_second_collection_is_filled_ends_in_the_same_place(shop: Deployment, crash_after: int) -> None:
    """After any write: the next process fills the same collection on, and no third one is made."""
    release_1(shop)
    shop.run(shop.new_process())
    shop.store.drop("products-r0")
    ProductStore(shop.store._client, owner=OWNER).ensure_collection("products-r0", 3)
    writes = 0

    def pause(_seconds: float) -> bool:
        """End the process after so many writes."""
        nonlocal writes
        writes += 1
        if writes > crash_after:
            raise Crash
        return False

    with pytest.raises(Crash):
        shop.new_process(pause=pause).settle()
    shop.new_process().settle()
    shop.run()
    assert_serves_release_1(shop, collection="products-r1")
    assert shop.topic.history == [(0, 0), (1, 0), (1, 1), (1, 1)]


class Crash(Exception):
    """The process ends here."""


def crash(*_arguments: object) -> None:
    """End the process."""
    raise Crash


def without_dot(shop: Deployment) -> None:
    """Let the collection in force be one that cannot hold our vectors."""
    shop.store.drop("products-r0")
    shop.store.ensure_collection("products-r0", 3)
    shop.store.publish_alias("products", "products-r0")


def test_the_alias_is_never_ahead_of_serving(shop: Deployment) -> None:
    """A process that ends before the record is acknowledged has not moved the alias."""
    without_dot(shop)
    with pytest.raises(Crash):
        shop.new_process(put_in_force=crash).settle()
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
    without_dot(shop)
    loop = shop.new_process()
    with monkeypatch.context() as patch:
        patch.setattr(shop.store, "publish_alias", crash)
        with pytest.raises(Crash):
            loop.settle()
    assert shop.topic.history == [(0, 0), (0, 0)]
    assert shop.store.alias_target("products") == "products-r0"
    shop.new_process().settle()
    shop.run()
    assert shop.store.alias_target("products") == "products-r1"


def test_an_alias_that_somebody_moved_is_put_back(shop: Deployment) -> None:
    """What `serving` says is in force, and the alias names it again."""
    release_1(shop)
    shop.store.ensure_collection("products-r1", shop.encoder.dim + 1)
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

    def put_in_force(serving: Serving, _releases: object = None) -> None:
        """Note what the collection holds when the pair comes into force."""
        complete.append(shop.store.counts(serving.collection).live)
        shop.topic.put_in_force(serving)

    shop.new_process(put_in_force=put_in_force).settle()
    assert complete == [599]
