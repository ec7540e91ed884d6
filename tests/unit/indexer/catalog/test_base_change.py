"""Another base: everything is encoded anew from what the catalogue holds, once, and nothing else about it changes."""

import numpy as np
import pytest

from contracts.catalog import Product
from indexer.catalog import base_change
from indexer.catalog.base_change import encode_anew
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.ports import Stopped
from tests.support.indexer_fakes import base_product, foreign, whole
from tests.support.indexing import product
from tests.support.tiny_encoder import TinyEncoder

OLD, NEW = TinyEncoder(), TinyEncoder(12)


class Shop:
    """Base vectors of the former base, the catalogue that they come from, and what is published."""

    def __init__(self, count: int) -> None:
        self.known = BaseVectors(NEW.base_version)
        self.encoder = TinyEncoder(12)
        self.sent = [product(f"P-{number}", 3, f"fridge {number}", description="quiet") for number in range(count)]
        self.published: list[BaseProduct] = []
        self.batches_left = 1_000
        for message in self.sent:
            self.known.read(base_product(OLD, message.product_id, 3, message.title))

    def change(self, sent: list[Product] | None = None) -> None:
        """Encode everything anew."""
        encode_anew(
            self.known,
            self.sent if sent is None else sent,
            encoder=self.encoder,
            publish=self.published.extend,
            go_on=self._go_on,
        )

    def _go_on(self) -> None:
        """Stop once there were enough batches."""
        self.batches_left -= 1
        if self.batches_left < 0:
            raise Stopped


def test_every_product_is_encoded_from_what_was_sent_under_its_version() -> None:
    """Vector and base are new; version, payload and the rest stay."""
    shop = Shop(3)
    shop.known.read(base_product(NEW, "P-ours", 1))
    shop.known.read(BaseProduct("P-gone", 2, OLD.base_version))
    shop.change()
    assert [(one.product_id, one.version) for one in shop.published] == [("P-0", 3), ("P-1", 3), ("P-2", 3)]
    assert {one.base_version for one in shop.published} == {NEW.base_version}
    assert shop.encoder.encoded == [f"fridge {number}. quiet" for number in range(3)]
    assert foreign(shop.known) == []
    assert len(whole(shop.known)) == 5
    kept = shop.known.get("P-1")
    assert kept is not None
    assert kept.vector is not None
    assert kept.payload == base_product(OLD, "P-1", 3, "fridge 1").payload
    np.testing.assert_array_equal(kept.vector, NEW.encode(["fridge 1. quiet"])[0])


def test_a_process_that_was_stopped_leaves_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published is not encoded twice."""
    monkeypatch.setattr(base_change, "BATCH", 4)
    shop = Shop(10)
    shop.batches_left = 2
    with pytest.raises(Stopped):
        shop.change()
    assert len(shop.published) == 8
    shop.batches_left = 9
    shop.change()
    assert len({one.product_id for one in shop.published}) == len(shop.published) == 10
    assert len(shop.encoder.encoded) == 10


def test_what_the_catalogue_no_longer_holds_is_encoded_from_what_was_kept() -> None:
    """Compaction may have left an older version, or nothing: all but the description is known."""
    shop = Shop(2)
    shop.change([product("P-0", 2, "older")])
    assert sorted(shop.encoder.encoded) == ["fridge 0", "fridge 1"]
    assert foreign(shop.known) == []
