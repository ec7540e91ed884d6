"""What a batch of catalogue records changes: newest per product, new products first, every record accounted for.

Records and what is known go in, a plan comes out: the loop encodes, writes and commits what is decided here.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, CatalogChange, PointPayload, Product, ProductDeleted
from contracts.errors import ContractError
from contracts.progress import CatalogCounts
from indexer.catalog.base_vectors import BaseProduct, CatalogPlace
from towers.text import product_text, text_hash


@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """One record of `catalog` as it was read; a value of None deletes the product of its key.

    Of one that was sent `again`, vector and point are made anew, although its version is known.
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    again: bool = False

    @property
    def place(self) -> CatalogPlace:
        """Where it is in its partition."""
        return CatalogPlace(self.offset, self.timestamp_ms)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that goes to `dead-letters`, and why."""

    record: CatalogRecord
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change to apply.

    Args:
        message: the newest of the product in the batch.
        known: what was known before; None for a product never seen.
        record: that the message comes from.
    """

    message: CatalogChange
    known: BaseProduct | None
    record: CatalogRecord

    @property
    def is_anew(self) -> bool:
        """Whether it takes the place of its equal: sent again, or the first of a version that was read ahead."""
        return self.record.again or _is_of_later(self.known, self.message, self.record)

    @property
    def is_repeat(self) -> bool:
        """Whether this very state was encoded before; its write may still be missing (a crash lay in between)."""
        return self.known is not None and self.known.order == _order(self.message) and not self.is_anew

    @property
    def is_encoded(self) -> bool:
        """Whether it needs no encoding: a deletion, or a product whose text is the one before."""
        if isinstance(self.message, ProductDeleted):
            return True
        return self.known is not None and self.known.text_hash == text_hash(product_text(self.message))

    @property
    def is_urgent(self) -> bool:
        """Whether shoppers cannot find yet, or must not find any more, what it is about."""
        return isinstance(self.message, ProductDeleted) or self.known is None or self.known.is_deleted


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a batch.

    Args:
        changes: to apply, the urgent ones first.
        refusals: for `dead-letters`.
        stale_count: changes older than what is known, or than another of the same product in the batch.
        same_version: records whose content is another than that of the same version before; they change nothing.
        unknown_nulls: null values of products that nobody knows.
        other_keys: records whose key is not the id of the product that they are about.
    """

    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...] = ()
    stale_count: int = 0
    same_version: tuple[CatalogRecord, ...] = ()
    unknown_nulls: int = 0
    other_keys: tuple[CatalogRecord, ...] = ()

    def batches(self) -> list[list[Change]]:
        """Return the urgent changes and the others, each kind that there is."""
        kinds = ([change for change in self.changes if change.is_urgent is urgent] for urgent in (True, False))
        return [changes for changes in kinds if changes]

    def youngest(self, most: int, *, to_encode: int) -> list[list[Change]]:
        """Return what to do first where not all can be done: what needs no encoding, and so many that do.

        Of either what is urgent, and the last that came: in a bulk load everything may be new. What comes after it is
        younger; what was there before has its turn.
        """
        waiting = [change for change in self.changes if not change.is_repeat]
        waiting.sort(key=lambda change: (change.is_urgent, change.record.timestamp_ms), reverse=True)
        encoded = [change for change in waiting if change.is_encoded][:most]
        others = [change for change in waiting if not change.is_encoded][:to_encode]
        return [changes for changes in (encoded, others) if changes]


def in_any_order(records: Iterable[CatalogRecord]) -> list[CatalogRecord]:
    """Return the records that say the same before their turn: a null deletes what came before it, whatever that is.

    What is sent again mends a product that is there, and would be encoded twice.
    """
    return [record for record in records if record.value is not None and not record.again]


Known = Callable[[str], BaseProduct | None]
"""Tells what is known of a product."""


def plan_batch(records: Iterable[CatalogRecord], known: Known) -> Plan:
    """Return what a batch of records changes.

    Args:
        records: in the order of each partition.
        known: what is known of a product before the batch; where a record has no value, all that came before it.
    """
    batch = _Batch(known)
    for record in records:
        batch.add(record)
    return Plan(
        changes=tuple(sorted(batch.changes.values(), key=lambda change: not change.is_urgent)),
        refusals=tuple(batch.refusals),
        stale_count=batch.stale_count,
        same_version=tuple(batch.same_version),
        unknown_nulls=batch.unknown_nulls,
        other_keys=tuple(batch.other_keys),
    )


class _Batch:
    """The plan as it grows, record by record."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.changes: dict[str, Change] = {}
        self.refusals: list[Refusal] = []
        self.stale_count = 0
        self.same_version: list[CatalogRecord] = []
        self.unknown_nulls = 0
        self.other_keys: list[CatalogRecord] = []

    def add(self, record: CatalogRecord) -> None:
        """Account for the next record."""
        message = self._deletion(record) if record.value is None else self._decoded(record, record.value)
        if message is not None:
            if record.value is not None and record.key != message.product_id.encode():
                self.other_keys.append(record)
            self._take(message, record)

    def _decoded(self, record: CatalogRecord, value: bytes) -> CatalogChange | None:
        try:
            return wire.decode(wire.within_bounds(value), CATALOG_CHANGE)
        except ContractError as error:
            self.refusals.append(Refusal(record, error.reason, error.message))
            return None

    def _deletion(self, record: CatalogRecord) -> CatalogChange | None:
        """Return what a null value means: the product is gone, with the version that was the newest before it.

        A null that is read again must not delete what came after it: then the product is known from a later record.
        """
        product_id = (record.key or b"").decode(errors="replace")
        change, known = self.changes.get(product_id), self._known(product_id)
        if change is not None:
            version = change.message.version
        elif known is None:
            self.unknown_nulls += 1
            return None
        elif known.place is not None and known.place.is_after(record.place):
            self.stale_count += 1
            return None
        else:
            version = known.version
        return ProductDeleted(type="product_deleted", product_id=product_id, version=version)

    def _take(self, message: CatalogChange, record: CatalogRecord) -> None:
        known, before = self._known(message.product_id), self.changes.get(message.product_id)
        newest = _order(before.message) if before else known.order if known else None
        is_anew = record.again or (before is None and _is_of_later(known, message, record))
        if newest is None or _order(message) > newest or (is_anew and _order(message) == newest):
            self.stale_count += before is not None and before.record not in self.same_version
            self.changes[message.product_id] = Change(message, known, record)
            return
        is_repeat = before is None and _order(message) == newest
        if is_repeat:
            self.changes[message.product_id] = Change(message, known, record)
        if self._contradicts(message, record, before=before, known=known):
            self.same_version.append(record)
        elif not is_repeat:
            self.stale_count += 1

    def _contradicts(
        self, message: CatalogChange, record: CatalogRecord, *, before: Change | None, known: BaseProduct | None
    ) -> bool:
        """Tell whether a message that is not newer says something else than was said of its version before."""
        if not isinstance(message, Product):
            return False
        if before is not None:
            same_version = before.message.version == message.version
            return same_version and content_hash(before.message) != content_hash(message)
        if known is None or known.version != message.version or (known.place and known.place.is_after(record.place)):
            return False
        if known.content_hash:
            return content_hash(message) != known.content_hash
        return known.is_deleted or _indexed(message) != (known.text_hash, known.payload)


