"""One collection: a shard of Qdrant Edge with its spec, spoken to in REST JSON.

The create request itself is kept, so that a restart builds the same from the same words. Vectors are scanned exactly:
HNSW and optimiser settings are taken, kept and answered, and have no effect here.
"""

import shutil
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from contracts.errors import InvariantError
from deploy.qdrant_edge import groups, points
from deploy.qdrant_edge.queries import Scope, Vector, payloads, to_filter, to_query, to_scroll
from deploy.qdrant_edge.requests import (
    SPARSE,
    ApiError,
    Json,
    PointId,
    as_list,
    as_object,
    edge_errors,
    in_range,
    json_id,
    not_supported,
    parse,
    point_id,
)

RESERVE_BYTES: Final = 256 * 1024**2
"""More than one write takes: its body, a segment of the log, and a chunk of vectors and of payload, 32 MiB each."""

_GROUPS: Final = 3
"""Groups, and hits of each, if a request does not say how many."""


class Collection:
    """One open collection under its real name, with what it was created as; `make_shard` made its folder."""

    def __init__(self, name: str, spec: models.CreateCollection, shard_path: Path) -> None:
        self.name = name
        self.spec = spec
        self.dirty = False
        self._sizes = sizes_of(spec)
        self._operation = 0
        self._folder = shard_path
        try:
            self._shard = edge.EdgeShard.load(str(shard_path))
        except Exception as error:
            raise InvariantError(
                f"collection `{name}` cannot be opened: {error}",
                fix=f"move {shard_path.parent} away; the indexer fills a new one from the catalogue",
            ) from error

    @staticmethod
    def make_shard(spec: models.CreateCollection, shard_path: Path) -> None:
        """Make an empty shard on disk and leave it closed."""
        _require_space(shard_path.parent)
        shard_path.mkdir()
        with edge_errors():
            edge.EdgeShard.create(str(shard_path), _edge_config(spec)).close()

    def close(self) -> None:
        """Write everything out and let go of the files."""
        self._shard.close()

    def flush(self) -> None:
        """Write to disk what only the log has, so that the log stays short."""
        self._shard.flush()
        self.dirty = False

    def points_count(self) -> int:
        """Return the number of points, tombstones included."""
        return self._shard.info().points_count

    def info(self) -> dict[str, Json]:
        """Return what `GET /collections/{name}` answers."""
        info = self._shard.info()
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": info.indexed_vectors_count,
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "config": describe(self.spec),
            "payload_schema": {
                key: {"data_type": _INDEX_NAMES[entry.data_type], "points": entry.points}
                for key, entry in info.payload_schema.items()
            },
            "update_queue": {"length": 0},
        }

    def write(self, kind: str, body: Json) -> dict[str, Json]:
        """Apply one update, named as in `points.OPERATIONS`; it is in the log when this returns."""
        with edge_errors():
            return self._apply(points.OPERATIONS[kind](body, self._sizes))

    def write_batch(self, body: Json) -> list[dict[str, Json]]:
        """Apply `points/batch` in order; as in Qdrant there is no transaction over it."""
        with edge_errors():
            return [self._apply(operation) for operation in points.batch(body, self._sizes)]

    def create_index(self, body: Json) -> dict[str, Json]:
        """Create a payload index; harmless when it exists."""
        with edge_errors():
            return self._apply(_index_operation(body))

    def delete_index(self, field_name: str) -> dict[str, Json]:
        """Delete a payload index; harmless when there is none."""
        with edge_errors():
            return self._apply(edge.UpdateOperation.delete_field_index(field_name))

    def _apply(self, operation: edge.UpdateOperation) -> dict[str, Json]:
        _require_space(self._folder)
        self.dirty = True
        self._shard.update(operation)
        self._operation += 1
        return {"operation_id": self._operation, "status": "completed"}

    def query(self, body: Json) -> dict[str, Json]:
        """Answer `points/query`."""
        with edge_errors():
            request = parse(models.QueryRequest, body)
            query = to_query(request, self._scope())
            return _answer(self._shard.query(query), query)

    def query_batch(self, body: Json) -> list[dict[str, Json]]:
        """Answer `points/query/batch`; one malformed query refuses all."""
        fields = as_object(body, "batch request")
        parse(models.QueryRequestBatch, {**fields, "searches": []})
        with edge_errors():
            scope = self._scope()
            requests = [parse(models.QueryRequest, entry) for entry in as_list(fields.get("searches"), "searches")]
            queries = [to_query(request, scope) for request in requests]
            found = self._shard.query_batch(edge.QueryBatchRequest(queries))
        return [_answer(points, query) for points, query in zip(found, queries, strict=True)]

    def query_groups(self, body: Json) -> dict[str, Json]:
        """Answer `points/query/groups`."""
        request = parse(models.QueryGroupsRequest, body)
        with edge_errors():
            scope = self._scope()
            size = scope.limit(request.group_size, "group_size", default=_GROUPS)
            found = groups.best_groups(
                groups.pages_of(request, lambda query: self._shard.query(to_query(query, scope)), size=size),
                groups=scope.limit(request.limit, default=_GROUPS),
                size=size,
                largest_first=not scores_are_distances(self.spec, request.query, request.using),
            )
            ids = list(dict.fromkeys(hit.point for hits in found.values() for hit in hits))
            stored = {record["id"]: record for record in self._retrieve(ids, request.with_payload, request.with_vector)}
        return {
            "groups": [
                {"id": key, "hits": [{"version": 0, **stored[json_id(hit.point)], "score": hit.score} for hit in hits]}
                for key, hits in found.items()
            ]
        }

    def retrieve(self, body: Json) -> list[dict[str, Json]]:
        """Answer `POST /points`: the stored points among the ids."""
        request = parse(models.PointRequest, body)
        with edge_errors():
            ids = [point_id(entry) for entry in request.ids]
            return self._retrieve(ids, request.with_payload, request.with_vector)

    def get(self, identity: str) -> dict[str, Json]:
        """Answer `GET /points/{id}`."""
        wanted = [int(identity) if identity.isascii() and identity.isdigit() else identity]
        found = self.retrieve({"ids": wanted, "with_payload": True, "with_vector": True})
        if not found:
            raise ApiError(404, f"Not found: Point with id {identity} does not exists!")
        return found[0]

    def _retrieve(
        self, ids: Sequence[PointId], with_payload: models.WithPayloadInterface | None, with_vector: Any
    ) -> list[dict[str, Json]]:
        found = self._shard.retrieve(list(ids), payloads(with_payload, default=False), with_vector or False)
        return _points_json(found, with_vector=with_vector)

    def scroll(self, body: Json) -> dict[str, Json]:
        """Answer `points/scroll`."""
        request = parse(models.ScrollRequest, body)
        with edge_errors():
            found, following = self._shard.scroll(to_scroll(request, self._scope()))
        return {
            "points": _points_json(found, with_vector=request.with_vector),
            "next_page_offset": None if following is None else json_id(following),
        }

    def count(self, body: Json) -> dict[str, Json]:
        """Answer `points/count`; always exact."""
        request = parse(models.CountRequest, body)
        with edge_errors():
            return {"count": self._shard.count(edge.CountRequest(exact=True, filter=to_filter(request.filter)))}

    def facet(self, body: Json) -> dict[str, Json]:
        """Answer `facet`: counts per value; the field needs an index."""
        request = parse(models.FacetRequest, body)
        with edge_errors():
            limit, chosen = self._scope().limit(request.limit), to_filter(request.filter)
            found = self._shard.facet(edge.FacetRequest(request.key, limit, request.exact or False, chosen))
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in found.hits]}

    def _scope(self) -> Scope:
        return Scope(sizes=self._sizes, ceiling=self.points_count(), vector_of=self._vector_of)

    def _vector_of(self, example: PointId, name: str) -> Vector:
        found = self._shard.retrieve([example], False, True)
        vector: Any = found[0].vector if found else None
        stored: Vector | None = vector.get(name) if type(vector) is dict else vector
        if stored is None:
            raise ApiError(404, f"Not found: No point with id {example} found, or it has no vector `{name}`")
        return stored


