"""Dead letters as people meet them: counted by reason, shown whole, and sent again."""

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from rich.console import Console
from rich.table import Table

from contracts.errors import UsageError
from contracts.topics import set_aside_headers
from millrace import dead_letters
from millrace.dead_letters import (
    DeadLetter,
    Wanted,
    counts_table,
    letter_of,
    letter_table,
    letters_table,
    listed,
    replay,
)
from millrace.output import CUT, print_json
from tests.conftest import SettingsFactory

T0 = 1_795_196_000_000


def record(topic: str = "catalog", offset: int = 7, *, reason: str = "missing", value: bytes = b'{"a":1}') -> Any:
    """A record of `dead-letters` as an agent writes it."""
    headers = set_aside_headers(topic, 2, offset, stage="indexer", reason=reason, error=f"{reason}: title")
    return SimpleNamespace(headers=headers, key=b"P-1", value=value, timestamp=T0 + offset, partition=0, offset=offset)


def letters(*records: Any) -> list[DeadLetter]:
    """Read records."""
    return [letter_of(one) for one in records]


def test_a_letter_says_where_it_stood_and_why() -> None:
    """Headers become fields; JSON is shown as JSON, and other bytes as text."""
    (letter,) = letters(record())
    assert letter.report() == {
        "letter_id": "indexer:catalog:2:7", "stage": "indexer", "topic": "catalog", "place": "2:7", "reason": "missing",
        "error": "missing: title", "written_at": T0 + 7, "key": "P-1", "value": {"a": 1},
    }  # fmt: skip
    assert letters(record(value=b"\xff{"))[0].report()["value"] == "\\xff{"
    bare = letter_of(SimpleNamespace(headers=None, key=None, value=None, timestamp=T0, partition=1, offset=3))
    assert (bare.letter_id, bare.report()["key"], bare.value) == ("dead-letters:1:3", None, b"")


def test_a_letter_nested_without_end_keeps_no_others_from_being_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Its outer part is."""
    found = letters(record(value=b'{"a":' * 900 + b"1" + b"}" * 900), record(offset=1))
    print_json([letter.report() for letter in found])
    deep, other = orjson.loads(capsys.readouterr().out)
    assert (deep["reason"], other["value"]) == ("missing", {"a": 1})
    for _ in range(90):
        deep["value"] = deep["value"]["a"]
    assert CUT in str(deep["value"])


def test_they_are_counted_by_stage_topic_and_reason() -> None:
    """The most frequent kind first; of those asked for, the newest are listed, the newest first."""
    found = letters(record(offset=1), record(offset=2), record("search-events", 3, reason="malformed_json"))
    report = listed(found, Wanted(), 2)
    assert report["by_reason"] == [
        {"stage": "indexer", "topic": "catalog", "reason": "missing", "records": 2},
        {"stage": "indexer", "topic": "search-events", "reason": "malformed_json", "records": 1},
    ]
    assert [one.place for one in report["newest"]] == ["2:3", "2:2"]
    assert listed(found, Wanted(reason="missing", topic="catalog"), 9)["records"] == 2
    assert listed(found, Wanted(stage="join"), 9) == {"records": 0, "by_reason": [], "newest": []}


def test_what_a_sender_wrote_is_no_markup() -> None:
    """A title with brackets is shown as it is."""
    console = Console(width=160, record=True)
    console.print(letters_table([letters(record())[0]._replace(error="[bold]no[/bold] title")]))
    assert "[bold]no[/bold] title" in console.export_text()


@pytest.mark.parametrize(
    ("stage", "said"), [("", "there are no dead letters"), ("join", "there are no such dead letters")]
)
def test_where_there_is_none_a_sentence_says_so(
    stage: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    settings: SettingsFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty table would look like a mistake."""
    monkeypatch.setattr(dead_letters, "running_settings", settings)
    monkeypatch.setattr(dead_letters, "records_of", lambda *_, **__: iter([record()] if stage else []))
    dead_letters.dlq_ls(stage=stage)
    assert capsys.readouterr().out == f"{said}\n"


