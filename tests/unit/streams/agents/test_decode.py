"""The quick decoders accept and refuse exactly what the contracts do, and blame the same."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from contracts.errors import ContractError
from contracts.events import SEARCH_RECORD
from contracts.wire import decode as decode_by_contract
from streams.agents import joined_search, shop_events
from streams.agents.joined_search import CONTRACT as JOINED_SEARCH
from tests.support.examples import Example, invalid_examples, valid_examples
from tests.support.search_events import cart, click, dwell, impression, purchase, tick, view

SHOP_EVENTS = {"impression", "view", "click", "dwell", "cart", "purchase", "tick"}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1.5, 10**15, 10**30, 2**53, "", "x", "x" * 101, "x" * 1001, "1", "é" * 100,
    [], [1], {}, {"product_id": "a"}, 1_795_196_000_000, 1_795_196_000_000.0, "granted", "denied", 86_400_001, 10_001,
]  # fmt: skip


def outcome(quick: Callable[[bytes], object], contract: TypeAdapter[Any], value: bytes) -> tuple[object, object]:
    """Return what both say about a value: its reason and field, or that it is right."""
    return verdict(quick, value), verdict(lambda one: decode_by_contract(one, contract), value)


def verdict(decode: Callable[[bytes], object], value: bytes) -> tuple[str, str | None]:
    """Return a decoder's reason and field, or that the value is right."""
    try:
        decode(value)
    except ContractError as error:
        return error.reason, error.field
    return "valid", None


def examples(kinds: set[str]) -> list[Example]:
    """Return the stored examples of some messages."""
    return [example for example in (*valid_examples(), *invalid_examples()) if example.spec.name in kinds]


@pytest.mark.parametrize("example", examples(SHOP_EVENTS), ids=lambda example: example.path)
def test_stored_shop_events_are_judged_alike(example: Example) -> None:
    """Every stored example has the same verdict from both."""
    quick, contract = outcome(shop_events.decode, SEARCH_RECORD, example.text)
    assert quick == contract


@pytest.mark.parametrize("example", examples({"joined_search"}), ids=lambda example: example.path)
def test_stored_joined_searches_are_judged_alike(example: Example) -> None:
    """Every stored example has the same verdict from both."""
    quick, contract = outcome(joined_search.decode, JOINED_SEARCH, example.text)
    assert quick == contract


def joined() -> dict[str, Any]:
    """Return a joined search with every kind of field."""
    slots = [{"product_id": "a", "position": 1, "clicked": True, "click_time": 1_795_196_000_100, "dwell_ms": 5}]
    shown = impression(client_id="c1", total_results=3, ranking={"ranker": "millrace", "exploration": {"seed": 3}})
    fields = {name: value for name, value in shown.items() if name not in {"type", "event_id", "event_time"}}
    origins = [{"topic": "search-events", "partition": 0, "offset": 3}]
    times = {"search_time": 1_795_196_000_000, "closed_at": 1_795_196_600_000}
    return {**fields, **times, "type": "joined_search", "slots": slots, "origins": origins}


SEEDS = [
    impression(client_id="c", sent_at=1_795_196_000_000, ranking={"arm": "live", "exploration": {"policy": "none"}}),
    view({"a": 3}), click(position=1), dwell(click_id="x"), cart(price=3, currency="INR"), purchase(), tick(0),
]  # fmt: skip


def _changed(draw: st.DrawFn, seed: dict[str, Any]) -> dict[str, Any]:
    """Draw a message with one value, at any depth, replaced, removed or added."""
    message: dict[str, Any] = orjson.loads(orjson.dumps(seed))
    spots: list[tuple[Any, Any]] = [(message, name) for name in message]
    for parent, name in spots:
        inner = parent[name]
        spots += [
            (inner, key)
            for key in (inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ())
        ]
    parent, name = draw(st.sampled_from(spots))
    action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "replace":
        parent[name] = draw(st.sampled_from(ODD))
    elif action == "remove":
        del parent[name]
    else:
        message[
            draw(st.sampled_from(["user_id", "consent", "price", "slots", "unknown", "schema_version", "items"]))
        ] = draw(st.sampled_from(ODD))
    return message


@given(message=st.sampled_from(SEEDS).flatmap(st.composite(_changed)))
@settings(max_examples=600)
def test_changed_shop_events_are_judged_alike(message: dict[str, Any]) -> None:
    """One odd value anywhere in a valid event leads to the same verdict, reason and field."""
    quick, contract = outcome(
        shop_events.decode, SEARCH_RECORD, orjson.dumps(message, default=str) if _fits(message) else b"x"
    )
    assert quick == contract


@given(message=st.composite(_changed)(joined()))
@settings(max_examples=400)
def test_changed_joined_searches_are_judged_alike(message: dict[str, Any]) -> None:
    """One odd value anywhere in a joined search leads to the same verdict, reason and field."""
    quick, contract = outcome(joined_search.decode, JOINED_SEARCH, orjson.dumps(message) if _fits(message) else b"x")
    assert quick == contract


def _fits(message: Any) -> bool:
    """Return whether orjson can write a message: it has no integers beyond 64 bits."""
    try:
        orjson.dumps(message)
    except TypeError:
        return False
    return True


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_arbitrary_bytes_are_judged_alike(value: bytes) -> None:
    """No bytes make the two differ or raise anything but a contract error."""
    quick, contract = outcome(shop_events.decode, SEARCH_RECORD, value)
    assert quick == contract


@pytest.mark.parametrize("value", [b'{"a":"\xff"}', b'{"type":"tick","event_time":1795196000000,"x":1e999}', None])
def test_what_only_one_parser_would_pass_is_refused(value: bytes | None) -> None:
    """Invalid UTF-8 and numbers without end are refused even in fields that nobody reads, and so is nothing at all."""
    with pytest.raises(ContractError) as refused:
        shop_events.decode(value)
    assert refused.value.reason == "malformed_json"


def test_values_survive() -> None:
    """What is decoded is what was sent."""
    record = shop_events.decode(orjson.dumps(impression(products="ab", total_results=7)))
    assert isinstance(record, shop_events.Impression)
    assert [slot.product_id for slot in record.slots] == ["a", "b"]
    assert record.total_results == 7
