"""What a record says otherwise than the item that was sent: no nulls, and no addresses of persons."""

from typing import Any

import orjson
import pytest

from contracts.base import Part
from contracts.catalog import Product
from contracts.events import (
    Cart,
    Click,
    Dwell,
    Exploration,
    Impression,
    Purchase,
    PurchaseItem,
    Ranking,
    Slot,
    View,
    Viewed,
)
from contracts.pairs import CuratedPair
from streams.collector.intake import Accepted, Arrival, decide_event, decide_pair, decide_product
from tests.support.collector import NOW_MS, click, impression, product, purchase

ARRIVAL = Arrival(received_at=NOW_MS, person_key=b"person")


def accepted(event: Any) -> list[dict[str, Any]]:
    """Return the records that an event becomes, as JSON."""
    decision = decide_event(event, ARRIVAL)
    assert isinstance(decision, Accepted), decision
    return [orjson.loads(record.value) for record in decision.records]


LISTED = impression(
    slots=[{"product_id": "P-1", "position": 1}], ranking={"arm": "live", "exploration": {"policy": "none"}}
)
MODELS: list[tuple[dict[str, Any], type[Part]]] = [
    (LISTED, Impression),
    ({**click(type="view"), "slots": [{"product_id": "P-1", "visible_ms": 9}]}, View),
    (click(), Click),
    (click(type="dwell", dwell_ms=9), Dwell),
    (click(type="cart"), Cart),
    (purchase("s1"), Purchase),
    (product(attributes={"litres": 190}), Product),
    ({"query": "fridge", "chosen": "P-1", "rejected": "P-2"}, CuratedPair),
]


def with_nulls(sent: dict[str, Any], form: type[Part]) -> dict[str, Any]:
    """Return a message that says null wherever its form allows a field to be left out, and in a field of the shop's."""
    nested: dict[str, type[Part]] = {"items": PurchaseItem, "ranking": Ranking, "exploration": Exploration}
    nested["slots"] = Viewed if form is View else Slot
    filled: dict[str, Any] = dict.fromkeys((*form.model_fields, "shops_own"))
    for name, value in sent.items():
        if name in nested and isinstance(value, list):
            filled[name] = [with_nulls(one, nested[name]) for one in value]
        elif name in nested:
            filled[name] = with_nulls(value, nested[name])
        else:
            filled[name] = {**value, "nothing": None} if isinstance(value, dict) else value
    return filled


@pytest.mark.parametrize(("sent", "form"), MODELS, ids=[form.__name__ for _, form in MODELS])
def test_a_null_is_a_field_that_was_left_out(sent: dict[str, Any], form: type[Part]) -> None:
    """The record is the same to the byte but for the order of its fields, and says null nowhere."""
    decide = {Product: decide_product, CuratedPair: decide_pair}.get(form, decide_event)
    plain, nulls = decide(sent, ARRIVAL), decide(with_nulls(sent, form), ARRIVAL)
    assert isinstance(plain, Accepted), plain
    assert isinstance(nulls, Accepted), nulls
    assert [record.key for record in plain.records] == [record.key for record in nulls.records]
    values = [orjson.loads(record.value) for record in plain.records]
    assert [orjson.loads(record.value) for record in nulls.records] == values
    assert b"null" not in nulls.records[0].value
    assert values[0]["schema_version"] == 1


def test_null_in_a_list_and_in_a_text_is_no_field() -> None:
    """Only fields are left out: a list keeps its length, a text its letters."""
    (record,) = accepted(click(seen=[1, None, {"a": None, "b": 2}], device='":null'))
    assert record["seen"] == [1, None, {"b": 2}]
    assert record["device"] == '":null'


def test_fields_that_may_hold_an_address_of_a_person_reach_no_topic() -> None:
    """At any depth and by name or by value; what else the shop adds passes on, and each loss is counted."""
    sent = impression(
        slots=[
            {"product_id": "P-1", "position": 1, "seller": {"contact": "ann@example.com"}, "shelf": 3},
            {"product_id": "P-2", "position": 2},
        ],
        ranking={"ranker": "own", "served_by": "203.0.113.9", "exploration": {"policy": "none", "phone": 5}},
        user_email="ann@example.com",
        campaign={"name": "diwali", "clientIp": ""},
        page_type="results",
    )
    decision = decide_event(sent, ARRIVAL)
    assert isinstance(decision, Accepted)
    assert decision.corrections == ("personal_field",) * 5
    record = orjson.loads(decision.records[0].value)
    assert record["slots"] == [{"product_id": "P-1", "position": 1, "shelf": 3}, {"product_id": "P-2", "position": 2}]
    assert record["ranking"] == {"ranker": "own", "exploration": {"policy": "none"}}
    assert record["page_type"] == "results"
    assert record.keys().isdisjoint({"user_email", "campaign"})
    lines = [{"product_id": "P-1", "gift_for": "bob@example.com"}, {"product_id": "P-2"}]
    assert [order["items"] for order in accepted(purchase(items=lines))] == [[{"product_id": "P-1"}], [lines[1]]]


def test_a_field_of_the_shops_may_be_called_as_a_time_of_ours() -> None:
    """What an impression or an order says under `search_time` is none of our forms, so it is passed on unread."""
    for sent in (impression(search_time="noon"), purchase("s1", search_time=[7])):
        (record,) = accepted({**sent, "event_time": NOW_MS - 3_600_000, "sent_at": NOW_MS - 3_600_000})
        assert record["search_time"] == sent["search_time"]
