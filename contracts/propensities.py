"""Examination propensities: how much more rarely a position is looked at than the first one, and who asks for them.

A cell is what shoppers see alike: surface, device, layout and columns. Positions count over the whole list; those of
later pages are not estimated. A list is weighed by the version in force at its `search_time`, so a replay agrees.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Annotated, Final, Literal, NamedTuple

import orjson
from pydantic import Field, TypeAdapter

from contracts.base import Count, Finite, Label, Message, Part, Position, Time
from contracts.outcomes import PRIOR_VERSION, Cell, Kind, examination

STEEPNESS: Final = (1.0, 0.4)
"""Mean and width of the power of 1/position: the prior in force, and about the range that studies report."""
NORMAL_95: Final = 1.96
"""In how many widths 95 % of a prior lies."""

Propensity = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class SlotPropensity(Part):
    """What is known of one position."""

    position: Position
    theta: Propensity
    """Examination relative to the first position."""
    low: Propensity
    high: Propensity
    """Its band."""
    clicks: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Decayed clicks of the weakest comparison on the best way to the first position."""
    prior_only: bool
    """Whether these are too few: `theta` then goes on from the positions that are estimated as the power law does."""


class TrustFit(Part):
    """Click-through at a position as a line in that of the same products at the first one."""

    position: Position
    slope: Finite
    intercept: Finite
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Standard error of the intercept; far from 0, clicks are not examination times a product's appeal."""


class VersionName(NamedTuple):
    """Which version, and from when on it holds: what is kept of one that is not the newest."""

    cell: Cell
    version: int
    effective_from: int

    @property
    def key(self) -> bytes:
        """The key of the record."""
        return version_key(self.cell, self.version)


class CellPropensities(Message):
    """One version of a cell's propensities."""

    type: Literal["propensities"] = "propensities"
    surface: Label
    device: Label
    layout: Label
    columns: Annotated[int, Field(ge=1, le=100)]
    kind: Kind
    version: Annotated[int, Field(ge=1, le=2**53 - 1)]
    effective_from: Time
    """Lists shown from then on are weighed by it."""
    estimated_at: Time
    """Newest event time of the lists it was made of."""
    lists: Count
    """Lists that gave evidence, since the cell last had to make room."""
    swap_clicks: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Decayed clicks on neighbours that were exchanged at random."""
    history_clicks: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Decayed clicks on products that one release showed at several positions."""
    steepness: Finite
    """The power of 1/position that fits best; the prior is 1."""
    slots: Annotated[tuple[SlotPropensity, ...], Field(strict=False, min_length=1, max_length=100)]
    """From the first position on, without gaps."""
    trust: Annotated[tuple[TrustFit, ...], Field(strict=False, max_length=100)] = ()
    trust_alarm: bool = False
    """Whether an intercept says that shoppers click what ranks high because it ranks high."""

    @property
    def cell(self) -> Cell:
        """Whose they are."""
        return Cell(self.surface, self.device, self.layout, self.columns, self.kind)

    @property
    def name(self) -> VersionName:
        """Which version it is."""
        return VersionName(self.cell, self.version, self.effective_from)

    @property
    def key(self) -> bytes:
        """The key of the record."""
        return version_key(self.cell, self.version)


CELL_PROPENSITIES: Final = TypeAdapter(CellPropensities)
"""Reads `propensities`."""


def version_key(cell: Cell, version: int) -> bytes:
    """Return the key of a version on `propensities`.

    >>> version_key(Cell("search", "mobile"), 3)
    b'["search","mobile","list",1,"examined",3]'
    """
    return orjson.dumps([*cell, version])


class Band(NamedTuple):
    """The propensity of a position, and the ends of its band."""

    low: float
    theta: float
    high: float


class _Version(NamedTuple):
    """What is kept of a version."""

    effective_from: int
    version: int
    bands: tuple[Band, ...]
    steepness: float
    prior_only: frozenset[int]


class Propensities:
    """The propensities in force at any moment: a pure table of the messages that it was given, in any order.

    Args:
        messages: versions; of two with one number in one cell the later counts, as compaction has it.
    """

    def __init__(self, messages: Iterable[CellPropensities] = ()) -> None:
        self._versions: dict[Cell, dict[int, _Version]] = {}
        self._in_order: dict[Cell, list[_Version]] = {}
        for message in messages:
            self.add(message)

    def add(self, message: CellPropensities) -> None:
        """Take in one more version."""
        kept = _Version(
            message.effective_from,
            message.version,
            tuple(Band(slot.low, slot.theta, slot.high) for slot in message.slots),
            message.steepness,
            frozenset(slot.position for slot in message.slots if slot.prior_only),
        )
        self._versions.setdefault(message.cell, {})[message.version] = kept
        self._in_order.pop(message.cell, None)

    def drop(self, cell: Cell, version: int) -> None:
        """Forget a version that was taken back for its age; an unknown one is no matter."""
        if self._versions.get(cell, {}).pop(version, None):
            self._in_order.pop(cell, None)

    def theta(self, cell: Cell, position: int, at_ms: int) -> tuple[float, int]:
        """Return the examination of a position relative to the first one, and the version that says so.

        Before the first version is in force that is the prior, 1/position, and version 0. Positions below those that a
        version speaks of go on from the last one by its power law, so that all are on one scale.

        Args:
            cell: of the list.
            position: 1-based, over the whole list.
            at_ms: the list's `search_time`.
        """
        found = self._at(cell, at_ms)
        if found is None:
            return examination(position), PRIOR_VERSION
        last = min(position, len(found.bands))
        return found.bands[last - 1].theta * (last / position) ** found.steepness, found.version

    def band(self, cell: Cell, position: int, at_ms: int) -> Band:
        """Return the examination of a position relative to the first one, and between what ends it lies.

        Before the first version is in force these are the powers of 1/position that 95 % of the prior reach.

        >>> [round(end, 3) for end in Propensities().band(Cell(), 4, 0)]
        [0.084, 0.25, 0.741]
        """
        found = self._at(cell, at_ms)
        if found is None:
            mean, width = STEEPNESS
            return Band(*(position ** -(mean - by * NORMAL_95 * width) for by in (-1, 0, 1)))
        last = min(position, len(found.bands))
        further = (last / position) ** found.steepness
        return Band(*(end * further for end in found.bands[last - 1]))

    def is_prior_only(self, cell: Cell, position: int, at_ms: int) -> bool:
        """Whether nothing but the prior is known of a position, relative to the first one."""
        found = self._at(cell, at_ms)
        return found is None or position > len(found.bands) or position in found.prior_only

    def _at(self, cell: Cell, at_ms: int) -> _Version | None:
        if cell not in self._in_order:
            self._in_order[cell] = sorted(self._versions.get(cell, {}).values())
        versions = self._in_order[cell]
        index = bisect_right(versions, at_ms, key=lambda one: one.effective_from)
        return versions[index - 1] if index else None
