"""The propensity agent's state in one partition of `joined-searches`, and the agent's spec.

A list that a killed join wrote twice counts once, by its closing number. Sums and counts are in the progress. Products
are compared with themselves within a block of the log: a restart reads the block again from its beginning, and goes on
with the same sums. At the end of a block the table of products is cleared, and what was summed up fades.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final

from pydantic import Field
from typing_extensions import override

from contracts.base import Count, Part
from contracts.errors import ContractError
from contracts.joined import ClosedSearches, closed_watermark_of, closing_number_of
from contracts.outcomes import Cell, filter_reason
from contracts.progress import AgentProgress
from contracts.structs import JOINED_SEARCH, JoinedSearch
from contracts.telemetry import NoEvidenceReason
from contracts.topics import DAY_MS, DEAD_LETTERS, JOINED_SEARCHES, PROPENSITIES
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec, LogRecord, Plan, RecordRules
from streams.propensity.evidence import CellSums, Products, Showing, cells_of, ranking_of, swapped_pairs

BLOCK_LISTS: Final = 20_000
"""Lists of a block: what a restart reads again in a second or two."""
BLOCK_RECORDS: Final = 1_000_000
"""Records of a block; watermarks are most of them in a shop of few lists."""
BLOCK_PRODUCTS: Final = 100_000
"""With so many products a block ends; some 40 MB."""
BLOCK_MS: Final = 7 * DAY_MS
"""After so much event time a block ends: Kafka keeps twice as much, and a product's price and picture change."""
MOST_CELLS: Final = 24
"""Cells of a partition, about 15 kB of progress each if every position has clicks; shops choose the names.

With no room left, those go that had no list in a whole block: names of an experiment that is over, or of one device.
"""


class CellProgress(Part):
    """The sums of one cell, as `streams/propensity/evidence.py` has them."""

    lists: Count = 0
    fresh: Count = 0
    clicks: dict[str, Annotated[tuple[Count, ...], Field(strict=False)]] = Field(default_factory=dict)
    """Intervention, upper and lower position, such as `swap 1 2` -> clicks by group."""
    trust: dict[str, Annotated[tuple[Count, ...], Field(strict=False)]] = Field(default_factory=dict)
    """Position -> sums by group."""

    @classmethod
    def of(cls, sums: CellSums) -> "CellProgress":
        """Write sums down."""
        clicks = {" ".join(map(str, pair)): tuple(one) for pair, one in sums.clicks.items()}
        trust = {str(place): tuple(one) for place, one in sums.trust.items()}
        return cls(lists=sums.lists, fresh=sums.fresh, clicks=clicks, trust=trust)

    def sums(self) -> CellSums:
        """Read them again."""
        clicks = {}
        for name, one in self.clicks.items():
            source, upper, lower = name.split()
            clicks[source, int(upper), int(lower)] = [*one]
        return CellSums(self.lists, self.fresh, clicks, {int(place): [*one] for place, one in self.trust.items()})


class PropensityProgress(AgentProgress):
    """State of the propensity agent in one partition of `joined-searches`."""

    turns: dict[str, Count] = Field(default_factory=dict)
    """Join -> the last closed search that was seen of it; one with the same number or a smaller one is a repeat."""
    held_turns: dict[str, Count] = Field(default_factory=dict)
    """The same as it was at `hold_offset`, where the block begins."""
    block_began_ms: int = -1
    """Newest deadline seen when the block began."""
    block_lists: Count = 0
    """Lists of the block so far."""
    newest_closed_ms: int = -1
    """Newest deadline seen."""
    newest_append_ms: int = -1
    """When Kafka was given the record that carried it."""
    cells: dict[str, CellProgress] = Field(default_factory=dict)
    """Cell -> its sums."""


