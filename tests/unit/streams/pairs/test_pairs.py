"""The pairs agent's state: repeats and reloads are recognised, all is counted once, a restart changes nothing."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.base import YEAR_2100_MS
from contracts.joined import CLOSING_NUMBER_HEADER, MAX_CLOSING_NUMBER, REMEMBERED_JOINS, ClosingNumber
from contracts.progress import PairsProgress
from contracts.telemetry import EventOutcome
from contracts.topics import PREFERENCE_PAIRS
from contracts.wire import encode
from streams.agents.spec import Emit, Plan, SetAside
from streams.pairs import recent_lists
from streams.pairs.partition_pairs import PartitionPairs
from streams.pairs.recent_lists import REMEMBERED_MS
from tests.support.lines import Lines
from tests.support.search_events import T0, Record

Written = tuple[bytes, ClosingNumber | None]
"""A record of the log: its value, and its closing number unless somebody else wrote it."""


WRITTEN_MS = T0 + 10 * REMEMBERED_MS
"""When the lists of these tests were written: after they closed."""


def joined(search_id: str, **fields: Any) -> bytes:
    """Return a joined search with one click below a skip."""
    slots = [{"product_id": "a", "position": 1}, {"product_id": "b", "position": 2, "clicked": True}]
    message = {"search_id": search_id, "search_time": T0, "closed_at": T0 + 1, "query": "q", "slots": slots}
    return orjson.dumps({**message, **fields})


def records(values: list[bytes]) -> list[Record]:
    """Return values as a log that one join wrote, each search for the first time."""
    return log_of([(value, ClosingNumber("0-0", number)) for number, value in enumerate(values, start=1)])


def log_of(written: Sequence[Written]) -> list[Record]:
    """Return what was written as a log."""
    return [
        Record(offset, WRITTEN_MS, value, headers=[(CLOSING_NUMBER_HEADER, number.encode())] if number else [])
        for offset, (value, number) in enumerate(written)
    ]


def run(log: list[Record], pairs: PartitionPairs | None = None) -> tuple[PartitionPairs, Plan]:
    """Feed a log to a partition's state."""
    pairs = pairs or PartitionPairs(0)
    plan: Plan = []
    for record in log:
        pairs.take(record, plan)
    return pairs, plan


def pairs_in(plan: Plan) -> list[Emit]:
    """Return what a plan writes to `preference-pairs`."""
    return [one for one in plan if isinstance(one, Emit) and one.topic == PREFERENCE_PAIRS]


def test_a_search_gives_its_pairs_keyed_by_search() -> None:
    """The trainer finds all pairs of a search in one partition."""
    pairs, plan = run(records([joined("s1")]))
    assert [one.key for one in pairs_in(plan)] == [b"s1"]
    assert (pairs.progress().counts.paired, pairs.progress().pairs) == (1, 1)


def test_a_repeated_search_is_filtered_as_a_duplicate() -> None:
    """A join that was killed between output and progress writes its searches again; each is trained once."""
    one, two, three = ((joined(f"s{n}"), ClosingNumber("0-0", n)) for n in (1, 2, 3))
    pairs, plan = run(log_of([one, two, one, two, three]))
    assert [emitted.key for emitted in pairs_in(plan)] == [b"s1", b"s2", b"s3"]
    assert pairs.progress().counts.filtered == {"duplicate": 2}


def test_however_much_was_written_in_between_a_repeat_is_recognised() -> None:
    """An outage may close any number of searches at once; a kill in the middle of that repeats them all."""
    burst = [(joined(f"s{n}"), ClosingNumber("0-0", n)) for n in range(1, 8_001)]
    pairs, plan = run(log_of(burst + burst))
    assert (len(pairs_in(plan)), pairs.progress().counts.paired) == (8_000, 8_000)
    assert pairs.progress().counts.filtered == {"duplicate": 8_000}


