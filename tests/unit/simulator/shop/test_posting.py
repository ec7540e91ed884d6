"""Posting gives every item exactly one outcome, whatever the collector answers."""

import httpx
import pytest

from simulator.shop.posting import Delivery, Poster
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
    assert (delivery.accepted, delivery.retries) == (8, 2)
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
