"""What becomes of one item of a request: it is refused by its reason, or becomes records for Kafka.

A record is the item as it came, unknown fields included, but for its nulls, which mean absent; its times, see
`sender_clock`; and persons: their ids leave as HMAC, or not at all without consent, their addresses never. A purchase
leaves as one record per line, each under the key of the search that it came from, so that the join of that search sees
it. The lines share the `event_id`, numbered `#0`, `#1`, ... if there are several.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from contracts import wire
from contracts.base import MAX_ID_CHARS, SCHEMA_VERSION, YEAR_2000_MS
from contracts.catalog import CATALOG_CHANGE
from contracts.errors import ContractError, MalformedMessage
from contracts.events import FUTURE_TOLERANCE_MS, SHOP_EVENT, person_id
from contracts.http import IntakeAnswer, IntakeReason, ItemResult
from contracts.joined import CONTAINERS, without_addresses
from contracts.pairs import CURATED_PAIR
from contracts.telemetry import Correction
from contracts.topics import CATALOG, CURATED_PAIRS, SEARCH_EVENTS
from streams.collector.sender_clock import by_our_clock

MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Arrival:
    """How an item came in: what the request around it says.

    Args:
        received_at: when, epoch milliseconds by our clock.
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
    """The item may go to Kafka.

    Args:
        item_id: as the answer names it.
        kind: its type.
        records: what it becomes.
        corrections: what its records say otherwise than the item.
    """

    item_id: str | None
    kind: str
    records: tuple[OutgoingRecord, ...]
    corrections: tuple[Correction, ...] = ()

    @property
    def identity(self) -> str:
        """What a repeat of an event has in common with it: ids are unique among events of one type."""
        return f"{self.kind} {self.item_id}"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The item went to Kafka before."""

    item_id: str | None
    kind: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The item is refused; the reason is stable, the message is for people."""

    item_id: str | None
    reason: str
    message: str
    field: str | None = None


Decision = Accepted | Duplicate | Rejected
Decide = Callable[[Any, Arrival], Accepted | Rejected]


def decide_event(event: Any, arrival: Arrival) -> Accepted | Rejected:
    """Decide about one shop event."""
    item_id = _id_of(event, "event_id")
    try:
        if arrival.bot:
            raise MalformedMessage(IntakeReason.BOT, "the user agent is on the bot list")
        _refuse_depth(event)
        form = wire.validate(event, SHOP_EVENT)
        left_out: list[str] = []
        ready = by_our_clock(without_addresses(event, type(form), left_out), arrival.received_at)
        corrections = [Correction.PERSONAL_FIELD] * len(left_out)
        times = dict(_times(ready))
        if form.sent_at is not None and (sent := dict(_times(event))) != times:
            unnamed = [field for field, time_ms in times.items() if time_ms is None and sent[field] is not None]
            corrections += [Correction.CLOCK, *[Correction.SEARCH_TIME] * len(unnamed)]
        _refuse_impossible_times(times, arrival.received_at)
        _protect_person(ready, arrival)
        ready["received_at"] = arrival.received_at
        return Accepted(item_id, form.type, tuple(_event_records(ready)), tuple(corrections))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def decide_product(product: Any, _arrival: Arrival) -> Accepted | Rejected:
    """Decide about one product or deletion; which version wins is the index's question, not ours."""
    item_id = _id_of(product, "product_id")
    try:
        _refuse_depth(product)
        change = wire.validate(product, CATALOG_CHANGE)
        return Accepted(item_id, change.type, (_record(CATALOG, change.product_id, product),))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def decide_pair(pair: Any, _arrival: Arrival) -> Accepted | Rejected:
    """Decide about one curated pair."""
    item_id = _id_of(pair, "pair_id")
    try:
        _refuse_depth(pair)
        curated = wire.validate(pair, CURATED_PAIR)
        return Accepted(item_id, "curated_pair", (_record(CURATED_PAIRS, curated.query, pair),))
    except ContractError as error:
        return Rejected(item_id, error.reason, str(error), error.field)


def _id_of(part: Any, name: str) -> str | None:
    """Return an item's id, or None if it has none that could be repeated in the answer."""
    value = part.get(name) if isinstance(part, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS and wire.is_unicode(value) else None


def _refuse_depth(value: Any) -> None:
    """Refuse nesting that no message of ours has, before anything walks it recursively."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for part in level:
            children = part.values() if type(part) is dict else part if type(part) is list else ()
            inner += [child for child in children if type(child) in CONTAINERS]
        if not inner:
            return
        level = inner
    raise MalformedMessage(IntakeReason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")


def _refuse_impossible_times(times: Mapping[str, int | None], received_at: int) -> None:
    """Refuse times that would hold a search open long after everybody else's, and what no clock can have meant."""
    for field, time_ms in times.items():
        if time_ms is None:
            continue
        if time_ms < YEAR_2000_MS:
            raise MalformedMessage("out_of_range", f"sent_at: lies absurdly far after {field}", field="sent_at")
        if time_ms > received_at + FUTURE_TOLERANCE_MS:
            ahead_s = (time_ms - received_at) // 1000
            raise MalformedMessage(
                IntakeReason.TOO_FAR_AHEAD, f"{field}: lies {ahead_s} s after the collector's clock", field=field
            )


def _times(event: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield every time of an event that the join computes with, by its field."""
    yield "event_time", event["event_time"]
    if event["type"] == "purchase":
        for number, line in enumerate(event["items"]):
            yield f"items.{number}.search_time", line.get("search_time")
    elif event["type"] != "impression":
        yield "search_time", event.get("search_time")


def _protect_person(event: dict[str, Any], arrival: Arrival) -> None:
    """Replace the person's ids by their HMAC, or drop them if the person did not agree."""
    denied = event.get("consent") == "denied"
    if denied or arrival.untracked:
        if event.get("session_id") is None:
            cause = "consent is denied" if denied else "the browser sends `Sec-GPC: 1`"
            message = f"session_id: required if {cause}, because client_id is dropped then"
            raise MalformedMessage("missing", message, field="session_id")
        event.pop("client_id", None)
        event.pop("user_id", None)
    for field in ("client_id", "user_id"):
        if event.get(field) is not None:
            event[field] = person_id(event[field], arrival.person_key)


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
    """Return one record, refused where Kafka would refuse it; senders may leave out the version of its form."""
    whole = dict(message, schema_version=SCHEMA_VERSION)
    value = wire.dump(whole)
    if b":null" in value:  # in a text, perhaps, which costs nothing but a second look
        value = wire.dump(_without_nulls(whole))
    return OutgoingRecord(topic, str(key).encode(), wire.within_bounds(value))


def _without_nulls(value: Any) -> Any:
    """Return parsed JSON without the fields that are null, at any depth."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def set_aside_duplicates(decisions: Iterable[Accepted | Rejected], seen: AbstractSet[str]) -> list[Decision]:
    """Return the decisions with repeats marked: of what was seen, and within the request.

    Args:
        decisions: in the order of the request.
        seen: identities of what Kafka acknowledged before.
    """
    known = set(seen)
    marked: list[Decision] = []
    for decision in decisions:
        if isinstance(decision, Accepted) and decision.identity in known:
            marked.append(Duplicate(decision.item_id, decision.kind))
            continue
        if isinstance(decision, Accepted):
            known.add(decision.identity)
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
