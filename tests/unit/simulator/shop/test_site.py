"""Events of the simulator keep the contract and tell what the shopper did."""

import pytest

from contracts.events import SHOP_EVENT, Dwell, Purchase, View
from contracts.wire import validate
from simulator.shop.shoppers import Action, Kind, Visit
from simulator.shop.site import Event, event_id, event_of
from simulator.shop.world import World

SEARCH_TIME = 1_795_196_006_756


def _visit(world: World) -> Visit:
    """Return one visit."""
    return Visit(0, "s1-0", "c1-0", 0, 0.0, "mobile", world.queries[0])


def _event(world: World, kind: Kind) -> Event:
    """Return the event of one action."""
    action = Action(kind, 2, "P-1", 700, dwell_ms=42_000, visible=((1, "P-0", 900), (2, "P-1", 800)))
    return event_of(action, _visit(world), search_id="S-1", search_time=SEARCH_TIME, products=world.by_product_id)


@pytest.mark.parametrize("kind", ["view", "click", "dwell", "cart", "purchase"])
def test_every_kind_keeps_the_contract(small: World, kind: Kind) -> None:
    """The collector's own rules accept each event, at the time it happened."""
    event = validate(_event(small, kind), SHOP_EVENT)
    assert event.type == kind
    assert event.event_time == SEARCH_TIME + 700
    assert (event.session_id, event.client_id) == ("s1-0", "c1-0")


def test_a_dwell_names_its_click(small: World) -> None:
    """Dwell keeps its length and points at the click before it."""
    dwell = validate(_event(small, "dwell"), SHOP_EVENT)
    assert isinstance(dwell, Dwell)
    assert dwell.click_id == _event(small, "click")["event_id"]
    assert dwell.dwell_ms == 42_000


def test_a_view_lists_what_was_visible(small: World) -> None:
    """Each visible slot is reported with its time."""
    view = validate(_event(small, "view"), SHOP_EVENT)
    assert isinstance(view, View)
    assert [(slot.product_id, slot.position, slot.visible_ms) for slot in view.slots] == [
        ("P-0", 1, 900),
        ("P-1", 2, 800),
    ]


def test_a_purchase_carries_search_and_price(small: World) -> None:
    """Each line of an order echoes its search and the catalogue's price."""
    purchase = validate(_event(small, "purchase"), SHOP_EVENT)
    assert isinstance(purchase, Purchase)
    (line,) = purchase.items
    assert (line.search_id, line.search_time, line.price) == ("S-1", SEARCH_TIME, 101.0)


def test_an_unknown_product_has_no_price(small: World) -> None:
    """Products launched during the run are bought without a price in the event."""
    action = Action("cart", 1, "L-1", 3_300)
    event = event_of(action, _visit(small), search_id="S-1", search_time=SEARCH_TIME, products=small.by_product_id)
    assert "price" not in event
    validate(event, SHOP_EVENT)


def test_ids_tell_actions_apart(small: World) -> None:
    """One id per search, kind and position, the same each time."""
    ids = {event_id(search, kind, place) for search in "ab" for kind in ("click", "view") for place in (1, 2)}
    assert len(ids) == 8
    assert _event(small, "click")["event_id"] == _event(small, "click")["event_id"]
