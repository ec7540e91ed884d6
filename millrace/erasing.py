"""`millrace erase`: what Kafka and Redis hold of one person, and taking it away.

Persons stand on the topics of events and of lists; pairs, training searches, releases and vectors name nobody. Of such
a topic Kafka deletes no single record: they go with its retention.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeGuard

import orjson
import typer
from kafka.admin import ConfigResource, KafkaAdminClient
from rich.table import Table

from contracts.errors import UsageError
from contracts.events import protected_id
from contracts.topics import (
    DEAD_LETTERS,
    HOLDOUT_SEARCHES,
    JOINED_SEARCHES,
    LATE_EVENTS,
    ORPHAN_EVENTS,
    SEARCH_EVENTS,
)
from millrace.asking import numbers, running_settings, texts
from millrace.output import Json, Tell, out, print_json, progress_bars, utc
from service.kafka import admin, records_of, translate_kafka_errors
from service.redis import redis_client, translate_redis_errors
from service.settings import Settings
from streams.attribution.memory import keys_of

NAMING: Final = (SEARCH_EVENTS, JOINED_SEARCHES, HOLDOUT_SEARCHES, LATE_EVENTS, ORPHAN_EVENTS, DEAD_LETTERS)
"""Topics whose records name persons and sessions."""
KEPT_BY: Final = {"retention.ms", "segment.ms"}
KEYS_AT_ONCE: Final = 1_000

Read = Callable[[str], Iterable[Any]]
"""Gives the records of a topic."""


@dataclass
class Person:
    """Whom records are looked for, by the names under which they stand there.

    Args:
        ids: client and user ids, as given and as their stand-ins: who produces straight to Kafka sends them as given.
        sessions: of theirs; more are found.
    """

    ids: frozenset[str]
    sessions: set[str] = field(default_factory=set)

    def is_named_by(self, fields: Mapping[str, Any]) -> bool:
        """Whether a message names the person or one of the sessions."""
        named = fields.get("client_id"), fields.get("user_id")
        return bool(self.ids.intersection(filter(_is_text, named))) or (
            _is_text(session := fields.get("session_id")) and session in self.sessions
        )


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


@dataclass
class Held:
    """What one topic holds of a person.

    Args:
        records: how many.
        newest_at: when Kafka got the newest, epoch milliseconds.
        after: partition -> the offset after their last record.
        shown: search and product of what was shown to them, of lists alone.
    """

    records: int = 0
    newest_at: int = 0
    after: dict[str, int] = field(default_factory=dict)
    shown: set[tuple[str, str]] = field(default_factory=set)

    def add(self, record: Any) -> None:
        """Count a record."""
        self.records += 1
        self.newest_at = max(self.newest_at, record.timestamp)
        self.after[str(record.partition)] = record.offset + 1


def erase(
    client_id: Annotated[
        str,
        typer.Option(
            "--client-id", help="As your site sends it, or as it stands on the topics: 64 hexadecimal digits."
        ),
    ] = "",
    user_id: Annotated[str, typer.Option("--user-id", help="Likewise.")] = "",
    session_id: Annotated[str, typer.Option("--session-id", help="A session of theirs.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is.")] = False,
    json: Json = False,
) -> None:
    """Erase a person: clear Redis of them, find their records on Kafka, and say when the last of these is gone.

    All sessions in which one of the names occurs are taken to be theirs. Kafka deletes no single record: theirs go with
    the retention of their topics. What was learned stays: it names nobody.

    Example: millrace erase --client-id c9
    """
    settings = running_settings()
    person = person_of(settings, client_id=client_id, user_id=user_id, session_id=session_id)
    with progress_bars() as tell:
        report = erased(settings, person, dry_run=dry_run, tell=tell)
    if json:
        print_json(report)
        return
    out().print(topics_table(report))
    out().print(words_for(report))


def person_of(settings: Settings, *, client_id: str, user_id: str, session_id: str) -> Person:
    """Whom these names mean.

    Raises:
        UsageError: none is given, or ids cannot be turned into what stands on the topics.
    """
    given = [one for one in (client_id, user_id) if one]
    if not given and not session_id:
        raise UsageError("nothing says whom to erase", fix="give --client-id, --user-id or --session-id")
    key = None if settings.person_key is None else settings.person_key.get_secret_value().encode()
    stand_ins = [protected_id(one, key) for one in given]
    if None in stand_ins:
        raise UsageError(
            "MILLRACE_PERSON_KEY is not set, and on the topics stand ids made with it",
            fix="set it to the collector's, or give the id as it stands there",
        )
    return Person(frozenset({*given, *filter(None, stand_ins)}), {session_id} if session_id else set())


def erased(settings: Settings, person: Person, *, dry_run: bool, tell: Tell) -> dict[str, Any]:
    """Erase a person, and report what was found and until when it remains.

    Raises:
        DependencyDown: Kafka or Redis does not answer; doing it again does no harm.
    """

    def read(topic: str) -> Iterable[Any]:
        return records_of(settings, topic, tell=lambda done, of: tell(f"reading {topic}", done, of))

    find_sessions(person, read)
    held = find_records(person, read)
    with translate_kafka_errors(settings), admin(settings) as client:
        kept_ms = _kept_ms(client, settings)
    keys = keys_of(settings.topic_prefix, person.sessions, held[JOINED_SEARCHES].shown)
    return {
        "sessions": len(person.sessions),
        "topics": [_told(topic, one, kept_ms.get(topic)) for topic, one in held.items()],
        "redis_keys": _clear(settings, keys, dry_run=dry_run),
        "dry_run": dry_run,
    }


def find_sessions(person: Person, read: Read) -> None:
    """Find all sessions in which a person is named."""
    for topic in NAMING:
        for _, fields in _messages(read(topic)):
            if person.is_named_by(fields) and _is_text(session := fields.get("session_id")):
                person.sessions.add(session)


def find_records(person: Person, read: Read) -> dict[str, Held]:
    """Find what each topic holds of a person whose sessions are known."""
    found = {topic: Held() for topic in NAMING}
    for topic, held in found.items():
        for record, fields in _messages(read(topic)):
            if person.is_named_by(fields):
                held.add(record)
                if topic == JOINED_SEARCHES:
                    slots = fields.get("slots") or ()
                    held.shown.update((str(fields.get("search_id")), str(slot.get("product_id"))) for slot in slots)
    return found


def _messages(records: Iterable[Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Records that are JSON objects, decoded; of what is none nobody can say whom it names."""
    for record in records:
        try:
            fields = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            continue
        if isinstance(fields, dict):
            yield record, fields


