"""`millrace pairs` on a real Kafka: what is listed, explained from its own records, written and sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from contracts import wire
from contracts.joined import Origin
from contracts.pairs import CURATED_PAIR
from contracts.topics import CURATED_PAIRS, PREFERENCE_PAIRS, SEARCH_EVENTS
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.support.command_line import Run, command_line
from tests.support.pairs import preference_pair
from tests.support.search_events import click, encoded, impression
from tests.support.topics import read_topic

pytestmark = [pytest.mark.kafka]


@pytest.fixture
def run(two_partitions: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Give a function that runs `millrace pairs` on this test's Kafka and returns its exit code."""
    return command_line(two_partitions, monkeypatch, tmp_path, "pairs")


def produced(settings: Settings, topic: str, *values: bytes) -> list[tuple[int, int]]:
    """Write records of one search and return where they stand."""
    with KafkaProducer(**producer_config(settings)) as producer:
        return produce_all(producer, [OutgoingRecord(settings.topic(topic), value, b"s1") for value in values])


@pytest.fixture
def pair_id(two_partitions: Settings) -> str:
    """Give the id of a pair on Kafka that names its records, one of which was never there; beside it stands another."""
    places = produced(two_partitions, SEARCH_EVENTS, encoded(impression()), encoded(click("b")))
    origins = [Origin(topic=SEARCH_EVENTS, partition=number, offset=offset) for number, offset in [*places, (0, 999)]]
    pair = preference_pair("s1", chosen="b", rejected="a").model_copy(update={"origins": tuple(origins)})
    other = preference_pair("s2", source="value", query="kettle")
    produced(two_partitions, PREFERENCE_PAIRS, wire.encode(pair), wire.encode(pair), b"no pair", wire.encode(other))
    return pair.pair_id


def test_pairs_are_listed_counted_and_written(
    run: Run, pair_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newest first, with filters; the record that is no pair is counted; a depth looks at the newest alone."""
    assert run("ls", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [pair["search_id"] for pair in report["pairs"]] == ["s2", "s1", "s1"]
    assert (report["looked_through"], report["malformed"]) == (3, 1)
    assert run("ls", "--json", "--depth", "1") == 0
    assert [pair["search_id"] for pair in json.loads(capsys.readouterr().out)["pairs"]] == ["s2"]
    assert run("ls", "--query", "fridge") == 0
    assert pair_id[:12] in capsys.readouterr().out
    assert run("stats", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pairs"], report["repeated"], report["malformed"]) == (2, 1, 1)
    assert run("stats", "--source", "value") == 0
    assert "1 pair of 1 search" in capsys.readouterr().out
    assert run("export", "--source", "value") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["query"] == "kettle"
    assert run("export", "-", "--source", "value") == 0
    assert capsys.readouterr().out.splitlines() == [line]
    assert run("export", str(tmp_path / "pairs.jsonl"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    assert len((tmp_path / "pairs.jsonl").read_bytes().splitlines()) == 3
    assert run("ls", "--source", "clicks") == 2


def test_a_pair_is_explained_from_the_records_it_was_made_of(
    run: Run, pair_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read again where the pair says that they stand; what is gone is told."""
    assert run("explain", pair_id[:10], "--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["pair"]["pair_id"] == pair_id
    assert [one.get("event", {}).get("type", one.get("problem")) for one in report["events"]] == [
        "impression", "click", "gone",
    ]  # fmt: skip
    roles = {slot["product_id"]: (slot["role"], slot["events"]) for slot in report["slots"]}
    assert (roles["b"], roles["a"], len(roles)) == (("chosen", ["click"]), ("rejected", []), 6)
    assert (len(report["written"]), report["gone"], report["weight_agrees"]) == (2, 1, True)
    assert run("explain", pair_id) == 0
    shown = capsys.readouterr()
    assert "by the prior" in shown.out
    assert "1 of its records are gone" in shown.err
    assert run("explain", "0" * 64) == 2
    assert "no pair on" in capsys.readouterr().err
    assert run("explain", "short") == 2


def test_curated_pairs_are_sent_whole_or_not_at_all(
    run: Run, two_partitions: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad line holds all of them back, and each is told; the others go with --skip-bad, keyed by their query."""
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"query": "fridge", "chosen": "P-1", "rejected_text": "Family fridge", "author": "ann", "note": "too large"},
        {"query": "fridge", "chosen": "P-1"},
        {"query": "kettle", "chosen": "P-3", "rejected": "P-4", "weight": 2.0},
        {"query": "mixer", "chosen": "P-5", "rejected": "P-6", "source": "rule", "expires_at": 1796500000000},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert run("import", str(path)) == 3
    assert "line 2" in capsys.readouterr().err
    assert run("import", str(path), "--dry-run", "--skip-bad", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sent"] == 0
    assert not any(read_topic(two_partitions, CURATED_PAIRS).values())
    assert run("import", str(path), "--skip-bad", "--author", "merch") == 0
    records = [record for own in read_topic(two_partitions, CURATED_PAIRS).values() for record in own]
    sent = {record.key: CURATED_PAIR.validate_json(record.value) for record in records}
    assert {key: (pair.author, pair.note, pair.weight, pair.source) for key, pair in sent.items()} == {
        b"fridge": ("ann", "too large", 1.0, "curated"),
        b"kettle": ("merch", None, 2.0, "curated"),
        b"mixer": ("merch", None, 1.0, "rule"),
    }
    assert sent[b"mixer"].expires_at == 1796500000000
