"""A partition's evidence: each list once, whatever is killed; what is no evidence is said; blocks of the log."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.joined import CLOSING_NUMBER_HEADER, WATERMARK_HEADER, ClosedWatermark, ClosingNumber
from contracts.outcomes import Cell
from contracts.structs import JOINED_SEARCH, encode
from contracts.telemetry import NoEvidenceReason
from contracts.wire import encode as encode_message
from streams.propensity import partition_propensity
from streams.propensity.partition_propensity import PartitionPropensity, PropensityProgress, all_sums
from tests.support.position_log import PositionShop
from tests.support.search_events import T0, Record

HALF_LIFE_LISTS = 50.0
SWAP = {"arm": "live", "exploration": {"policy": "swap", "seed": 4}}


def joined(ranking: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """Return a joined search that shows two products, the first one clicked."""
    slots = [{"product_id": "a", "position": 1, "clicked": True}, {"product_id": "b", "position": 2}]
    base = {"search_id": "s1", "search_time": T0, "closed_at": T0 + 1, "query": "q", "slots": slots}
    return orjson.dumps({**base, "ranking": SWAP if ranking is None else ranking, **fields})


def log_of(values: Sequence[bytes], numbers: Sequence[int] = ()) -> list[Record]:
    """Return values as a log, each with the closing number of one join, if there are such."""
    headers = [[(CLOSING_NUMBER_HEADER, ClosingNumber("0-0", number).encode())] for number in numbers]
    return [
        Record(offset, T0, value, headers=headers[offset] if headers else []) for offset, value in enumerate(values)
    ]


def shop_log(lists: int = 300) -> list[Record]:
    """Return the log of a shop that explores in every list, some of them written twice, one of them no list."""
    values = [
        encode(search) for search in PositionShop([1, 0.6, 0.4], swapped=0.4, anchored=0.6, queries=5).lists(lists)
    ]
    numbers = list(range(1, lists + 1))
    repeated = slice(lists // 3, lists // 2)
    values[lists // 2 : lists // 2] = values[repeated]
    numbers[lists // 2 : lists // 2] = numbers[repeated]
    return log_of([*values, b"no list"], [*numbers, lists + 1])


LOG = shop_log()


def feed(log: Sequence[Record], rules: PartitionPropensity | None = None) -> PartitionPropensity:
    """Feed a log to a partition's rules."""
    rules = rules or PartitionPropensity(0, half_life_lists=HALF_LIFE_LISTS)
    for record in log:
        rules.take(record, [])
    return rules


def restarted(rules: PartitionPropensity, log: Sequence[Record]) -> PartitionPropensity:
    """Return new rules that went through the wire and read again what they must."""
    progress = PropensityProgress.model_validate_json(encode_message(rules.progress()))
    again = PartitionPropensity(0, half_life_lists=HALF_LIFE_LISTS, past=progress)
    return feed(log[progress.hold_offset : progress.next_offset], again)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks end within the log."""
    monkeypatch.setattr(partition_propensity, "BLOCK_LISTS", 70)


@pytest.mark.usefixtures("short_blocks")
def test_a_restart_anywhere_gives_the_same_sums() -> None:
    """Killed after any record, and again and again: progress is the same, number by number."""
    whole = feed(LOG).progress()
    assert whole.counts["counted"] == 300
    for step in (1, 7, 69, 70, 71, 200):
        rules = feed(LOG[:step])
        for begin in range(step, len(LOG), step):
            rules = feed(LOG[begin : begin + step], restarted(rules, LOG))
        assert rules.progress() == whole


@pytest.mark.usefixtures("short_blocks")
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_progress_that_was_not_written_repeats_nothing(data: st.DataObject) -> None:
    """A kill after records were taken and before progress was written: whoever goes on takes them again, once."""
    rules = feed([])
    begin = 0
    while begin < len(LOG):
        written = begin + data.draw(st.integers(1, 150))
        rules = feed(LOG[begin:written], rules)
        lost = restarted(rules, LOG)
        feed(LOG[written : written + 20], rules)
        rules, begin = lost, written
    assert rules.progress() == feed(LOG).progress()


def test_a_restart_decodes_no_watermark_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of a quiet shop's log, and a decoder would only refuse them."""
    mark = [(WATERMARK_HEADER, ClosedWatermark(0, T0, idle=True).encode())]
    log = [Record(0, T0, joined()), *(Record(offset, T0, b"no list", headers=mark) for offset in range(1, 4))]
    rules, decoded = feed(log), []

    def decode(value: bytes) -> Any:
        """Note what is decoded."""
        decoded.append(value)
        return JOINED_SEARCH.decode(value)

    monkeypatch.setattr(partition_propensity, "JOINED_SEARCH", SimpleNamespace(decode=decode))
    assert restarted(rules, log).progress() == rules.progress()
    assert decoded == [log[0].value]


