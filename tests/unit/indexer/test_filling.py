"""The check of a new collection on a store in memory: how much of it is held at once."""

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from indexer.core.base_vectors import BaseVectors
from indexer.core.points import ProductPoint
from indexer.filling import BATCH, check_collection
from indexer.targets import Target
from tests.support.indexer_fakes import FlakyStore, Shadow, base_product, first_target
from tests.support.tiny_encoder import TinyEncoder
from towers.heads import ProductHead


class Watched(FlakyStore):
    """A store that notes how many products were asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    @override
    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Note and answer."""
        self.asked.append(len(product_ids))
        return super().retrieve(collection, product_ids)


def test_a_check_after_which_everything_is_doubtful_reads_batch_by_batch() -> None:
    """Whole points of a whole catalogue would not fit into memory; what is asked for is at most one write's worth."""
    encoder, store, vectors = TinyEncoder(), Watched(), BaseVectors()
    count = 2 * BATCH + 10
    products = [base_product(encoder, f"P-{number}") for number in range(count)]
    for product in products:
        vectors.apply(product)
    for collection in ("products-r0", "products-r1"):
        store.ensure_collection(collection, encoder.dim)
    store.write("products-r0", first_target(encoder).points(products))
    check_collection(
        Target("products-r1", 1, ProductHead(encoder.dim)),
        "products-r0",
        store=store,
        vectors=vectors,
        catch_up=lambda: None,
        shadow=Shadow(),
        probes=np.zeros((2, encoder.dim), dtype=np.float32),
    )
    assert sum(store.asked) >= count
    assert max(store.asked) <= BATCH
    assert store.counts("products-r1").live == count