def _kept_ms(client: KafkaAdminClient, settings: Settings) -> dict[str, int]:
    """For how long each topic keeps a record at most; absent if that is for ever, or if we may not see it.

    Segments are deleted whole: what is kept by time is kept until the last record of its segment is too old.
    """
    names = {settings.topic(topic): topic for topic in NAMING}
    resources = [ConfigResource("TOPIC", name, list(KEPT_BY)) for name in names]
    told = client.describe_configs(resources, config_filter="all")["topic"]
    kept = {
        names[name]: [int(entry[one]["value"]) for one in KEPT_BY]
        for name, entry in told.items()
        if entry.keys() >= KEPT_BY
    }
    return {topic: sum(parts) for topic, parts in kept.items() if min(parts) >= 0}


def _told(topic: str, held: Held, kept_ms: int | None) -> dict[str, Any]:
    """A topic's part of the report; `gone_by` is when its retention has taken the newest record, if it ever does."""
    if not held.records:
        return {"topic": topic, "records": 0, "newest_at": None, "gone_by": None, "up_to": {}}
    gone_by = None if kept_ms is None else held.newest_at + kept_ms
    counted = {"topic": topic, "records": held.records, "newest_at": held.newest_at}
    return {**counted, "gone_by": gone_by, "up_to": held.after}


def _clear(settings: Settings, keys: Sequence[str], *, dry_run: bool) -> int:
    """Delete keys of Redis, and return how many there were."""
    with translate_redis_errors(settings), redis_client(settings) as client:
        ask = client.exists if dry_run else client.delete
        return sum(ask(*keys[first : first + KEYS_AT_ONCE]) for first in range(0, len(keys), KEYS_AT_ONCE))


def topics_table(report: Mapping[str, Any]) -> Table:
    """What Kafka holds of a person, topic by topic."""
    table = Table("topic", *numbers("records"), *texts("newest (UTC)", "gone by (UTC)"))
    for row in report["topics"]:
        gone = utc(row["gone_by"]) if row["gone_by"] else "never" if row["records"] else ""
        table.add_row(row["topic"], f"{row['records']:,}", utc(row["newest_at"]) if row["newest_at"] else "", gone)
    return table


def words_for(report: Mapping[str, Any]) -> str:
    """What was done, and what remains to be done."""
    if not report["sessions"] and not any(row["records"] for row in report["topics"]):
        return "nobody of that name is found: is it as your site sends it, and MILLRACE_PERSON_KEY the collector's?"
    done = "there are" if report["dry_run"] else "cleared"
    return (
        f"{report['sessions']:,} sessions; {done} {report['redis_keys']:,} keys of Redis. Lists that are open now come "
        "to Redis when they close: do it again after the join's window. What was learned names nobody and stays."
    )
