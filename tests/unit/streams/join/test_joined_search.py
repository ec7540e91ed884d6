"""What a closed search says: pages, products that are listed twice, persons, and the form of the message."""

import hashlib
import hmac
import itertools
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
import pytest

from contracts.joined import MAX_JOINED_BYTES, MAX_ORIGINS, JoinedSearch, JoinedSlot
from contracts.structs import JOINED_SEARCH, SEARCH_RECORD, Impression, Slot, Tick, encode
from contracts.topics import HOLDOUT_SEARCHES, TOPIC_BY_NAME, TRAINING_SEARCHES
from streams.agents.spec import Emit, LogRecord, Plan, SetAside
from streams.join.joined_search import ClosedSearch, ListedSlot, joined_search
from streams.join.open_search import OpenSearch, held_event, packed_list
from streams.join.partition_join import PartitionJoin
from streams.pairs.training import training_search
from tests.support.search_events import T0, Record, cart, click, encoded, impression, log, purchase, tick, view

KEY = b"a key of the shop"
STAND_IN = hmac.new(KEY, b"c9", hashlib.sha256).hexdigest()


def closed(*events: dict[str, Any]) -> dict[str, Any]:
    """Return what a search becomes."""
    search = OpenSearch(T0 + 1_000, "s1", 1_000)
    for offset, sent in enumerate(events):
        event = SEARCH_RECORD.decode(encoded(sent))
        assert not isinstance(event, Tick)
        if isinstance(event, Impression):
            search.show(event.event_id, packed_list(event, offset, person_key=KEY))
        else:
            search.add(f"{sent['type']} {event.event_id}", held_event(event, event.event_time, offset))
    message: dict[str, Any] = orjson.loads(joined_search(search, partition=0).value)
    return message


def shown(*slots: tuple[str, int] | tuple[str, int, bool], event_id: str = "i", **fields: Any) -> dict[str, Any]:
    """Return an impression of (product, position, sponsored)."""
    listed = [
        {"product_id": product, "position": position, "sponsored": bool(sponsored)}
        for product, position, *sponsored in slots
    ]
    return {**impression(event_id=event_id), "slots": listed, **fields}


def listed(search: dict[str, Any]) -> list[tuple[str, int]]:
    """Return products and positions."""
    return [(slot["product_id"], slot["position"]) for slot in search["slots"]]