class PartitionPropensity(RecordRules):
    """Evidence of one partition.

    Args:
        partition: of `joined-searches`.
        half_life_lists: after so many lists with evidence, older ones weigh half as much.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, partition: int, *, half_life_lists: float, past: PropensityProgress | None = None) -> None:
        super().__init__(partition, past)
        self.cells: dict[Cell, CellSums] = {}
        self._half_life_lists = half_life_lists
        self._products = Products()
        self._closed = ClosedSearches()
        self._held_turns: dict[str, int] = {}
        self._block_offset = self._block_began_ms = self._reread_to = -1
        self._newest_closed_ms = self._newest_append_ms = -1
        self._block_lists = 0
        if past is not None:
            self.cells = sums_of(past)
            self._closed, self._held_turns = ClosedSearches(past.turns), past.held_turns
            self._block_offset, self._block_began_ms = past.hold_offset, past.block_began_ms
            self._block_lists = past.block_lists
            self._reread_to = past.hold_offset
            self._newest_closed_ms, self._newest_append_ms = past.newest_closed_ms, past.newest_append_ms
        self._reread_closed = ClosedSearches(self._held_turns)

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record; one of this block that an earlier process took fills the table of products again."""
        if self._reread_to <= record.offset < self.next_offset:
            self._reread_to = record.offset + 1
            self._know_again(record)
        super().take(record, plan)

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Count what a list says of examination."""
        search = JOINED_SEARCH.decode(record.value)
        if search.closed_at > self._newest_closed_ms:
            self._newest_closed_ms, self._newest_append_ms = search.closed_at, record.timestamp
        if self._block_ends(record):
            self._begin_block(record)
        self._block_lists += 1
        repeated = self._closed.is_repeat(closing_number_of(record.headers))
        reason = NoEvidenceReason.DUPLICATE if repeated else self.count(search)
        return "counted" if reason is None else f"left/{reason}"

    @override
    def progress(self) -> PropensityProgress:
        """Return how far it has come, what became of every list, and the sums."""
        held = {} if self._block_offset < 0 else {"hold_offset": self._block_offset}
        return PropensityProgress(
            **super().progress().model_dump() | held,
            turns=dict(self._closed.newest),
            held_turns=self._held_turns,
            block_began_ms=self._block_began_ms,
            block_lists=self._block_lists,
            newest_closed_ms=self._newest_closed_ms,
            newest_append_ms=self._newest_append_ms,
            cells={cell.key: CellProgress.of(sums) for cell, sums in self.cells.items()},
        )

    def _know_again(self, record: LogRecord) -> None:
        """Bring back the products of a list; watermarks, most records of a quiet shop, are not decoded for that."""
        told = closed_watermark_of(record.headers)
        if told is not None and told.idle is not None:
            return
        with suppress(ContractError):
            search = JOINED_SEARCH.decode(record.value)
            repeated = self._reread_closed.is_repeat(closing_number_of(record.headers))
            if not repeated and filter_reason(search) is None and ranking_of(search) is not None:
                for one in (one for cell, shown in cells_of(search) if cell in self.cells for one in shown):
                    self._products.add(one)

    def count(self, search: JoinedSearch) -> NoEvidenceReason | None:
        """Add a list's evidence to the sums; return why there is none."""
        if filter_reason(search):
            return NoEvidenceReason.FILTERED
        if search.ranking.exploration.policy != "swap" and ranking_of(search) is None:
            return NoEvidenceReason.NOT_EXPLORED
        counted, reason = False, NoEvidenceReason.NO_PAIR
        for cell, shown in cells_of(search):
            if cell not in self.cells and len(self.cells) >= MOST_CELLS:
                reason = NoEvidenceReason.TOO_MANY_CELLS
            else:
                counted |= self._count_cell(self.cells.setdefault(cell, CellSums()), search, shown)
        return None if counted else reason

    def _count_cell(self, sums: CellSums, search: JoinedSearch, shown: tuple[Showing, ...]) -> bool:
        swapped = list(swapped_pairs(search, shown))
        for upper, lower in swapped:
            sums.count_swap(upper, lower)
        is_frozen = ranking_of(search) is not None
        for one in shown if is_frozen else ():
            sums.count_showing(one, self._products)
        if swapped or is_frozen:
            sums.count_list()
        return bool(swapped or is_frozen)

    def _block_ends(self, record: LogRecord) -> bool:
        return (
            self._block_offset < 0
            or self._block_lists >= BLOCK_LISTS
            or record.offset >= self._block_offset + BLOCK_RECORDS
            or len(self._products) >= BLOCK_PRODUCTS
            or self._newest_closed_ms >= self._block_began_ms + BLOCK_MS
        )

    def _begin_block(self, record: LogRecord) -> None:
        """Clear the table of products and let what was summed up fade; in between the sums only grow by it."""
        self._products = Products()
        if len(self.cells) >= MOST_CELLS:
            self.cells = {cell: sums for cell, sums in self.cells.items() if sums.fresh}
        for sums in self.cells.values():
            sums.decay(self._half_life_lists)
        self._block_offset, self._block_began_ms, self._block_lists = record.offset, self._newest_closed_ms, 0
        self._held_turns = dict(self._closed.newest)


def sums_of(progress: PropensityProgress) -> dict[Cell, CellSums]:
    """Return the sums of a partition by cell."""
    return {Cell.from_key(key): cell.sums() for key, cell in progress.cells.items()}


def all_sums(progresses: Mapping[int, PropensityProgress]) -> dict[Cell, CellSums]:
    """Add the sums of all partitions."""
    found: dict[Cell, CellSums] = {}
    for _, progress in sorted(progresses.items()):
        for cell, sums in sums_of(progress).items():
            found.setdefault(cell, CellSums()).add(sums)
    return found


def _new_state(partition: int, progress: PropensityProgress | None, settings: Settings) -> PartitionPropensity:
    half_life = settings.propensity_half_life_lists / settings.partitions
    return PartitionPropensity(partition, half_life_lists=half_life, past=progress)


PROPENSITY: Final = AgentSpec(
    name="propensity",
    source=JOINED_SEARCHES,
    outputs=(PROPENSITIES, DEAD_LETTERS),
    progress=PropensityProgress,
    new_state=_new_state,
    outcomes={"counted": (), "left": NoEvidenceReason, "dead_lettered": ()},
    ledger=("propensity", "closed"),
    counter=metrics.PROPENSITY_LISTS,
    event_time="newest_closed_ms",
    follows=(PROPENSITIES,),
    agent="streams.propensity.agent:PropensityAgent",
)