def test_each_join_counts_by_itself() -> None:
    """The searches of a partition come from several joins, one of which began anew; none is taken for another's."""
    numbers = [ClosingNumber("0-0", 5), ClosingNumber("1-0", 5), ClosingNumber("0-0", 9), ClosingNumber("0-700", 1)]
    pairs, _ = run(log_of([(joined(f"s{n}"), number) for n, number in enumerate(numbers)]))
    assert pairs.progress().counts.paired == 4
    assert pairs.progress().turns == {"0-0": 9, "1-0": 5, "0-700": 1}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xffno number",
        b"0-0",
        b"0-0:",
        b":5",
        b"0-0:-1",
        b"0-0: 5",
        b"0-0:0",
        "0-0:٥".encode(),
        b"0-0:%d" % (MAX_CLOSING_NUMBER + 1),
        b"0-0:" + b"9" * 5_000,
        b"7" * 1_000_000 + b"-0:1",
        b"x" * 900_000,
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("name", [CLOSING_NUMBER_HEADER, "millrace.closed_at_ms", "anything"])
def test_whatever_a_header_holds_the_search_is_paired(name: str, value: bytes | None) -> None:
    """Anyone may write any header: what no join can have written is no repeat of anything, and travels no further."""
    odd = Record(0, T0, joined("s1"), headers=[(name, value)])  # type: ignore[list-item] # Kafka allows null
    pairs, plan = run([odd])
    assert pairs.progress().counts.paired == 1
    assert [emitted.headers for emitted in pairs_in(plan)] == [[]]
    assert len(encode(pairs.progress())) < 1_000


def test_the_time_of_closing_travels_on() -> None:
    """How long a click took to become a pair can be told from the pair alone."""
    record = Record(0, T0, joined("s1"), headers=[("millrace.closed_at_ms", b"1795196617000"), ("other", b"x")])
    _, plan = run([record])
    assert [one.headers for one in pairs_in(plan)] == [[("millrace.closed_at_ms", b"1795196617000")]]


def test_any_number_of_joins_takes_bounded_memory() -> None:
    """Names made up in headers push one another out, and progress stays a record that Kafka takes."""
    flood = [(joined(f"s{n}", slots=[]), ClosingNumber(f"0-{n}", 1)) for n in range(REMEMBERED_JOINS + 500)]
    pairs, _ = run(log_of(flood))
    assert len(pairs.progress().turns) == REMEMBERED_JOINS
    assert f"0-{REMEMBERED_JOINS + 499}" in pairs.progress().turns
    assert len(encode(pairs.progress())) < 100_000


def test_a_join_that_goes_on_is_not_pushed_out() -> None:
    """The join seen last is kept longest, however long ago it was seen first."""
    ours = [(joined(f"s{n}", slots=[]), ClosingNumber("1-0", n + 1)) for n in range(2)]
    flood = [(joined(f"x{n}", slots=[]), ClosingNumber(f"0-{n}", 1)) for n in range(REMEMBERED_JOINS - 1)]
    pairs, _ = run(log_of([ours[0], *flood, ours[1], (flood[0][0], ClosingNumber("0-99999", 1))]))
    assert pairs.progress().turns["1-0"] == 2


def again(search_id: str, *, after_ms: int = 60_000, clicked: str = "b", order: str = "ab") -> bytes:
    """Return a list shown again under its search id, later and perhaps in another order, with one click."""
    slots = [
        {"product_id": product, "position": position, **({"clicked": True} if product == clicked else {})}
        for position, product in enumerate(order, start=1)
    ]
    return joined(search_id, search_time=T0 + after_ms, closed_at=T0 + after_ms + 1, slots=slots)


