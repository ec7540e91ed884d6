"""The pairs agent's state: repeats are recognised, every search is counted once, a restart changes nothing."""

from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from contracts.telemetry import EventOutcome
from streams.agents.outputs import TURN_HEADER, Emit, Plan, SetAside, Turn
from streams.pairs.partition_pairs import PartitionPairs
from tests.support.search_events import T0, Record

Written = tuple[bytes, Turn | None]
"""A record of the log: its value, and its turn unless somebody else wrote it."""


def joined(search_id: str, **fields: Any) -> bytes:
    """Return a joined search with one click below a skip."""
    slots = [{"product_id": "a", "position": 1}, {"product_id": "b", "position": 2, "clicked": True}]
    message = {"search_id": search_id, "search_time": T0, "closed_at": T0 + 1, "query": "q", "slots": slots}
    return orjson.dumps({**message, **fields})


def records(values: list[bytes]) -> list[Record]:
    """Return values as a log that one join wrote, each search for the first time."""
    return log_of([(value, Turn("0-0", number)) for number, value in enumerate(values, start=1)])


def log_of(written: Sequence[Written]) -> list[Record]:
    """Return what was written as a log."""
    return [
        Record(offset, T0, value, headers=[(TURN_HEADER, turn.encode())] if turn else [])
        for offset, (value, turn) in enumerate(written)
    ]


def run(log: list[Record], pairs: PartitionPairs | None = None) -> tuple[PartitionPairs, Plan]:
    """Feed a log to a partition's state."""
    pairs, plan = pairs or PartitionPairs(0), Plan()
    for record in log:
        pairs.take(record, plan)
    return pairs, plan


def test_a_search_gives_its_pairs_keyed_by_search() -> None:
    """The trainer finds all pairs of a search in one partition."""
    pairs, plan = run(records([joined("s1")]))
    assert [one.key for one in plan if isinstance(one, Emit)] == [b"s1"]
    assert (pairs.progress().counts.paired, pairs.progress().pairs) == (1, 1)


def test_a_repeated_search_is_filtered_as_a_duplicate() -> None:
    """A join that was killed between output and progress writes its searches again; each is trained once."""
    one, two, three = ((joined(f"s{n}"), Turn("0-0", n)) for n in (1, 2, 3))
    pairs, plan = run(log_of([one, two, one, two, three]))
    assert [emitted.key for emitted in plan if isinstance(emitted, Emit)] == [b"s1", b"s2", b"s3"]
    assert pairs.progress().counts.filtered == {"duplicate": 2}


def test_however_much_was_written_in_between_a_repeat_is_recognised() -> None:
    """An outage may close any number of searches at once; a kill in the middle of that repeats them all."""
    burst = [(joined(f"s{n}"), Turn("0-0", n)) for n in range(1, 8_001)]
    pairs, plan = run(log_of(burst + burst))
    assert (len(plan), pairs.progress().counts.paired) == (8_000, 8_000)
    assert pairs.progress().counts.filtered == {"duplicate": 8_000}


def test_each_join_counts_by_itself() -> None:
    """The searches of a partition come from several joins, one of which began anew; none is taken for another's."""
    turns = [Turn("0-0", 5), Turn("1-0", 5), Turn("0-0", 9), Turn("0-700", 1)]
    pairs, _ = run(log_of([(joined(f"s{n}"), turn) for n, turn in enumerate(turns)]))
    assert pairs.progress().counts.paired == 4
    assert pairs.progress().turns == {"0-0": 9, "1-0": 5, "0-700": 1}


def test_what_somebody_else_wrote_is_paired_as_it_stands() -> None:
    """A record without a turn, or with one that cannot be read, is no repeat of anything."""
    foreign: list[Written] = [(joined("s1"), None), (joined("s2"), None)]
    odd = Record(2, T0, joined("s3"), headers=[(TURN_HEADER, b"\xffno turn")])
    pairs, _ = run([*log_of(foreign), odd])
    assert pairs.progress().counts.paired == 3


def test_synthetic_and_refused_searches_are_filtered() -> None:
    """What must not be learned from is counted with its reason."""
    pairs, plan = run(records([joined("s1", synthetic=True), joined("s2", consent="denied")]))
    assert plan == []
    assert pairs.progress().counts.filtered == {"synthetic": 1, "consent": 1}


def test_what_is_no_joined_search_is_a_dead_letter() -> None:
    """Somebody else wrote to the topic: set aside, counted, and the next search is paired."""
    pairs, plan = run(records([b"junk", joined("s1")]))
    assert isinstance(plan[0], SetAside)
    assert (plan[0].outcome, plan[0].reason) == (EventOutcome.DEAD_LETTERED, "malformed_json")
    assert (pairs.progress().counts.dead_lettered, pairs.progress().counts.paired) == (1, 1)


def test_nothing_is_read_again_after_a_restart() -> None:
    """The turns seen stand in the progress, so the commit may follow the position at once."""
    pairs, _ = run(records([joined(f"s{n}") for n in range(12)]))
    assert (pairs.progress().hold_offset, pairs.progress().next_offset) == (12, 12)


values = st.one_of(
    st.integers(1, 12).map(lambda n: (joined(f"s{n}"), Turn("0-0", n))),
    st.integers(1, 12).map(lambda n: (joined(f"s{n}", synthetic=True), Turn("1-0", n))),
    st.integers(1, 12).map(lambda n: (joined(f"s{n}", slots=[]), None)),
    st.just((b"junk", None)),
)


@given(log=st.lists(values, max_size=40), stop=st.integers(0, 40))
def test_a_restart_anywhere_changes_nothing(log: list[Written], stop: int) -> None:
    """A process that starts from written progress decides as if it had never stopped, and counts nothing twice."""
    whole, expected = run(log_of(log))
    before, plan = run(log_of(log)[:stop])
    if log[:stop]:
        progress = before.progress()
        resumed = PartitionPairs(0, progress=progress)
        after, rest = run(log_of(log)[progress.hold_offset :], resumed)
    else:
        after, rest = run(log_of(log))
    assert plan + rest == expected
    assert not log or after.progress() == whole.progress()


@given(log=st.lists(values, min_size=1, max_size=40))
def test_every_search_has_exactly_one_outcome(log: list[Written]) -> None:
    """Paired, filtered, unpaired and dead letters sum to the records read."""
    pairs, _ = run(log_of(log))
    counts = pairs.progress().counts
    total = counts.paired + counts.dead_lettered + sum(counts.filtered.values()) + sum(counts.unpaired.values())
    assert total == len(log) == pairs.progress().next_offset
