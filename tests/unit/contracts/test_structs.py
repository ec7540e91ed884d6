"""The structs accept and refuse exactly what the contracts do, blame the same, and read the same."""

import json
from copy import deepcopy
from typing import Annotated, Any, cast

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from contracts import base, events, joined, pairs, structs, wire
from contracts.errors import ContractError
from contracts.structs import JOINED_SEARCH, PREFERENCE_PAIR, SEARCH_RECORD, Reader, encode, struct_of
from tests.support.examples import Example, invalid_examples, valid_examples
from tests.support.pairs import preference_pair
from tests.support.search_events import T0, cart, click, dwell, impression, purchase, tick, view

SHOP_EVENTS = {"impression", "view", "click", "dwell", "cart", "purchase", "tick"}
OTHER_TOPICS = {"joined_search": "joined-searches", "preference_pair": "preference-pairs"}
JOINED_CONTRACT = TypeAdapter(joined.JoinedSearch)
READERS: dict[str, tuple[Reader[Any], TypeAdapter[Any]]] = {
    "search-events": (SEARCH_RECORD, events.SEARCH_RECORD),
    "joined-searches": (JOINED_SEARCH, JOINED_CONTRACT),
    "preference-pairs": (PREFERENCE_PAIR, TypeAdapter(pairs.PreferencePair)),
}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1.5, 10**15, 2**53, 2**63, 2**64 - 1, 1e300, "", "x", "x" * 257, "x" * 1001, "1",
    "é" * 256, [], [1], {}, {"product_id": "a"}, T0, float(T0), "granted", "denied", 86_400_001, 10_001, " ",
    "a b", "\u200b", "a\u200bb", "\t", "a\nb", "\0", "a\0b", "\x7f", "\u0085", "\u3164", "\u0301", "\U000e0020", '"',
    "\\", "😀", "click", "sponsored", {"model_extra": 1}, [None],
]  # fmt: skip
RAW = [
    b"\xff", b"\xed\xa0\xbd", b"\\ud83d", b"\\ude00", b"\\ud83d\\ude00", b"\\u0000", b"\\u0020", b"\\u200b", b"\\t",
    b"\x01", b"\x7f", b"NaN", b"-Infinity", b"1e999", b"-0", b"1.0", b"1E2", b"0x1", b"1" * 20, b"1" * 400, b"-", b".5",
    b"5.", b"null", b"true", b'"', b"\\", b"\\\\u0000", b",", b":", b" ", b"{", b"}", b"[", b"]", b'"type":"click",',
    b'"type":null,', b'"x":1e999,', b'"x":"\xff",', b'"x":"\\ud83d",', b'"\xff":1,', b'"event_id":" ",',
    b'"event_id":7,', b'"seed":-0,', b'"schema_version":1.0,', b'"schema_version":true,', b'"model_extra":{"a":1},',
    b'"model_extra":null,',
    b'"x":' + b"[" * 300 + b"]" * 300 + b",", b'"x":' + b"[" * 1_500 + b"]" * 1_500 + b",", b'"x":' + b'{"a":' * 3_000,
]  # fmt: skip


def closed_search() -> dict[str, Any]:
    """Return a joined search with every kind of field."""
    slots = [{"product_id": "a", "position": 1, "clicked": True, "click_time": T0 + 100, "dwell_ms": 5, "score": 0.5}]
    shown = impression(client_id="c1", total_results=3, ranking={"ranker": "millrace", "exploration": {"seed": 3}})
    fields = {name: value for name, value in shown.items() if name not in {"type", "event_id", "event_time"}}
    origins = [{"topic": "search-events", "partition": 0, "offset": 3}]
    times = {"search_time": T0, "closed_at": T0 + 600_000}
    return {**fields, **times, "type": "joined_search", "slots": slots, "origins": origins}


SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("search-events", one)
    for one in (
        impression(client_id="c", sent_at=T0, ranking={"arm": "live", "exploration": {"policy": "none"}}),
        impression(slots=[{"product_id": "a", "position": 1, "sponsored": True}, {"product_id": "a", "position": 2}]),
        view({"a": 3}), click(position=1), click(campaign={"a": [1]}), dwell(click_id="x"),
        cart(price=3, currency="INR"), purchase(), tick(0),
    )
]  # fmt: skip
SEEDS += [("joined-searches", closed_search()), ("joined-searches", {**closed_search(), "campaign": "diwali"})]
SEEDS += [("preference-pairs", {**orjson.loads(wire.encode(preference_pair())), "filters": ["caps"], "inferred": True})]


def verdict(decode: Any, value: bytes) -> Any:
    """Return what a decoder reads, or its reason and field."""
    try:
        return plain(decode(value))
    except ContractError as error:
        return error.reason, error.field