PAGES = (
    shown(("a", 1), ("b", 2), event_id="z", query="first page"),
    shown(("c", 3), ("a", 4), ("d", 5), event_id="m", query="second page"),
    shown(("b", 2), ("x", 3), event_id="a", query="contradicts the second"),
    shown(("d", 5), ("e", 6), ("a", 7), ("b", 8, True), event_id="n", query="overlaps the second"),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_pages_make_one_list_in_any_order_of_arrival(order: Sequence[int]) -> None:
    """What agrees is added, what contradicts is left out, and a product listed again was seen before."""
    search = closed(*(PAGES[number] for number in order), click("a", position=4))
    assert listed(search) == [("a", 1), ("b", 2), ("x", 3), ("d", 5), ("e", 6), ("b", 8)]
    assert search["query"] == "first page"
    assert [slot["product_id"] for slot in search["slots"] if slot["clicked"]] == ["a"]


def test_a_joined_search_says_how_its_list_was_sorted() -> None:
    """Whoever learns from lists must know; one that is not sorted says nothing about it."""
    assert closed(shown(("a", 1), ranking={"ranker": "own", "sort": "-price"}))["ranking"]["sort"] == "-price"
    assert "sort" not in closed(shown(("a", 1)))["ranking"]


TWICE = shown(("p", 1, True), ("q", 2), ("p", 3), ("p", 9, True))


@pytest.mark.parametrize(
    ("events", "position"),
    [
        ([click("p", position=1)], 1),
        ([click("p", position=9)], 9),
        ([click("p")], 3),
        ([click("p", position=2)], 3),
        ([cart("p")], 3),
        ([purchase("p")], 3),
    ],
    ids=["named", "the last", "unnamed", "of another product", "cart", "purchase"],
)
def test_an_event_goes_to_the_position_that_it_names_else_to_the_organic_slot(
    events: list[dict[str, Any]], position: int
) -> None:
    """A product may stand twice, sponsored and organic; each slot has its own outcome."""
    search = closed(TWICE, *events)
    touched = [
        slot["position"]
        for slot in search["slots"]
        if slot["clicked"] or slot["cart_quantity"] or slot["purchase_quantity"]
    ]
    assert (touched, search["unlisted"]) == ([position], 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_follows_a_click_goes_to_the_slot_that_was_clicked(order: tuple[int, int]) -> None:
    """A cart names no position; it follows from the one slot of its product that was clicked."""
    events = [click("p", position=1), cart("p")]
    search = closed(TWICE, *(events[number] for number in order))
    assert [slot["cart_quantity"] for slot in search["slots"]] == [1, 0, 0, 0]
    both = closed(TWICE, click("p", position=1), click("p", position=3, event_id="again"), cart("p"))
    assert [slot["cart_quantity"] for slot in both["slots"]] == [0, 0, 1, 0]


def test_views_are_told_apart_by_position() -> None:
    """The same product seen at two places counts at both."""
    seen = view({})
    seen["slots"] = [
        {"product_id": "p", "position": 1, "visible_ms": 10},
        {"product_id": "p", "position": 3, "visible_ms": 30},
    ]
    assert [slot.get("visible_ms") for slot in closed(TWICE, seen)["slots"]] == [10, None, 30, None]


def test_the_slots_written_are_those_of_the_contract() -> None:
    """Names and order of a slot's fields, and every message passes the contract."""
    assert ListedSlot.__struct_fields__ == tuple(JoinedSlot.model_fields)
    served = [field.name for field in msgspec.structs.fields(Slot)]  # type: ignore[arg-type] # a struct at run time
    assert served == list(ListedSlot.__struct_fields__[: len(served)])
    full = shown(("a", 1), locale="en", device="d", surface="s", total_results=7, consent="granted")
    full |= {"client_id": "c9", "user_id": "u"}
    message = closed(full, click("a"))
    assert set(message) == set(JoinedSearch.model_fields) - {"first_page_ends"}
    JoinedSearch.model_validate(message)


def test_a_list_of_several_pages_says_where_the_first_one_ends() -> None:
    """What is learned of positions needs to know which slots everybody saw; a list of one page says nothing."""
    first, second = shown(("a", 1), ("b", 2)), shown(("c", 3), event_id="i-2")
    assert closed(second, first)["first_page_ends"] == 2
    assert "first_page_ends" not in closed(first)


def plan_of(*events: dict[str, Any] | bytes, key: bytes | None = KEY) -> Plan:
    """Return what a join plans for events that end with a tick."""
    join, plan = PartitionJoin(0, window_ms=1_000, lateness_ms=100, person_key=key), Plan()
    for record in log([*events, tick(10_000)]):
        join.take(record, plan)
    return plan


def joined(plan: Plan) -> dict[str, Any]:
    """Return the one search that was joined."""
    (message,) = [orjson.loads(one.value) for one in plan if isinstance(one, Emit)]
    return dict(message)


def test_persons_leave_the_join_under_another_name() -> None:
    """Who writes to Kafka directly sends plain ids; the collector's stand-ins stay as they are."""
    message = joined(plan_of(impression(client_id="c9", user_id=STAND_IN)))
    assert (message["client_id"], message["user_id"]) == (STAND_IN, STAND_IN)


def test_without_a_key_plain_ids_are_left_out() -> None:
    """An id that cannot be replaced goes nowhere."""
    message = joined(plan_of(impression(client_id="c9", user_id=STAND_IN), key=None))
    assert "client_id" not in message
    assert message["user_id"] == STAND_IN


@pytest.mark.parametrize("denier", ["impression", "click"])
def test_without_consent_no_id_of_a_person_leaves_the_join(denier: str) -> None:
    """Not of a list whose shopper refused, nor if a later event of the search says so."""
    events = [impression(client_id="c9", user_id="u"), click()]
    message = joined(plan_of(*({**one, "consent": "denied"} if one["type"] == denier else one for one in events)))
    assert (message["consent"], {"client_id", "user_id"} & message.keys()) == ("denied", set())


def test_what_a_shop_adds_to_a_list_is_passed_on_without_addresses() -> None:
    """Fields beyond the form come last, by name, up to a cap; those that may hold the address of a person do not."""
    added = {"experiment": {"id": 7}, "campaign": "diwali", "ip": "10.0.0.1", "contact": "ann@example.com"}
    message = joined(plan_of({**impression(), **added, "long": "x" * 5_000}, {**click(), "hover": True}))
    assert list(message)[-2:] == ["campaign", "experiment"]
    assert (message["campaign"], message["experiment"]) == ("diwali", {"id": 7})
    assert not {"ip", "contact", "long", "hover"} & message.keys()


def aside(*events: dict[str, Any] | bytes, key: bytes | None = KEY) -> LogRecord:
    """Return the one record that was set aside."""
    (found,) = [one.record for one in plan_of(*events, key=key) if isinstance(one, SetAside)]
    return found


@pytest.mark.parametrize(
    "event",
    [
        click(client_id="c9", user_id="c9"),
        {**click(client_id="c9", user_id="c9"), "event_time": T0 - 5},
        {**click(client_id="c9", user_id="c9"), "product_id": 7},
    ],
    ids=["orphan", "late", "dead letter"],
)
def test_records_that_are_set_aside_name_no_person(event: dict[str, Any]) -> None:
    """Their other fields stay, in order; without consent the ids are left out."""
    moved = [tick(2_000)] if event["event_time"] < T0 else []
    record = aside(*moved, event)
    assert orjson.loads(record.value or b"") == {**event, "client_id": STAND_IN, "user_id": STAND_IN}
    assert b"ann@" not in (aside(*moved, {**event, "contact": "ann@example.com"}).value or b"")
    denied = aside(*moved, {**event, "consent": "denied"})
    assert b"c9" not in (denied.value or b"")
    assert b"c9" not in (aside(*moved, event, key=None).value or b"")


def test_a_key_that_names_a_person_is_replaced_too() -> None:
    """Senders key what belongs to no search by the client."""
    join, plan = PartitionJoin(0, window_ms=1_000, lateness_ms=100, person_key=KEY), Plan()
    join.take(Record(0, T0, encoded(cart(search_id=None, search_time_ms=None, client_id="c9")), b"c9"), plan)
    (found,) = [one for one in plan if isinstance(one, SetAside)]
    assert found.record.key == STAND_IN.encode()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b'{"type":"click","client_id":null}', b'{"type":"click","client_id":null}'),
        (b'{"client_id":"c9","client_id":null,"query":"q"}', b'{"client_id":null,"query":"q"}'),
        (b"oops", None),
        (b'["c9"]', None),
        (b'"c9"', None),
        (b"\xff c9", None),
        (b'{"client_id":"c9"', None),
        (b'{"client_id":"c9","x":NaN}', None),
        (b'{"client_id":"c9","x":1e999}', None),
        (b'{"client_id":"c9","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}", b'{"client_id":"%s"}' % STAND_IN.encode()),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_of_what_is_no_json_object_nothing_is_set_aside_but_where_it_stood(value: bytes, kept: bytes | None) -> None:
    """Nobody can say whom it names; what a reader would see of an object stays."""
    record = aside(value)
    assert (record.offset, record.value) == (0, kept)
    assert (record.key is None) == (kept is None)


@pytest.mark.parametrize(
    "sent",
    [
        rb'{"type":"click","client_id":"c9","note":"half of \ud83d"}',
        b'{"type":"click","client_id":"c9","note":"\xff"}',
        rb'{"type":"click","client_id":"\ud83d c9","note":1}',
        b'{"type":"click","client_id":["c9"],"note":1}',
    ],
)
def test_what_is_not_unicode_names_no_person_either(sent: bytes) -> None:
    """A text that no reader decodes, anywhere in a record, keeps no id of a person in it."""
    record = aside(sent)
    assert b"c9" not in (record.value or b"").replace(STAND_IN.encode(), b"")
    assert {"type", "note"} <= json.loads(record.value or b"").keys()


ADDRESS = "ann@example.com"


@pytest.mark.parametrize(
    "event",
    [
        {**click(), "slots": ADDRESS},
        {**click(), "slots": [{"product_id": "a", "visible_ms": 1}, ADDRESS]},
        {**click(), "position": {"shown to": ADDRESS}},
        {**click(), "type": ADDRESS},
        {**click(), "type": [ADDRESS]},
        {**click(), "event_id": 7, ADDRESS: "\ud83d"},
        {**impression(), "query": 7, "slots": [{"product_id": "a", "position": 1, "email": "x"}, {"to": ADDRESS}]},
        {**impression(), "query": 7, "slots": [ADDRESS]},
        {**impression(), "query": 7, "slots": {"a": ADDRESS}},
        {**impression(), "query": 7, "ranking": {"exploration": {"for": ADDRESS}, "email": 1}},
        {**purchase(), "items": [{"product_id": "a", "gift_for": ADDRESS, "email": 1}, {"product_id": "b"}]},
        {**tick(1), "event_time": 5, "slots": ADDRESS},
    ],
    ids=lambda event: repr(event)[-30:],
)
def test_addresses_are_left_out_of_what_is_set_aside_wherever_they_stand(event: dict[str, Any]) -> None:
    """In parts of a message, in fields that its type does not have, in place of what it has, and in what is told."""
    (found,) = [one for one in plan_of(event) if isinstance(one, SetAside)]
    for text in ((found.record.value or b"").decode(), found.error):
        assert ADDRESS not in text
        assert "email" not in text
    assert orjson.loads(found.record.value or b"").get("event_time") == event["event_time"]


def bought(product: str, price: float | None, currency: str | None = "INR", **fields: Any) -> dict[str, Any]:
    """Return a line of an order of its own."""
    line = purchase(product, event_id=f"{product}-{price}-{currency}-{fields}", quantity=fields.get("quantity", 1))
    priced = line["items"][0] if price is None else {**line["items"][0], "price": price}
    return {**line, "order_id": line["event_id"], "currency": currency, "items": [priced]}


def test_a_slot_says_what_was_bought_for_how_much() -> None:
    """Price times quantity of every line, in the currency of the orders; the sum is the same in any order."""
    lines = [bought("a", 0.1), bought("a", 0.2), bought("a", 0.3, quantity=3), bought("b", 5.0, None)]
    messages = [closed(impression(), *orders) for orders in itertools.permutations(lines)]
    assert len({json.dumps(one["slots"]) for one in messages}) == 1
    told = [(slot.get("value"), slot.get("currency")) for slot in messages[0]["slots"]]
    assert told == [(1.2, "INR"), (5.0, None), *[(None, None)] * 4]


@pytest.mark.parametrize("other", [bought("a", None), bought("a", 2.0, "EUR"), bought("a", 2.0, None)])
def test_a_value_that_is_not_known_whole_is_not_told(other: dict[str, Any]) -> None:
    """A line without a price, or another currency: a part of the sum would pass for all of it."""
    (slot, *_) = closed(impression(), bought("a", 1.0), other)["slots"]
    assert ("value" in slot, "currency" in slot, slot["purchase_quantity"]) == (False, False, 2)


def long_pages(sign: str) -> list[dict[str, Any]]:
    """Return the pages of a list of 2,000 products, whose ids are as long as they may be."""
    pages = [
        shown(*((f"{n:04d}{sign * 250}", n) for n in range(page, page + 100)), event_id=f"i{page}")
        for page in range(1, 2_000, 100)
    ]
    for page in pages:
        page["slots"] = [{**slot, "parent_id": slot["product_id"]} for slot in page["slots"]]
    return pages


@pytest.mark.parametrize("sign", ["x", "\U0001f457", '"'])
def test_however_long_its_ids_a_list_is_a_record_that_every_topic_takes(sign: str) -> None:
    """Pages add up to more than Kafka takes: the upper slots are kept, and an event further down is on none of them."""
    pages = long_pages(sign)
    top, last = pages[0]["slots"][0]["product_id"], pages[-1]["slots"][-1]["product_id"]
    search = closed(*pages, click(top, event_id="c1"), click(last, event_id="c2"))
    assert 500_000 < len(orjson.dumps(search)) <= MAX_JOINED_BYTES < TOPIC_BY_NAME[HOLDOUT_SEARCHES].max_message_bytes
    assert [slot["position"] for slot in search["slots"]] == list(range(1, len(search["slots"]) + 1))
    assert search["slots"][0]["clicked"]
    assert search["unlisted"] == 1
    told = training_search(JOINED_SEARCH.decode(orjson.dumps(search)))
    assert len(encode(told)) <= MAX_JOINED_BYTES < TOPIC_BY_NAME[TRAINING_SEARCHES].max_message_bytes


def test_a_list_that_is_cut_is_written_twice_or_thrice_however_many_events_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only slots get fewer: what the record says beside them is taken off before their share is told."""
    cut: list[int] = []

    def noted(search: OpenSearch, *, partition: int, most_slots: int) -> ClosedSearch:
        """Note how many slots are kept."""
        cut.append(most_slots)
        return joined_search(search, partition=partition, most_slots=most_slots)

    monkeypatch.setattr("streams.join.joined_search.joined_search", noted)
    pages = long_pages("x")
    clicks = [click("p", event_id=f"c{n}") for n in range(MAX_ORIGINS)]
    search = closed(*pages, *clicks)
    assert 990_000 < len(orjson.dumps(search)) <= MAX_JOINED_BYTES
    assert len(cut) <= 2
