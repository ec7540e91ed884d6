"""`millrace pairs explain`: a pair, read again with the records that it was made of, and why it weighs what it does."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import typer
from kafka import KafkaConsumer, TopicPartition
from rich.table import Table

from contracts import wire
from contracts.errors import ContractError, UsageError
from contracts.joined import Origin
from contracts.outcomes import PRIOR_VERSION, VALUE, Grade, examination
from contracts.pairs import PreferencePair
from contracts.topics import PREFERENCE_PAIRS
from millrace.asking import running_settings
from millrace.output import Json, Tell, messages, out, print_json, progress_bars, utc
from millrace.pairs import ID_SHOWN, PREFERENCE_PAIR
from service.kafka import open_consumer, read_to_end, translate_kafka_errors
from service.settings import Settings

SHORTEST_ID: Final = 8
SHOWN_ORIGINS: Final = 500
"""Records read again; a list with more events is one of a robot."""
PATIENCE_S: Final = 10.0
POLL_MS: Final = 200
CLOSE: Final = 1e-6


class Place(NamedTuple):
    """Where a pair stands on `preference-pairs`."""

    partition: int
    offset: int
    written_at: int


def pairs_explain(
    pair_id: Annotated[str, typer.Argument(help=f"Id of the pair, or its first {SHORTEST_ID} characters and more.")],
    json: Json = False,
) -> None:
    """Show what a pair was made of: the events, the list with its positions, every factor, the filters it passed.

    Example: millrace pairs explain e0f4f34f4aa2
    """
    settings = running_settings()
    with translate_kafka_errors(settings), open_consumer(settings) as consumer, progress_bars() as tell:
        pair, places = find_pair(consumer, settings, pair_id, tell)
        events = read_again(consumer, settings, pair.origins[:SHOWN_ORIGINS])
    report = explanation(pair, places, events)
    if json:
        print_json(report)
        return
    for table in explanation_tables(report):
        out().print(table)
    if report["gone"]:
        messages().print(f"{report['gone']} of its records are gone: Kafka keeps them for a while only")


def find_pair(
    consumer: KafkaConsumer, settings: Settings, pair_id: str, tell: Tell
) -> tuple[PreferencePair, list[Place]]:
    """Find a pair by its id or the beginning of it, and every place where it stands.

    Raises:
        UsageError: there is none, or the beginning is that of several.
    """
    if len(pair_id) < SHORTEST_ID:
        raise UsageError(f"{pair_id} is too short", fix=f"give at least {SHORTEST_ID} characters of the id")
    found: dict[str, tuple[PreferencePair, list[Place]]] = {}
    topic = settings.topic(PREFERENCE_PAIRS)
    for record in read_to_end(consumer, topic, tell=lambda done, of: tell("looking for the pair", done, of)):
        if pair_id.encode() not in (record.value or b""):
            continue
        try:
            pair = wire.decode(record.value, PREFERENCE_PAIR)
        except ContractError:
            continue  # `pairs stats` counts them
        if pair.pair_id.startswith(pair_id):
            place = Place(record.partition, record.offset, record.timestamp)
            found.setdefault(pair.pair_id, (pair, []))[1].append(place)
    if not found:
        raise UsageError(
            f"no pair on {topic} has the id {pair_id}",
            fix="`millrace pairs ls` shows ids; older pairs than the topic keeps are gone",
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} pairs have ids that begin so", fix="give more of the id")
    (one,) = found.values()
    return one


def read_again(consumer: KafkaConsumer, settings: Settings, origins: Sequence[Origin]) -> list[dict[str, Any]]:
    """Read the records that a pair was made of.

    Returns:
        For each the message and its place; without a message if it is gone or cannot be read, with why.
    """
    from contracts.structs import SEARCH_RECORD

    events: list[dict[str, Any]] = []
    for origin in origins:
        partition = TopicPartition(settings.topic(origin.topic), origin.partition)
        place = origin.model_dump()
        record = _record_at(consumer, partition, origin.offset)
        if record is None:
            events.append({"origin": place, "problem": "gone"})
            continue
        try:
            SEARCH_RECORD.decode(record.value)
            events.append({"origin": place, "event": wire.parse(record.value)})
        except ContractError as error:
            events.append({"origin": place, "problem": error.reason})
    return events


def _record_at(consumer: KafkaConsumer, partition: TopicPartition, offset: int) -> Any:
    """The record at an offset; None if there is none any more."""
    if partition.partition not in (consumer.partitions_for_topic(partition.topic) or ()):
        return None
    consumer.assign([partition])
    if not consumer.beginning_offsets([partition])[partition] <= offset < consumer.end_offsets([partition])[partition]:
        return None
    consumer.seek(partition, offset)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and consumer.position(partition) <= offset:
        for records in consumer.poll(timeout_ms=POLL_MS, max_records=1).values():
            return next((record for record in records if record.offset == offset), None)
    return None


def explanation(pair: PreferencePair, places: Sequence[Place], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put what is known of a pair into stable JSON.

    Args:
        pair: the pair.
        places: where it stands.
        events: what it was made of, as `read_again` returns it.
    """
    lists = [one["event"] for one in events if one.get("event", {}).get("type") == "impression"]
    slots = [slot for shown in lists for slot in shown["slots"]]
    roles = {pair.chosen.product_id: "chosen", pair.rejected.product_id: "rejected"}
    reached = {
        product_id: sorted({one["event"]["type"] for one in events if product_id in _products(one.get("event", {}))})
        for product_id in {slot["product_id"] for slot in slots}
    }
    return {
        "pair": pair.model_dump(mode="json", exclude_none=True, exclude={"origins"}),
        "written": [place._asdict() for place in places],
        "factors": factors(pair),
        "weight_agrees": abs(pair.factors.weight() - pair.weight) <= CLOSE * max(1.0, pair.weight),
        "filters": list(pair.filters),
        "slots": [
            {**slot, "events": reached[slot["product_id"]], "role": roles.get(slot["product_id"])}
            for slot in sorted(slots, key=lambda slot: int(slot["position"]))
        ],
        "events": list(events),
        "gone": sum("event" not in one for one in events),
        "not_read": max(len(pair.origins) - SHOWN_ORIGINS, 0),
    }


