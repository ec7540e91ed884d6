"""Loading a catalogue through the collector, and products that are launched while the demo runs."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import httpx

from contracts.errors import CheckFailed
from simulator.shop.posting import Delivery, Poster
from simulator.shop.world import ProductMessage, World

BATCH: Final = 200
PATIENCE_S: Final = 120.0
_SYLLABLES: Final = ("zor", "bla", "quix", "yth", "vom", "kra", "jep", "tul", "wexi", "ondu", "fyr", "gux")

Progress = Callable[[int, int], None]
"""Called with products acknowledged so far, and all."""


async def load_products(
    world: World,
    collector_url: str,
    *,
    secret_key: str,
    progress: Progress | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Delivery:
    """Send a world's catalogue to the collector.

    Raises:
        CheckFailed: the collector refused or did not acknowledge some products.
    """
    return await send_products(
        world.products, collector_url, secret_key=secret_key, progress=progress, transport=transport
    )


async def send_products(
    products: Sequence[ProductMessage],
    collector_url: str,
    *,
    secret_key: str,
    progress: Progress | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Delivery:
    """Send products to the collector in batches; return when all are acknowledged.

    Raises:
        CheckFailed: the collector refused or did not acknowledge some of them.
    """
    total = Delivery()
    async with httpx.AsyncClient(transport=transport, timeout=60.0) as client:
        poster = Poster(client, f"{collector_url}/v1/products", key=secret_key, name="products", patience_s=PATIENCE_S)
        for start in range(0, len(products), BATCH):
            total.add(await poster.post([dict(product) for product in products[start : start + BATCH]]))
            if progress is not None:
                progress(total.accepted + total.duplicate, len(products))
    if total.rejected or total.failed:
        why = ", ".join(f"{reason}: {count}" for reason, count in total.reasons.most_common(3))
        raise CheckFailed(
            f"{total.rejected} products were rejected and {total.failed} not acknowledged ({why})",
            fix="see the collector's log, and check MILLRACE_SECRET_KEY and the rows of products.jsonl",
        )
    return total


def launch_products(world: World, *, seed: int, count: int, now_ms: int) -> tuple[dict[str, Any], ...]:
    """Return products that are new to a world, with titles that nothing else resembles: a search for one finds it.

    Args:
        world: whose catalogue they join; their ids are not in it.
        seed: decides ids, names and kinds.
        count: how many.
        now_ms: launch time and version.
    """
    rng = Random(f"launches:{seed}:{now_ms}")
    kinds = sorted({str(product["category"][-1]) for product in world.products if product.get("category")})
    ids = (f"L-{now_ms}-{seed}-{number:03d}" for number in range(count))
    return tuple(_launch(rng, product_id, kinds or ["Electronics"], now_ms) for product_id in ids)


def _launch(rng: Random, product_id: str, kinds: Sequence[str], now_ms: int) -> dict[str, Any]:
    name = "".join(rng.sample(_SYLLABLES, 3)).capitalize()
    model, kind = f"{rng.randrange(1000, 9999)}", rng.choice(kinds)
    return {
        "type": "product",
        "schema_version": 1,
        "product_id": product_id,
        "version": now_ms,
        "title": f"{name} {model} first edition, {kind.lower()}",
        "description": f"The {name} {model} is launched today.",
        "category": [kind],
        "brand": name,
        "attributes": {"model": model},
        "price": 9990.0,
        "currency": "INR",
        "in_stock": True,
        "launched_at": now_ms,
        "priority": 0.0,
        "parent_id": f"{product_id}-V",
        "seller_id": "S-1",
        "locale": "en-IN",
        "url": f"https://shop.example/p/{product_id}",
    }