def test_a_list_that_is_shown_again_makes_no_pair_twice() -> None:
    """What was chosen before does not count again, wherever it stands now and beside whatever else."""
    shown = [("cba", "b"), ("ba", "b"), ("cba", "c")]
    lists = [again("s1", after_ms=60_000 * n, order=order, clicked=one) for n, (order, one) in enumerate(shown, 1)]
    pairs, plan = run(log_of([(value, None) for value in [joined("s1"), *lists]]))
    made = [orjson.loads(one.value) for one in pairs_in(plan)]
    assert [(p["chosen"]["product_id"], p["rejected"]["product_id"], p["event_time"]) for p in made] == [
        ("b", "a", T0),
        ("c", "a", T0 + 180_000),
        ("c", "b", T0 + 180_000),
    ]
    assert pairs.progress().counts.filtered == {"reload": 2}
    assert (pairs.progress().counts.paired, pairs.progress().pairs) == (2, 3)


def test_a_search_that_was_written_by_another_join_too_is_a_duplicate() -> None:
    """The very same list, whose closing number tells nothing, is a repeat and not a reload."""
    pairs, _ = run(log_of([(joined("s1"), ClosingNumber("0-0", 9)), (joined("s1"), ClosingNumber("0-0-7", 1))]))
    assert pairs.progress().counts.filtered == {"duplicate": 1}


def test_lists_are_remembered_for_a_while_of_event_time() -> None:
    """Memory is bounded: long afterwards the same search id makes the pair again."""
    pairs, plan = run(log_of([(joined("s1"), None), (again("s1", after_ms=REMEMBERED_MS + 5), None)]))
    assert (len(pairs_in(plan)), pairs.progress().hold_offset) == (2, 1)


