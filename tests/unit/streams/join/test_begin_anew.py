"""A join that begins anew, and what becomes of its closed searches. Window 3,000 ms, lateness 1,000 ms."""

from collections.abc import Iterable

from streams.agents.spec import Emit, Plan
from streams.join.partition_join import PartitionJoin
from streams.pairs.partition_pairs import PairsOptions, PartitionPairs
from tests.support.search_events import T0, Record, click, impression, log, tick

TOPIC_IDS = ("09f6b6d4-0d5c-4b0a-9b43-5f1f2a0c8a11", "3a5cf1de-7c34-4f5e-8f0e-1d2c3b4a5968")


def closed(searches: Iterable[str], begun_in: str | None) -> list[Emit]:
    """Return what a join writes that reads a whole log with these searches and has no progress."""
    join, plan = PartitionJoin(0, window_ms=3_000, lateness_ms=1_000), Plan()
    join.begun_in = begun_in
    lists = [(impression(name, n), click("b", n + 1, name, n)) for n, name in enumerate(searches)]
    for record in log([*(event for pair in lists for event in pair), tick(8_000)]):
        join.take(record, plan)
    return [one for one in plan if isinstance(one, Emit)]


def paired(written: Iterable[Emit]) -> tuple[list[str], dict[str, int]]:
    """Return the searches that the pairs agent pairs, in order, and how many it filters, by reason."""
    pairs, plan = PartitionPairs(0, options=PairsOptions(filters=frozenset())), Plan()
    for offset, one in enumerate(written):
        pairs.take(Record(offset, T0, one.value, one.key, one.headers), plan)
    names = dict.fromkeys(one.key.decode() for one in plan if isinstance(one, Emit))
    return list(names), pairs.progress().counts.filtered


def test_after_a_log_lost_its_end_and_the_progress_was_deleted_new_searches_are_paired() -> None:
    """The join begins at the same record as before and counts anew: its numbers are not taken for those before."""
    kept, lost, new = ["s1", "s2"], ["lost1", "lost2", "lost3", "lost4"], ["n1", "n2", "n3", "n4"]
    written = closed([*kept, *lost], TOPIC_IDS[0]) + closed([*kept, *new], TOPIC_IDS[1])
    assert paired(written) == ([*kept, *lost, *new], {"duplicate": 2})


def test_a_join_killed_before_its_first_progress_repeats_under_the_same_numbers() -> None:
    """Nothing of it is written down but its outputs, and still the second start is known to be the same join."""
    searches = [f"s{n}" for n in range(6)]
    for begun_in in (*TOPIC_IDS, None):
        once, again = closed(searches, begun_in), closed(searches, begun_in)
        assert [one.headers for one in once] == [one.headers for one in again]
        assert paired(once + again) == (searches, {"duplicate": 6})
