"""From a shopper's action to the event that the shop's site sends (docs/events.md)."""

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from simulator.shop.shoppers import Action, Visit
from simulator.shop.world import ProductMessage

Event = dict[str, Any]


def event_of(
    action: Action, visit: Visit, *, search_id: str, search_time: int, products: Mapping[str, ProductMessage]
) -> Event:
    """Return the event of an action.

    The id follows from the search and the action, so that a repeat is recognised as one. `event_time` is the
    device's clock: the true time plus its skew.

    Args:
        action: what was done.
        visit: by whom.
        search_id: of the list it was done on.
        search_time: echoed from the search's answer.
        products: by id, for prices.
    """
    fields = _FIELDS[action.kind](action, search_id, search_time, products)
    return {
        "type": action.kind,
        "event_id": event_id(search_id, action.kind, action.position),
        "event_time": search_time + action.at_ms + visit.skew_ms,
        "schema_version": 1,
        "session_id": visit.session_id,
        "client_id": visit.client_id,
        "device": visit.device,
        "locale": "en-IN",
        "surface": "search",
        **fields,
    }


def event_id(search_id: str, kind: str, position: int) -> str:
    """Return the id of what was done at a position of a list.

    >>> event_id("s-1", "click", 2) == event_id("s-1", "click", 2) != event_id("s-1", "click", 3)
    True
    """
    return str(uuid5(NAMESPACE_OID, f"{search_id}:{kind}:{position}"))


def _view(action: Action, search_id: str, search_time: int, _: Mapping[str, ProductMessage]) -> Event:
    slots = [{"product_id": product, "position": place, "visible_ms": seen} for place, product, seen in action.visible]
    return {"search_id": search_id, "search_time": search_time, "slots": slots}


def _click(action: Action, search_id: str, search_time: int, _: Mapping[str, ProductMessage]) -> Event:
    return {
        "search_id": search_id,
        "search_time": search_time,
        "product_id": action.product_id,
        "position": action.position,
    }


def _dwell(action: Action, search_id: str, search_time: int, _: Mapping[str, ProductMessage]) -> Event:
    return {
        "search_id": search_id,
        "search_time": search_time,
        "product_id": action.product_id,
        "click_id": event_id(search_id, "click", action.position),
        "dwell_ms": action.dwell_ms,
    }


def _cart(action: Action, search_id: str, search_time: int, products: Mapping[str, ProductMessage]) -> Event:
    line = _line(action, search_id, search_time, products)
    return {**line, "currency": products.get(action.product_id, {}).get("currency", "INR")}


def _purchase(action: Action, search_id: str, search_time: int, products: Mapping[str, ProductMessage]) -> Event:
    return {
        "order_id": f"O-{event_id(search_id, 'order', action.position)}",
        "currency": products.get(action.product_id, {}).get("currency", "INR"),
        "items": [_line(action, search_id, search_time, products)],
    }


def _line(action: Action, search_id: str, search_time: int, products: Mapping[str, ProductMessage]) -> Event:
    line: Event = {
        "product_id": action.product_id,
        "quantity": 1,
        "search_id": search_id,
        "search_time": search_time,
    }
    price = products.get(action.product_id, {}).get("price")
    return line if price is None else {**line, "price": price}


_FIELDS = {"view": _view, "click": _click, "dwell": _dwell, "cart": _cart, "purchase": _purchase}
