"""Who was overtaken: base vectors by an older record, or by a topic made anew, and trainers by another trainer."""

from structlog.testing import capture_logs

from indexer.catalog.base_vectors import BaseProduct
from tests.support.indexer_fakes import Deployment, base_product, told
from tests.support.indexing import product_release, query_release
from towers.release_files import unpack


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
    assert told(*shop.log.vectors) == told(newest)


def test_a_deletion_that_was_overtaken_is_written_again(shop: Deployment) -> None:
    """Else the product would come back with the next collection."""
    deletion = BaseProduct("P-5", 7, shop.encoder.base_version)
    shop.vectors.read(deletion)
    shop.vectors.read(base_product(shop.encoder, "P-5", 7))
    read_what_is_written(shop)
    shop.run()
    assert told(*shop.log.vectors) == told(deletion)


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


def test_what_is_in_force_carries_the_highest_fence(shop: Deployment) -> None:
    """A query release of a new trainer raises it; a product release of the one before, published in time, keeps it."""
    loop = shop.new_process()
    loop.settle()
    shop.topic.add(product_release(1, shop.encoder, fence=1))
    shop.run(loop)
    shop.topic.add(query_release(1, shop.encoder, fence=3))
    shop.run(loop)
    serving = shop.topic.serving()
    assert serving is not None
    assert (serving.query_release, serving.product_release, serving.fence) == (1, 1, 3)


def test_a_release_of_a_trainer_that_was_overtaken_never_comes_into_force(shop: Deployment) -> None:
    """Its lower fence is said once, in one line, and the indexer stays ready; the newer trainer's come into force."""
    loop = shop.new_process()
    loop.settle()
    shop.topic.add(product_release(1, shop.encoder, fence=1), query_release(1, shop.encoder, fence=1))
    shop.topic.put_in_force(shop.topic.serving().model_copy(update={"fence": 2}))  # type: ignore[union-attr]
    with capture_logs() as lines:
        shop.run(loop)
        shop.run(loop)
    refused = {line["release"]: line["error"] for line in lines if line["event"] == "release_refused"}
    assert refused == dict.fromkeys(("product-1", "query-1"), "its trainer was overtaken: fence 1, in force 2")
    assert len([line for line in lines if line["event"] == "release_refused"]) == 2
    assert loop.newest_refused() is None
    shop.topic.add(query_release(2, shop.encoder, fence=2))
    shop.run(loop)
    assert shop.topic.history[-1] == (2, 0)


def test_a_release_that_an_overtaken_trainer_has_written_over_is_written_again(shop: Deployment) -> None:
    """Compaction keeps the newest record: a process that starts afterwards finds the release that is in force."""
    loop = shop.new_process()
    loop.settle()
    shop.topic.add(query_release(1, shop.encoder, fence=3))
    shop.run(loop)
    shop.topic.add(query_release(2, shop.encoder, fence=4), query_release(1, shop.encoder, scale=9.0, fence=2))
    shop.leads = False
    shop.run(loop)
    assert shop.topic.overwritten()
    shop.leads = True
    shop.run(loop)
    assert shop.topic.overwritten() == {}
    kept, expected = unpack(shop.topic.value("query-1") or b""), query_release(1, shop.encoder)
    assert kept.manifest.fence == 4
    assert kept.manifest.weights_sha256 == expected.manifest.weights_sha256
    in_force = shop.topic.serving()
    assert in_force is not None
    assert in_force.query_release == 2