def _is_of_later(known: BaseProduct | None, message: CatalogChange, record: CatalogRecord) -> bool:
    """Whether the version is known of a later record, which was read ahead: the first content of a version counts."""
    if known is None or known.place is None or known.order != _order(message):
        return False
    return known.place.is_after(record.place)


def _order(message: CatalogChange) -> tuple[int, bool]:
    return message.version, isinstance(message, ProductDeleted)


def content_hash(message: CatalogChange) -> str:
    """Return what tells one content of a version from another, fields that nobody here reads included.

    16 bytes of sha256 as hex; empty of a deletion. Nulls, defaults and the order of fields make no difference.
    """
    if not isinstance(message, Product):
        return ""
    known = message.model_dump(mode="json", include=set(Product.model_fields), exclude_none=True)
    said = orjson.dumps(known, option=orjson.OPT_SORT_KEYS) + _said(message.model_extra or {}).encode()
    return hashlib.sha256(said).hexdigest()[:32]


def _said(value: Any) -> str:
    """Write parsed JSON in one way, each part after its size; without recursion, for it may be nested deeply."""
    written, to_write = [], [value]
    while to_write:
        part = to_write.pop()
        if isinstance(part, dict):
            names = sorted(name for name, inner in part.items() if inner is not None)
            written.append(f"{{{len(names)}")
            to_write += [one for name in reversed(names) for one in (part[name], name)]
        elif isinstance(part, list):
            written.append(f"[{len(part)}")
            to_write += reversed(part)
        else:
            written.append(repr(part))
    return " ".join(written)


def _indexed(product: Product) -> tuple[str, PointPayload]:
    """Return what the index holds of a product besides its versions."""
    return text_hash(product_text(product)), payload_of(product)


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
        currency=product.currency,
        url=product.url,
        image_url=product.image_url,
        rating=product.rating,
        attributes=product.attributes,
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
