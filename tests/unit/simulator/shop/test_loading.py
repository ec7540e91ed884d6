"""A catalogue is loaded whole or the loading fails with numbers; launches are unmistakable."""

import httpx
import pytest

from contracts.catalog import CATALOG_CHANGE
from contracts.errors import CheckFailed
from contracts.wire import validate
from simulator.shop.loading import BATCH, launch_products, load_products
from simulator.shop.world import World
from tests.support.shop import Shop


async def test_the_whole_catalogue_is_acknowledged_with_progress(built_in: World) -> None:
    """Every product arrives once, in batches, with the secret key, and progress ends at all."""
    shop, seen = Shop(), []
    delivery = await load_products(
        built_in,
        "http://collector",
        secret_key="secret",
        progress=lambda done, total: seen.append((done, total)),
        transport=shop.transport,
    )
    count = len(built_in.products)
    assert delivery.accepted == len(shop.items) == count
    assert shop.largest_batch == BATCH
    assert shop.keys == {"Bearer secret"}
    assert seen[0] == (BATCH, count)
    assert seen[-1] == (count, count)


async def test_loading_waits_for_a_busy_collector(small: World) -> None:
    """429 and 503 delay loading and lose nothing."""
    refusals = [httpx.Response(429, headers={"Retry-After": "0.01"}), httpx.Response(503)]
    shop = Shop(refusals=refusals)
    delivery = await load_products(small, "http://collector", secret_key="secret", transport=shop.transport)
    assert (delivery.accepted, delivery.retries) == (12, 2)


async def test_a_rejected_product_fails_the_loading(small: World) -> None:
    """A catalogue that is not complete is not passed off as loaded."""
    shop = Shop()
    shop.rejected_ids = {"P-3"}
    with pytest.raises(CheckFailed, match=r"1 products were rejected and 0 not acknowledged \(missing: 1\)"):
        await load_products(small, "http://collector", secret_key="secret", transport=shop.transport)


async def test_a_wrong_key_fails_the_loading(small: World) -> None:
    """The error names the answer and the key's setting."""
    shop = Shop(refusals=[httpx.Response(401)])
    with pytest.raises(CheckFailed, match="http_401") as caught:
        await load_products(small, "http://collector", secret_key="wrong", transport=shop.transport)
    assert "MILLRACE_SECRET_KEY" in caught.value.fix


def test_launches_are_new_valid_and_unmistakable(built_in: World) -> None:
    """Launched products keep the contract, have ids and names of their own, and repeat for a seed."""
    launched = launch_products(built_in, seed=1, count=20, now_ms=1_795_200_000_000)
    brands = {product["brand"] for product in built_in.products}
    for product in launched:
        validate(product, CATALOG_CHANGE)
        assert product["brand"] not in brands
        assert product["version"] == product["launched_at"] == 1_795_200_000_000
    assert len({product["product_id"] for product in launched} - set(built_in.by_product_id)) == 20
    assert len({product["title"] for product in launched}) == 20
    assert launch_products(built_in, seed=1, count=20, now_ms=1_795_200_000_000) == launched
    assert launch_products(built_in, seed=2, count=20, now_ms=1_795_200_000_000) != launched


def test_launches_of_several_seeds_in_one_millisecond_are_different_products(built_in: World) -> None:
    """An id belongs to one seed, time and number: two launches never overwrite each other."""
    launches = [
        launched["product_id"]
        for seed in range(12)
        for now_ms in (1_795_200_000_000, 1_795_200_000_001)
        for launched in launch_products(built_in, seed=seed, count=12, now_ms=now_ms)
    ]
    assert len(set(launches)) == len(launches) == 288
