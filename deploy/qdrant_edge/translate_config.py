"""REST collection configuration <-> Edge configuration, and the description that Qdrant answers.

The create request itself is what is kept on disk, so that a restart builds the same thing from the same words. Vectors
are scanned exactly: HNSW and optimiser settings are taken, kept and answered, and have no effect here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import qdrant_edge as edge

from deploy.qdrant_edge.errors import BadRequest, NotSupported
from deploy.qdrant_edge.fields import (
    Json,
    as_integer,
    as_object,
    as_text,
    known_only,
    unsupported,
    within_depth,
)

_CREATE: Final = frozenset(
    {"vectors", "metadata", "hnsw_config", "optimizers_config", "wal_config", "on_disk_payload", "shard_number",
     "replication_factor", "write_consistency_factor", "sharding_method"}
)  # fmt: skip
_NOT_CREATED: Final = {
    "quantization_config": "quantisation",
    "sparse_vectors": "sparse vectors",
    "strict_mode_config": "strict mode",
    "payload": "payload placement",
    "id_tracker": "id tracker placement",
}
_VECTOR: Final = frozenset({"size", "distance", "on_disk", "hnsw_config"})
_NOT_IN_VECTOR: Final = {
    "multivector_config": "multivectors",
    "quantization_config": "quantisation",
    "datatype": "vector data types other than float32",
    "memory": "vector placement",
}
_DISTANCES: Final = {
    "Cosine": edge.Distance.Cosine,
    "Euclid": edge.Distance.Euclid,
    "Dot": edge.Distance.Dot,
    "Manhattan": edge.Distance.Manhattan,
}
_ONE_OF_EACH: Final = {
    "shard_number": "shards: one process holds each collection whole",
    "replication_factor": "replication: one process holds each collection",
    "write_consistency_factor": "replication: one process holds each collection",
}
_MOST_DIMENSIONS: Final = 65_536

_HNSW_DEFAULTS: Final = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0}
_OPTIMIZER_DEFAULTS: Final = {"default_segment_number": 1, "flush_interval_sec": 5}
_WAL: Final = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}

_SCHEMA_TYPES: Final[dict[str, tuple[edge.PayloadSchemaType, Any]]] = {
    "keyword": (edge.PayloadSchemaType.Keyword, edge.KeywordIndexParams),
    "integer": (edge.PayloadSchemaType.Integer, edge.IntegerIndexParams),
    "float": (edge.PayloadSchemaType.Float, edge.FloatIndexParams),
    "bool": (edge.PayloadSchemaType.Bool, edge.BoolIndexParams),
    "datetime": (edge.PayloadSchemaType.Datetime, edge.DatetimeIndexParams),
    "uuid": (edge.PayloadSchemaType.Uuid, edge.UuidIndexParams),
    "text": (edge.PayloadSchemaType.Text, None),
}
_SCHEMA_FLAGS: Final = frozenset({"is_tenant", "is_principal", "on_disk", "enable_hnsw", "lookup", "range"})


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection was created as.

    Args:
        created_from: the create request without its metadata.
        vectors: size and distance per vector name; the unnamed vector's name is empty.
        metadata: what the creator wanted remembered; Edge has no place for it.
    """

    created_from: Mapping[str, Json]
    vectors: Mapping[str, tuple[int, str]]
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Json) -> Self:
        """Return the spec of a create request, or of what `to_json` wrote.

        Raises:
            BadRequest: wrong type, unknown field, impossible size.
            NotSupported: what only a Qdrant server has.
        """
        body = as_object(value, "create collection")
        unsupported(body, _NOT_CREATED)
        known_only(body, _CREATE, "create collection")
        _one_of_each(body)
        created_from = {name: entry for name, entry in body.items() if name != "metadata" and entry is not None}
        return cls(created_from, _vectors(body.get("vectors")), _metadata(body.get("metadata")))

    def to_json(self) -> dict[str, Json]:
        """Return what `parse` reads back."""
        return {**self.created_from, "metadata": dict(self.metadata)}

    def sizes(self) -> dict[str, int]:
        """Return the dimension per vector name."""
        return {name: size for name, (size, _) in self.vectors.items()}

    def is_distance(self, query: Json, using: Json) -> bool:
        """Return whether the scores of a query are distances, of which the smallest is the best."""
        plain = type(query) is not dict or query.get("nearest") is not None
        _, kind = self.vectors.get(using or "", (0, "Cosine"))
        return query is not None and plain and kind in {"Euclid", "Manhattan"}

    def edge_config(self) -> edge.EdgeConfig:
        """Return the configuration of the shard; its log is on, so that what was acknowledged survives a kill."""
        params = {name: edge.EdgeVectorParams(size, _DISTANCES[kind]) for name, (size, kind) in self.vectors.items()}
        return edge.EdgeConfig(vectors=params, max_search_threads=1, wal_enabled=True)

    def with_update(self, value: Json) -> Self:
        """Return the spec after `PATCH /collections/{name}`: metadata is merged, null removes a key.

        Raises:
            NotSupported: any other change of a living collection.
        """
        body = as_object(value, "update collection")
        for name, entry in body.items():
            if name != "metadata" and entry is not None:
                raise NotSupported(f"change of `{name}` in a living collection")
        merged = {**self.metadata, **as_object(body.get("metadata") or {}, "metadata")}
        within_depth(merged, "metadata")
        return replace(self, metadata={name: entry for name, entry in merged.items() if entry is not None})

    def describe(self) -> dict[str, Json]:
        """Return `config` of the collection as Qdrant answers it."""
        return {
            "params": {
                "vectors": self.created_from.get("vectors") or {},
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": _with_defaults(_HNSW_DEFAULTS, self.created_from.get("hnsw_config")),
            "optimizer_config": _with_defaults(_OPTIMIZER_DEFAULTS, self.created_from.get("optimizers_config")),
            "wal_config": _WAL,
            "quantization_config": None,
            "metadata": dict(self.metadata) or None,
        }


def _one_of_each(body: dict[str, Any]) -> None:
    for name, feature in _ONE_OF_EACH.items():
        if body.get(name) not in (None, 1):
            raise NotSupported(feature)
    if body.get("sharding_method") not in (None, "auto"):
        raise NotSupported("custom sharding")


def _vectors(value: Json) -> dict[str, tuple[int, str]]:
    spaces = as_object(value or {}, "vectors")
    if not spaces:
        raise NotSupported("collections without vectors")
    if "size" in spaces and type(spaces["size"]) is not dict:
        return {"": _vector(spaces)}
    return {as_text(name, "vector name"): _vector(params) for name, params in spaces.items()}


def _vector(value: Json) -> tuple[int, str]:
    params = as_object(value, "vector params")
    if params.get("datatype") != "float32":
        unsupported(params, _NOT_IN_VECTOR)
    known_only(params, _VECTOR | {"datatype"}, "vector params")
    distance = params.get("distance")
    if distance not in _DISTANCES:
        raise BadRequest(f"Format error in JSON body: distance must be one of {', '.join(_DISTANCES)}")
    return as_integer(params.get("size"), "size", least=1, most=_MOST_DIMENSIONS), distance


def _metadata(value: Json) -> dict[str, Any]:
    metadata = as_object(value or {}, "metadata")
    within_depth(metadata, "metadata")
    return metadata


def _with_defaults(defaults: Mapping[str, Json], given: Json) -> dict[str, Json]:
    return {**defaults, **{name: value for name, value in (given or {}).items() if value is not None}}


def create_index(value: Json) -> edge.UpdateOperation:
    """Return the operation of `PUT /index`: a payload index by type name or by parameters."""
    body = as_object(value, "create index")
    known_only(body, frozenset({"field_name", "field_schema"}), "create index")
    name, schema = as_text(body.get("field_name"), "field_name"), body.get("field_schema")
    if type(schema) is str:
        return edge.UpdateOperation.create_field_index(name, _schema_type(schema)[0])
    params = as_object(schema, "field_schema")
    kind, build = _schema_type(as_text(params.get("type"), "field_schema.type"))
    given = {key: entry for key, entry in params.items() if key != "type" and entry is not None}
    if not given:
        return edge.UpdateOperation.create_field_index(name, kind)
    if build is None or not given.keys() <= _SCHEMA_FLAGS:
        raise NotSupported(f"these parameters of a payload index: {', '.join(sorted(given))}")
    return edge.UpdateOperation.create_field_index(name, _index_params(build, given))


def _schema_type(name: str) -> tuple[edge.PayloadSchemaType, Any]:
    if name == "geo":
        raise NotSupported("payload index of type `geo`")
    if name not in _SCHEMA_TYPES:
        raise BadRequest(f"Format error in JSON body: unknown type of payload index `{name}`")
    return _SCHEMA_TYPES[name]


def _index_params(build: Any, given: dict[str, Json]) -> Any:
    try:
        return build(**given)
    except TypeError as exc:
        raise BadRequest(f"Format error in JSON body: field_schema: {exc}") from exc


def describe_indexes(schema: Mapping[str, "edge.PayloadIndexInfo"]) -> dict[str, Json]:
    """Return `payload_schema` of the collection as Qdrant answers it."""
    names = {kind: name for name, (kind, _) in _SCHEMA_TYPES.items()}
    return {
        key: {"data_type": names.get(entry.data_type, "keyword"), "points": entry.points}
        for key, entry in schema.items()
    }
