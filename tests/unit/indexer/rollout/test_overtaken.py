"""Base vectors that an older record has overtaken on their topic, or whose topic is gone, are written again, once."""

from indexer.catalog.base_vectors import BaseProduct
from tests.support.indexer_fakes import Deployment, base_product


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
