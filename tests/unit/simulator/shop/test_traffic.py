"""Traffic searches and reports through the public routes, loses no event, and repeats itself for a seed."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, replace

import httpx
import pytest

from contracts.events import SHOP_EVENT
from contracts.wire import validate
from simulator.shop import traffic
from simulator.shop.shoppers import ShopperOptions
from simulator.shop.site import EVENTS_PER_REQUEST, Site
from simulator.shop.traffic import Totals, Traffic, arrivals_s
from simulator.shop.world import World
from tests.support.shop import Shop

SITE = Site("http://collector", "http://search", "write")
LIVELY = ShopperOptions(compressed=True, abandon=0.0)
QUICK = replace(LIVELY, reformulate=0.0, again=0.0)
DULL = ["P-7", "P-8", "P-9", "P-10", "P-11"]
"""Products that are clicked by mistake only, so that nobody stays for a cart."""
LIST = [f"P-{number}" for number in range(10)]


def _traffic(world: World, shop: Shop, options: ShopperOptions = QUICK, *, seed: int = 1) -> Traffic:
    """Return traffic against the stand-in of the services."""
    return Traffic(world, SITE, seed=seed, rate_per_s=60.0, seconds=0.5, options=options, transport=shop.transport)


def _clicks(shop: Shop) -> Counter[tuple[str, str]]:
    """Return how often each product of each search was clicked."""
    clicks = (item for item in shop.items if item["type"] == "click")
    return Counter((item["session_id"], item["product_id"]) for item in clicks)


async def _run(world: World, shop: Shop, options: ShopperOptions = QUICK) -> Totals:
    """Let the traffic run to its end."""
    return await _traffic(world, shop, options).run()


@dataclass(frozen=True)
class Ended:
    """A run that has ended, with what the shop's doors saw of it."""

    totals: Totals
    shop: Shop


@pytest.fixture(scope="module")
def ended(built_in: World) -> Ended:
    """Return one undisturbed run with reformulations, shared by the tests that only look at it."""
    shop = Shop([str(product["product_id"]) for product in built_in.products[:10]])
    return Ended(asyncio.run(_run(built_in, shop, LIVELY)), shop)


def test_every_event_has_an_outcome_and_keeps_the_contract(ended: Ended) -> None:
    """What was sent is what was settled, and the collector's rules accept all of it."""
    totals, shop = ended.totals, ended.shop
    assert totals.visits == len(arrivals_s(1, rate_per_s=60.0, seconds=0.5)) > 10
    assert totals.sent == totals.delivery.settled == totals.events_accepted == len(shop.items)
    assert totals.actions.total() == totals.sent
    assert totals.searches == len(shop.searches) == totals.actions["view"]
    assert totals.clicks == sum(_clicks(shop).values()) > 0
    for item in shop.items:
        event = validate(item, SHOP_EVENT)
        assert event.sent_at is not None


def test_searches_leave_the_impression_to_the_server(ended: Ended, built_in: World) -> None:
    """The site names session and client and lets search write the impression; it types train queries only."""
    for body in ended.shop.searches:
        assert body.get("impression", "server") == "server"
        assert body["session_id"]
        assert body["client_id"]
        assert body["query"] in {query.query for query in built_in.of_split("train")}


def test_events_echo_the_search_they_belong_to(ended: Ended) -> None:
    """Search id and search time come from the answer."""
    shop = ended.shop
    known = {f"S-{number + 1}" for number in range(len(shop.searches))}
    for item in shop.items:
        part = item["items"][0] if item["type"] == "purchase" else item
        assert part["search_id"] in known
        assert part["search_time"] <= time.time_ns() // 1_000_000


async def test_the_same_seed_makes_the_same_clicks(small: World) -> None:
    """Two runs against the same lists click alike; another seed does not."""
    shops = [Shop(LIST) for _ in range(3)]
    await asyncio.gather(*(_traffic(small, shop, seed=seed).run() for shop, seed in zip(shops, (1, 1, 2), strict=True)))
    assert _clicks(shops[0]) == _clicks(shops[1])
    assert _clicks(shops[0]) != _clicks(shops[2])


async def test_a_busy_collector_loses_nothing(small: World) -> None:
    """Events refused for a while all arrive in the end."""
    shop = Shop(DULL, refusals=[httpx.Response(503, headers={"Retry-After": "0.01"})] * 5)
    totals = await _run(small, shop, replace(QUICK, noise=0.5))
    assert not shop.refusals
    assert totals.delivery.failed == 0
    assert totals.events_accepted == totals.sent


async def test_a_failing_search_is_counted_and_ends_the_visit(small: World) -> None:
    """Shoppers whose search fails leave; the run goes on and says how often and why."""
    shop = Shop(LIST)
    shop.search_status = 503
    totals = await _run(small, shop)
    assert totals.search_errors == totals.visits > 0
    assert totals.searches == totals.sent == 0
    assert "503" in totals.last_error


async def test_requests_stay_below_the_write_keys_limit(small: World) -> None:
    """No batch is larger than what a browser may send."""
    shop = Shop(DULL)
    await _run(small, shop, replace(QUICK, eta=0.0, noise=1.0))
    assert 1 < shop.largest_batch <= EVENTS_PER_REQUEST


async def test_visits_that_come_too_late_are_counted(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot keep up begins no further visit after the end, and says how many it left out."""
    monkeypatch.setattr(traffic, "PATIENCE_S", -3600.0)
    totals = await _run(small, Shop(LIST))
    assert totals.visits_skipped == len(arrivals_s(1, rate_per_s=60.0, seconds=0.5)) > 10
    assert totals.visits == totals.sent == 0


def test_latencies_are_kept_for_the_live_view(ended: Ended) -> None:
    """Each answered search leaves its latency."""
    assert len(ended.totals.search_ms) == ended.totals.searches
    assert min(ended.totals.search_ms) > 0


def test_shoppers_search_again(ended: Ended) -> None:
    """Some visits have more than one search, under one session."""
    sessions = Counter(body["session_id"] for body in ended.shop.searches)
    assert len(sessions) == ended.totals.visits < ended.totals.searches


def test_arrivals_come_at_the_asked_rate() -> None:
    """Visits are spread over the whole run and number rate x seconds on average."""
    moments = arrivals_s(3, rate_per_s=50.0, seconds=100.0)
    assert moments == sorted(moments)
    assert len(moments) == pytest.approx(5_000, rel=0.05)
    assert 0 < moments[0] < moments[-1] < 100.0
