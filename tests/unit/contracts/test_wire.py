"""Bytes to message and back, and the words for what is wrong."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, Product
from contracts.errors import ContractError, MalformedMessage
from contracts.events import SEARCH_RECORD, SHOP_EVENT, Click, Impression
from contracts.releases import manifest_of, release_key

CLICK = {"type": "click", "event_id": "e", "event_time": 1_795_196_006_756, "session_id": "k", "search_id": "s",
         "product_id": "P"}  # fmt: skip
PRODUCT = {"type": "product", "product_id": "P", "version": 1, "title": "t"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


REASONS = {
    "malformed_json",
    "missing",
    "unknown_type",
    "wrong_type",
    "too_short",
    "too_long",
    "out_of_range",
    "inconsistent",
    "unsupported_schema",
}


def reason_of(value: bytes, contract: TypeAdapter[Any]) -> str | None:
    """Return why bytes are refused, or None where they are a message that survives a round trip."""
    try:
        message = wire.decode(value, contract)
    except ContractError as refused:
        return refused.reason
    assert wire.decode(wire.encode(message), contract) == message
    return None


@pytest.mark.parametrize("contract", [SEARCH_RECORD, CATALOG_CHANGE], ids=["search-events", "catalog"])
@given(value=JSON)
def test_any_json_is_refused_but_never_breaks(contract: TypeAdapter[Any], value: Any) -> None:
    """Whatever somebody produces to a topic gets a reason from the fixed vocabulary."""
    assert reason_of(orjson.dumps(value), contract) in REASONS


@given(st.dictionaries(st.sampled_from([*CLICK, "position", "search_time", "schema_version"]), JSON, max_size=9))
def test_any_damage_to_a_click_is_decoded_or_refused_with_a_reason(damage: dict[str, Any]) -> None:
    """A damaged event has a reason from the fixed vocabulary, or it was still a click."""
    assert reason_of(orjson.dumps({**CLICK, **damage}), SHOP_EVENT) in {None, *REASONS}


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_but_never_break(value: bytes) -> None:
    """Bytes that are no JSON, or JSON that is no message, have a reason."""
    assert reason_of(value, SEARCH_RECORD) in REASONS


@pytest.mark.parametrize(
    "text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"", b"{'a':1}", b'"\xff"', b'"\\ud800"']
)
def test_what_json_does_not_allow_is_refused(text: bytes) -> None:
    """RFC 8259: no NaN, no infinities, no other quotes, valid UTF-8."""
    with pytest.raises(MalformedMessage) as refused:
        wire.parse(text)
    assert refused.value.reason == "malformed_json"


def test_nulls_are_left_out_and_unknown_fields_are_kept() -> None:
    """What is written is short, and nothing that a shop adds is lost."""
    message = wire.decode(orjson.dumps({**CLICK, "position": None, "campaign": {"a": [1]}}), SHOP_EVENT)
    written = orjson.loads(wire.encode(message))
    assert "position" not in written
    assert written["campaign"] == {"a": [1]}
    assert written["schema_version"] == 1


def test_messages_are_immutable() -> None:
    """A message is a fact."""
    message = wire.validate(CLICK, SHOP_EVENT)
    assert isinstance(message, Click)
    with pytest.raises(ValidationError):
        message.search_id = "other"  # type: ignore[misc] # the point of the test


@pytest.mark.parametrize(
    ("attributes", "reason", "field"),
    [
        ({"colour": "x" * 1001}, "too_long", "attributes.colour"),
        ({"int": [1]}, "wrong_type", "attributes.int"),
        ({"product": {"a": 1}}, "wrong_type", "attributes.product"),
    ],
)
def test_the_field_is_named_in_the_senders_words(attributes: dict[str, Any], reason: str, field: str) -> None:
    """Neither the tag of a union nor the name of a type slips into the path, and a shop's own words stay in it."""
    with pytest.raises(MalformedMessage) as refused:
        wire.validate({**PRODUCT, "attributes": attributes}, CATALOG_CHANGE)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_whole_numbers_may_stand_for_prices_but_not_the_reverse() -> None:
    """JSON has one kind of number: 499 is a price, 1.0 is no version."""
    product = wire.validate({**PRODUCT, "price": 499}, CATALOG_CHANGE)
    assert isinstance(product, Product)
    assert product.price == 499.0
    with pytest.raises(MalformedMessage):
        wire.validate({**PRODUCT, "version": 1.0}, CATALOG_CHANGE)


def test_a_tick_is_no_shop_event() -> None:
    """Only the join writes ticks: the collector's contract does not know them, the join's does."""
    tick = {"type": "tick", "event_time": 1_795_196_006_756}
    wire.validate(tick, SEARCH_RECORD)
    with pytest.raises(MalformedMessage) as refused:
        wire.validate(tick, SHOP_EVENT)
    assert refused.value.reason == "unknown_type"


def test_an_impression_of_the_most_slots_is_read() -> None:
    """Five hundred slots are a list, one more is too long."""
    slots = [{"product_id": f"P-{position}", "position": position} for position in range(1, 502)]
    impression = {**CLICK, "type": "impression", "query": "q", "slots": slots[:500]}
    read = wire.validate(impression, SHOP_EVENT)
    assert isinstance(read, Impression)
    assert len(read.slots) == 500
    with pytest.raises(MalformedMessage) as refused:
        wire.validate({**impression, "slots": slots}, SHOP_EVENT)
    assert (refused.value.reason, refused.value.field) == ("too_long", "slots")


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 64, b"\x04\0\0\0\0\0\0\0null"])
def test_bytes_that_are_no_release_are_refused(value: bytes) -> None:
    """A damaged record on `models` is a contract error, never a crash."""
    with pytest.raises(MalformedMessage) as refused:
        manifest_of(value)
    assert refused.value.reason == "malformed_release"


def test_release_keys_are_those_of_the_interfaces() -> None:
    """Other tools find a release by its key."""
    assert (release_key("query", 17), release_key("product", 3)) == (b"query-17", b"product-3")