def printed_at_80(table: Table) -> str:
    """Return what a table shows in a narrow terminal, without its lines and blanks."""
    console = Console(width=80, soft_wrap=True)
    with console.capture() as captured:
        console.print(table)
    columns = [line.split("│")[1:-1] for line in captured.get().splitlines() if line.startswith("│")]
    return " ".join("".join(part.strip() for part in column) for column in zip(*columns, strict=True))


def test_a_narrow_terminal_cuts_neither_an_id_nor_a_value() -> None:
    """Both are needed whole, for `dlq show` and to see what is wrong: they go on in the next line."""
    letter_id, value = f"attribution:{'preference-pairs' * 2}:11:1234567", "x" * 3_000
    letter = letters(record(value=value.encode()))[0]._replace(letter_id=letter_id, topic="t" * 90, stage="s" * 90)
    assert letter_id in printed_at_80(letters_table([letter, letter]))
    assert value in printed_at_80(letter_table(letter))
    counted = printed_at_80(counts_table([{"stage": "s" * 90, "topic": "t" * 90, "reason": "r" * 90, "records": 1}]))
    assert counted.split() == ["s" * 90, "t" * 90, "r" * 90, "1"]


def test_an_id_stands_on_one_line_where_there_is_room() -> None:
    """Who marks it with the mouse copies all of it, for `dlq show`."""
    letter = letters(record())[0]._replace(letter_id="trainer:curated-pairs:3:17", error="not JSON: " + "x y " * 40)
    console = Console(width=80, soft_wrap=True)
    with console.capture() as captured:
        console.print(letters_table([letter]))
    assert letter.letter_id in captured.get()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Give what is sent again: topic and value."""
    found: list[tuple[str, bytes]] = []

    def send(_settings: Any, topic: str, values: Iterable[tuple[bytes, bytes]]) -> None:
        """Note what goes to a topic."""
        found.extend((topic, value) for _, value in values)

    monkeypatch.setattr(dead_letters, "send", send)
    return found


def test_only_what_anyone_may_write_is_sent_again(settings: SettingsFactory, sent: list[tuple[str, bytes]]) -> None:
    """What a stage wrote for another would be told twice, and what was not kept says nothing: both are left."""
    found = letters(record(offset=1), record("joined-searches", 2), record("search-events", 3))
    found.append(letter_of(record("search-events", 4, value=b"")))
    found.append(letter_of(record("search-events", 99)))
    assert replay(settings(), found, Wanted(stage="indexer")) == {"records": 2, "left": 2, "dry_run": False}
    assert [topic for topic, _ in sent] == ["catalog", "search-events"]


def test_one_may_be_sent_alone_and_a_dry_run_sends_nothing(
    settings: SettingsFactory, sent: list[tuple[str, bytes]]
) -> None:
    """Ids and filters choose; that nothing is chosen is an error with its fix."""
    found = letters(record(offset=1), record(offset=2))
    assert replay(settings(), found, Wanted(), letter_id="indexer:catalog:2:2", dry_run=True)["records"] == 1
    assert sent == []
    assert replay(settings(), found, Wanted(), letter_id="indexer:catalog:2:2")["records"] == 1
    assert len(sent) == 1
    with pytest.raises(UsageError, match="no such dead letter"):
        replay(settings(), found, Wanted(reason="other"))


def test_nothing_chosen_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, settings: SettingsFactory) -> None:
    """All of them at once is never what somebody forgot to say."""
    monkeypatch.setattr(dead_letters, "running_settings", settings)
    with pytest.raises(UsageError, match="nothing says which"):
        dead_letters.dlq_replay()


def test_one_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, settings: SettingsFactory) -> None:
    """A letter set aside twice, after a crash, is there once; another id is not there."""
    monkeypatch.setattr(dead_letters, "running_settings", settings)
    monkeypatch.setattr(dead_letters, "records_of", lambda *_, **__: iter([record(), record()]))
    printed: list[Any] = []
    monkeypatch.setattr(dead_letters, "print_json", printed.append)
    dead_letters.dlq_ls(json=True)
    dead_letters.dlq_show("indexer:catalog:2:7", json=True)
    assert [printed[0]["records"], printed[1]["reason"]] == [1, "missing"]
    assert json.loads(json.dumps(printed)) == printed
    with pytest.raises(UsageError, match="no dead letter join:x:0:1"):
        dead_letters.dlq_show("join:x:0:1")
