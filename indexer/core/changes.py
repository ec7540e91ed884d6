"""What a batch of catalogue records means: the newest state of each product, and what is set aside.

Facts in, decisions out: nothing here reads a clock, Kafka or the vector store.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, CatalogChange, Product
from contracts.errors import ContractError
from contracts.progress import CatalogCounts
from contracts.vectors import PointPayload


class CatalogRecord(NamedTuple):
    """One record of `catalog`."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is no catalogue change, and why."""

    record: CatalogRecord
    reason: str
    error: str


@dataclass(slots=True)
class BatchPlan:
    """What to do with a batch.

    Args:
        changes: the newest change of each product, with the moment its record was appended (epoch ms).
        refused: what goes to the dead letters.
        superseded: changes that a newer one of the same batch replaces; they count as catalogue.
    """

    changes: dict[str, tuple[CatalogChange, int]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    superseded: int = 0


def plan_batch(records: Iterable[CatalogRecord]) -> BatchPlan:
    """Return the newest change of each product in a batch; of equal versions the later record wins."""
    plan = BatchPlan()
    for record in records:
        if record.value is None:
            continue
        try:
            change = wire.decode(record.value, CATALOG_CHANGE)
            _check_key(record, change)
        except ContractError as exc:
            plan.refused.append(Refused(record, exc.reason, str(exc)))
            continue
        known = plan.changes.get(change.product_id)
        plan.superseded += known is not None
        if known is None or change.version >= known[0].version:
            plan.changes[change.product_id] = (change, record.timestamp_ms)
    return plan


def _check_key(record: CatalogRecord, change: CatalogChange) -> None:
    """Refuse a record whose key names another product: its order against that product's other changes is not kept."""
    if record.key != change.product_id.encode():
        raise ContractError("wrong_key", "the record's key is not its product_id", field="product_id")


def counted(
    counts: CatalogCounts | None, records: Sequence[CatalogRecord], refused: int, *, position: int
) -> CatalogCounts:
    """Return a partition's counts after a batch of its records, in order of offset.

    Args:
        counts: before the batch; None where the group never read here.
        records: of this partition.
        refused: how many of them went to the dead letters.
        position: offset at which the batch should begin.

    Records that compaction removed in between were superseded by newer ones and count as catalogue.
    """
    before = counts or CatalogCounts(start_offset=records[0].offset)
    expected = position if counts else records[0].offset
    compacted = records[-1].offset + 1 - expected - len(records)
    return CatalogCounts(
        start_offset=before.start_offset,
        catalogue=before.catalogue + len(records) - refused + compacted,
        dead_lettered=before.dead_lettered + refused,
    )


def new_first(changes: Iterable[CatalogChange], known: Iterable[str]) -> list[CatalogChange]:
    """Return the changes with products that the index does not hold yet ahead of the others.

    >>> from contracts.catalog import ProductDeleted
    >>> old, new = (ProductDeleted(type="product_deleted", product_id=name, version=1) for name in ("old", "new"))
    >>> [change.product_id for change in new_first([old, new], ["old"])]
    ['new', 'old']
    """
    there = set(known)
    return sorted(changes, key=lambda change: change.product_id in there)


def payload_of(product: Product) -> PointPayload:
    """Return what a point says of a product."""
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
