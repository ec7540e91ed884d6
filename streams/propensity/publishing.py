"""When a version of propensities is due, from when on it holds, and which ones nobody can need any more.

The topic itself says what was published: whoever owns partition 0 reads it, so neither a kill nor a hand-over repeats a
version or leaves one out.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final

from contracts.events import FUTURE_TOLERANCE_MS
from contracts.outcomes import Cell
from contracts.propensities import CellPropensities, VersionName
from contracts.topics import DAY_MS
from streams.propensity.estimate import estimate, is_tied
from streams.propensity.evidence import UNIT, CellSums
from streams.propensity.partition_propensity import PropensityProgress, all_sums

LEAD_MS: Final = 60_000
"""How far ahead of the newest list a version begins to hold: until then every reader has it."""
MOST_AT_ONCE: Final = 30
"""Versions at a look, some seconds of work; the others follow at the next one."""
KEPT_MS: Final = 15 * DAY_MS
"""How long versions stay: a day longer than the lists that are weighed by them."""


def due_versions(
    progresses: Mapping[int, PropensityProgress],
    newest: Mapping[Cell, CellPropensities],
    *,
    now_ms: int,
    interval_ms: int,
) -> list[CellPropensities]:
    """Return the versions to publish now.

    A cell gets one once a position is tied to the first, and another after an interval of event time if more lists gave
    evidence; the longest overdue come first. Event time goes on while no list comes, so the last lists of an evening
    are not left out. Of a cell that made room and came back the last version stays, until more lists than it was made
    of tell better.

    Args:
        progresses: partition -> its newest progress.
        newest: cell -> the last version published.
        now_ms: the wall clock.
        interval_ms: shortest event time between two.
    """
    latest_ms = now_ms + FUTURE_TOLERANCE_MS  # a list that closes later than that was written by nobody's join
    seen_ms = min(latest_ms, max((one.newest_closed_ms for one in progresses.values()), default=-1))
    if seen_ms < 0:
        return []
    from_ms = LEAD_MS + min(latest_ms, max(_event_time(one, now_ms) for one in progresses.values()))
    due: list[tuple[int, Cell, CellSums]] = []
    for cell, sums in all_sums(progresses).items():
        last = newest.get(cell)
        if last is not None and (sums.lists <= last.lists or from_ms < last.effective_from + interval_ms):
            continue
        if is_tied(sums):
            due.append((-1 if last is None else last.effective_from, cell, sums))
    return [
        _version(cell, sums, newest.get(cell), seen_ms=seen_ms, from_ms=from_ms)
        for _, cell, sums in sorted(due)[:MOST_AT_ONCE]
    ]


def outdated(versions: Iterable[VersionName], *, seen_ms: int) -> Iterator[VersionName]:
    """Yield the versions that no list which Kafka still has is weighed by.

    Args:
        versions: all that the topic holds.
        seen_ms: newest event time seen.
    """
    by_cell: dict[Cell, list[VersionName]] = {}
    for version in sorted(versions, key=lambda one: (one.effective_from, one.version)):
        by_cell.setdefault(version.cell, []).append(version)
    for of_cell in by_cell.values():
        yield from (one for one, following in pairwise(of_cell) if following.effective_from < seen_ms - KEPT_MS)


def _event_time(progress: PropensityProgress, now_ms: int) -> int:
    """Return the event time by now: what happened since the newest list was written, this agent has not read yet."""
    if progress.newest_closed_ms < 0:
        return -1
    return progress.newest_closed_ms + max(0, now_ms - progress.newest_append_ms)


def _version(
    cell: Cell, sums: CellSums, last: CellPropensities | None, *, seen_ms: int, from_ms: int
) -> CellPropensities:
    found = estimate(cell, sums)
    clicks = {"swap": 0.0, "history": 0.0}
    for (source, _, _), counted in sums.clicks.items():
        clicks[source] += sum(counted) / UNIT
    return CellPropensities(
        surface=cell.surface,
        device=cell.device,
        layout=cell.layout,
        columns=cell.columns,
        kind=cell.kind,
        version=1 if last is None else last.version + 1,
        effective_from=from_ms,
        estimated_at=seen_ms,
        lists=sums.lists,
        swap_clicks=clicks["swap"],
        history_clicks=clicks["history"],
        steepness=found.steepness,
        slots=found.slots,
        trust=found.trust,
        trust_alarm=found.trust_alarm,
    )
