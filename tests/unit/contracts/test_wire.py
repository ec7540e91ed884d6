"""Bytes to message and back, and the words for what is wrong."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from contracts import wire
from contracts.base import Time
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
    "blank",
    "malformed_text",
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


@pytest.mark.parametrize("read", [wire.parse, wire.parse_leniently])
@pytest.mark.parametrize(
    "text",
    [b"NaN", b'["\xff",Infinity]', b"-Infinity", b"", b"{'a':1}", b'"\x01"', b'["\\ud800",]', b"[" * 5_000,
     b"[" * 5_000 + b"]" * 4_999, b"[" * 5_000 + b"]" * 5_001, b"[" * 5_000 + b"}" + b"]" * 4_999, b"[" * 5_000 + b'"',
     b"[" * 5_000 + b"NaN" + b"]" * 5_000, b"[" * 5_000 + b'"]' + b"]" * 4_999, b"]" + b"[" * 5_000],
)  # fmt: skip
def test_what_json_does_not_allow_is_refused(read: Callable[[bytes], Any], text: bytes) -> None:
    """RFC 8259: no NaN, no infinities, no other quotes, no raw control characters; at any depth."""
    with pytest.raises(MalformedMessage) as refused:
        read(text)
    assert refused.value.reason == "malformed_json"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b'"\\ud800"', None),
        (b'"\xff"', None),
        (b'{"a":"x","b":[1,{"c":"\\ude00\\ud83d"}],"d":"\xff"}', "b.1.c"),
        (b'{"a":{"\\ud83d":1}}', "a"),
        (b'{"query":"Z\xfcrich"}', "query"),
        (b"[" * 900 + b'"\xed\xa0\xbd"' + b"]" * 900, ".".join("0" * 900)),
    ],
)
def test_a_text_that_is_not_unicode_is_refused_by_its_field(text: bytes, field: str | None) -> None:
    """Half of a surrogate pair, or bytes of another encoding, at any depth and in keys too."""
    with pytest.raises(MalformedMessage) as refused:
        wire.parse(text)
    assert (refused.value.reason, refused.value.field) == ("malformed_text", field)
    wire.parse_leniently(text)


DIGITS = [b"1e999", b"-1e999", b"1" * 400, b"-" + b"1" * 5_000]


@pytest.mark.parametrize("digits", DIGITS)
def test_a_number_beyond_all_range_is_refused_by_its_field(digits: bytes) -> None:
    """It is JSON, and no number that we could compute with: by itself, in a known field and in an unknown one."""
    text = b'{"a":[1,{"b":%s}]}' % digits
    with pytest.raises(MalformedMessage) as refused:
        wire.parse(text)
    assert (refused.value.reason, refused.value.field) == ("not_finite", "a.1.b")
    kept = wire.parse_leniently(text)
    assert kept["a"][0] == 1
    with pytest.raises(MalformedMessage) as refused:
        wire.dump(kept)
    assert (refused.value.reason, refused.value.field) == ("not_finite", "a.1.b")
    for field in ("price", "version", "title", "priority", "launched_at"):
        with pytest.raises(MalformedMessage) as refused:
            wire.validate({**PRODUCT, field: kept["a"][1]["b"]}, CATALOG_CHANGE)
        assert (refused.value.reason, refused.value.field) == ("not_finite", field)


@pytest.mark.parametrize("levels", [1_000, 1_025, 5_000, 100_000])
@pytest.mark.parametrize("inner", [b"1", b'"\\"]"', b'"\xff{"', b'{"a":1e999}'])
def test_what_is_nested_without_end_costs_nothing_beside_it(levels: int, inner: bytes) -> None:
    """The lenient parser cuts it where it is far deeper than any message; the strict one refuses the whole."""
    text = b'[{"a":[' + b"[" * levels + inner + b"]" * levels + b'],"b":"]"},["[{",{}]]'
    first, second = wire.parse_leniently(text)
    assert (first["b"], second) == ("]", ["[{", {}])
    depth, part = 0, first["a"]
    while part and isinstance(part, list):
        depth, part = depth + 1, part[0]
    assert depth > 50
    if levels > 1_024:
        with pytest.raises(MalformedMessage) as refused:
            wire.parse(text)
        assert refused.value.reason in {"malformed_json", "malformed_text"}


@given(JSON)
def test_the_lenient_parser_reads_json_as_the_strict_one(value: Any) -> None:
    """One bad text in a batch changes nothing about the other items, numbers of any size included."""
    good = orjson.dumps(value)
    assert wire.parse_leniently(b'["\xff",' + good + b"]")[1] == wire.parse(good)


@pytest.mark.parametrize(
    "digits", [b"18446744073709551616", b"-9223372036854775809", b"9223372036854775808", b"-0", b"1E2"]
)
def test_the_lenient_parser_reads_numbers_as_the_strict_one(digits: bytes) -> None:
    """What does not fit 64 bits is a float for both, and a whole number stays one."""
    lenient, strict = wire.parse_leniently(b'["\xff",' + digits + b"]")[1], wire.parse(digits)
    assert (lenient, type(lenient)) == (strict, type(strict))


@pytest.mark.parametrize("message", [{"a": {"b": ["\ud83d"]}}, {"a": {"b": [{"\ud83d": 1}]}}])
def test_what_is_not_unicode_is_never_written(message: dict[str, Any]) -> None:
    """The parser that let it in for the sake of the other items is not the way to Kafka."""
    with pytest.raises(MalformedMessage) as refused:
        wire.dump(message)
    assert (refused.value.reason, refused.value.field) == ("malformed_text", "a.b.0")


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
        ({"colour": "x" * 4001}, "too_long", "attributes.colour"),
        ({"c" * 257: 1}, "too_long", f"attributes.{'c' * 257}"),
        ({"colour": "\0"}, "malformed_text", "attributes.colour"),
        ({"a\0": 1}, "malformed_text", "attributes.a\0"),
        ({"colour": "\ud83d"}, "malformed_text", "attributes.colour"),
        ({"int": [1]}, "wrong_type", "attributes.int"),
        ({"product": {"a": 1}}, "wrong_type", "attributes.product"),
    ],
)
def test_the_field_is_named_in_the_senders_words(attributes: dict[str, Any], reason: str, field: str) -> None:
    """Neither the tag of a union nor the name of a type slips into the path, and a shop's own words stay in it."""
    with pytest.raises(MalformedMessage) as refused:
        wire.validate({**PRODUCT, "attributes": attributes}, CATALOG_CHANGE)
    assert (refused.value.reason, refused.value.field) == (reason, field)