def _require_space(folder: Path) -> None:
    """Raise if the disk under a folder is about to be full.

    Edge writes through mapped files: on a full disk the system would end the process with a bare SIGBUS in the middle
    of a write. So a write is refused while there is still space, and succeeds again once there is more.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < RESERVE_BYTES:
        raise ApiError(
            500,
            f"Service internal error: only {free_bytes / 1024**2:.0f} MiB free in {folder}, writes need "
            f"{RESERVE_BYTES // 1024**2}; free some space, or set MILLRACE_DATA_DIR to a larger disk",
        )


def _answer(found: Iterable[edge.ScoredPoint], query: edge.QueryRequest) -> dict[str, Json]:
    return {"points": _points_json(found, with_vector=query.with_vector)}


def _points_json(found: Iterable[edge.ScoredPoint | edge.Record], *, with_vector: Any) -> list[dict[str, Json]]:
    """Give points as Qdrant answers them; MMR gives vectors even if none were asked for, so they are dropped here."""
    answers = []
    for point in found:
        answer: dict[str, Json] = {"id": json_id(point.id)}
        if isinstance(point, edge.ScoredPoint):
            answer |= {"version": point.version, "score": point.score}
        if point.payload is not None:
            answer["payload"] = point.payload
        if with_vector is not None and with_vector is not False:
            vectors: Any = point.vector
            if type(vectors) is dict:
                vectors = {name: _vector_json(vector) for name, vector in vectors.items()}
                # The one vector of a collection without names is a bare list.
                vectors = vectors[""] if set(vectors) == {""} else vectors
            answer["vector"] = vectors
        if point.order_value is not None:
            answer["order_value"] = point.order_value
        answers.append(answer)
    return answers


def _vector_json(vector: Vector) -> Json:
    if isinstance(vector, edge.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    return vector


_TAKEN: Final = frozenset(
    {"vectors", "sparse_vectors", "metadata", "hnsw_config", "optimizers_config", "wal_config", "on_disk_payload",
     "sharding_method", "shard_number", "replication_factor", "write_consistency_factor"}
)  # fmt: skip
_TAKEN_OF_VECTORS: Final = frozenset({"size", "distance", "on_disk", "hnsw_config", "datatype"})
_MOST_DIMENSIONS: Final = 65_536
_HNSW_DEFAULTS: Final = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0)
_OPTIMIZER_DEFAULTS: Final = {"default_segment_number": 1, "flush_interval_sec": 5}
_WAL: Final = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}
_INDEX_TYPES: Final[dict[str, edge.PayloadSchemaType]] = {
    kind.value: getattr(edge.PayloadSchemaType, kind.name.capitalize())
    for kind in models.PayloadSchemaType
    if kind is not models.PayloadSchemaType.GEO
}
_INDEX_NAMES: Final = {kind: name for name, kind in _INDEX_TYPES.items()}
_INDEX_PARAMETERS: Final = frozenset({"is_tenant", "is_principal", "on_disk", "enable_hnsw", "lookup", "range"})


def read_spec(body: Json) -> models.CreateCollection:
    """Read what a collection is created as, from a create request or from what was kept of one."""
    spec = parse(models.CreateCollection, body)
    _take_only(_TAKEN, spec)
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if getattr(spec, name) not in (None, 1):
            raise not_supported(f"`{name}` above 1: one process holds each collection whole")
    if spec.sharding_method is models.ShardingMethod.CUSTOM:
        raise not_supported("custom sharding")
    spaces, sparse = _spaces(spec), spec.sparse_vectors or {}
    if not spaces and not sparse:
        raise not_supported("collections without vectors")
    if twice := spaces.keys() & sparse.keys():
        raise ApiError(422, f"Validation error in JSON body: `{min(twice)}` names a dense vector and a sparse one")
    for space in spaces.values():
        in_range(space.size, "size", most=_MOST_DIMENSIONS)
        _take_only(_TAKEN_OF_VECTORS, space)
    datatypes = {space.datatype for space in spaces.values()}
    datatypes.update(space.index.datatype for space in sparse.values() if space.index)
    if not datatypes <= {None, models.Datatype.FLOAT32}:
        raise not_supported("vector data types other than float32")
    return spec


def _take_only(names: Set[str], given: BaseModel) -> None:
    for name, value in given:
        if name not in names and value not in (None, {}):
            raise not_supported(f"`{name}`")


def _spaces(spec: models.CreateCollection) -> dict[str, models.VectorParams]:
    """Name the vector spaces; the unnamed one's name is empty."""
    return {"": spec.vectors} if isinstance(spec.vectors, models.VectorParams) else spec.vectors or {}


