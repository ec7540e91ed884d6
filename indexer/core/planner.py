"""What a batch of catalogue records changes: newest per product, new products first, every record accounted for.

Facts in, plan out: the loop encodes, writes and commits what is decided here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, CatalogChange, PointPayload, Product, ProductDeleted
from contracts.errors import ContractError
from contracts.progress import CatalogCounts
from indexer.core.base_vectors import BaseProduct


@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """One record of `catalog` as it was read; a value of None was removed from the topic by its writer."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that goes to `dead-letters`, and why."""

    record: CatalogRecord
    reason: str
    error: str


class Lane(IntEnum):
    """In which order changes are worked off; lower first."""

    URGENT = 0
    """What shoppers cannot find yet, or must not find any more."""
    REFRESH = 1
    """Newer versions of products that are found already."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change to apply.

    Args:
        message: the newest of the product in the batch.
        known: what was known before; None for a product never seen.
        lane: when it is worked off.
    """

    message: CatalogChange
    known: BaseProduct | None
    lane: Lane

    @property
    def is_repeat(self) -> bool:
        """Whether this very version was encoded before; its write may still be missing (a crash lay in between)."""
        return self.known is not None and self.known.version == self.message.version


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a batch.

    Args:
        changes: to apply, in order of their lane.
        refusals: for `dead-letters`.
        stale_count: changes older than what is known, or than another of the same product in the batch.
        nulls: records without a value: they clean the topic and change nothing.
        timestamps_ms: product id -> when Kafka took in each version that is applied here.
    """

    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...] = ()
    stale_count: int = 0
    nulls: tuple[CatalogRecord, ...] = ()
    timestamps_ms: Mapping[str, int] = field(default_factory=dict)

    def lanes(self) -> list[list[Change]]:
        """Return the changes of each lane that has any, most urgent first."""
        lanes = ([change for change in self.changes if change.lane == lane] for lane in Lane)
        return [changes for changes in lanes if changes]


Known = Callable[[str], BaseProduct | None]
"""Tells what is known of a product."""


def plan_batch(records: Iterable[CatalogRecord], known: Known) -> Plan:
    """Return what a batch of records changes.

    Args:
        records: in the order of each partition.
        known: what is known of a product before the batch.
    """
    newest: dict[str, tuple[CatalogChange, CatalogRecord]] = {}
    refusals: list[Refusal] = []
    nulls: list[CatalogRecord] = []
    stale_count = 0
    for record in records:
        if record.value is None:
            nulls.append(record)
            continue
        try:
            message = wire.decode(record.value, CATALOG_CHANGE)
        except ContractError as error:
            refusals.append(Refusal(record, error.reason, error.message))
            continue
        held = newest.get(message.product_id)
        stale_count += held is not None
        if held is None or message.version > held[0].version:
            newest[message.product_id] = (message, record)
    changes = [_change(message, known(message.product_id)) for message, _ in newest.values()]
    wanted = [change for change in changes if change is not None]
    return Plan(
        changes=tuple(sorted(wanted, key=lambda change: change.lane)),
        refusals=tuple(refusals),
        stale_count=stale_count + len(changes) - len(wanted),
        nulls=tuple(nulls),
        timestamps_ms={
            change.message.product_id: newest[change.message.product_id][1].timestamp_ms for change in wanted
        },
    )


def _change(message: CatalogChange, known: BaseProduct | None) -> Change | None:
    """Return the change, or None where something newer is known."""
    if known is not None and known.version > message.version:
        return None
    urgent = isinstance(message, ProductDeleted) or known is None or known.is_deleted
    return Change(message, known, Lane.URGENT if urgent else Lane.REFRESH)


def payload_of(product: Product) -> PointPayload:
    """Return what a product's point says of it."""
    return PointPayload(
        title=product.title,
        category=product.category,
        brand=product.brand,
        price=product.price,
        in_stock=int(product.in_stock),
        launched_at=product.launched_at,
        priority=product.priority,
        parent_id=product.parent_id,
        seller_id=product.seller_id,
        locale=product.locale,
    )


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one partition of `catalog` was worked off, and what became of every record below."""

    next_offset: int
    counts: CatalogCounts


def advance(
    progress: PartitionProgress, records: Sequence[CatalogRecord], refused_offsets: frozenset[int]
) -> PartitionProgress:
    """Return the progress after the records of one partition.

    Offsets that compaction has taken away before they were read count as catalogue too: a newer record of the same
    product stands further on.

    >>> read = [CatalogRecord(0, offset, 0, b"P", b"") for offset in (4, 6)]
    >>> after = advance(PartitionProgress(3, CatalogCounts(catalogue=3)), read, frozenset({6}))
    >>> after.next_offset, after.counts.catalogue, after.counts.dead_lettered
    (7, 6, 1)
    """
    next_offset, counts = progress.next_offset, progress.counts
    catalogue, dead_lettered = counts.catalogue, counts.dead_lettered
    for record in records:
        if record.offset < next_offset:
            continue
        compacted = record.offset - next_offset
        refused = record.offset in refused_offsets
        catalogue += compacted + (not refused)
        dead_lettered += refused
        next_offset = record.offset + 1
    return replace(
        progress,
        next_offset=next_offset,
        counts=CatalogCounts(catalogue=catalogue, dead_lettered=dead_lettered, start_offset=counts.start_offset),
    )
