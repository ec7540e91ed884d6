"""A seed decides everything: figures of two runs may be compared only while these bytes stay as they are."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from simulator.demo.freshness import launch_products
from simulator.shop.builtin import builtin_world
from simulator.shop.shoppers import ShopperOptions, Shoppers, Visit
from simulator.shop.site import event_of
from simulator.shop.traffic import arrivals_s
from simulator.shop.world import World, export_world

SEARCH_TIME = 1_795_196_006_756
WORLDS = {
    1: {
        "products": "60069fec874eab02a1bc08499998bed2",
        "queries": "fd1e0f296d01149afa272705d2613763",
        "judgments": "3a7546afbd2207a1c50600258c688d8c",
    },
    2: {
        "products": "463f79c4f898c40c649913a664a122e4",
        "queries": "e39c41bcebc232e1494031b0235b01ff",
        "judgments": "6eb7cc9dc9f78c716d019cd4cb272855",
    },
}


def sha(content: bytes) -> str:
    """Return the first half of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize("seed", WORLDS)
def test_a_seed_has_its_world(seed: int, tmp_path: Path) -> None:
    """The files of a seed's world are the same bytes in every version."""
    export_world(builtin_world(seed), tmp_path)
    assert {name: sha((tmp_path / f"{name}.jsonl").read_bytes()) for name in WORLDS[seed]} == WORLDS[seed]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(ShopperOptions(), "3ec25a3e5c854b5fc66302f0b82c42a1", id="as in life"),
        pytest.param(ShopperOptions(compressed=True), "440fe7405278704f54b059ccb15c1c00", id="as in the demo"),
    ],
)
def test_a_seed_has_its_visits_and_clicks(built_in: World, options: ShopperOptions, expected: str) -> None:
    """The same visits come, and make of the same lists the same events."""
    shoppers = Shoppers(built_in, 3, options=options)
    visits = [told(shoppers, built_in, shoppers.visit(number)) for number in range(300)]
    assert sum(len(searches) for _, searches in visits) > 350
    assert sha(json.dumps(visits).encode()) == expected


def told(shoppers: Shoppers, world: World, visit: Visit) -> tuple[list[Any], list[Any]]:
    """Return who came, and for each search what was typed and which events it gave."""
    who = [visit.number, visit.session_id, visit.client_id, visit.group, visit.tempo, visit.device]
    searches: list[Any] = []
    query = visit.first
    while True:
        returned = ranked(world, query.query_id, 7 + len(searches))
        reaction = shoppers.react(visit, len(searches), query=query, returned=returned)
        search_id = f"S-{visit.number}-{len(searches)}"
        events = [
            event_of(action, visit, search_id=search_id, search_time=SEARCH_TIME, products=world.by_product_id)
            for action in reaction.actions
        ]
        searches.append([query.query_id, events])
        if reaction.follow_up is None:
            return who, searches
        query = reaction.follow_up


def ranked(world: World, query_id: str, step: int) -> list[str]:
    """Return a list of ten in which good and bad answers stand."""
    others = [str(product["product_id"]) for product in world.products[:50:step]]
    answers = list(world.judgments[query_id])[::step]
    return list(dict.fromkeys([others[0], *answers[:4], *others[1:4], *answers[4:], *others[4:]]))[:10]


def test_a_seed_has_its_arrivals() -> None:
    """Visits begin at the same moments."""
    starts = arrivals_s(1, rate_per_s=14.0, seconds=120.0)
    assert len(starts) == 1_610
    assert sha(json.dumps([round(start, 6) for start in starts]).encode()) == "27a05297a327e5f15094fa11b2fbd85d"


def test_a_seed_has_its_launches(built_in: World) -> None:
    """What is launched while shoppers shop is decided by seed and moment."""
    launched = launch_products(built_in, seed=1_000, count=5, now_ms=SEARCH_TIME)
    assert sha(json.dumps(launched).encode()) == "54d8602eea28a379a36f352552d19bb9"
