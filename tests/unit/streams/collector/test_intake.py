"""What becomes of one item: tables of good, bad and repaired input."""

from typing import Any, NamedTuple

import orjson
import pytest

from contracts import wire
from contracts.base import YEAR_2000_MS, YEAR_2100_MS
from contracts.events import FUTURE_TOLERANCE_MS, SHOP_EVENT, person_id
from contracts.topics import MOST_SENT_BYTES
from streams.collector.intake import (
    Accepted,
    Arrival,
    Decision,
    Duplicate,
    OutgoingRecord,
    Rejected,
    answer,
    decide_event,
    decide_pair,
    decide_product,
    set_aside_duplicates,
)
from tests.support.collector import NOW_MS, click, impression, product, purchase

KEY = b"person"
ARRIVAL = Arrival(received_at=NOW_MS, person_key=KEY)


def nested(levels: int) -> Any:
    """Return a list inside a list, so many levels deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def accepted(event: Any, arrival: Arrival = ARRIVAL) -> list[dict[str, Any]]:
    """Return the records that an event becomes, as JSON."""
    decision = decide_event(event, arrival)
    assert isinstance(decision, Accepted), decision
    return [orjson.loads(record.value) for record in decision.records]


class Bad(NamedTuple):
    """An event that is refused, with the reason and the field that the answer names."""

    name: str
    event: Any
    reason: str
    field: str | None


BAD = [
    Bad("not an object", 7, "wrong_type", None),
    Bad("null", None, "wrong_type", None),
    Bad("no type", {"event_id": "e1"}, "missing", "type"),
    Bad("an unknown type", click(type="hover"), "unknown_type", "type"),
    Bad("a tick of the join", click(type="tick"), "unknown_type", "type"),
    Bad("no product", {k: v for k, v in click().items() if k != "product_id"}, "missing", "product_id"),
    Bad("no event id", {k: v for k, v in click().items() if k != "event_id"}, "missing", "event_id"),
    Bad("an empty event id", click(event_id=""), "too_short", "event_id"),
    Bad("a long event id", click(event_id="e" * 257), "too_long", "event_id"),
    Bad("a number as an id", click(search_id=5), "wrong_type", "search_id"),
    Bad("a time as text", click(event_time="now"), "wrong_type", "event_time"),
    Bad("a time in seconds", click(event_time=NOW_MS // 1000), "out_of_range", "event_time"),
    Bad("a time in microseconds", click(event_time=NOW_MS * 1000), "out_of_range", "event_time"),
    Bad("a negative time", click(event_time=-1), "out_of_range", "event_time"),
    Bad("a 0-based position", click(position=0), "out_of_range", "position"),
    Bad("a fractional position", click(position=1.5), "wrong_type", "position"),
    Bad("nobody", click(session_id=None, client_id=None), "inconsistent", None),
    Bad("a newer schema", click(schema_version=2), "unsupported_schema", "schema_version"),
    Bad("the future", click(event_time=NOW_MS + FUTURE_TOLERANCE_MS + 1), "too_far_ahead", "event_time"),
    Bad("a search of the future", click(search_time=NOW_MS + 600_000), "too_far_ahead", "search_time"),
    Bad("an absurd sent_at", click(event_time=YEAR_2000_MS, sent_at=YEAR_2100_MS), "out_of_range", "sent_at"),
    Bad("a position twice", impression(slots=[{"product_id": "P-1", "position": 1}] * 2), "inconsistent", None),
    Bad(
        "a wrong slot",
        impression(slots=[{"product_id": "P-1", "position": 1}, {"product_id": 2, "position": 2}]),
        "wrong_type",
        "slots.1.product_id",
    ),
    Bad("a negative price", impression(slots=[{"product_id": "P", "position": 1, "price": -1}]), "out_of_range",
        "slots.0.price"),
    Bad("an order without lines", purchase(), "too_short", "items"),
    Bad(
        "a line of the future",
        purchase(None, items=[{"product_id": "P-1", "search_id": "s", "search_time": NOW_MS + 600_000}]),
        "too_far_ahead",
        "items.0.search_time",
    ),
    Bad("an order id too long to number", purchase("s1", "s2", event_id="b" * 255), "too_long", "event_id"),
    Bad("consent denied without a session", click(consent="denied", session_id=None), "missing", "session_id"),
    Bad("an unknown consent", click(consent="perhaps"), "wrong_type", "consent"),
    Bad("half an emoji", click(product_id="P-\ud83d"), "malformed_text", "product_id"),
    Bad("half an emoji as the id", click("e-\ud83d"), "malformed_text", "event_id"),
    Bad("half an emoji as the type", click(type="\ud83d"), "unknown_type", "type"),
    Bad("half an emoji that nobody reads", click(note={"text": ["\ude00"]}), "malformed_text", "note.text.0"),
    Bad("half an emoji as a name", click(note={"\ude00": 1}), "malformed_text", "note"),
    Bad("half an emoji as the name of a field", {**click(), "\ude00": 1}, "malformed_text", None),
    Bad("a blank id", click(search_id=" \u200b"), "blank", "search_id"),
    Bad("NUL", click(device="a\0"), "malformed_text", "device"),
    Bad("too deep", click(extra=nested(40)), "too_deep", None),
    Bad("too large", click(extra="x" * MOST_SENT_BYTES), "too_large", None),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_event_is_refused_with_its_reason_and_field(bad: Bad) -> None:
    """Each bad event is refused alone, and the answer says what to correct."""
    decision = decide_event(bad.event, ARRIVAL)
    assert isinstance(decision, Rejected), decision
    assert (decision.reason, decision.field) == (bad.reason, bad.field)
    assert decision.message
    answer([decision]).model_dump_json()


def test_every_accepted_record_keeps_its_contract() -> None:
    """What leaves the collector decodes as a shop event."""
    for event in (click(), impression(), purchase("s1"), purchase("s1", "s2", None)):
        for record in accepted(event):
            wire.validate(record, SHOP_EVENT)


def test_the_record_is_the_event_with_receipt_and_protected_person() -> None:
    """Known and unknown fields stay; ids of persons are HMACs; the time of receipt is added."""
    (record,) = accepted(click(user_id="u1", campaign={"name": "diwali"}, received_at=NOW_MS - 99))
    assert record == {
        **click(campaign={"name": "diwali"}),
        "schema_version": 1,
        "client_id": person_id("c9", KEY),
        "user_id": person_id("u1", KEY),
        "received_at": NOW_MS,
    }


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (click(), "s1"),
        (impression(search_id="सस्ता"), "सस्ता"),
        ({**click(type="cart"), "search_id": "s2"}, "s2"),
        ({k: v for k, v in click(type="cart").items() if k != "search_id"}, "k3"),
        ({k: v for k, v in click(type="cart").items() if k not in {"search_id", "session_id"}}, person_id("c9", KEY)),
    ],
)
def test_the_key_is_the_search_else_the_session_else_the_client(event: dict[str, Any], key: str) -> None:
    """A record goes to the partition of its search; keys are plain UTF-8 bytes."""
    decision = decide_event(event, ARRIVAL)
    assert isinstance(decision, Accepted)
    assert [(record.topic, record.key) for record in decision.records] == [("search-events", key.encode())]


def test_an_order_becomes_one_numbered_record_per_line() -> None:
    """Each line goes to the search that it came from, else to the session."""
    decision = decide_event(purchase("s1", "s2", None), ARRIVAL)
    assert isinstance(decision, Accepted)
    assert [record.key for record in decision.records] == [b"s1", b"s2", b"k3"]
    records = [orjson.loads(record.value) for record in decision.records]
    assert [record["event_id"] for record in records] == ["b1#0", "b1#1", "b1#2"]
    assert [record["items"][0]["product_id"] for record in records] == ["P-0", "P-1", "P-2"]
    assert {len(record["items"]) for record in records} == {1}


def test_an_order_of_one_line_keeps_its_id() -> None:
    """Only lines that share an event are numbered."""
    assert [record["event_id"] for record in accepted(purchase("s1"))] == ["b1"]


def test_five_minutes_ahead_is_still_accepted() -> None:
    """The limit itself is inside."""
    (record,) = accepted(click(event_time=NOW_MS + FUTURE_TOLERANCE_MS))
    assert record["event_time"] == NOW_MS + FUTURE_TOLERANCE_MS


@pytest.mark.parametrize(
    ("event", "arrival"),
    [
        (click(consent="denied", user_id="u1"), ARRIVAL),
        (click(user_id="u1"), Arrival(received_at=NOW_MS, person_key=KEY, untracked=True)),
    ],
    ids=["consent denied", "Sec-GPC"],
)
def test_without_consent_nobody_is_named(event: dict[str, Any], arrival: Arrival) -> None:
    """Where the person did not agree, neither id leaves the collector, not even as HMAC."""
    (record,) = accepted(event, arrival)
    assert "client_id" not in record
    assert "user_id" not in record
    assert record["session_id"] == "k3"


@pytest.mark.parametrize(
    ("consent", "untracked", "cause"),
    [("denied", False, "consent is denied"), ("granted", True, "Sec-GPC"), ("denied", True, "consent is denied")],
)
def test_a_refusal_without_a_session_names_what_forbids_the_client_id(
    consent: str, untracked: bool, cause: str
) -> None:
    """A browser's wish not to be followed is never blamed on the consent that the event states."""
    event = click(consent=consent, session_id=None)
    decision = decide_event(event, Arrival(received_at=NOW_MS, person_key=KEY, untracked=untracked))
    assert isinstance(decision, Rejected), decision
    assert (decision.reason, decision.field) == ("missing", "session_id")
    assert cause in decision.message
    assert ("consent" in decision.message) is (consent == "denied")


