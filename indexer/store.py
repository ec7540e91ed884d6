"""The vector store of products: the only module of the indexer that writes to Qdrant.

Two rules hold on every write: one point per product and request, the newest, and the newer-only condition of
`contracts.catalog`. So writes may come twice and in any order; the newest wins. A third holds for collections: each
names its owner, and nobody else's is ever written to, dropped or given our alias.
"""

import math
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple, Self

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from contracts.catalog import PointVersion, point_id
from contracts.errors import DependencyDown, InvariantError, TransientError, UsageError
from indexer.filters import KEYS_VERSION, PAYLOAD_INDEXES
from indexer.points import Owner, ProductPoint, newest_per_id
from indexer.qdrant import (
    FILTERED,
    LEXICAL,
    ORDERING,
    VECTOR_NAME,
    WORDS,
    Form,
    qdrant_errors,
    to_point,
    to_struct,
    tombstones_of,
    write_condition,
)
from service.health import Dependency
from service.logging import get_logger
from towers.lexical import LEXICAL_VERSION

BATCH_SIZE: Final = 256
"""Points of one write; larger ones make searches wait longer."""

OWNER: Final = "owner"
"""The entry of a collection's metadata that names the deployment it belongs to."""
_SCROLL_SIZE: Final = 1000
_POLL_S: Final = 0.2

_COMPARED: Final = [*ORDERING, "quality"]
_IS_TOMBSTONE: Final = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))


class Counts(NamedTuple):
    """What a collection holds."""

    live: int
    tombstones: int


class StoredPoint(NamedTuple):
    """What a point says of how new it is, and the quality that it carries; a tombstone's is 0."""

    version: PointVersion
    quality: float

    @property
    def order(self) -> tuple[int, bool]:
        """Which state of the product it is, whatever the product release."""
        return self.version.version, self.version.deleted