def sizes_of(spec: models.CreateCollection) -> dict[str, int]:
    """Give the dimension per vector name."""
    dense = {name: space.size for name, space in _spaces(spec).items()}
    return {**dense, **dict.fromkeys(spec.sparse_vectors or {}, SPARSE)}


def scores_are_distances(spec: models.CreateCollection, query: models.QueryInterface | None, using: str | None) -> bool:
    """Tell whether the smallest score of a query is the best."""
    if query is None or (isinstance(query, BaseModel) and not isinstance(query, models.NearestQuery)):
        return False
    space = _spaces(spec).get(using or "")
    return space is not None and space.distance in (models.Distance.EUCLID, models.Distance.MANHATTAN)


def _edge_config(spec: models.CreateCollection) -> edge.EdgeConfig:
    vectors = {
        name: edge.EdgeVectorParams(space.size, getattr(edge.Distance, space.distance.value))
        for name, space in _spaces(spec).items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if space.modifier is models.Modifier.IDF else None)
        for name, space in (spec.sparse_vectors or {}).items()
    }
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse, max_search_threads=1, wal_enabled=True)


def updated(spec: models.CreateCollection, body: Json) -> models.CreateCollection:
    """Apply `PATCH /collections/{name}`: metadata is merged, null removes a key, and nothing else may change."""
    change = parse(models.UpdateCollection, body)
    _take_only({"metadata"}, change)
    merged = {**(spec.metadata or {}), **(change.metadata or {})}
    return spec.model_copy(update={"metadata": {name: value for name, value in merged.items() if value is not None}})