def test_a_bot_is_refused_by_name() -> None:
    """A crawler's click is refused with a reason of its own."""
    decision = decide_event(click(), Arrival(received_at=NOW_MS, person_key=KEY, bot=True))
    assert decision == Rejected("e1", "bot", "the user agent is on the bot list", None)


def test_a_product_is_keyed_by_its_id() -> None:
    """A product goes to `catalog` as it came, with the version of its form."""
    decision = decide_product(product(colour="red"), ARRIVAL)
    value = orjson.dumps({**product(colour="red"), "schema_version": 1})
    assert decision == Accepted("P-1", "product", (OutgoingRecord("catalog", b"P-1", value),))


def test_a_deletion_is_a_message_like_any_other() -> None:
    """A deletion goes to `catalog` under the same key."""
    decision = decide_product({"type": "product_deleted", "product_id": "P-1", "version": 8}, ARRIVAL)
    assert isinstance(decision, Accepted)
    assert decision.kind == "product_deleted"
    assert decision.records[0].key == b"P-1"


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (product(version=2**53), "out_of_range", "version"),
        (product(version=-1), "out_of_range", "version"),
        (product(version="7"), "wrong_type", "version"),
        (product(title=""), "too_short", "title"),
        (product(product_id="P" * 257), "too_long", "product_id"),
        (product(priority=1.5), "out_of_range", "priority"),
        (product(category="Appliances"), "wrong_type", "category"),
        (product(type="click"), "unknown_type", "type"),
        ({"type": "product_deleted", "product_id": "P-1"}, "missing", "version"),
        ([], "wrong_type", None),
    ],
)
def test_a_bad_product_is_refused_with_its_reason_and_field(bad: Any, reason: str, field: str | None) -> None:
    """Each bad product is refused alone."""
    decision = decide_product(bad, ARRIVAL)
    assert isinstance(decision, Rejected), decision
    assert (decision.reason, decision.field) == (reason, field)