def _products(event: Mapping[str, Any]) -> set[str]:
    """The products that an event other than an impression names."""
    inner = {"view": "slots", "purchase": "items"}.get(str(event.get("type")), "")
    if event.get("type") == "impression":
        return set()
    parts = [event, *event.get(inner, ())]
    return {part["product_id"] for part in parts if "product_id" in part}


def factors(pair: PreferencePair) -> list[dict[str, Any]]:
    """Every factor of a pair's weight, with what it comes from."""
    made, chosen, rejected = pair.factors, pair.chosen, pair.rejected
    worth = f"grade {chosen.grade} ({Grade(chosen.grade).name.lower()}) is worth {VALUE.get(Grade(chosen.grade), 0):g}"
    if pair.source == "value":
        worth += f", {made.value:g} more than was known before"
    looked = "how likely each position is looked at"
    if pair.propensity_version == PRIOR_VERSION and chosen.position and rejected.position:
        thetas = f"{examination(rejected.position):.3g} / {examination(chosen.position):.3g}"
        looked = f"positions {rejected.position} and {chosen.position}: min(1, {thetas}), by the prior"
    reasons = {
        "value": worth,
        "ratio": looked + ("" if pair.propensity_version == PRIOR_VERSION else f", version {pair.propensity_version}"),
        "similarity": "not used" if made.similarity == 1 else "how alike the two are",
        "sampling": "every pair was kept" if made.sampling == 1 else f"one of {made.sampling:.3g} such pairs was kept",
        "cap": "not capped" if made.cap == 1 else "so much came of one session, client or product before",
    }
    return [{"name": name, "value": getattr(made, name), "why": why} for name, why in reasons.items()]


def explanation_tables(report: Mapping[str, Any]) -> list[Table]:
    """What is known of a pair, for people."""
    pair = report["pair"]
    title = f"{pair['query']}: {pair['chosen']['product_id']} rather than {pair['rejected']['product_id']}"
    about = Table("pair", pair["pair_id"][:ID_SHOWN], title=title)
    about.add_row("source", pair["source"] + (" (inferred)" if pair.get("inferred") else ""))
    about.add_row("search", pair["search_id"])
    about.add_row(
        "arm, releases", f"{pair['arm']}, {pair.get('query_release', '-')}, {pair.get('product_release', '-')}"
    )
    about.add_row("at", f"{utc(pair['event_time'])} UTC, closed at {utc(pair['closed_at'])}")
    about.add_row("written", ", ".join(f"{one['partition']}:{one['offset']}" for one in report["written"]))
    about.add_row("filters passed", ", ".join(report["filters"]) or "none is named")
    about.add_row("confidence", f"{pair['confidence']:g}")
    weight = Table("factor", "value", "why")
    for factor in report["factors"]:
        weight.add_row(factor["name"], f"{factor['value']:.4g}", factor["why"])
    agrees = "" if report["weight_agrees"] else "which is NOT the product of its factors"
    weight.add_row("weight", f"{pair['weight']:.4g}", agrees)
    shown = Table("position", "product", "role", "what came of it", "left out of learning")
    for slot in report["slots"]:
        aside = [name for name in ("sponsored", "pinned") if slot.get(name)] + ["sold out"] * (
            not slot.get("in_stock", True)
        )
        shown.add_row(
            str(slot["position"]), slot["product_id"], slot["role"] or "", ", ".join(slot["events"]), ", ".join(aside)
        )
    made_of = Table("record", "type", "when (UTC)", "event")
    for one in report["events"]:
        origin, event = one["origin"], one.get("event", {})
        told = ", ".join(
            f"{name} {event[name]}" for name in ("product_id", "dwell_ms", "quantity", "order_id") if name in event
        )
        when = utc(event["event_time"]) if event else ""
        place = f"{origin['topic']} {origin['partition']}:{origin['offset']}"
        made_of.add_row(place, event.get("type", one.get("problem", "")), when, told)
    return [about, weight, shown, made_of]
