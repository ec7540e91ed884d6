"""What a collection is created as: read from a create request, kept beside its points, answered, and told to Edge.

The create request itself is kept, so that a restart builds the same from the same words.
"""

from collections.abc import Set
from typing import Final

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from deploy.qdrant_edge.requests import SPARSE, ApiError, Json, in_range, not_supported, parse

_TAKEN: Final = frozenset(
    {"vectors", "sparse_vectors", "metadata", "hnsw_config", "optimizers_config", "wal_config", "on_disk_payload",
     "sharding_method", "shard_number", "replication_factor", "write_consistency_factor"}
)  # fmt: skip
_TAKEN_OF_VECTORS: Final = frozenset({"size", "distance", "on_disk", "hnsw_config", "datatype"})
_MOST_DIMENSIONS: Final = 65_536
INDEXING_THRESHOLD_KB: Final = 40_000
"""Dense vectors that are scanned sooner than a graph is asked: 26,600 points of 385 numbers (`docs/experiments.md`)."""

_BYTES_PER_NUMBER: Final = 4
_LARGEST_SEGMENT_KB: Final = 2**32
_VACUUM_FROM: Final = 0.01
"""Share of a segment that is rewritten elsewhere from which `optimize` makes it anew."""

_HNSW_DEFAULTS: Final = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0)
_OPTIMIZER_DEFAULTS: Final = {
    "default_segment_number": 1,
    "flush_interval_sec": 5,
    "indexing_threshold": INDEXING_THRESHOLD_KB,
}
_WAL: Final = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}
_INDEX_TYPES: Final[dict[str, edge.PayloadSchemaType]] = {
    kind.value: getattr(edge.PayloadSchemaType, kind.name.capitalize())
    for kind in models.PayloadSchemaType
    if kind is not models.PayloadSchemaType.GEO
}
INDEX_NAMES: Final = {kind: name for name, kind in _INDEX_TYPES.items()}
"""Type of a payload index -> its name in the API."""

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


def edge_config(spec: models.CreateCollection) -> edge.EdgeConfig:
    """Say it to Edge; `optimize` then builds a graph over all points, for whoever calls it judged that it pays."""
    vectors = {
        name: edge.EdgeVectorParams(space.size, getattr(edge.Distance, space.distance.value))
        for name, space in _spaces(spec).items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if space.modifier is models.Modifier.IDF else None)
        for name, space in (spec.sparse_vectors or {}).items()
    }
    hnsw = _HNSW_DEFAULTS.model_copy(update=to_json(spec.hnsw_config))
    return edge.EdgeConfig(
        vectors=vectors,
        sparse_vectors=sparse,
        hnsw_config=edge.HnswIndexConfig(hnsw.m, hnsw.ef_construct, hnsw.full_scan_threshold),
        optimizers=edge.EdgeOptimizersConfig(
            deleted_threshold=_VACUUM_FROM,
            vacuum_min_vector_number=1,
            default_segment_number=1,
            max_segment_size=_LARGEST_SEGMENT_KB,
            indexing_threshold=1,
        ),
        max_search_threads=1,
        wal_enabled=True,
    )


def scanned_kb(spec: models.CreateCollection, points: int) -> float:
    """Give the size of the dense vectors of points, which is what a search without a graph reads, in KiB."""
    return points * sum(space.size for space in _spaces(spec).values()) * _BYTES_PER_NUMBER / 1024


def indexing_threshold_kb(spec: models.CreateCollection) -> int:
    """Give the size of dense vectors above which a graph pays, in KiB; as in Qdrant, 0 means never."""
    given = spec.optimizers_config.indexing_threshold if spec.optimizers_config else None
    return INDEXING_THRESHOLD_KB if given is None else given


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


def index_operation(body: Json) -> edge.UpdateOperation:
    """Make the operation of `PUT /collections/{name}/index`."""
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
