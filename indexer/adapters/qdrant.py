"""The vector store of products: the only class of the indexer that writes to Qdrant.

It holds two rules on every write: one point per product and request, the newest, and the newer-only condition of
`contracts.catalog`. So writes may come twice and in any order; the newest wins.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self, cast

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from contracts.catalog import PointVersion, newer_only_filter, point_id
from contracts.errors import DependencyDown, InvariantError, TransientError
from indexer.adapters.qdrant_errors import qdrant_errors
from indexer.core.points import ProductPoint, newest_per_id
from service.settings import Settings

VECTOR_NAME: Final = "product"
BATCH_SIZE: Final = 256
"""Points of one write; larger ones make searches wait longer."""

_SCROLL_SIZE: Final = 1000
_TIMEOUT_S: Final = 10
_POLL_S: Final = 0.2

PAYLOAD_INDEXES: Final[dict[str, models.PayloadSchemaType]] = {
    "brand": models.PayloadSchemaType.KEYWORD,
    "category": models.PayloadSchemaType.KEYWORD,
    "locale": models.PayloadSchemaType.KEYWORD,
    "price": models.PayloadSchemaType.FLOAT,
    "in_stock": models.PayloadSchemaType.INTEGER,
    "deleted": models.PayloadSchemaType.INTEGER,
}
"""Fields that search filters or counts by, and no others; made before loading, when it costs least."""

_ORDERING: Final = ("product_id", "version", "product_release", "deleted")
_IS_TOMBSTONE: Final = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))


class Counts(NamedTuple):
    """What a collection holds."""

    live: int
    tombstones: int


def connect(settings: Settings, *, timeout_s: int = _TIMEOUT_S) -> QdrantClient:
    """Return a client of the configured vector store; nothing is asked of it yet.

    Raises:
        UsageError: no vector store is named.
    """
    (url,) = settings.require("qdrant_url")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    # As a header, because the argument warns on every plain-HTTP connection, loopback included.
    headers = {"api-key": key} if key else None
    return QdrantClient(url=url, headers=headers, timeout=timeout_s, check_compatibility=False)


class ProductStore:
    """Products as points of Qdrant collections.

    Args:
        client: of a server, the embedded one, or in memory; one store belongs to one thread.
        batch_size: points of one write.
    """

    def __init__(self, client: QdrantClient, *, batch_size: int = BATCH_SIZE) -> None:
        self._client = client
        self._batch_size = batch_size

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return a store on the configured Qdrant once it answers.

        Raises:
            UsageError: no vector store is named, or its key is wrong.
            DependencyDown: it does not answer within `dependency_wait_s`.
        """
        store = cls(connect(settings))
        store.wait_until_answering(settings.dependency_wait_s, where=settings.qdrant_url or "")
        return store

    def wait_until_answering(self, timeout_s: float, *, where: str = "Qdrant") -> None:
        """Return when the store answers.

        Raises:
            DependencyDown: it does not in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.collections()
            except TransientError as exc:
                if time.monotonic() >= deadline:
                    raise DependencyDown(
                        f"no vector store answers at {where}: {exc.message}",
                        fix="start it (`millrace up`, `python -m deploy.qdrant_edge`), or correct MILLRACE_QDRANT_URL",
                    ) from exc
                time.sleep(_POLL_S)
            else:
                return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ensure_collection(self, name: str, dim: int, *, metadata: Mapping[str, Any] | None = None) -> bool:
        """Make a collection with its payload indexes if there is none; return whether it was made.

        Raises:
            InvariantError: there is one of another dimension.
        """
        with qdrant_errors(f"make collection {name}"):
            made = self._make_collection(name, dim, metadata)
            stored_dim = self._dimension(name)
            if stored_dim != dim:
                raise InvariantError(
                    f"collection {name} holds vectors of {stored_dim} dimensions, this release makes {dim}",
                    fix="the base model was changed: name another MILLRACE_TOPIC_PREFIX, or drop the collection",
                )
            self._make_indexes(name)
            return made

    def _make_collection(self, name: str, dim: int, metadata: Mapping[str, Any] | None) -> bool:
        if self._client.collection_exists(name):
            return False
        params = {VECTOR_NAME: models.VectorParams(size=dim, distance=models.Distance.COSINE)}
        try:
            self._client.create_collection(name, vectors_config=params, metadata=dict(metadata or {}))
        except UnexpectedResponse as exc:
            if exc.status_code == 409:  # another worker was first
                return False
            raise
        return True

    def _dimension(self, name: str) -> int | None:
        vectors = self._client.get_collection(name).config.params.vectors
        params = vectors.get(VECTOR_NAME) if isinstance(vectors, dict) else None
        return params.size if params else None

    def _make_indexes(self, name: str) -> None:
        """Make the payload indexes; the in-memory client has none, filters anyway and warns."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")
            for field, kind in PAYLOAD_INDEXES.items():
                self._client.create_payload_index(name, field, kind)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return what the creator of a collection wanted remembered."""
        with qdrant_errors(f"read metadata of {name}"):
            return dict(self._client.get_collection(name).config.metadata or {})

    def write(self, collection: str, points: Iterable[ProductPoint]) -> int:
        """Write points, each only where it is newer than what is stored; return how many were sent.

        When this returns, they are stored and searchable, or bounced off something newer: the store does not say which.

        Raises:
            TransientError: some may be written and some not; write all again.
            InvariantError: a vector does not fit the collection.
        """
        newest = newest_per_id(points)
        for start in range(0, len(newest), self._batch_size):
            batch = newest[start : start + self._batch_size]
            with qdrant_errors(f"write to {collection}"):
                self._client.upsert(
                    collection, points=[_to_struct(point) for point in batch], update_filter=write_condition(batch)
                )
        return len(newest)

    def counts(self, collection: str) -> Counts:
        """Return the numbers of live products and of tombstones."""
        with qdrant_errors(f"count {collection}"):
            tombstones = self._client.count(collection, models.Filter(must=[_IS_TOMBSTONE])).count
            live = self._client.count(collection, models.Filter(must_not=[_IS_TOMBSTONE])).count
        return Counts(live, tombstones)

    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Return what is stored of these products, tombstones included; absent ones are left out."""
        found: dict[str, ProductPoint] = {}
        for start in range(0, len(product_ids), self._batch_size):
            ids = [point_id(product_id) for product_id in product_ids[start : start + self._batch_size]]
            with qdrant_errors(f"read from {collection}"):
                records = self._client.retrieve(collection, ids, with_payload=True, with_vectors=True)
            found.update((point.product_id, point) for point in map(_to_point, records))
        return found

    def scroll(self, collection: str) -> Iterator[tuple[str, PointVersion, bool]]:
        """Yield (product id, version, is tombstone) of every point, in pages; what changes meanwhile may be missed."""
        offset: Any = None
        while True:
            with qdrant_errors(f"scroll {collection}"):
                records, offset = self._client.scroll(
                    collection, limit=_SCROLL_SIZE, offset=offset, with_payload=list(_ORDERING)
                )
            for record in records:
                payload = record.payload or {}
                version = PointVersion(payload["version"], payload["product_release"])
                yield payload["product_id"], version, payload.get("deleted") == 1
            if offset is None:
                return

    def versions(self, collection: str) -> dict[str, PointVersion]:
        """Return the stored version of every product, tombstones included."""
        return {product_id: version for product_id, version, _ in self.scroll(collection)}

    def collections(self) -> list[str]:
        """Return the names of all collections of the store, ours and others'."""
        with qdrant_errors("list collections"):
            return sorted(entry.name for entry in self._client.get_collections().collections)

    def publish_alias(self, alias: str, collection: str) -> None:
        """Let an alias name a collection; where it named another, it moves in one step."""
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        with qdrant_errors(f"publish alias {alias}"):
            self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    def alias_target(self, alias: str) -> str | None:
        """Return the collection that an alias names, None where there is no such alias."""
        with qdrant_errors("list aliases"):
            aliases = self._client.get_aliases().aliases
        return next((entry.collection_name for entry in aliases if entry.alias_name == alias), None)

    def drop(self, collection: str) -> None:
        """Delete a collection with its aliases; harmless when there is none."""
        with qdrant_errors(f"drop {collection}"):
            self._client.delete_collection(collection)


def write_condition(points: Sequence[ProductPoint]) -> models.Filter:
    """Return the newer-only condition of one request: one for all where they share a version, else one for each."""
    versions = {point.point_version for point in points}
    if len(versions) == 1:
        return models.Filter.model_validate(newer_only_filter(versions.pop()))
    return models.Filter(should=[_only_newer(point) for point in points])


def _only_newer(point: ProductPoint) -> models.Filter:
    rule = models.Filter.model_validate(newer_only_filter(point.point_version))
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id(point.product_id)])], must_not=rule.must_not)


def _to_struct(point: ProductPoint) -> models.PointStruct:
    vector = {} if point.vector is None else {VECTOR_NAME: list(point.vector)}
    return models.PointStruct(id=point_id(point.product_id), vector=vector, payload=point.stored_payload())


def _to_point(record: models.Record) -> ProductPoint:
    payload = dict(record.payload or {})
    vector = record.vector.get(VECTOR_NAME) if isinstance(record.vector, dict) else None
    return ProductPoint(
        product_id=payload["product_id"],
        version=payload["version"],
        product_release=payload["product_release"],
        vector=cast("list[float] | None", vector),
        payload={name: value for name, value in payload.items() if name not in _ORDERING},
    )