def test_so_many_lists_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of searches pushes out the oldest."""
    monkeypatch.setattr(recent_lists, "REMEMBERED_LISTS", 3)
    lists = [joined(f"s{n}") for n in range(4)]
    pairs, plan = run(log_of([(value, None) for value in [*lists, again("s1"), again("s0")]]))
    assert [one.key for one in pairs_in(plan)] == [b"s0", b"s1", b"s2", b"s3", b"s0"]
    assert pairs.progress().hold_offset == 3


@pytest.mark.parametrize("search_id", ["constant", "s{}"])
def test_a_list_costs_the_same_however_many_are_remembered(monkeypatch: pytest.MonkeyPatch, search_id: str) -> None:
    """Under one search id, as a site sends it whose ids are broken, or each under its own; also past the limit."""
    monkeypatch.setattr(recent_lists, "REMEMBERED_LISTS", 1_000)
    pairs, work = PartitionPairs(0), []
    log = log_of([(again(search_id.format(n), after_ms=n), None) for n in range(3_000)])
    for start in (0, 900, 2_900):
        run(log[pairs.next_offset if start else 0 : start], pairs)
        lines = Lines("streams/pairs")
        with lines.counted():
            run(log[start : start + 100], pairs)
        work.append(lines.count)
    assert max(work) < 1.5 * work[0]


@pytest.mark.parametrize("ahead_ms", [0, REMEMBERED_MS, 2 * REMEMBERED_MS])
def test_whatever_times_lists_carry_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, ahead_ms: int) -> None:
    """Event time that stands still, or a list so far ahead that all others are old, makes no memory grow."""
    monkeypatch.setattr(recent_lists, "REMEMBERED_LISTS", 10)
    lists = [again("ahead", after_ms=ahead_ms), *(again(f"s{n}", after_ms=0) for n in range(1_000))]
    pairs, _ = run(log_of([(value, None) for value in lists]))
    assert pairs.lists.size <= 10 * 10


def test_synthetic_and_refused_searches_are_filtered() -> None:
    """What must not be learned from is counted with its reason."""
    sorted_list = joined("s3", ranking={"sort": "price"})
    pairs, plan = run(records([joined("s1", synthetic=True), joined("s2", consent="denied"), sorted_list]))
    assert plan == []
    assert pairs.progress().counts.filtered == {"synthetic": 1, "consent": 1, "sorted": 1}


def test_what_is_no_joined_search_is_a_dead_letter() -> None:
    """Somebody else wrote to the topic: set aside, counted, and the next search is paired."""
    pairs, plan = run(records([b"junk", joined("s1")]))
    assert isinstance(plan[0], SetAside)
    assert (plan[0].outcome, plan[0].reason) == (EventOutcome.DEAD_LETTERED, "malformed_json")
    assert (pairs.progress().counts.dead_lettered, pairs.progress().counts.paired) == (1, 1)


def test_a_list_from_the_future_is_a_dead_letter_and_nothing_is_forgotten_for_it() -> None:
    """No join writes one; a restart that reads it again passes it over as well."""
    odd = joined("odd", search_time=YEAR_2100_MS - 1, closed_at=YEAR_2100_MS)
    log = records([joined("s1"), odd, joined("s1", search_time=T0 + 1), joined("s2")])
    pairs, plan = run(log[:2])
    assert [one.reason for one in plan if isinstance(one, SetAside)] == ["too_far_ahead"]
    again, _ = run(log, PartitionPairs(0, pairs.progress()))
    for one in (run(log)[0], again):
        counts = one.progress().counts
        assert (counts.dead_lettered, counts.paired, counts.filtered) == (1, 2, {"reload": 1})


def test_what_is_remembered_is_read_again_after_a_restart() -> None:
    """The log is held at the oldest list that is remembered; where there is none, at the position."""
    pairs, _ = run(records([joined(f"s{n}", synthetic=True) for n in range(12)]))
    assert (pairs.progress().hold_offset, pairs.progress().next_offset) == (12, 12)
    pairs, _ = run(records([joined("s0", synthetic=True), joined("s1", slots=[]), joined("s2")]))
    assert (pairs.progress().hold_offset, pairs.progress().next_offset) == (1, 3)


values = st.one_of(
    st.integers(1, 12).map(lambda n: (joined(f"s{n}"), ClosingNumber("0-0", n))),
    st.integers(1, 12).map(lambda n: (joined(f"s{n}", synthetic=True), ClosingNumber("1-0", n))),
    st.integers(1, 12).map(lambda n: (joined(f"s{n}", slots=[]), None)),
    st.builds(
        lambda n, minutes, order: (again(f"s{n}", after_ms=minutes * 60_000, order=order), None),
        st.integers(1, 4),
        st.integers(0, 40),
        st.sampled_from(["ab", "ba", "cab", "cbad"]),
    ),
    st.builds(lambda n: (again(f"s{n}", order="bca", clicked="c"), ClosingNumber("2-0", n)), st.integers(1, 4)),
    st.just((b"junk", None)),
)


@given(log=st.lists(values, min_size=1, max_size=40), stops=st.lists(st.integers(1, 40), max_size=3))
@settings(max_examples=300)
def test_a_restart_anywhere_changes_nothing(log: list[Written], stops: list[int]) -> None:
    """A process that starts from written progress decides as if it had never stopped, and counts nothing twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_lists, "REMEMBERED_LISTS", 5)
        whole, expected = run(log_of(log))
        pairs, made = PartitionPairs(0), Plan()
        read_from = 0
        for stop in sorted(min(stop, len(log)) for stop in stops):
            _, plan = run(log_of(log)[read_from:stop], pairs)
            made += plan
            progress = PairsProgress.model_validate_json(encode(pairs.progress()))
            read_from, pairs = progress.hold_offset, PartitionPairs(0, progress)
        _, plan = run(log_of(log)[read_from:], pairs)
    assert made + plan == expected
    assert pairs.progress() == whole.progress()


@given(log=st.lists(values, min_size=1, max_size=40))
def test_every_search_has_exactly_one_outcome(log: list[Written]) -> None:
    """Paired, filtered, unpaired and dead letters sum to the records read."""
    pairs, _ = run(log_of(log))
    counts = pairs.progress().counts
    total = counts.paired + counts.dead_lettered + sum(counts.filtered.values()) + sum(counts.unpaired.values())
    assert total == len(log) == pairs.progress().next_offset
