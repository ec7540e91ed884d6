"""How a collection is created, described and indexed, in Qdrant's words and in Edge's.

The create request itself is what is kept on disk, so that a restart builds the same thing from the same words. Vectors
are scanned exactly: HNSW and optimiser settings are taken, kept and answered, and have no effect here.
"""

from collections.abc import Mapping, Set
from typing import Final

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from deploy.qdrant_edge.errors import ApiError, not_supported
from deploy.qdrant_edge.requests import Json, in_range, parse

_TAKEN: Final = frozenset(
    {"vectors", "metadata", "hnsw_config", "optimizers_config", "wal_config", "on_disk_payload", "sharding_method",
     "shard_number", "replication_factor", "write_consistency_factor"}
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
_INDEX_PARAMETERS: Final = frozenset({"is_tenant", "is_principal", "on_disk", "enable_hnsw", "lookup", "range"})


def read_spec(body: Json) -> models.CreateCollection:
    """Return what a collection is created as, from a create request or from what was kept of one.

    Raises:
        ApiError: wrong type, unknown field, impossible size, or what only a Qdrant server has.
    """
    spec = parse(models.CreateCollection, body)
    _take_only(_TAKEN, spec)
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if getattr(spec, name) not in (None, 1):
            raise not_supported(f"`{name}` above 1: one process holds each collection whole")
    if spec.sharding_method is models.ShardingMethod.CUSTOM:
        raise not_supported("custom sharding")
    spaces = _spaces(spec)
    if not spaces:
        raise not_supported("collections without vectors")
    for space in spaces.values():
        in_range(space.size, "size", most=_MOST_DIMENSIONS)
        _take_only(_TAKEN_OF_VECTORS, space)
        if space.datatype not in (None, models.Datatype.FLOAT32):
            raise not_supported("vector data types other than float32")
    return spec


def _take_only(names: Set[str], given: BaseModel) -> None:
    for name, value in given:
        if name not in names and value not in (None, {}):
            raise not_supported(f"`{name}`")


def _spaces(spec: models.CreateCollection) -> dict[str, models.VectorParams]:
    """Return the vector spaces by name; the unnamed one's name is empty."""
    return {"": spec.vectors} if isinstance(spec.vectors, models.VectorParams) else spec.vectors or {}


def sizes_of(spec: models.CreateCollection) -> dict[str, int]:
    """Return the dimension per vector name."""
    return {name: space.size for name, space in _spaces(spec).items()}


def scores_are_distances(spec: models.CreateCollection, query: models.QueryInterface | None, using: str | None) -> bool:
    """Return whether the smallest score of a query is the best."""
    if query is None or (isinstance(query, BaseModel) and not isinstance(query, models.NearestQuery)):
        return False
    space = _spaces(spec).get(using or "")
    return space is not None and space.distance in (models.Distance.EUCLID, models.Distance.MANHATTAN)


def edge_config(spec: models.CreateCollection) -> edge.EdgeConfig:
    """Return the configuration of the shard; its log is on, so that what was acknowledged survives a kill."""
    vectors = {
        name: edge.EdgeVectorParams(space.size, getattr(edge.Distance, space.distance.value))
        for name, space in _spaces(spec).items()
    }
    return edge.EdgeConfig(vectors=vectors, max_search_threads=1, wal_enabled=True)


def updated(spec: models.CreateCollection, body: Json) -> models.CreateCollection:
    """Return the spec after `PATCH /collections/{name}`: metadata is merged, null removes a key.

    Raises:
        ApiError: any other change of a living collection.
    """
    change = parse(models.UpdateCollection, body)
    _take_only({"metadata"}, change)
    merged = {**(spec.metadata or {}), **(change.metadata or {})}
    return spec.model_copy(update={"metadata": {name: value for name, value in merged.items() if value is not None}})


def describe(spec: models.CreateCollection) -> dict[str, Json]:
    """Return `config` of a collection as Qdrant answers it."""
    return {
        "params": {
            "vectors": to_json(spec)["vectors"],
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


def create_index(body: Json) -> edge.UpdateOperation:
    """Return the operation of `PUT /index`: a payload index by type name or by parameters."""
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


def describe_indexes(schema: Mapping[str, "edge.PayloadIndexInfo"]) -> dict[str, Json]:
    """Return `payload_schema` of a collection as Qdrant answers it."""
    names = {kind: name for name, kind in _INDEX_TYPES.items()}
    return {key: {"data_type": names[entry.data_type], "points": entry.points} for key, entry in schema.items()}
