"""Another base model or text template: products of the former one are encoded anew, without being sent again.

What was encoded is on `product-vectors` at once, so a process that ends in the middle leaves only the rest to the next.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from contracts.catalog import Product
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from service.logging import get_logger
from towers.release_files import Encoder
from towers.text import product_text, text_hash

BATCH: Final = 512
"""Products that are encoded and published together, those of like length side by side."""


def encode_anew(
    known: BaseVectors,
    sent: Iterable[Product],
    *,
    encoder: Encoder,
    publish: Callable[[Sequence[BaseProduct]], None],
    go_on: Callable[[], None],
) -> None:
    """Encode every product whose newest state is of another base, and publish it under the same version.

    Its text is the one that `catalog` holds. If compaction has left another version there, the fields that were kept
    with the vector have to do: all but the description.

    Args:
        known: every product; what is published is known here too.
        sent: the products that `catalog` holds.
        encoder: the base.
        publish: writes base vectors to `product-vectors`.
        go_on: called between batches; raises if the process is to stop.
    """
    waiting = {state.product_id: state.version for state in known.foreign_states()}
    total, texts = len(waiting), list[tuple[str, BaseProduct]]()
    get_logger().info("base_change_begins", products=total, base_version=encoder.base_version)

    def encode() -> None:
        """Encode and publish a batch."""
        go_on()
        rows = encoder.encode([text for text, _ in texts], batch_size=64)
        made = [
            replace(one, base_version=encoder.base_version, text_hash=text_hash(text), vector=row.copy())
            for (text, one), row in zip(texts, rows, strict=True)
        ]
        publish(made)
        for product in made:
            known.apply(product)
        texts.clear()
        get_logger().info("base_change_progress", encoded=total - len(waiting), of=total)

    for message in sent:
        if waiting.get(message.product_id) != message.version:
            continue
        product = known.foreign(message.product_id)
        if product is not None and product.version == message.version:
            del waiting[message.product_id]
            texts.append((product_text(message), product))
            if len(texts) == BATCH:
                encode()
    if waiting:
        get_logger().warning("encoded_without_description", products=len(waiting), one=next(iter(waiting)))
    while waiting or texts:
        while waiting and len(texts) < BATCH:
            product = known.foreign(waiting.popitem()[0])
            if product is not None:  # else it was encoded elsewhere meanwhile
                texts.append((product_text(_as_sent(product)), product))
        if texts:
            encode()


def _as_sent(product: BaseProduct) -> Product:
    said = {} if product.payload is None else product.payload.model_dump(exclude_none=True, exclude={"in_stock"})
    return Product.model_construct(
        type="product", product_id=product.product_id, version=product.version, **said, description=""
    )