class ProductStore:
    """Products as points of Qdrant collections.

    Args:
        client: of a server, the embedded one, or in memory; one store belongs to one thread.
        owner: whose collections may be changed; a store without one asks nobody, for tests and readers.
        qdrant: told whether the store answers.
        batch_size: points of one write.
    """

    def __init__(
        self,
        client: QdrantClient,
        *,
        owner: Owner | None = None,
        qdrant: Dependency | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._client = client
        self._owner = owner
        self._qdrant = qdrant
        self._batch_size = batch_size
        self._ours: set[str] = set()

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        with self._qdrant.watched() if self._qdrant else nullcontext(), qdrant_errors(doing):
            yield

    def wait_until_answering(self, timeout_s: float, *, where: str = "Qdrant") -> Self:
        """Return when the store answers.

        Raises:
            DependencyDown: it does not in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.collections()
            except TransientError as error:
                if time.monotonic() >= deadline:
                    raise DependencyDown(
                        f"no vector store answers at {where}: {error.message}",
                        fix="start it (`millrace up`, `python -m deploy.qdrant_edge`), or correct MILLRACE_QDRANT_URL",
                    ) from error
                time.sleep(_POLL_S)
            else:
                return self

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def claim(self, base_version: str, *, take_over: bool = False) -> None:
        """Make sure that every collection and the alias under our names are ours.

        A collection without an owner, made by an earlier version of Millrace, becomes ours if its vectors fit.

        Args:
            base_version: of the vectors that we write.
            take_over: drop the collections of another owner instead of refusing them.

        Raises:
            UsageError: one belongs to somebody else.
        """
        if self._owner is None:
            return
        self._require_our_alias(self._owner)
        for name in self.collections():
            if self._owner.number_of(name) is None:
                continue
            metadata = self.form(name).metadata
            if OWNER not in metadata and metadata.get("base_version") == base_version:
                with self._asking(f"claim {name}"):
                    self._client.update_collection(name, metadata={OWNER: self._owner.name})
                get_logger().info("collection_claimed", collection=name, owner=self._owner.name)
            elif metadata.get(OWNER) != self._owner.name and take_over:
                with self._asking(f"drop {name}"):
                    self._client.delete_collection(name)
                get_logger().warning("collection_taken_over", collection=name, before=metadata.get(OWNER))
            else:
                self._require_ours(name)

    def _require_our_alias(self, owner: Owner) -> None:
        target = self.alias_target(owner.alias)
        if target is not None and owner.number_of(target) is None:
            raise UsageError(
                f"alias {owner.alias} names {target}, which Millrace did not make",
                fix="remove that alias, or choose another MILLRACE_TOPIC_PREFIX",
            )

    def _require_ours(self, collection: str) -> None:
        """Raise UsageError if a collection belongs to somebody else; one that is not there belongs to nobody."""
        if self._owner is None or collection in self._ours or not self.exists(collection):
            return
        found = self.form(collection).metadata.get(OWNER)
        if found != self._owner.name:
            raise UsageError(
                f"collection {collection} belongs to {found or 'nobody known'}, not to {self._owner.name}",
                fix="choose another MILLRACE_TOPIC_PREFIX or another vector store; if that deployment is gone, start "
                "once with MILLRACE_QDRANT_TAKE_OVER=true: its collections are dropped and filled anew",
            )
        self._ours.add(collection)

    def exists(self, collection: str) -> bool:
        """Tell whether there is a collection."""
        with self._asking(f"look for {collection}"):
            return bool(self._client.collection_exists(collection))

    def ensure_collection(self, name: str, width: int, *, metadata: Mapping[str, Any] | None = None) -> bool:
        """Make a collection with its payload indexes if there is none; return whether it was made.

        Args:
            name: of the collection.
            width: of its vectors, quality included.
            metadata: what is to be remembered with it.

        Raises:
            UsageError: there is one of another owner.
            InvariantError: there is one of another width or distance, or of another base.
        """
        owned = {} if self._owner is None else {OWNER: self._owner.name}
        wanted = dict(metadata or {})
        with self._asking(f"make collection {name}"):
            made = self._make_collection(name, width, {**wanted, **owned})
        self._require_ours(name)
        form = self.form(name)
        misfit = form.misfit(wanted.get("base_version", form.metadata.get("base_version", "")), width)
        if misfit is not None:
            raise InvariantError(f"collection {name} {misfit}", fix="name another MILLRACE_TOPIC_PREFIX, or drop it")
        with self._asking(f"make indexes of {name}"):
            self._make_indexes(name)
        return made

    def _make_collection(self, name: str, width: int, metadata: dict[str, Any]) -> bool:
        if self._client.collection_exists(name):
            return False
        params = {VECTOR_NAME: models.VectorParams(size=width, distance=models.Distance.DOT)}
        sparse = dict.fromkeys(WORDS, models.SparseVectorParams(modifier=models.Modifier.IDF))
        metadata = {LEXICAL: LEXICAL_VERSION, FILTERED: KEYS_VERSION, **metadata}
        try:
            self._client.create_collection(name, params, sparse, metadata=metadata)
        except UnexpectedResponse as error:
            if error.status_code == 409:  # another worker was first
                return False
            raise
        return True

    def _make_indexes(self, name: str) -> None:
        with warnings.catch_warnings():  # the in-memory client has none, filters anyway and warns
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")
            for field, kind in PAYLOAD_INDEXES.items():
                self._client.create_payload_index(name, field, kind)

    def form(self, name: str) -> Form:
        """Tell how a collection holds products."""
        with self._asking(f"look at {name}"):
            config = self._client.get_collection(name).config
        vectors = config.params.vectors
        params = vectors.get(VECTOR_NAME) if isinstance(vectors, dict) else None
        metadata = dict(config.metadata or {})
        with_idf = config.params.sparse_vectors or {}
        sparse = frozenset(name for name, one in with_idf.items() if one.modifier == models.Modifier.IDF)
        if params is None:
            return Form(None, None, metadata, sparse)
        return Form(params.size, params.distance, metadata, sparse)

    def write(self, collection: str, points: Iterable[ProductPoint], *, again: Collection[str] = ()) -> int:
        """Write points, each only if it is newer than what is stored; return how many were sent.

        Those of the products in `again` replace their equals too.

        When this returns, they are stored and searchable, or bounced off something newer: the store does not say which.

        Raises:
            TransientError: some may be written and some not; write all again.
            UsageError: the collection is another owner's.
            InvariantError: a vector does not fit the collection, or there is no such collection.
        """
        newest = newest_per_id(points)
        self._require_ours(collection)
        for start in range(0, len(newest), self._batch_size):
            batch = newest[start : start + self._batch_size]
            with self._asking(f"write to {collection}"):
                self._client.upsert(
                    collection,
                    points=[to_struct(point) for point in batch],
                    update_filter=write_condition(batch, again=again),
                )
        return len(newest)

    def carry_over(self, collection: str, points: Iterable[ProductPoint], *, again: Collection[str] = ()) -> None:
        """Write to a collection of another base what needs none of its vectors: deletions, and all but a new text.

        A product whose text is another, or that is not there, waits until the collection is filled on. One that was
        dropped meanwhile needs nothing.
        """
        newest = newest_per_id(points)
        try:
            stored = self.retrieve(collection, [point.product_id for point in newest])
            kept = [carried for point in newest if (carried := point.carried_to(stored.get(point.product_id)))]
            self.write(collection, kept, again=again)
        except InvariantError:
            if self.exists(collection):
                raise

    def forget(self, collection: str, tombstones: Sequence[ProductPoint]) -> None:
        """Delete tombstones; one whose product has come back, or was deleted under another version, stays."""
        self._require_ours(collection)
        for start in range(0, len(tombstones), self._batch_size):
            batch = tombstones[start : start + self._batch_size]
            with self._asking(f"forget deletions in {collection}"):
                self._client.delete(collection, models.FilterSelector(filter=tombstones_of(batch)))

    def counts(self, collection: str) -> Counts:
        """Return the numbers of live products and of tombstones."""
        with self._asking(f"count {collection}"):
            tombstones = self._client.count(collection, models.Filter(must=[_IS_TOMBSTONE])).count
            live = self._client.count(collection, models.Filter(must_not=[_IS_TOMBSTONE])).count
        return Counts(live, tombstones)

    def is_optimized(self, collection: str) -> bool:
        """Whether the store has built what searches of its points are to use, its graph for one."""
        with self._asking(f"look at {collection}"):
            return self._client.get_collection(collection).status == models.CollectionStatus.GREEN

    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Return what is stored of these products, tombstones included; absent ones are left out."""
        found: dict[str, ProductPoint] = {}
        for start in range(0, len(product_ids), self._batch_size):
            ids = [point_id(product_id) for product_id in product_ids[start : start + self._batch_size]]
            with self._asking(f"read from {collection}"):
                records = self._client.retrieve(collection, ids, with_payload=True, with_vectors=True)
            found.update((point.product_id, point) for point in map(to_point, records))
        return found

    def stored(self, collection: str) -> dict[str, StoredPoint]:
        """Return how new the point of every product is, tombstones included; what changes meanwhile may be missed."""
        found: dict[str, StoredPoint] = {}
        for payload in self.payloads(collection, _COMPARED):
            deleted = payload.get("deleted") == 1
            version = PointVersion(payload["version"], payload["product_release"], deleted)
            quality = 0.0 if deleted else payload.get("quality", math.inf)  # whoever wrote none is overwritten
            found[payload["product_id"]] = StoredPoint(version, quality)
        return found

    def payloads(self, collection: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Give these fields of every point, tombstones included, in the order of point ids."""
        return (dict(record.payload or {}) for record in self._scroll(collection, with_payload=list(fields)))

    def all_points(self, collection: str) -> Iterator[ProductPoint]:
        """Give every point with its vectors, tombstones included, in the order of point ids."""
        return map(to_point, self._scroll(collection, with_payload=True, with_vectors=True))

    def _scroll(self, collection: str, **wanted: Any) -> Iterator[models.Record]:
        offset: Any = None
        while True:
            with self._asking(f"scroll {collection}"):
                records, offset = self._client.scroll(collection, limit=_SCROLL_SIZE, offset=offset, **wanted)
            yield from records
            if offset is None:
                return

    def versions(self, collection: str) -> dict[str, PointVersion]:
        """Return the stored version of every product, tombstones included."""
        return {product_id: point.version for product_id, point in self.stored(collection).items()}

    def answered(self, collection: str, vectors: np.ndarray) -> int:
        """Ask a collection as search does; return how many of the query vectors (N, D) found something."""
        requests = [
            models.QueryRequest(query=vector.tolist(), using=VECTOR_NAME, limit=1, with_payload=False)
            for vector in vectors
        ]
        with self._asking(f"ask {collection}"):
            answers = self._client.query_batch_points(collection, requests)
        return sum(bool(answer.points) for answer in answers)

    def collections(self) -> list[str]:
        """Return the names of all collections of the store, ours and others'."""
        with self._asking("list collections"):
            return sorted(entry.name for entry in self._client.get_collections().collections)

    def publish_alias(self, alias: str, collection: str) -> None:
        """Let an alias name a collection; if it named another, it moves in one step.

        Raises:
            UsageError: one of the two collections is another owner's.
        """
        if self._owner is not None:
            self._require_our_alias(self._owner)
            before = self.alias_target(alias)
            for name in (collection, *([before] if before else [])):
                self._require_ours(name)
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        with self._asking(f"publish alias {alias}"):
            self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    def alias_target(self, alias: str) -> str | None:
        """Return the collection that an alias names, None if there is no such alias."""
        with self._asking("list aliases"):
            aliases = self._client.get_aliases().aliases
        return next((entry.collection_name for entry in aliases if entry.alias_name == alias), None)

    def drop(self, collection: str) -> None:
        """Delete a collection with its aliases; harmless when there is none.

        Raises:
            UsageError: it is another owner's.
        """
        self._require_ours(collection)
        self._ours.discard(collection)
        with self._asking(f"drop {collection}"):
            self._client.delete_collection(collection)
