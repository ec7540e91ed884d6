"""What becomes of one item of a request: facts in, decision out.

Clocks. `event_time` comes from the sender. Where `sent_at` is given and differs from our clock by more than a second,
the difference is the sender's clock error (and the way here), and `event_time` moves by it. An impression is never
moved: its `event_time` is the identity of its search, which every later event repeats as `search_time`, which is never
moved either. A sender that tries again stamps `sent_at` anew.

Persons. `client_id` and `user_id` leave here as HMAC; where consent is denied (or the browser asks by `Sec-GPC` not to
be followed) they leave not at all, and `session_id` has to tell the searches apart.

Orders. A purchase leaves as one record per line, each with the key of the search it came from, so that the join of that
search sees it; the lines of one order share its `event_id`, numbered `#0`, `#1`, ... where there are several.

A record is the item as it came, unknown fields included, with what this module adds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from contracts import wire
from contracts.base import MAX_ID_CHARS, SCHEMA_VERSION, YEAR_2000_MS
from contracts.catalog import CATALOG_CHANGE
from contracts.errors import ContractError, MalformedMessage
from contracts.events import FUTURE_TOLERANCE_MS, SHOP_EVENT
from contracts.http import IntakeAnswer, IntakeReason, ItemResult
from contracts.pairs import CURATED_PAIR
from contracts.topics import CATALOG, CURATED_PAIRS, SEARCH_EVENTS
from service.people import person_id

CLOCK_TOLERANCE_MS: Final = 1_000
"""A smaller difference between the clocks is the way of the request, not an error."""
MAX_DEPTH: Final = 16
MAX_RECORD_BYTES: Final = 900_000
"""Below the topics' `max.message.bytes` with room for Kafka's envelope."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the request around an item says about it.

    Args:
        received_at: when the request came in, epoch milliseconds by our clock.
        person_key: HMAC key for client and user ids.
        bot: the user agent is on the bot list.
        untracked: the browser asks not to be followed (`Sec-GPC: 1`).
    """

    received_at: int
    person_key: bytes
    bot: bool = False
    untracked: bool = False


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """One Kafka record; `topic` is without the deployment's prefix."""

    topic: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The item may go to Kafka."""

    item_id: str | None
    kind: str
    records: tuple[OutgoingRecord, ...]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The item went to Kafka before."""

    item_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The item is refused; the reason is stable, the message is for people."""

    item_id: str | None
    reason: str
    message: str
    field: str | None = None


Decision = Accepted | Duplicate | Rejected


Decide = Callable[[Any, Facts], Accepted | Rejected]


def decide_event(event: Any, facts: Facts) -> Accepted | Rejected:
    """Decide about one shop event."""
    item_id = _id_of(event, "event_id")
    try:
        _refuse_bot(facts)
        _refuse_depth(event)
        wire.validate(event, SHOP_EVENT)
        ready = _stamped(event, facts)
        return Accepted(item_id, event["type"], tuple(_event_records(ready)))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def decide_product(product: Any, _facts: Facts) -> Accepted | Rejected:
    """Decide about one product or deletion; which version wins is the index's question, not ours."""
    item_id = _id_of(product, "product_id")
    try:
        _refuse_depth(product)
        change = wire.validate(product, CATALOG_CHANGE)
        return Accepted(item_id, change.type, (_record(CATALOG, change.product_id, _versioned(product)),))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def decide_pair(pair: Any, _facts: Facts) -> Accepted | Rejected:
    """Decide about one curated pair."""
    item_id = _id_of(pair, "pair_id")
    try:
        _refuse_depth(pair)
        curated = wire.validate(pair, CURATED_PAIR)
        return Accepted(item_id, "curated_pair", (_record(CURATED_PAIRS, curated.query, _versioned(pair)),))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def _id_of(part: Any, name: str) -> str | None:
    """Return an item's id, or None where it has none that could be repeated in the answer."""
    value = part.get(name) if isinstance(part, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS and wire.is_unicode(value) else None


def _refuse_bot(facts: Facts) -> None:
    """Refuse what crawlers do: it says nothing about shoppers."""
    if facts.bot:
        raise MalformedMessage(IntakeReason.BOT, "the user agent is on the bot list")


def _refuse_depth(value: Any) -> None:
    """Refuse nesting that no message of ours has, before anything walks it recursively."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for part in level for child in _containers(part)]
        if not level:
            return
    raise MalformedMessage(IntakeReason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")


def _containers(part: Any) -> list[Any]:
    """Return the objects and lists directly inside a JSON value."""
    children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _versioned(part: dict[str, Any]) -> dict[str, Any]:
    """Return a message with the version of its form, which senders may leave out."""
    return {"schema_version": SCHEMA_VERSION, **part}


def _stamped(event: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Return the event with corrected clock, protected person and time of receipt."""
    ready = {**_versioned(event), "received_at": facts.received_at}
    if event["type"] != "impression":
        ready["event_time"] = _corrected(event, facts.received_at)
    _refuse_future(ready, facts.received_at)
    _protect_person(ready, facts)
    return ready


def _corrected(event: dict[str, Any], received_at: int) -> int:
    """Return the event's time by our clock, as far as `sent_at` tells the difference."""
    event_time, sent_at = int(event["event_time"]), event.get("sent_at")
    if sent_at is None or abs(received_at - sent_at) <= CLOCK_TOLERANCE_MS:
        return event_time
    corrected = event_time + received_at - int(sent_at)
    if corrected < YEAR_2000_MS:
        raise MalformedMessage("out_of_range", "sent_at: lies absurdly far after event_time", field="sent_at")
    return corrected


def _refuse_future(event: dict[str, Any], received_at: int) -> None:
    """Refuse times that would hold a search open long after everybody else's."""
    for field, time_ms in _times(event):
        if time_ms is not None and time_ms > received_at + FUTURE_TOLERANCE_MS:
            ahead_s = (time_ms - received_at) // 1000
            raise MalformedMessage(
                IntakeReason.TOO_FAR_AHEAD, f"{field}: lies {ahead_s} s after the collector's clock", field=field
            )


def _times(event: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield every time of an event that the join computes with, by its field."""
    yield "event_time", event["event_time"]
    yield "search_time", event.get("search_time")
    for number, line in enumerate(event.get("items", ()) if event["type"] == "purchase" else ()):
        yield f"items.{number}.search_time", line.get("search_time")


def _protect_person(event: dict[str, Any], facts: Facts) -> None:
    """Replace the person's ids by their HMAC, or drop them where the person did not agree."""
    denied = event.get("consent") == "denied"
    if denied or facts.untracked:
        if event.get("session_id") is None:
            cause = "consent is denied" if denied else "the browser sends `Sec-GPC: 1`"
            message = f"session_id: required if {cause}, because client_id is dropped then"
            raise MalformedMessage("missing", message, field="session_id")
        event.pop("client_id", None)
        event.pop("user_id", None)
    for field in ("client_id", "user_id"):
        if event.get(field) is not None:
            event[field] = person_id(event[field], facts.person_key)


def _event_records(event: dict[str, Any]) -> Iterator[OutgoingRecord]:
    """Yield the records of an event; the key brings it to the partition of its search."""
    someone = event.get("session_id") or event.get("client_id")
    if event["type"] != "purchase":
        yield _record(SEARCH_EVENTS, event.get("search_id") or someone, event)
        return
    lines = event["items"]
    for number, line in enumerate(lines):
        event_id = event["event_id"] if len(lines) == 1 else f"{event['event_id']}#{number}"
        if len(event_id) > MAX_ID_CHARS:
            message = f"event_id: too long to number the {len(lines)} lines of the order"
            raise MalformedMessage("too_long", message, field="event_id")
        yield _record(SEARCH_EVENTS, line.get("search_id") or someone, {**event, "event_id": event_id, "items": [line]})


def _record(topic: str, key: Any, message: dict[str, Any]) -> OutgoingRecord:
    """Return one record, refused where Kafka would refuse it."""
    value = wire.dump(message)
    if len(value) > MAX_RECORD_BYTES:
        text = f"{len(value)} bytes as a record, more than the {MAX_RECORD_BYTES} that its topic takes"
        raise MalformedMessage(IntakeReason.TOO_LARGE, text)
    return OutgoingRecord(topic, str(key).encode(), value)


def set_aside_duplicates(decisions: Iterable[Accepted | Rejected], seen: AbstractSet[str]) -> list[Decision]:
    """Return the decisions with repeats marked: of `seen` ids, and of ids that come twice in the request.

    Args:
        decisions: in the order of the request.
        seen: ids that Kafka acknowledged before.
    """
    known = set(seen)
    marked: list[Decision] = []
    for decision in decisions:
        if isinstance(decision, Rejected) or decision.item_id is None:
            marked.append(decision)
        elif decision.item_id in known:
            marked.append(Duplicate(decision.item_id, decision.kind))
        else:
            known.add(decision.item_id)
            marked.append(decision)
    return marked


def accepted_of(decisions: Iterable[Decision]) -> list[Accepted]:
    """Return the accepted ones, in order."""
    return [decision for decision in decisions if isinstance(decision, Accepted)]


def answer(decisions: Sequence[Decision]) -> IntakeAnswer:
    """Return the answer to a request whose accepted items Kafka has acknowledged."""
    results = [_result(decision) for decision in decisions]
    statuses = [result.status for result in results]
    return IntakeAnswer(
        accepted=statuses.count("accepted"),
        rejected=statuses.count("rejected"),
        duplicate=statuses.count("duplicate"),
        results=results,
    )


def _result(decision: Decision) -> ItemResult:
    match decision:
        case Accepted(item_id=item_id):
            return ItemResult(event_id=item_id, status="accepted")
        case Duplicate(item_id=item_id):
            return ItemResult(event_id=item_id, status="duplicate")
        case Rejected(item_id=item_id, reason=reason, message=message, field=field):
            return ItemResult(event_id=item_id, status="rejected", reason=reason, field=field, message=message)
