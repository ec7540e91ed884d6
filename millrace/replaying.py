"""`millrace replay`: closed searches and pairs made once more from the log of events, beside those that were made then.

It runs the rules of the join and the pairs agent in this process, from nothing: what they had known from before begins
a window earlier. Nothing of the running deployment is read but its log, and nothing of it is written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import orjson
import typer
from kafka import KafkaConsumer, KafkaProducer
from rich.table import Table

from contracts.errors import UsageError
from contracts.events import FUTURE_TOLERANCE_MS
from contracts.joined import WATERMARK_HEADER, ClosedWatermark
from contracts.outcomes import Theta, prior
from contracts.propensities import CELL_PROPENSITIES, Propensities
from contracts.topics import JOINED_SEARCHES, PREFERENCE_PAIRS, PROPENSITIES, SEARCH_EVENTS, partition_for
from contracts.wire import decode
from millrace.asking import numbers, running_settings
from millrace.output import Json, Tell, counted, out, print_json, progress_bars
from millrace.replay_comparison import by_list, by_pair, compare, report_of, why_a_list, why_a_pair
from millrace.tables import time_of
from service.kafka import (
    OutgoingRecord,
    admin,
    beginning_and_end_offsets,
    ensure_topics,
    open_consumer,
    produce_all,
    producer_config,
    read_to_end,
    translate_kafka_errors,
)
from service.settings import Settings

if TYPE_CHECKING:
    from streams.agents.spec import Emit, LogRecord, Plan

BATCH: Final = 500


class Made(NamedTuple):
    """A record that the rules made.

    Args:
        offset: its place in the partition that it belongs to.
        timestamp: event time at which it was made.
        key: its key.
        value: its value.
        headers: its headers.
    """

    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class Rebuilt:
    """What the rules made of a log.

    Args:
        events: records read.
        made: topic -> what was made for it, in the order in which it was made.
        open_searches: that were not closed at the end of what was read.
    """

    events: int = 0
    made: "dict[str, list[Emit]]" = field(default_factory=dict)
    open_searches: int = 0


def rebuild(settings: Settings, log: "Iterable[tuple[int, LogRecord]]", *, theta: Theta = prior) -> Rebuilt:
    """Run the rules of the join, and of the pairs agent on what it makes.

    Args:
        settings: of the rules.
        log: partition and record of `search-events`, each partition in its order.
        theta: propensities by cell, position and moment.
    """
    from streams.agents.spec import Emit
    from streams.join.spec import JOIN
    from streams.pairs.partition_pairs import PartitionPairs, options_of

    rebuilt = Rebuilt()
    joins: dict[int, Any] = {}
    joined: list[tuple[int, int, int, Emit]] = []
    for number, record in log:
        if number not in joins:
            joins[number] = JOIN.new_state(number, None, settings)
        plan: Plan = []
        joins[number].take(record, plan)
        rebuilt.events += 1
        closed = (one for one in plan if isinstance(one, Emit) and one.topic == JOINED_SEARCHES)
        joined += [(orjson.loads(one.value)["closed_at"], number, len(joined), one) for one in closed]
    rebuilt.open_searches = sum(join.open_searches for join in joins.values())
    # The joins' agents wrote as event time went on; no log tells how their records lay between one another.
    joined.sort(key=lambda one: one[:3])
    logs: dict[int, list[Made]] = {}
    for closed_at, _, _, emitted in joined:
        own = logs.setdefault(partition_for(emitted.key, settings.partitions), [])
        told = (WATERMARK_HEADER, ClosedWatermark(0, closed_at).encode())
        own.append(Made(len(own), closed_at, emitted.key, emitted.value, [told, *emitted.headers]))
    rebuilt.made[JOINED_SEARCHES] = [emitted for *_, emitted in joined]
    for number, records in logs.items():
        # They are in the order of event time already, as if one join had written all of them.
        options = replace(options_of(settings), joins=1)
        state, plan = PartitionPairs(number, options=options, theta=theta), []
        end = (WATERMARK_HEADER, ClosedWatermark(0, records[-1].timestamp, idle=True).encode())
        for made in [*records, Made(len(records), records[-1].timestamp, b"", b"", [end])]:
            state.take(made, plan)
        for one in plan:
            if isinstance(one, Emit):
                rebuilt.made.setdefault(one.topic, []).append(one)
    return rebuilt


def replay(
    from_: Annotated[str, typer.Option("--from", help="Lists shown from this moment on: ISO 8601 or epoch.")],
    to: Annotated[str, typer.Option("--to", help="Lists shown before this moment.")],
    topic_prefix: Annotated[
        str, typer.Option(help="Write what was made to topics of this prefix, which must be empty; else nothing.")
    ] = "",
    json: Json = False,
) -> None:
    """Make closed searches and pairs once more from the log of events, and say what differs from the originals and why.

    Changes nothing of what runs. What is made is held in memory, about 5 kB for each list.

    Example: millrace replay --from 2026-11-28T00:00Z --to 2026-11-28T06:00Z
    """
    settings, (from_ms, to_ms) = running_settings(), moments(from_, to)
    if topic_prefix and topic_prefix == settings.topic_prefix:
        raise UsageError("--topic-prefix is that of the originals", fix="choose another one")
    with progress_bars() as tell:
        report = run_replay(settings, from_ms, to_ms, tell, topic_prefix=topic_prefix)
    if json:
        print_json(report)
        return
    out().print(replay_table(report))
    for part in ("joined_searches", "preference_pairs"):
        for reason in report[part]["reasons"]:
            out().print(f"{part}: {reason['count']:,} because {reason['meaning']}; {reason['examples'][0]}")


def moments(from_: str, to: str) -> tuple[int, int]:
    """Read the two ends of a time, epoch milliseconds.

    Raises:
        UsageError: one is no time, or they are in the wrong order.

    >>> moments("2024-01-01T00:00:00Z", "1704067201")
    (1704067200000, 1704067201000)
    """
    found = [(option, text, time_of(text)[0]) for option, text in (("--from", from_), ("--to", to))]
    for option, text, at_ms in found:
        if at_ms is None:
            raise UsageError(f"{option}: {text} is no time", fix="write 2026-11-28T06:00Z, or seconds since 1970")
    from_ms, to_ms = (int(at_ms or 0) for _, _, at_ms in found)
    if from_ms >= to_ms:
        raise UsageError("--to is not after --from", fix="exchange them")
    return from_ms, to_ms


def run_replay(settings: Settings, from_ms: int, to_ms: int, tell: Tell, *, topic_prefix: str = "") -> dict[str, Any]:
    """Replay a time and report.

    Args:
        settings: of the deployment.
        from_ms: lists shown from then on are compared; the log is read from a window before.
        to_ms: and until then; the log is read until their windows are over.
        tell: told the progress.
        topic_prefix: of the topics that what was made is written to; nothing is written if it is empty.
    """
    look_ahead_ms = round(1000 * settings.look_ahead_s)
    margin_ms = settings.join_window_ms + settings.lateness_ms + look_ahead_ms + FUTURE_TOLERANCE_MS
    with admin(settings) as client:
        held = beginning_and_end_offsets(client, settings, [SEARCH_EVENTS])
    begins = {number: found.begin for (_, number), found in held.items()}
    with translate_kafka_errors(settings), open_consumer(settings) as consumer:
        published = (one.value for one in read_to_end(consumer, settings.topic(PROPENSITIES)))
        versions = [decode(value, CELL_PROPENSITIES) for value in published if value]
        events = _since(consumer, settings, SEARCH_EVENTS, from_ms - margin_ms, tell)
        log = ((event.partition, event) for event in events if event.timestamp <= to_ms + margin_ms)
        rebuilt = rebuild(settings, log, theta=Propensities(versions).theta)
        originals = {
            topic: [record.value or b"" for record in _since(consumer, settings, topic, from_ms - margin_ms, tell)]
            for topic in (JOINED_SEARCHES, PREFERENCE_PAIRS)
        }
    made = {topic: [one.value for one in emitted] for topic, emitted in rebuilt.made.items()}
    then, now = (by_list(values.get(JOINED_SEARCHES, ()), from_ms, to_ms) for values in (originals, made))
    same, lists = compare(then, now, lambda one: why_a_list(one, then, begins, rebuilt.open_searches))
    searches = {search_id for search_id, _ in then.keys() | now.keys()}
    pairs_then, pairs_now = (by_pair(values.get(PREFERENCE_PAIRS, ()), searches) for values in (originals, made))
    differing = {one.key[0] for one in lists if one.reason != "person_key"}
    same_pairs, pairs = compare(pairs_then, pairs_now, lambda one: why_a_pair(one, pairs_then, pairs_now, differing))
    return {
        "from": from_ms,
        "to": to_ms,
        "events": rebuilt.events,
        "open_searches": rebuilt.open_searches,
        "joined_searches": report_of(same, len(then), len(now), lists),
        "preference_pairs": report_of(same_pairs, len(pairs_then), len(pairs_now), pairs),
        "written": _write(settings, topic_prefix, rebuilt) if topic_prefix else {},
    }


def _since(consumer: KafkaConsumer, settings: Settings, topic: str, from_ms: int, tell: Tell) -> Iterator[Any]:
    """The records of a topic that Kafka got since a moment."""
    name, what = settings.topic(topic), f"reading {topic}"
    return read_to_end(consumer, name, since_ms=max(from_ms, 0), tell=lambda done, of: tell(what, done, of))


def _write(settings: Settings, topic_prefix: str, rebuilt: Rebuilt) -> dict[str, int]:
    """Write what was made to topics of another prefix, and return how many records each has."""
    from streams.registry import all_topics

    own = settings.model_copy(update={"topic_prefix": topic_prefix})
    ensure_topics(own, [spec for spec in all_topics() if spec.name in rebuilt.made])
    with admin(own) as client:
        for (topic, _), found in beginning_and_end_offsets(client, own, rebuilt.made).items():
            if found.end:
                raise UsageError(f"{own.topic(topic)} holds records", fix="choose a prefix that nobody has used")
    with translate_kafka_errors(own), KafkaProducer(**producer_config(own)) as producer:
        for topic, emitted in rebuilt.made.items():
            records = [OutgoingRecord(own.topic(topic), one.value, one.key, tuple(one.headers)) for one in emitted]
            for start in range(0, len(records), BATCH):
                produce_all(producer, records[start : start + BATCH])
    return {own.topic(topic): len(emitted) for topic, emitted in rebuilt.made.items()}


def replay_table(report: Mapping[str, Any]) -> Table:
    """A comparison as a table."""
    columns = ("original", "rebuilt", "same", "differs", "only_original", "only_rebuilt")
    still_open = counted(report["open_searches"], "search", "searches")
    title = f"{counted(report['events'], 'event')} replayed, {still_open} still open"
    table = Table("", *numbers(*(name.replace("_", " ") for name in columns)), title=title)
    for part in ("joined_searches", "preference_pairs"):
        table.add_row(part.replace("_", " "), *(f"{report[part][name]:,}" for name in columns))
    for topic, count in report["written"].items():
        table.add_row(f"written to {topic}", "", f"{count:,}")
    return table