SEEN = [{"product_id": "P-1", "visible_ms": 1}]
TYPES = "impression, view, click, dwell, cart, purchase"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "clicks"}, f"type: 'clicks' is none of {TYPES}; did you mean click?"),
        ({"type": "Purchase"}, f"type: 'Purchase' is none of {TYPES}; did you mean purchase?"),
        ({"type": 7}, f"type: '7' is none of {TYPES}"),
        ({"type": "view", "slots": "P"}, "slots: must be a list"),
        ({"type": "impression", "query": "q", "slots": [], "ranking": 1}, "ranking: must be an object"),
        ({"event_time": 1_795_196_006}, "event_time: must be epoch milliseconds; this looks like seconds"),
        ({"event_time": 1_795_196_006_756_000}, "event_time: must be epoch milliseconds; this looks like microseconds"),
        ({"event_time": 0}, "event_time: must be epoch milliseconds, from 2000 to 2100"),
        ({"position": 0}, "position: must be greater than or equal to 1"),
        ({"session_id": "x" * 257}, "session_id: may have 256 characters at most"),
        ({"type": "view", "slots": SEEN * 501}, "slots: may have 500 entries at most"),
        ({"session_id": None}, "session_id or client_id is required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_senders_words(changes: dict[str, Any], told: str) -> None:
    """Whoever sends JSON knows lists and objects, no tuples, and is told what was probably meant."""
    with pytest.raises(MalformedMessage) as refused:
        wire.validate({**CLICK, **changes}, SHOP_EVENT)
    assert refused.value.message == told


def test_a_time_that_is_a_parameter_is_told_its_unit_too() -> None:
    """It comes as a text."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Time).validate_python("1795196006")
    assert "this looks like seconds" in wire.contract_error(refused.value, tagged=False).message


def test_whole_numbers_may_stand_for_prices_but_not_the_reverse() -> None:
    """JSON has one kind of number: 499 is a price, 1.0 is no version."""
    product = wire.validate({**PRODUCT, "price": 499}, CATALOG_CHANGE)
    assert isinstance(product, Product)
    assert product.price == 499.0
    with pytest.raises(MalformedMessage):
        wire.validate({**PRODUCT, "version": 1.0}, CATALOG_CHANGE)


INVISIBLE = [
    " ",
    "\t\n",
    "\u00a0\u3000",
    "\u200b\u200d\u2060\ufeff",
    "\u0301",
    "\u3164\u2800",
    "\x07\x1b",
    "\u0085",
    "\U000e0020",
]


@pytest.mark.parametrize("title", INVISIBLE)
def test_a_title_that_shows_nothing_is_refused(title: str) -> None:
    """Blanks, zero-width and control characters, marks that join nothing, and letters that are only fillers."""
    for text in (title, title * 3):
        with pytest.raises(MalformedMessage) as refused:
            wire.validate({**PRODUCT, "title": text}, CATALOG_CHANGE)
        assert (refused.value.reason, refused.value.field) == ("blank", "title")
    wire.validate({**PRODUCT, "title": f"{title}x{title}"}, CATALOG_CHANGE)


@pytest.mark.parametrize("title", ["-", "5", "冷", "❄️", "न", "\u200fثلاجة\u200f", "½", "\tFridge\n"])
def test_a_title_of_one_visible_character_is_one(title: str) -> None:
    """Every script, signs and emoji count, and so does a title in a mess of line breaks."""
    assert wire.validate({**PRODUCT, "title": title}, CATALOG_CHANGE)


@pytest.mark.parametrize("name", ["event_id", "search_id", "session_id", "client_id", "user_id", "product_id"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [(" ", "blank"), ("\u200b", "blank"), ("a\0", "malformed_text"), ("a\nb", "malformed_text"),
     ("a\x7f", "malformed_text"), ("a\u0085", "malformed_text"), ("", "too_short"), ("x" * 257, "too_long"),
     ("a b", None), ("x" * 256, None), ("é", None)],
)  # fmt: skip
def test_an_id_is_visible_and_free_of_control_characters(name: str, value: str, reason: str | None) -> None:
    """A blank id would make one thing of many; one with a line break cannot be searched for in a log."""
    assert reason_of(orjson.dumps({**CLICK, name: value}), SHOP_EVENT) == reason


@pytest.mark.parametrize("name", ["locale", "device", "surface", "source"])
def test_no_text_holds_nul(name: str) -> None:
    """It would end the text in every tool that is written in C; to strip it would make two texts one in silence."""
    with pytest.raises(MalformedMessage) as refused:
        wire.validate({**CLICK, name: "a\0b"}, SHOP_EVENT)
    assert (refused.value.reason, refused.value.field) == ("malformed_text", name)


SLOTS = {
    "sponsored and organic": ([("a", True), ("b", False), ("a", False)], True),
    "sponsored twice and organic": ([("a", True), ("a", True), ("a", False)], True),
    "sponsored twice": ([("a", True), ("a", True)], True),
    "organic twice": ([("a", False), ("a", False)], False),
    "organic twice and sponsored": ([("a", True), ("a", False), ("a", False)], False),
}


@pytest.mark.parametrize(("shown", "right"), SLOTS.values(), ids=SLOTS)
def test_a_product_stands_at_most_once_without_being_sponsored(shown: list[tuple[str, bool]], right: bool) -> None:
    """A paid place beside the product's own is what shops serve; two places by rank are a mistake of the sender."""
    slots = [
        {"product_id": product, "position": place, "sponsored": sponsored}
        for place, (product, sponsored) in enumerate(shown, start=1)
    ]
    impression = {**CLICK, "type": "impression", "query": "q", "slots": slots}
    assert reason_of(orjson.dumps(impression), SHOP_EVENT) == (None if right else "inconsistent")
    twice = [{**slot, "position": 1} for slot in slots]
    assert reason_of(orjson.dumps({**impression, "slots": twice}), SHOP_EVENT) == "inconsistent"


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
