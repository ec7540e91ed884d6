"""The tour is what the code does: its records, run through the real cores, give one another; its tree is real."""

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

from contracts.outcomes import examination, examination_ratio
from contracts.topics import PREFERENCE_PAIRS, TRAINING_SEARCHES
from streams.agents.spec import Emit, Plan
from streams.collector.intake import Accepted, Arrival, decide_event
from streams.join.partition_join import PartitionJoin
from streams.pairs.partition_pairs import PartitionPairs
from tests.support.markdown import ROOT, fences, sections, tracked_files

PAGE = ROOT / "docs/tour.md"
STOPS = re.split(r"^\d+\. ", sections(PAGE)["The way of one click"], flags=re.MULTILINE)[1:]


@dataclass(frozen=True)
class Record:
    """A record as Kafka would keep it."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def record_of(stop: str) -> dict[str, Any]:
    """Return the record that a stop shows."""
    (text,) = re.findall(r"^ *```json\n(.*?)^ *```", stop, re.MULTILINE | re.DOTALL)
    shown: dict[str, Any] = json.loads(textwrap.dedent(text))
    return shown


TOUR = {re.findall(r"^\[`([^`]+)`\]", stop)[0]: record_of(stop) for stop in STOPS}
IMPRESSION = TOUR["contracts/events.py"]
CLICK = TOUR["streams/collector/intake.py"]
TICK = TOUR["streams/join/event_time.py"]
PROGRESS = TOUR["streams/join/partition_join.py"]
JOINED = TOUR["streams/join/joined_search.py"]
PAIR = TOUR["streams/pairs/pairing.py"]


def joined() -> tuple[PartitionJoin, Plan]:
    """Return the join after the tour's impression, click and tick, and what it planned."""
    join = PartitionJoin(PROGRESS["partition"], window_ms=PROGRESS["window_ms"], lateness_ms=PROGRESS["lateness_ms"])
    plan: Plan = []
    delays_ms = {"impression": 4, "click": 31, "tick": 49}
    for number, event in enumerate((IMPRESSION, CLICK, TICK)):
        appended_ms = event["event_time"] + delays_ms[event["type"]]
        offset = PROGRESS["start_offset"] + number
        join.take(Record(offset, appended_ms, b"01J", json.dumps(event).encode()), plan)
    return join, plan


def paired(topic: str = PREFERENCE_PAIRS) -> list[dict[str, Any]]:
    """Return what the pairs stage writes of the tour's joined search."""
    plan: Plan = []
    PartitionPairs(0).take(Record(40, JOINED["closed_at"], b"k3", json.dumps(JOINED).encode()), plan)
    return [json.loads(output.value) for output in plan if isinstance(output, Emit) and output.topic == topic]


def test_the_collector_makes_the_record_shown() -> None:
    """The click as the site sends it becomes the click that the tour shows."""
    sent = {**CLICK, "client_id": "c9"}
    del sent["received_at"], sent["schema_version"]
    decision = decide_event(sent, Arrival(received_at=CLICK["received_at"], person_key=b"a key of the shop"))
    assert isinstance(decision, Accepted)
    assert json.loads(decision.records[0].value) == CLICK


def test_the_join_makes_the_search_and_the_progress_shown() -> None:
    """Impression, click and tick give the joined search and the progress that the tour shows."""
    join, plan = joined()
    (output,) = plan
    assert isinstance(output, Emit)
    assert json.loads(output.value) == JOINED
    assert json.loads(join.progress().model_dump_json(exclude_none=True)) == PROGRESS


def test_the_pairs_agent_makes_the_pair_shown() -> None:
    """The joined search gives two pairs, and one of them is the pair that the tour shows."""
    pairs = paired()
    assert len(pairs) == TOUR["trainer/state.py"]["pairs_trained"]
    assert PAIR in pairs


def test_the_ratio_shown_is_the_one_of_the_prior() -> None:
    """The factors shown are those of the third slot against the second."""
    shown = TOUR["contracts/outcomes.py"]
    assert shown["ratio"] == pytest.approx(examination_ratio(examination(2), examination(3)))
    assert shown in [pair["factors"] for pair in paired()]


def test_the_evidence_shown_is_what_the_list_says() -> None:
    """The joined search gives the training search that the tour shows, and the release names that cut."""
    assert paired(TRAINING_SEARCHES) == [TOUR["streams/pairs/training.py"]]
    manifest, progress = TOUR["trainer/release/planning.py"], TOUR["trainer/state.py"]
    assert all(manifest[name] == progress[name] for name in ("offsets", "fence", "lists_trained", "pairs_trained"))


def test_the_releases_follow_one_another() -> None:
    """The release made is the one that is served and the one that answers."""
    manifest, serving = TOUR["trainer/release/planning.py"], TOUR["indexer/rollout/decisions.py"]
    answer = TOUR["indexer/search/service.py"]
    assert manifest["release"] == serving["query_release"] == answer["query_release"]
    assert manifest["product_release"] == serving["product_release"] == answer["product_release"]
    assert TOUR["trainer/release/safety.py"] in manifest["checks"]


def test_every_stop_names_a_file_and_shows_a_record() -> None:
    """Each of the fourteen stops is about another file that is there, and shows one record."""
    assert len(TOUR) == len(STOPS) == 14
    assert [path for path in TOUR if not (ROOT / path).is_file()] == []


def test_the_times_of_the_tour_follow_from_one_another() -> None:
    """What the text says of times is so: the window, the lateness, and the tick that lets the search close."""
    assert JOINED["closed_at"] == IMPRESSION["event_time"] + PROGRESS["window_ms"]
    assert PROGRESS["watermark_ms"] == TICK["event_time"] - PROGRESS["lateness_ms"]
    assert PROGRESS["watermark_ms"] > JOINED["closed_at"]
    assert CLICK["search_time"] == IMPRESSION["event_time"]


def test_tree_equals_the_real_one() -> None:
    """The layout shows every file and folder at the top, and no other; hidden files apart."""
    (tree,) = [one for one in fences(PAGE, "text") if one.name == "tree"]
    shown = {line.split()[0] for line in tree.text.splitlines() if line and not line.startswith(" ")}
    tops = {f"{path.parts[0]}/" if len(path.parts) > 1 else path.parts[0] for path in tracked_files()}
    assert shown == {name for name in tops if not name.startswith(".")}
