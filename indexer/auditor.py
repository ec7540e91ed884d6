"""The audit carried out: facts are read in an order in which changes on their way do no harm.

It writes nothing: neither a point nor a base vector. Repairs are records on `catalog`, sent again by whoever asks.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from contracts.errors import TransientError
from contracts.telemetry import AuditDifference as Kind
from contracts.topics import CATALOG
from indexer import audit
from indexer.audit import Difference, Encoded, Facts, Indexed
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.planning import CatalogRecord
from indexer.catalog.sent import SentProducts
from indexer.catalog.topics import GROUP, catalog_record, product_of
from indexer.points import ProductPoint, Target
from indexer.ports import Pause
from indexer.rollout.decisions import QUALITY_TOLERANCE
from indexer.store import ProductStore
from service.kafka import admin, committed_offsets, records_of
from service.settings import Settings
from towers.model import NATS_PER_COSINE
from towers.release_files import Encoder
from towers.text import product_text, text_hash

SAMPLE: Final = 64
TOLERANCE: Final = 1e-4
"""Largest difference at which a number still is the same: encoders round, and so do stores."""

Tell = Callable[[str, int, int], None]


def _untold(_what: str, _done: int, _of: int) -> None:
    """Nobody wants to know the progress."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found.

    Args:
        collection: in force.
        base_version: in force.
        products: live ones that the catalogue holds.
        pending: records of `catalog` that were not worked off yet, and so not judged.
        sampled: products whose numbers were compared.
        differences: of all products.
        sent: the products that `catalog` holds a record of.
    """

    collection: str
    base_version: str
    products: int
    pending: int
    sampled: int
    differences: tuple[Difference, ...]
    sent: frozenset[str] = field(repr=False)

    def counts(self) -> dict[Kind, int]:
        """How many differ in which way, every way named."""
        found = Counter(difference.kind for difference in self.differences)
        return {kind: found[kind] for kind in Kind}


class Auditor:
    """Compares the index with the catalogue.

    Args:
        settings: of the deployment.
        store: the index; one connection belongs to one thread.
        vectors: gives the products of `product-vectors` without their numbers.
        base_vectors: gives some products of it whole.
        target: the collection in force and the product tower.
        encoder: the base; None compares no numbers.
        pause: how to wait; True means stop.
    """

    def __init__(
        self,
        settings: Settings,
        store: ProductStore,
        *,
        vectors: Callable[[], Iterable[tuple[str, Encoded | None]]],
        base_vectors: Callable[[Collection[str]], Mapping[str, BaseProduct]],
        target: Callable[[], Target],
        encoder: Encoder | None,
        pause: Pause,
    ) -> None:
        self._settings = settings
        self._store = store
        self._vectors = vectors
        self._base_vectors = base_vectors
        self._target = target
        self._encoder = encoder
        self._pause = pause

    def run(self, *, sample: int | Collection[str] = SAMPLE, seed: int = 0, tell: Tell = _untold) -> Report:
        """Compare everything once.

        Args:
            sample: of how many products numbers are compared, or of which.
            seed: draws the sample.
            tell: told the progress.

        Raises:
            TransientError: another collection came into force meanwhile.
            DependencyDown: Kafka does not answer.
        """
        collection = self._target().collection
        base_version = str(self._store.form(collection).metadata.get("base_version", ""))
        with admin(self._settings) as client:
            committed = committed_offsets(client, self._settings, GROUP)
        done = {number: one.offset for (topic, number), one in committed.items() if topic == CATALOG}
        due, later, pending = SentProducts(), SentProducts(), 0
        for record in self._catalog(lambda at, of: tell("catalogue", at, of)):
            is_due = record.offset < done.get(record.partition, 0)
            (due if is_due else later).take(record)
            pending += not is_due
        tell("base vectors", 0, 1)
        encoded = audit.newest_encoded(self._vectors(), base_version)
        tell("base vectors", 1, 1)
        indexed = self._indexed(collection, lambda at: tell("index", at, max(at, len(due.newest))))
        for record in self._catalog(begins={**due.ends, **later.ends}):
            later.take(record)
        readable = due.newest.keys() | later.newest.keys()
        unreadable = frozenset((due.unreadable() | later.unreadable()) - readable)
        sent = unreadable | readable
        found = audit.differences(Facts(due.newest, sent, unreadable, encoded, indexed, base_version))
        chosen = self._chosen(sample, due, found, seed=seed)
        if chosen and self._encoder is not None:
            tell("sample", 0, 1)
            found += self._numbers(chosen, collection, self._encoder)
            tell("sample", 1, 1)
        if self._target().collection != collection:
            raise TransientError(f"{self._target().collection} came into force meanwhile", fix="run the audit again")
        return Report(collection, base_version, len(due.live()), pending, len(chosen), tuple(found), sent)

    def newest_records(self, sent: SentProducts) -> dict[str, CatalogRecord]:
        """Read `catalog`; return the newest record, as it was sent, of each product that is taken."""
        newest: dict[str, CatalogRecord] = {}
        for record in self._catalog():
            product_id = _product_id(record)
            before = sent.newest.get(product_id)
            sent.take(record)
            if sent.newest.get(product_id) is not before:
                newest[product_id] = record
        return newest

    def _catalog(
        self, tell: Callable[[int, int], None] = lambda _at, _of: None, *, begins: Mapping[int, int] | None = None
    ) -> Iterable[CatalogRecord]:
        records = records_of(self._settings, CATALOG, begins=begins, wait=self._pause, tell=tell)
        return map(catalog_record, records)

    def _indexed(self, collection: str, tell: Callable[[int], None]) -> dict[str, Indexed]:
        indexed: dict[str, Indexed] = {}
        for payload in self._store.payloads(collection, audit.FACTS):
            indexed[payload["product_id"]] = Indexed.of(payload)
            if len(indexed) % 1000 == 0:
                tell(len(indexed))
        tell(len(indexed))
        return indexed

    def _chosen(
        self, sample: int | Collection[str], due: SentProducts, found: Iterable[Difference], *, seed: int
    ) -> list[str]:
        """The products whose numbers are compared: none that is known to differ."""
        if self._encoder is None:
            return []
        candidates = due.live() - {difference.product_id for difference in found}
        if not isinstance(sample, int):
            return sorted(candidates & set(sample))
        ordered = sorted(candidates)
        return random.Random(seed).sample(ordered, min(sample, len(ordered)))  # no secret is drawn

    def _numbers(self, chosen: Collection[str], collection: str, encoder: Encoder) -> list[Difference]:
        """Compare vectors, words and qualities of some products."""
        records = self.newest_records(SentProducts(frozenset(chosen)))
        messages = {
            name: message for name, record in records.items() if (message := product_of(record.value)) is not None
        }
        vectors = self._base_vectors(list(messages))
        target = self._target()
        points = self._store.retrieve(collection, list(messages))
        is_settled = self._target().in_force == target.in_force
        texts = {name: product_text(message) for name, message in messages.items()}
        rows = dict(zip(texts, encoder.encode(list(texts.values())), strict=True)) if texts else {}
        found = []
        for name, message in messages.items():
            vector, point = vectors.get(name), points.get(name)
            if vector is None or vector.version != message.version or vector.vector is None:
                continue  # changed meanwhile
            if vector.text_hash != text_hash(texts[name]) or not _alike(vector.vector, rows[name]):
                found.append(Difference(Kind.VECTOR_WRONG, name, vector.version))
            elif point is not None and point.version == vector.version:
                kind = _wrong_point(point, vector, target, is_settled=is_settled)
                found += [Difference(kind, name, point.version)] if kind else []
        return found


def _wrong_point(point: ProductPoint, vector: BaseProduct, target: Target, *, is_settled: bool) -> Kind | None:
    """What is wrong with the numbers of a point; its quality may be that of a release that is being written."""
    if point.vector is None or vector.vector is None:
        return None
    (expected,) = target.points([vector])
    if not _alike(np.asarray(point.vector[:-1]), vector.vector) or not _same_words(point.words, expected.words):
        return Kind.POINT_WRONG
    if not is_settled or point.product_release > target.product_release:
        return None
    quality = expected.payload["quality"]
    told = point.payload.get("quality")
    stored = point.vector[-1] * NATS_PER_COSINE
    is_near = abs(stored - quality) <= 2 * QUALITY_TOLERANCE and told is not None and abs(told - stored) <= TOLERANCE
    return None if is_near else Kind.QUALITY_WRONG


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0.0) <= TOLERANCE)


def _same_words(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return all(
        np.array_equal(mine.indices, theirs.indices) and _alike(mine.values, theirs.values)
        for mine, theirs in zip(one, other, strict=True)
    )


def _product_id(record: CatalogRecord) -> str:
    return (record.key or b"").decode(errors="replace")
