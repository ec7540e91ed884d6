"""The pairs agent's state: repeats are recognised, every search is counted once, a restart changes nothing."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from contracts.telemetry import EventOutcome
from streams.core.outputs import Emit, Plan, SetAside
from streams.core.pairs import PartitionPairs
from tests.support.search_events import T0, Record

MEMORY = 5


def joined(search_id: str, **fields: Any) -> bytes:
    """Return a joined search with one click below a skip."""
    slots = [{"product_id": "a", "position": 1}, {"product_id": "b", "position": 2, "clicked": True}]
    message = {"search_id": search_id, "search_time": T0, "closed_at": T0 + 1, "query": "q", "slots": slots}
    return orjson.dumps({**message, **fields})


def records(values: list[bytes]) -> list[Record]:
    """Return values as a log."""
    return [Record(offset, T0, value) for offset, value in enumerate(values)]


def run(log: list[Record], pairs: PartitionPairs | None = None) -> tuple[PartitionPairs, Plan]:
    """Feed a log to a partition's state."""
    pairs, plan = pairs or PartitionPairs(0, memory_records=MEMORY), Plan()
    for record in log:
        pairs.take(record, plan)
    return pairs, plan


def test_a_search_gives_its_pairs_keyed_by_search() -> None:
    """The trainer finds all pairs of a search in one partition."""
    pairs, plan = run(records([joined("s1")]))
    assert [one.key for one in plan if isinstance(one, Emit)] == [b"s1"]
    assert (pairs.progress().counts.paired, pairs.progress().pairs) == (1, 1)


def test_a_repeated_search_is_filtered_as_a_duplicate() -> None:
    """A join that was killed between output and progress writes a search twice; it is trained once."""
    pairs, plan = run(records([joined("s1"), joined("s2"), joined("s1")]))
    assert len(plan) == 2
    assert pairs.progress().counts.filtered == {"duplicate": 1}


def test_a_repeat_is_recognised_among_the_last_records_only() -> None:
    """Memory is bounded, by the log and not by the clock."""
    fillers = [joined(f"x{n}") for n in range(MEMORY)]
    inside, _ = run(records([joined("s1"), *fillers[1:], joined("s1")]))
    outside, _ = run(records([joined("s1"), *fillers, joined("s1")]))
    assert inside.progress().counts.filtered == {"duplicate": 1}
    assert outside.progress().counts.filtered == {}


def test_synthetic_and_refused_searches_are_filtered_and_remembered() -> None:
    """What must not be learned from is counted with its reason."""
    pairs, plan = run(records([joined("s1", synthetic=True), joined("s2", consent="denied"), joined("s2")]))
    assert plan == []
    assert pairs.progress().counts.filtered == {"synthetic": 1, "consent": 1, "duplicate": 1}


def test_what_is_no_joined_search_is_a_dead_letter() -> None:
    """Somebody else wrote to the topic: set aside, counted, and the next search is paired."""
    pairs, plan = run(records([b"junk", joined("s1")]))
    assert isinstance(plan[0], SetAside)
    assert (plan[0].outcome, plan[0].reason) == (EventOutcome.DEAD_LETTERED, "malformed_json")
    assert (pairs.progress().counts.dead_lettered, pairs.progress().counts.paired) == (1, 1)


def test_the_hold_is_as_far_back_as_the_memory() -> None:
    """A restart reads again what it needs to recognise repeats, and no more."""
    pairs, _ = run(records([joined(f"s{n}") for n in range(12)]))
    assert (pairs.progress().hold_offset, pairs.progress().next_offset) == (12 - MEMORY, 12)


values = st.one_of(
    st.integers(0, 12).map(lambda n: joined(f"s{n}")),
    st.integers(0, 12).map(lambda n: joined(f"s{n}", synthetic=True)),
    st.integers(0, 12).map(lambda n: joined(f"s{n}", slots=[])),
    st.just(b"junk"),
)


@given(log=st.lists(values, max_size=40), stop=st.integers(0, 40))
def test_a_restart_anywhere_changes_nothing(log: list[bytes], stop: int) -> None:
    """A process that starts from written progress decides as if it had never stopped, and counts nothing twice."""
    whole, expected = run(records(log))
    before, plan = run(records(log)[:stop])
    if log[:stop]:
        progress = before.progress()
        resumed = PartitionPairs(0, progress=progress, memory_records=MEMORY)
        after, rest = run(records(log)[progress.hold_offset :], resumed)
    else:
        after, rest = run(records(log))
    assert plan + rest == expected
    assert not log or after.progress() == whole.progress()


@given(log=st.lists(values, min_size=1, max_size=40))
def test_every_search_has_exactly_one_outcome(log: list[bytes]) -> None:
    """Paired, filtered, unpaired and dead letters sum to the records read."""
    pairs, _ = run(records(log))
    counts = pairs.progress().counts
    total = counts.paired + counts.dead_lettered + sum(counts.filtered.values()) + sum(counts.unpaired.values())
    assert total == len(log) == pairs.progress().next_offset
