"""What `catalog` says of every product, in a few numbers each: read whole by whoever compares something with it."""

from collections.abc import Collection
from typing import NamedTuple, Self

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, CatalogChange, ProductDeleted
from contracts.errors import ContractError
from indexer.catalog.planning import CatalogRecord, content_hash


class Sent(NamedTuple):
    """The newest state of a product that the shop sent."""

    version: int
    deleted: bool
    content_hash: str

    @classmethod
    def of(cls, change: CatalogChange) -> Self:
        """Read it off a message."""
        return cls(change.version, isinstance(change, ProductDeleted), content_hash(change))

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states: the version, and of one version the deletion."""
        return self.version, self.deleted

    def says(self, change: CatalogChange) -> bool:
        """Whether a message says the same, whatever its version."""
        if isinstance(change, ProductDeleted):
            return self.deleted
        return content_hash(change.model_copy(update={"version": self.version})) == self.content_hash


class SentProducts:
    """The newest state of every product, deletions included; about 250 bytes each.

    Of two records of one version the later one stays, as compaction does. What cannot be read, a dead letter already or
    soon, says nothing of its product but that there is one: compaction may have taken the record before it.

    Args:
        only: the products to take; None takes all.
    """

    def __init__(self, only: Collection[str] | None = None) -> None:
        self._only = only
        self.ends: dict[int, int] = {}
        """Partition -> the offset after the last record that was taken: where to read on."""
        self.newest: dict[str, Sent] = {}
        self._refused: set[str] = set()

    def take(self, record: CatalogRecord) -> None:
        """Take the next record of a partition."""
        self.ends[record.partition] = record.offset + 1
        key = (record.key or b"").decode(errors="replace")
        if self._only is not None and key not in self._only:
            return
        if record.value is None:
            self._delete(key)
            return
        try:
            self.add(wire.decode(wire.within_bounds(record.value), CATALOG_CHANGE))
        except ContractError:
            self._refused.add(key)

    def add(self, change: CatalogChange) -> None:
        """Take a message that is on `catalog`, or about to be."""
        sent, known = Sent.of(change), self.newest.get(change.product_id)
        if known is None or sent.order >= known.order:
            self.newest[change.product_id] = sent

    def holds(self, change: CatalogChange) -> bool:
        """Whether nothing newer than a message, which was added, has come."""
        return self.newest[change.product_id].order <= Sent.of(change).order

    def _delete(self, product_id: str) -> None:
        """A null value deletes what came before it; of a product that was never seen nothing is known."""
        self._refused.discard(product_id)
        known = self.newest.get(product_id)
        if known is not None:
            self.newest[product_id] = Sent(known.version, deleted=True, content_hash="")

    def unreadable(self) -> set[str]:
        """The products of which there are records, and none can be read."""
        return self._refused - self.newest.keys()

    def live(self) -> set[str]:
        """The products that are not deleted."""
        return {product_id for product_id, sent in self.newest.items() if not sent.deleted}
