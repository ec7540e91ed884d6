"""Posting gives every item exactly one outcome, and a catalogue is sent whole or fails with numbers."""

import httpx
import pytest

from contracts.errors import CheckFailed
from simulator.shop.site import PRODUCTS_PER_REQUEST, Delivery, Poster, send_products
from simulator.shop.world import World
from tests.support.shop import Shop

ITEMS = [{"event_id": f"e-{number}"} for number in range(8)]


async def _post(shop: Shop, *, patience_s: float = 5.0) -> Delivery:
    """Post a few items to the stand-in of the collector."""
    async with httpx.AsyncClient(transport=shop.transport) as client:
        poster = Poster(client, "http://collector/v1/events", key="write", name="events", patience_s=patience_s)
        return await poster.post(ITEMS)


async def test_accepted_items_are_counted() -> None:
    """The happy path: every item accepted, with the key in the header."""
    shop = Shop()
    delivery = await _post(shop)
    assert (delivery.accepted, delivery.settled) == (8, 8)
    assert shop.keys == {"Bearer write"}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_collector_is_asked_again_with_the_same_ids(status: int) -> None:
    """After 429 or 503 the same events come again, after the wait that was asked for."""
    shop = Shop(refusals=[httpx.Response(status, headers={"Retry-After": "0.01"})] * 2)
    delivery = await _post(shop)
    assert (delivery.accepted, len(shop.attempts)) == (8, 3)
    assert shop.attempts[0] == shop.attempts[1] == shop.attempts[2]


async def test_a_broken_connection_is_tried_again() -> None:
    """What may or may not have arrived is sent again under the same ids."""
    shop = Shop(refusals=[httpx.ReadError("gone")])
    assert (await _post(shop)).accepted == 8


async def test_patience_ends_in_a_count() -> None:
    """A collector that never accepts leaves failed items with their reason, not an exception and not silence."""
    shop = Shop(refusals=[httpx.Response(503, headers={"Retry-After": "9"})])
    delivery = await _post(shop, patience_s=0.5)
    assert (delivery.failed, delivery.settled) == (8, 8)
    assert delivery.reasons == {"http_503": 8}


async def test_a_wrong_key_fails_at_once() -> None:
    """A refusal that will not pass is not repeated."""
    shop = Shop(refusals=[httpx.Response(401, json={"error": "key"})])
    delivery = await _post(shop)
    assert delivery.reasons == {"http_401": 8}
    assert len(shop.attempts) == 1


async def test_a_batch_that_is_too_large_is_halved() -> None:
    """Everything arrives in the end, in requests that the collector takes."""
    shop = Shop()
    shop.most_items = 3
    delivery = await _post(shop)
    assert delivery.accepted == 8
    assert shop.largest_batch <= 3


async def test_rejected_and_duplicate_items_are_told_apart() -> None:
    """Each item's own status is counted, with the reason of a rejection."""
    shop = Shop()
    shop.rejected_ids = {"e-1"}
    shop.seen["e-2"] = 1
    delivery = await _post(shop)
    assert (delivery.accepted, delivery.duplicate, delivery.rejected, delivery.failed) == (6, 1, 1, 0)
    assert delivery.reasons == {"missing": 1}


async def test_an_unreadable_answer_counts_as_failed() -> None:
    """A proxy's page in place of the collector's answer proves nothing."""
    delivery = await _post(Shop(refusals=[httpx.Response(200, text="<html>welcome</html>")]))
    assert delivery.reasons == {"unreadable_answer": 8}


async def test_items_without_an_answer_have_failed() -> None:
    """An answer that is silent about some items does not count them as accepted."""
    short = httpx.Response(
        200, json={"accepted": 1, "rejected": 0, "results": [{"event_id": "e-0", "status": "accepted"}]}
    )
    delivery = await _post(Shop(refusals=[short]))
    assert (delivery.accepted, delivery.failed) == (1, 7)
    assert delivery.reasons == {"unanswered": 7}


async def test_the_whole_catalogue_is_acknowledged_with_progress(built_in: World) -> None:
    """Every product arrives once, in batches, with the secret key, and progress ends at all."""
    shop, seen = Shop(), []
    delivery = await send_products(
        built_in.products,
        "http://collector",
        secret_key="secret",
        progress=lambda done, total: seen.append((done, total)),
        transport=shop.transport,
    )
    count = len(built_in.products)
    assert delivery.accepted == len(shop.items) == count
    assert shop.largest_batch == PRODUCTS_PER_REQUEST
    assert shop.keys == {"Bearer secret"}
    assert seen[0] == (PRODUCTS_PER_REQUEST, count)
    assert seen[-1] == (count, count)


async def test_loading_waits_for_a_busy_collector(small: World) -> None:
    """429 and 503 delay loading and lose nothing."""
    refusals = [httpx.Response(429, headers={"Retry-After": "0.01"}), httpx.Response(503)]
    shop = Shop(refusals=refusals)
    delivery = await send_products(small.products, "http://collector", secret_key="secret", transport=shop.transport)
    assert (delivery.accepted, len(shop.attempts)) == (12, 3)


async def test_a_rejected_product_fails_the_loading(small: World) -> None:
    """A catalogue that is not complete is not passed off as loaded."""
    shop = Shop()
    shop.rejected_ids = {"P-3"}
    with pytest.raises(CheckFailed, match=r"1 products were rejected and 0 not acknowledged \(missing: 1\)"):
        await send_products(small.products, "http://collector", secret_key="secret", transport=shop.transport)


async def test_a_wrong_key_fails_the_loading(small: World) -> None:
    """The error names the answer and the key's setting."""
    shop = Shop(refusals=[httpx.Response(401)])
    with pytest.raises(CheckFailed, match="http_401") as caught:
        await send_products(small.products, "http://collector", secret_key="wrong", transport=shop.transport)
    assert "MILLRACE_SECRET_KEY" in caught.value.fix
