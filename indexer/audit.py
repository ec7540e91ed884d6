"""Whether the index is true: what the catalogue, the base vectors and the points say of each product, compared.

Facts go in, differences come out. A change that is on its way is no difference: whatever was worked off when the audit
began must be there, in that version or a newer one, and what somebody sent until it ended may be there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self

from contracts.catalog import ProductVector
from contracts.telemetry import AuditDifference as Kind
from indexer.catalog.product_file import State
from indexer.catalog.sent import Sent

FACTS: Final = ("product_id", "version", "deleted", "base_version", "text_hash")
"""Fields of a point that are compared."""


class Encoded(NamedTuple):
    """A record of `product-vectors`, without its numbers."""

    version: int
    deleted: bool
    base_version: str
    text_hash: str
    content_hash: str

    @classmethod
    def of(cls, product: State | ProductVector) -> Self:
        """Read it off a product."""
        deleted = product.is_deleted if isinstance(product, State) else product.deleted
        return cls(product.version, deleted, product.base_version, product.text_hash, product.content_hash)

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states."""
        return self.version, self.deleted


class Indexed(NamedTuple):
    """A point, without its numbers."""

    version: int
    deleted: bool
    base_version: str
    text_hash: str

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        """Read it off a point's payload."""
        deleted = payload.get("deleted") == 1
        return cls(payload["version"], deleted, payload.get("base_version", ""), payload.get("text_hash", ""))

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states."""
        return self.version, self.deleted


class Difference(NamedTuple):
    """One product that differs.

    Args:
        kind: how.
        product_id: the shop's own id.
        version: that is found; of what is missing, the one that should be.
    """

    kind: Kind
    product_id: str
    version: int


class Facts(NamedTuple):
    """What is known of every product.

    Args:
        due: what the indexers had worked off of `catalog` when the audit began.
        sent: the products that anything was sent of until it ended.
        unreadable: those of them of which nothing can be read: what is there of them cannot be judged.
        encoded: `product-vectors`.
        indexed: the collection in force.
        base_version: the base in force.
    """

    due: Mapping[str, Sent]
    sent: frozenset[str]
    unreadable: frozenset[str]
    encoded: Mapping[str, Encoded]
    indexed: Mapping[str, Indexed]
    base_version: str


def newest_encoded(products: Iterable[tuple[str, Encoded | None]], base_version: str) -> dict[str, Encoded]:
    """Keep the newest state of each product; of equal ones that of the base in force, and of its own the last.

    None, a null on the topic, forgets a deletion.
    """
    newest: dict[str, Encoded] = {}
    for product_id, one in products:
        known = newest.get(product_id)
        if one is None:
            if known is not None and known.deleted:
                del newest[product_id]
        elif known is None or _rank(one, base_version) >= _rank(known, base_version):
            newest[product_id] = one
    return newest


def _rank(one: Encoded, base_version: str) -> tuple[tuple[int, bool], bool]:
    return one.order, one.base_version == base_version


def differences(facts: Facts) -> list[Difference]:
    """Compare; two at most of one product: of its vector, and of its point."""
    return [*_of_sent(facts), *_of_unreadable(facts), *_of_nobody(facts)]


def _of_sent(facts: Facts) -> Iterator[Difference]:
    for product_id, sent in facts.due.items():
        vector, point = facts.encoded.get(product_id), facts.indexed.get(product_id)
        if sent.deleted and vector is None and point is None:
            continue  # deleted so long ago that it is forgotten
        for kind, found in (_vector(sent, vector, facts.base_version), _point(sent, vector, point, facts.base_version)):
            if kind is not None:
                yield Difference(kind, product_id, sent.version if found is None else found)


def _vector(sent: Sent, vector: Encoded | None, base_version: str) -> tuple[Kind | None, int | None]:
    if vector is None:
        return Kind.VECTOR_MISSING, None
    if vector.order < sent.order:
        return Kind.VECTOR_STALE, vector.version
    if vector.deleted:
        return None, None
    if vector.base_version != base_version:
        return Kind.VECTOR_BASE, vector.version
    if vector.order == sent.order and vector.content_hash not in {"", sent.content_hash}:
        return Kind.VECTOR_CONTENT, vector.version
    return None, None


def _point(
    sent: Sent, vector: Encoded | None, point: Indexed | None, base_version: str
) -> tuple[Kind | None, int | None]:
    if point is None:
        return Kind.POINT_NO_TOMBSTONE if sent.deleted else Kind.POINT_MISSING, None
    if point.order < sent.order:
        found_deleted = sent.deleted and not point.deleted
        return Kind.POINT_DELETED_FOUND if found_deleted else Kind.POINT_STALE, point.version
    if point.deleted:
        return None, None
    if point.base_version != base_version:
        return Kind.POINT_BASE, point.version
    if vector is not None and vector.order == point.order and vector.text_hash != point.text_hash:
        return Kind.POINT_TEXT, point.version
    return None, None


def _of_unreadable(facts: Facts) -> Iterator[Difference]:
    for product_id in sorted(facts.unreadable):
        there = facts.encoded.get(product_id), facts.indexed.get(product_id)
        if live := [one.version for one in there if one is not None and not one.deleted]:
            yield Difference(Kind.RECORD_UNREADABLE, product_id, max(live))


def _of_nobody(facts: Facts) -> Iterator[Difference]:
    """What is there of products that `catalog` holds nothing of; a deletion may be left when its record is not."""
    for product_id in facts.encoded.keys() | facts.indexed.keys():
        if product_id in facts.sent:
            continue
        vector, point = facts.encoded.get(product_id), facts.indexed.get(product_id)
        if vector is not None and not vector.deleted:
            yield Difference(Kind.VECTOR_EXTRA, product_id, vector.version)
        if point is not None and not point.deleted:
            kind = Kind.POINT_DELETED_FOUND if vector is not None and vector.deleted else Kind.POINT_EXTRA
            yield Difference(kind, product_id, point.version)


class Repairs(NamedTuple):
    """How the index becomes true again, through `catalog` alone: whoever owns the partition of a product writes it.

    Args:
        again: products whose newest record is sent again, marked as such.
        delete: products that nobody sent -> the version under which they are deleted.
    """

    again: frozenset[str]
    delete: Mapping[str, int]


def plan_repairs(found: Iterable[Difference], sent: frozenset[str]) -> Repairs:
    """Decide how differences are repaired; what cannot be read is left as it is until the shop sends it again.

    Args:
        found: the differences.
        sent: the products that `catalog` holds a record of.
    """
    delete: dict[str, int] = {}
    again = set()
    for difference in found:
        if difference.kind is Kind.RECORD_UNREADABLE:
            continue
        if difference.product_id in sent:
            again.add(difference.product_id)
        else:
            delete[difference.product_id] = max(difference.version, delete.get(difference.product_id, 0))
    return Repairs(frozenset(again), delete)
