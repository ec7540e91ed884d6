"""When versions are published: not before there is evidence, not twice, ahead of the lists that they weigh."""

from typing import Any

import pytest

from contracts.base import YEAR_2100_MS
from contracts.events import FUTURE_TOLERANCE_MS
from contracts.outcomes import Cell
from contracts.propensities import CellPropensities
from contracts.topics import DAY_MS
from streams.propensity import publishing
from streams.propensity.estimate import Estimate, estimate
from streams.propensity.evidence import GROUPS, UNIT, CellSums
from streams.propensity.partition_propensity import CellProgress, PropensityProgress
from streams.propensity.publishing import KEPT_MS, LEAD_MS, due_versions, outdated
from tests.support.search_events import T0

CELL = Cell("search", "mobile")
INTERVAL_MS = 300_000


def progress(
    partition: int = 0, *, lists: int = 400, clicks: int = 200, closed_ms: int = T0, written_ms: int = T0
) -> PropensityProgress:
    """Return a partition's progress with so many swapped lists and clicks on the first two positions."""
    sums = tuple([UNIT * clicks // (2 * GROUPS)] * (2 * GROUPS))
    return PropensityProgress(
        partition=partition,
        next_offset=9,
        hold_offset=0,
        newest_closed_ms=closed_ms,
        newest_append_ms=written_ms,
        cells={CELL.key: CellProgress(lists=lists, clicks={"swap 1 2": sums})},
    )


def due(
    *progresses: PropensityProgress, last: CellPropensities | None = None, now_ms: int = T0
) -> list[CellPropensities]:
    """Return the versions that are due."""
    by_partition = {one.partition: one for one in progresses}
    newest = {} if last is None else {last.cell: last}
    return due_versions(by_partition, newest, now_ms=now_ms, interval_ms=INTERVAL_MS)


def first(**fields: Any) -> CellPropensities:
    """Return the first version of the cell."""
    (version,) = due(progress(**fields))
    return version


def test_the_sums_of_all_partitions_make_a_version() -> None:
    """Each of two partitions ties no position by itself, both together do."""
    parts = progress(0, clicks=60), progress(1, clicks=60)
    assert [due(one) for one in parts] == [[], []]
    (version,) = due(*parts)
    assert (version.cell, version.version, version.lists) == (CELL, 1, 800)
    assert version.swap_clicks == pytest.approx(120, abs=0.01)
    assert [slot.prior_only for slot in version.slots[:3]] == [False, False, True]


def test_before_the_first_list_nothing_is_published() -> None:
    """Neither without progress nor with one of a partition that saw no list."""
    assert due() == []
    assert due(PropensityProgress(partition=0, next_offset=0, hold_offset=0)) == []


def test_a_version_holds_a_minute_after_the_newest_list() -> None:
    """Every reader has it before the first list that it weighs closes."""
    assert first().effective_from == T0 + LEAD_MS


def test_time_that_passed_since_the_newest_list_was_written_counts() -> None:
    """An agent that lags behind must not let a version begin where others have weighed lists already."""
    (version,) = due(progress(closed_ms=T0, written_ms=T0 + 5_000), now_ms=T0 + 90_000)
    assert version.effective_from == T0 + 85_000 + LEAD_MS
    assert due(progress(written_ms=T0 + 9_000), now_ms=T0)[0].effective_from == T0 + LEAD_MS


def test_another_version_is_due_after_an_interval_with_evidence() -> None:
    """Versions rise by one; too soon, or without a new list, there is none."""
    last = first()
    later = T0 + INTERVAL_MS
    assert due(progress(lists=500, closed_ms=later - 1), last=last) == []
    assert due(progress(lists=400, closed_ms=later), last=last) == []
    (version,) = due(progress(lists=500, closed_ms=later, written_ms=later), last=last, now_ms=later)
    assert (version.version, version.effective_from) == (2, later + LEAD_MS)


def test_a_cell_that_came_back_takes_nothing_from_its_last_version() -> None:
    """What was estimated well is in force until the new sums are tied too, and have more lists than it had."""
    last, later = first(), T0 + 2 * INTERVAL_MS
    for lists, clicks in ((1, 1), (300, 200), (500, 1)):
        assert due(progress(lists=lists, clicks=clicks, closed_ms=later), last=last) == []
    assert [one.version for one in due(progress(lists=500, closed_ms=later), last=last)] == [2]


def test_a_list_from_the_future_holds_up_no_version() -> None:
    """Whoever wrote it: versions begin by the clock, a few minutes after it, and those before them stay."""
    odd = progress(1, lists=1, clicks=0, closed_ms=YEAR_2100_MS, written_ms=T0)
    (last,) = due(progress(), odd)
    later = T0 + INTERVAL_MS
    (version,) = due(progress(lists=500, closed_ms=later, written_ms=later), odd, last=last, now_ms=later)
    for one, now_ms in ((last, T0), (version, later)):
        assert one.effective_from == now_ms + FUTURE_TOLERANCE_MS + LEAD_MS
        assert one.estimated_at == now_ms + FUTURE_TOLERANCE_MS


def test_time_goes_on_while_no_list_comes() -> None:
    """What came with the last lists of an evening is published after an interval, not the next morning."""
    last, late = first(), progress(lists=500)
    assert due(late, last=last, now_ms=T0 + INTERVAL_MS - 1) == []
    assert [one.version for one in due(late, last=last, now_ms=T0 + INTERVAL_MS)] == [2]


def test_however_many_cells_there_are_a_look_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without enough clicks are not estimated, and of the others the longest overdue come first."""
    estimated: list[Cell] = []

    def noted(cell: Cell, sums: CellSums) -> Estimate:
        """Note what is estimated."""
        estimated.append(cell)
        return estimate(cell, sums)

    monkeypatch.setattr(publishing, "estimate", noted)
    monkeypatch.setattr(publishing, "MOST_AT_ONCE", 2)
    known = progress().cells[CELL.key]
    names = [Cell("search", f"device {number}") for number in range(5)]
    few = {Cell("search", f"few {number}").key: CellProgress(lists=3) for number in range(9)}
    whole = progress().model_copy(update={"cells": {**few, **{cell.key: known for cell in names}}})
    newest: dict[Cell, CellPropensities] = {}
    for number in range(3):
        made = due_versions({0: whole}, newest, now_ms=T0 + number, interval_ms=INTERVAL_MS)
        newest |= {one.cell: one for one in made}
    assert estimated == names
    later = T0 + 2 * INTERVAL_MS
    more = {cell.key: known.model_copy(update={"lists": 500}) for cell in names}
    again = whole.model_copy(update={"cells": more})
    made = due_versions({0: again}, newest, now_ms=later, interval_ms=INTERVAL_MS)
    assert [one.cell for one in made] == names[:2]


def test_versions_that_weigh_no_list_that_is_kept_are_outdated() -> None:
    """The one in force at the oldest list stays, and so does every later one, in each cell."""
    mine = [first().model_copy(update={"version": n, "effective_from": T0 + n * DAY_MS}) for n in (1, 2, 3)]
    other = first().model_copy(update={"device": "desktop"})
    names = [one.name for one in (*mine, other)]
    gone = [(one.cell.device, one.version) for one in outdated(names, seen_ms=T0 + 2 * DAY_MS + KEPT_MS + 1)]
    assert gone == [("mobile", 1)]
    assert list(outdated(names[:3], seen_ms=T0 + 2 * DAY_MS + KEPT_MS)) == []
