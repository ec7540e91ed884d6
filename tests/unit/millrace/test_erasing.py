"""Erasing a person: who is meant, and which records and sessions are theirs."""

from collections.abc import Iterable, Mapping
from io import StringIO
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from rich.console import Console

from contracts.errors import DependencyDown, UsageError
from contracts.events import person_id
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES, ORPHAN_EVENTS, SEARCH_EVENTS
from millrace import asking
from millrace.erasing import Person, Read, erase, find_records, find_sessions, person_of, topics_table, words_for
from tests.conftest import SettingsFactory

T0 = 1_795_196_000_000


def topics(records: Mapping[str, Iterable[Any]]) -> Read:
    """Topics of one partition that hold these values."""

    def read(topic: str) -> Iterable[Any]:
        """Read one of them."""
        for offset, value in enumerate(records.get(topic, ())):
            raw = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
            yield SimpleNamespace(value=raw, offset=offset, partition=0, timestamp=T0 + offset)

    return read


def test_a_person_is_known_by_the_id_that_was_sent_and_by_its_stand_in(settings: SettingsFactory) -> None:
    """Who produces straight to Kafka sends ids as they are; everything else holds stand-ins."""
    person = person_of(settings(person_key="k" * 32), client_id="c9", user_id="", session_id="")
    assert person.ids == {"c9", person_id("c9", b"k" * 32)}
    assert person.is_named_by({"client_id": "c9"})
    assert person.is_named_by({"user_id": person_id("c9", b"k" * 32)})
    assert not person.is_named_by({"client_id": "c8", "user_id": None, "session_id": ["c9"]})


def test_nobody_is_erased_by_mistake(settings: SettingsFactory) -> None:
    """Without a name, or without the key by which a name is found, there is a clear refusal."""
    with pytest.raises(UsageError, match="whom to erase"):
        person_of(settings(), client_id="", user_id="", session_id="")
    with pytest.raises(UsageError, match="MILLRACE_PERSON_KEY"):
        person_of(settings(person_key=None), client_id="c9", user_id="", session_id="")
    stand_in = person_id("c9", b"key")
    assert person_of(settings(person_key=None), client_id=stand_in, user_id="", session_id="").ids == {stand_in}


def test_a_kafka_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as long as a start of a process waits, which would take this test an hour."""
    for name, value in {"KAFKA_BOOTSTRAP": "127.0.0.1:1", "DEPENDENCY_WAIT_S": "3600", "PERSON_KEY": "k" * 32}.items():
        monkeypatch.setenv(f"MILLRACE_{name}", value)
    monkeypatch.setattr(asking, "KAFKA_WAIT_S", 0.0)
    with pytest.raises(DependencyDown, match=r"Kafka does not answer at 127\.0\.0\.1:1"):
        erase(client_id="c9")


def test_sessions_are_found_wherever_one_of_the_names_stands() -> None:
    """A record without the name is theirs if its session is; what is no message is nobody's."""
    slots = [{"product_id": "P-1", "clicked": True}, {"product_id": "P-2", "clicked": False}]
    read = topics({
        SEARCH_EVENTS: [{"session_id": "k1"}, {"client_id": "c9", "session_id": "k1"}, {"session_id": "k2"}, None],
        JOINED_SEARCHES: [
            {"session_id": session_id, "search_id": search_id, "slots": slots}
            for session_id, search_id in (("k1", "s1"), ("k2", "s2"))
        ],
        ORPHAN_EVENTS: [{"user_id": "c9", "session_id": "k3"}],
        DEAD_LETTERS: [b"\xff{", b"[1]", {"session_id": "k3"}],
    })  # fmt: skip
    person = Person(frozenset({"c9"}))
    find_sessions(person, read)
    assert person.sessions == {"k1", "k3"}
    held = find_records(person, read)
    assert held[JOINED_SEARCHES].shown == {("s1", "P-1"), ("s1", "P-2")}
    counted = {topic: (one.records, one.newest_at, one.after) for topic, one in held.items() if one.records}
    assert counted == {
        SEARCH_EVENTS: (2, T0 + 1, {"0": 2}),
        JOINED_SEARCHES: (1, T0, {"0": 1}),
        ORPHAN_EVENTS: (1, T0, {"0": 1}),
        DEAD_LETTERS: (1, T0 + 2, {"0": 3}),
    }


def test_the_table_says_when_records_are_gone() -> None:
    """A topic without a record is listed, too, and one that is kept for ever says never."""
    counted = {"records": 2, "newest_at": T0, "up_to": {"0": 2}}
    rows = [
        {"topic": SEARCH_EVENTS, **counted, "gone_by": T0 + 86_400_000},
        {"topic": JOINED_SEARCHES, **counted, "gone_by": None},
        {"topic": ORPHAN_EVENTS, "records": 0, "newest_at": None, "gone_by": None, "up_to": {}},
    ]
    console = Console(width=120, record=True, file=StringIO())
    console.print(topics_table({"topics": rows}))
    lines = [line.split() for line in console.export_text().splitlines()]
    (events,) = (one for one in lines if SEARCH_EVENTS in one)
    assert [word for word in events if word[:1] == "2" and "-" in word] == ["2026-11-20", "2026-11-21"]
    assert any(JOINED_SEARCHES in one and "never" in one for one in lines)
    assert any(ORPHAN_EVENTS in one and "0" in one for one in lines)


def test_a_name_that_nobody_has_looks_like_no_success() -> None:
    """Who mistypes an id is not told that somebody was erased; an open list is a reason to come again."""
    none = [{"records": 0}]
    assert "nobody" in words_for({"sessions": 0, "topics": none, "redis_keys": 0, "dry_run": False})
    found = words_for({"sessions": 1, "topics": none, "redis_keys": 3, "dry_run": False})
    assert "cleared 3 keys" in found
    assert "again" in found