def describe(spec: models.CreateCollection) -> dict[str, Json]:
    """Return `config` of a collection as Qdrant answers it."""
    return {
        "params": {
            "vectors": {},
            **{name: given for name, given in to_json(spec).items() if name in ("vectors", "sparse_vectors")},
            "shard_number": 1,
            "replication_factor": 1,
            "write_consistency_factor": 1,
            "on_disk_payload": True,
        },
        "hnsw_config": to_json(_HNSW_DEFAULTS) | to_json(spec.hnsw_config),
        "optimizer_config": _OPTIMIZER_DEFAULTS | to_json(spec.optimizers_config),
        "wal_config": _WAL,
        "quantization_config": None,
        "metadata": spec.metadata or None,
    }


def to_json(given: BaseModel | None) -> dict[str, Json]:
    """Return a model as JSON without what it does not say."""
    return {} if given is None else given.model_dump(mode="json", exclude_none=True)


def _index_operation(body: Json) -> edge.UpdateOperation:
    request = parse(models.CreateFieldIndex, body)
    schema = request.field_schema
    if schema is None:
        raise ApiError(400, "Format error in JSON body: field_schema: name the type of the payload index")
    if isinstance(schema, models.PayloadSchemaType):
        return edge.UpdateOperation.create_field_index(request.field_name, _edge_type(schema.value))
    given = to_json(schema)
    kind = given.pop("type")
    if not given:
        return edge.UpdateOperation.create_field_index(request.field_name, _edge_type(kind))
    if kind == "text" or not given.keys() <= _INDEX_PARAMETERS:
        raise not_supported(f"payload index of type `{kind}` with {', '.join(sorted(given))}")
    params = getattr(edge, type(schema).__name__)(**given)
    return edge.UpdateOperation.create_field_index(request.field_name, params)


def _edge_type(kind: str) -> edge.PayloadSchemaType:
    if kind == "geo":
        raise not_supported("payload index of type `geo`")
    return _INDEX_TYPES[kind]