def test_a_curated_pair_is_keyed_by_its_query() -> None:
    """A pair that a person wrote goes to `curated-pairs`; texts may stand for products."""
    decision = decide_pair({"query": "fridge", "chosen": "P-1", "rejected_text": "ice box"}, ARRIVAL)
    assert isinstance(decision, Accepted)
    assert [(record.topic, record.key) for record in decision.records] == [("curated-pairs", b"fridge")]


@pytest.mark.parametrize(
    "pair",
    [
        {"query": "fridge", "chosen": "P-1"},
        {"query": "fridge", "chosen": "P-1", "rejected": "P-1"},
        {"query": "fridge", "chosen": "P-1", "chosen_text": "a fridge", "rejected": "P-2"},
        {"query": "fridge", "chosen_text": "a fridge", "rejected_text": "a fridge"},
    ],
)
def test_a_curated_pair_needs_two_different_sides(pair: dict[str, Any]) -> None:
    """One side missing, given twice or equal to the other says nothing."""
    decision = decide_pair(pair, ARRIVAL)
    assert isinstance(decision, Rejected)
    assert decision.reason == "inconsistent"


def test_repeats_are_marked_in_the_order_of_the_request() -> None:
    """What was seen before, or earlier in the same request, is a duplicate; a refused item marks nothing."""
    events = (click("a"), click("b"), click("a"), click("c", position=0), click("c"))
    decisions = set_aside_duplicates([decide_event(event, ARRIVAL) for event in events], {"click b"})
    assert [type(decision) for decision in decisions] == [Accepted, Duplicate, Duplicate, Rejected, Accepted]


def test_events_of_different_types_may_share_an_id() -> None:
    """An id is unique among events of its type: a site may name a click and its stay alike."""
    stay = {**click("a", type="dwell", dwell_ms=9), "position": 1}
    decisions = set_aside_duplicates([decide_event(one, ARRIVAL) for one in (click("a"), stay, stay)], {"cart a"})
    assert [type(decision) for decision in decisions] == [Accepted, Accepted, Duplicate]


def test_the_answer_counts_and_keeps_the_order() -> None:
    """One result per item, in order, and three counts that add up."""
    decisions: list[Decision] = [
        Rejected(None, "missing", "m", "type"),
        Accepted("a", "click", ()),
        Duplicate("b", "click"),
    ]
    told = answer(decisions)
    assert (told.accepted, told.rejected, told.duplicate) == (1, 1, 1)
    assert [(result.event_id, result.status, result.reason) for result in told.results] == [
        (None, "rejected", "missing"),
        ("a", "accepted", None),
        ("b", "duplicate", None),
    ]