def plain(record: Any, *, whole: bool = True) -> Any:
    """Return a model or a struct as a dictionary of what its form names and, at the top, of what it does not."""
    if isinstance(record, tuple):
        return [plain(inner, whole=False) for inner in record]
    if not isinstance(record, BaseModel | msgspec.Struct):
        return record
    names = type(record).model_fields if isinstance(record, BaseModel) else record.__struct_fields__
    fields = {name: plain(getattr(record, name), whole=False) for name in names if name != "model_extra"}
    has_type = "type" in type(record).model_fields if isinstance(record, BaseModel) else hasattr(record, "type")
    kind = {"type": cast(Any, record).type} if has_type else {}
    return {**fields, **kind, "and": cast(Any, record).model_extra or {}} if whole else fields


def same(topic: str, value: bytes) -> None:
    """Assert that both decoders say the same of a record."""
    reader, contract = READERS[topic]
    quick = verdict(reader.decode, value)
    assert quick == verdict(lambda one: wire.decode(one, contract), value)


def examples() -> list[Example]:
    """Return the stored examples of what the structs read."""
    return [one for one in (*valid_examples(), *invalid_examples()) if topic_of(one) is not None]


def topic_of(example: Example) -> str | None:
    """Return the topic of an example; None if no struct reads it."""
    name = example.spec.name
    return "search-events" if name in SHOP_EVENTS else OTHER_TOPICS.get(name)


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.path)
def test_stored_examples_are_read_or_refused_alike(example: Example) -> None:
    """Every stored example has the same verdict from both."""
    topic = topic_of(example)
    assert topic is not None
    same(topic, example.text)


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a message with some values, at any depth, replaced, removed or added, in one of several spellings."""
    topic, seed = draw(st.sampled_from(SEEDS))
    message: dict[str, Any] = orjson.loads(orjson.dumps(seed))
    for _ in range(draw(st.integers(1, 3))):
        spots: list[tuple[Any, Any]] = [(message, name) for name in message]
        for parent, name in spots:
            inner = parent[name]
            keys: Any = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            spots += [(inner, key) for key in keys]
        parent, name = draw(st.sampled_from(spots))
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove" and len(message) > 1:
            del parent[name]
        elif action == "add" and isinstance(parent, dict):
            new = [
                "user_id",
                "consent",
                "price",
                "slots",
                "unknown",
                "schema_version",
                "items",
                "model_extra",
                "parent_id",
            ]
            parent[draw(st.sampled_from(new))] = deepcopy(draw(st.sampled_from(ODD)))
        else:
            parent[name] = deepcopy(draw(st.sampled_from(ODD)))
    spelling: dict[str, Any] = draw(
        st.sampled_from([{"separators": (",", ":"), "ensure_ascii": False}, {"ensure_ascii": False}, {}, {"indent": 1}])
    )
    return topic, json.dumps(message, **spelling).encode()


@given(changed())
@settings(max_examples=500)
def test_changed_messages_are_read_or_refused_alike(drawn: tuple[str, bytes]) -> None:
    """Odd values anywhere in a valid message lead to the same message, or the same reason and field."""
    same(*drawn)


@given(changed(), st.lists(st.tuples(st.floats(0, 1), st.sampled_from(RAW), st.integers(0, 3)), min_size=1, max_size=2))
@settings(max_examples=600)
def test_damaged_bytes_are_read_or_refused_alike(
    drawn: tuple[str, bytes], damage: list[tuple[float, bytes, int]]
) -> None:
    """Bad UTF-8, halves of surrogate pairs, numbers that are none, repeated keys and nesting bombs, anywhere."""
    topic, value = drawn
    for place, raw, overwritten in damage:
        start = int(place * len(value))
        value = value[:start] + raw + value[start + overwritten :]
    same(topic, value)


@pytest.mark.parametrize(("topic", "seed"), SEEDS, ids=[seed.get("type", "pair") for _, seed in SEEDS])
def test_damage_at_the_beginning_of_anything_is_judged_alike(topic: str, seed: dict[str, Any]) -> None:
    """The same, before every member and every value, and in place of every value."""
    value = orjson.dumps(seed)
    for place in (index for index, byte in enumerate(value, start=1) if byte in b':,{"['):
        rest = value[place:]
        for raw in RAW:
            same(topic, value[:place] + raw + rest)
            same(topic, value[:place] + raw + rest.lstrip(b"0123456789.truefalsn"))


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_arbitrary_bytes_are_judged_alike(value: bytes) -> None:
    """No bytes make the two differ or raise anything but a contract error."""
    same("search-events", value)
    same("joined-searches", value)


@pytest.mark.parametrize("value", [b'{"a":"\xff"}', b'{"type":"tick","event_time":1795196000000,"x":1e999}', None])
def test_what_only_one_parser_would_pass_is_refused(value: bytes | None) -> None:
    """Invalid UTF-8 and numbers without end are refused even in fields that nobody reads, and so is nothing at all."""
    with pytest.raises(ContractError) as refused:
        SEARCH_RECORD.decode(value)
    assert refused.value.reason in {"malformed_json", "malformed_text", "not_finite"}


@pytest.mark.parametrize("depth", [10, 200, 900])
@pytest.mark.parametrize("version", [1, 1.0])
@pytest.mark.parametrize(("reader", "record"), [(SEARCH_RECORD, click()), (JOINED_SEARCH, closed_search())])
def test_deep_nesting_in_an_unknown_field_stops_nobody(
    reader: Reader[Any], record: dict[str, Any], version: float, depth: int
) -> None:
    """A record is taken, however deep a field is that we do not know."""
    nested = b"[" * depth + b"]" * depth
    value = orjson.dumps({**record, "schema_version": version})[:-1] + b',"extra":' + nested + b"}"
    read = reader.decode(value)
    assert read.search_id == "s1"
    assert list(read.model_extra) == ["extra"]


@pytest.mark.parametrize("layout", ["grid", None])
def test_unknown_fields_stand_beside_the_record(layout: str | None) -> None:
    """What a shop adds can be passed on, whichever way the record was read; null is nothing to pass on."""
    shown = impression(layout=layout, campaign={"name": "diwali"}, nothing=None)
    record = SEARCH_RECORD.decode(orjson.dumps(shown))
    assert record.model_extra == {"campaign": {"name": "diwali"}}
    assert SEARCH_RECORD.decode(orjson.dumps(impression())).model_extra is None


def test_a_record_is_of_its_kind_whichever_way_it_was_read() -> None:
    """Who asks what an event is need not know whether it had unknown fields or nulls."""
    for extra in ({}, {"campaign": 1}, {"layout": None}):
        record = SEARCH_RECORD.decode(orjson.dumps(impression(**extra)))
        assert isinstance(record, structs.Impression)
        assert isinstance(record.slots[0], structs.Slot)
        assert isinstance(record.ranking, structs.Ranking)
        assert record.type == "impression"
    other: Any = SEARCH_RECORD.decode(orjson.dumps(click()))
    assert not isinstance(other, structs.Impression)


def test_values_survive() -> None:
    """What is decoded is what was sent."""
    record = SEARCH_RECORD.decode(orjson.dumps(impression(products="ab", total_results=7)))
    assert isinstance(record, structs.Impression)
    assert [slot.product_id for slot in record.slots] == ["a", "b"]
    assert record.total_results == 7


@pytest.mark.parametrize(
    ("example", "reader"),
    [(one, JOINED_SEARCH) for one in valid_examples() if one.spec.name == "joined_search"],
    ids=lambda one: one.path if isinstance(one, Example) else "",
)
def test_a_joined_search_is_written_as_the_contract_writes_it(example: Example, reader: Reader[Any]) -> None:
    """The same fields in the same order: defaults written out, what is None left out, unknown fields last."""
    record, model = reader.decode(example.text), wire.decode(example.text, example.spec.contract)
    unknown = record.model_extra
    msgspec.structs.force_setattr(record, "model_extra", None)
    assert encode(record, unknown) == wire.encode(model)


def pair(**kinds: Any) -> Any:
    """Return a preference pair made of the given kinds of models or structs."""
    worth = kinds["Factors"](value=1.5, ratio=0.25)
    return kinds["PreferencePair"](
        pair_id="p",
        search_id="s",
        query="q",
        source="click",
        chosen=kinds["PairSide"](product_id="P-4", position=4, grade=1),
        rejected=kinds["PairSide"](product_id="P-1", grade=0),
        weight=worth.weight(),
        factors=worth,
        event_time=T0,
        closed_at=T0,
        origins=(kinds["Origin"](topic="search-events", partition=0, offset=3),),
    )


def test_a_pair_is_written_as_the_contract_writes_it() -> None:
    """A pair made of structs has the bytes of a pair made of models, and its weight is computed alike."""
    models = (pairs.PreferencePair, pairs.PairSide, pairs.Factors, joined.Origin)
    of_models = pair(**{model.__name__: model for model in models})
    of_structs = pair(**{model.__name__: getattr(structs, model.__name__) for model in models})
    assert encode(of_structs) == wire.encode(of_models)
    assert b'"weight":0.375' in encode(of_structs)


def test_records_are_immutable() -> None:
    """A struct is as much a fact as its model."""
    record: Any = SEARCH_RECORD.decode(orjson.dumps(click()))
    with pytest.raises(AttributeError):
        record.search_id = "other"


def test_a_constraint_that_no_struct_can_say_is_noticed() -> None:
    """A new kind of rule in a contract fails at import, before the two can differ."""

    class Odd(base.Part):
        """A part with a rule of its own."""

        name: Annotated[str, Field(pattern="^x")]

    with pytest.raises(TypeError, match="no struct can say"):
        struct_of(Odd)