def test_a_repeated_list_counts_once() -> None:
    """A join that was killed between output and progress writes its lists again."""
    rules = feed(log_of([joined(), joined(), joined()], [1, 1, 2]))
    assert rules.progress().counts == {"counted": 2, "left/duplicate": 1}
    assert rules.cells[Cell()].lists == 2


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (joined(), "counted"),
        (joined({"ranker": "shop", "query_release": 3}), "counted"),
        (joined({"arm": "anchor", "exploration": {"policy": "jitter", "seed": 1}}), "counted"),
        (joined(synthetic=True), f"left/{NoEvidenceReason.FILTERED}"),
        (joined(consent="denied"), f"left/{NoEvidenceReason.FILTERED}"),
        (joined({**SWAP, "sort": "price"}), f"left/{NoEvidenceReason.FILTERED}"),
        (joined({"arm": "live"}), f"left/{NoEvidenceReason.NOT_EXPLORED}"),
        (joined({**SWAP, "exploration": {"policy": "swap", "seed": 5}}), f"left/{NoEvidenceReason.NO_PAIR}"),
        (joined(page=2), f"left/{NoEvidenceReason.NO_PAIR}"),
        (joined(slots=[]), f"left/{NoEvidenceReason.NO_PAIR}"),
        (b"{}", "dead_lettered"),
    ],
)
def test_each_list_has_an_outcome(value: bytes, outcome: str) -> None:
    """What is no evidence is counted with its reason, and nothing of it is in the sums."""
    rules = feed(log_of([value]))
    assert rules.progress().counts == {outcome: 1}
    assert sum(sums.lists for sums in rules.cells.values()) == (outcome == "counted")


def test_new_cells_beyond_the_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of layouts are the shop's: however many there are, memory and progress have an end."""
    monkeypatch.setattr(partition_propensity, "MOST_CELLS", 2)
    rules = feed(log_of([joined(layout=name) for name in ("list", "grid", "tiles", "grid")]))
    assert rules.progress().counts == {"counted": 3, f"left/{NoEvidenceReason.TOO_MANY_CELLS}": 1}
    assert [(cell.layout, sums.lists) for cell, sums in rules.cells.items()] == [("list", 1), ("grid", 2)]


def test_a_cell_that_nobody_uses_any_more_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of an experiment that is over hold no place for good: with no room left, a block without a list ends it.

    A restart between the drop and the return changes nothing; who comes back begins anew.
    """
    monkeypatch.setattr(partition_propensity, "MOST_CELLS", 2)
    monkeypatch.setattr(partition_propensity, "BLOCK_LISTS", 4)
    layouts = ["old", *["list"] * 8, "new", "new"]
    rules = feed(log_of([joined(layout=name) for name in layouts]))
    assert [(cell.layout, sums.lists) for cell, sums in rules.cells.items()] == [("list", 8), ("new", 2)]
    log = log_of([joined(layout=name) for name in [*layouts, *["new"] * 8, "old"]])
    for end in range(1, len(log)):
        past = PropensityProgress.model_validate_json(feed(log[:end]).progress().model_dump_json())
        gone_on = feed(log, PartitionPropensity(0, half_life_lists=HALF_LIFE_LISTS, past=past))
        assert {cell.layout: sums.lists for cell, sums in gone_on.cells.items()} == {"new": 10, "old": 1}
        assert gone_on.progress() == feed(log).progress()
    assert feed(log_of([joined(layout=name) for name in layouts if name != "new"])).progress().cells.keys() == {
        Cell(layout="list").key
    }
    monkeypatch.setattr(partition_propensity, "MOST_CELLS", 3)
    assert len(feed(log_of([joined(layout=name) for name in layouts])).cells) == 3


@pytest.mark.parametrize("bound", ["BLOCK_LISTS", "BLOCK_RECORDS", "BLOCK_PRODUCTS", "BLOCK_MS"])
def test_a_block_ends_by_records_by_products_and_by_time(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart must read again, what is remembered, and for how long: each has an end."""
    small = {"BLOCK_LISTS": 100, "BLOCK_RECORDS": 100, "BLOCK_PRODUCTS": 20, "BLOCK_MS": 100_000}
    assert feed(LOG).progress().hold_offset == 0
    monkeypatch.setattr(partition_propensity, bound, small[bound])
    assert feed(LOG).progress().hold_offset > 0


def test_what_a_block_summed_up_fades_by_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a block of as many lists as a half-life, its clicks count half."""
    monkeypatch.setattr(partition_propensity, "BLOCK_LISTS", 50)
    rules = feed(log_of([joined() for _ in range(50)]))
    assert rules.cells[Cell()].clicks["swap", 1, 2][0:16] != [0] * 16
    clicks = sum(rules.cells[Cell()].clicks["swap", 1, 2])
    rules.take(Record(50, T0, joined(slots=[])), [])
    assert sum(rules.cells[Cell()].clicks["swap", 1, 2]) == clicks / 2


def test_partitions_add_up_to_one() -> None:
    """Swaps of lists in two partitions sum to what one partition with all of them has."""
    lists = [joined(layout=name) for name in ("list", "grid", "list")]
    parts = {0: feed(log_of(lists[:1])).progress(), 1: feed(log_of(lists[1:])).progress()}
    added, whole = all_sums(parts), feed(log_of(lists)).cells
    assert {cell: (sums.lists, sums.clicks) for cell, sums in added.items()} == {
        cell: (sums.lists, sums.clicks) for cell, sums in whole.items()
    }
