"""REST writes -> Edge update operations."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import qdrant_edge as edge

from deploy.qdrant_edge.errors import BadRequest, Unprocessable
from deploy.qdrant_edge.fields import (
    Json,
    PointId,
    as_list,
    as_object,
    as_text,
    as_texts,
    dense_vector,
    known_only,
    point_id,
    unsupported,
    within_depth,
)
from deploy.qdrant_edge.translate_filters import to_filter

T = TypeVar("T")

Sizes = Mapping[str, int]
"""Dimension per vector name; the unnamed vector's name is empty."""

_SHARDING: Final = {"shard_key": "shard keys"}
_MODES: Final = {
    "upsert": edge.UpdateMode.Upsert,
    "insert_only": edge.UpdateMode.InsertOnly,
    "update_only": edge.UpdateMode.UpdateOnly,
}
_UPSERT: Final = frozenset({"points", "batch", "shard_key", "update_filter", "update_mode"})
_POINT: Final = frozenset({"id", "vector", "payload"})
_TARGET: Final = frozenset({"points", "filter", "shard_key"})


def upsert(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `PUT /points`: a list or a columnar batch, with its condition and mode.

    Raises:
        BadRequest: a point is malformed; then nothing of the request is written.
    """
    body = as_object(value, "upsert")
    known_only(body, _UPSERT, "upsert")
    unsupported(body, _SHARDING)
    points = _some([_point(entry, sizes) for entry in _points_of(body)])
    mode = body.get("update_mode")
    if mode is not None and mode not in _MODES:
        raise BadRequest(f"Format error in JSON body: update_mode must be one of {', '.join(_MODES)}")
    condition = to_filter(body.get("update_filter"))
    return edge.UpdateOperation.upsert_points(points, condition, _MODES[mode] if mode else None)


def _points_of(body: dict[str, Any]) -> Iterator[Json]:
    if body.get("batch") is None:
        yield from as_list(body.get("points"), "points")
        return
    batch = as_object(body["batch"], "batch")
    known_only(batch, frozenset({"ids", "vectors", "payloads"}), "batch")
    ids = as_list(batch.get("ids"), "batch.ids")
    vectors = batch.get("vectors")
    columns: dict[str, Any] = vectors if type(vectors) is dict else {"": vectors}
    payloads = batch.get("payloads") or [None] * len(ids)
    for name, column in (*columns.items(), ("payloads", payloads)):
        if len(as_list(column, f"batch column `{name}`")) != len(ids):
            raise Unprocessable(f"Validation error in JSON body: batch column `{name}` and ids differ in length")
    for row, identity in enumerate(ids):
        by_name = {name: column[row] for name, column in columns.items() if column[row] is not None}
        vector = by_name if type(vectors) is dict else by_name.get("")
        yield {"id": identity, "vector": vector, "payload": payloads[row]}


def _point(value: Json, sizes: Sizes) -> edge.Point:
    fields = as_object(value, "point")
    known_only(fields, _POINT, "point")
    if "id" not in fields or "vector" not in fields:
        raise BadRequest("Format error in JSON body: a point needs `id` and `vector`; `vector` may be {}")
    payload = fields.get("payload")
    return edge.Point(point_id(fields["id"]), _vectors(fields["vector"], sizes), _payload(payload or {}))


def _vectors(value: Json, sizes: Sizes) -> Any:
    if type(value) is dict and not ({"indices", "text", "model", "image", "object"} & value.keys()):
        return {name: dense_vector(vector, name, sizes) for name, vector in value.items()}
    return dense_vector(value, "", sizes)


def _payload(value: Json) -> dict[str, Any]:
    payload = as_object(value, "payload")
    within_depth(payload, "payload")
    return payload


def delete(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `POST /points/delete`, by ids or by filter."""
    del sizes
    body = as_object(value, "delete")
    known_only(body, _TARGET, "delete")
    return _targeted(body, edge.UpdateOperation.delete_points, edge.UpdateOperation.delete_points_by_filter)


def set_payload(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `POST /points/payload`: given keys are set, others stay."""
    del sizes
    operations = edge.UpdateOperation
    return _payload_change(value, operations.set_payload, operations.set_payload_by_filter)


def overwrite_payload(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `PUT /points/payload`: the payload becomes the given one."""
    del sizes
    operations = edge.UpdateOperation
    return _payload_change(value, operations.overwrite_payload, operations.overwrite_payload_by_filter)


def delete_payload(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `POST /points/payload/delete`."""
    del sizes
    body = as_object(value, "delete payload")
    known_only(body, _TARGET | {"keys"}, "delete payload")
    keys = as_texts(body.get("keys"), "keys")
    operations = edge.UpdateOperation
    return _targeted(
        body,
        lambda ids: operations.delete_payload(ids, keys),
        lambda chosen: operations.delete_payload_by_filter(chosen, keys),
    )


def clear_payload(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `POST /points/payload/clear`."""
    del sizes
    body = as_object(value, "clear payload")
    known_only(body, _TARGET, "clear payload")
    return _targeted(body, edge.UpdateOperation.clear_payload, edge.UpdateOperation.clear_payload_by_filter)


def update_vectors(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `PUT /points/vectors`; note that it leaves the payload, and so its version, alone."""
    body = as_object(value, "update vectors")
    known_only(body, frozenset({"points", "shard_key", "update_filter"}), "update vectors")
    unsupported(body, _SHARDING)
    changes = []
    for entry in as_list(body.get("points"), "points"):
        fields = as_object(entry, "point")
        known_only(fields, frozenset({"id", "vector"}), "point")
        changes.append(edge.PointVectors(point_id(fields.get("id")), _vectors(fields.get("vector"), sizes)))
    if not changes:
        raise Unprocessable("Validation error in JSON body: must specify points to update")
    return edge.UpdateOperation.update_vectors(changes, to_filter(body.get("update_filter")))


def delete_vectors(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    """Return the operation of `POST /points/vectors/delete`; the points and their payloads stay."""
    body = as_object(value, "delete vectors")
    known_only(body, _TARGET | {"vector"}, "delete vectors")
    names = as_texts(body.get("vector"), "vector")
    if not names:
        raise Unprocessable("Validation error in JSON body: must specify vector names to delete")
    if unknown := [name for name in names if name not in sizes]:
        raise BadRequest(f"Wrong input: Not existing vector name error: {unknown[0]}")
    operations = edge.UpdateOperation
    return _targeted(
        body,
        lambda ids: operations.delete_vectors(ids, names),
        lambda chosen: operations.delete_vectors_by_filter(chosen, names),
    )


def _payload_change(
    value: Json,
    by_ids: Callable[[list[Any], dict[str, Any], str | None], edge.UpdateOperation],
    by_filter: Callable[[edge.Filter, dict[str, Any], str | None], edge.UpdateOperation],
) -> edge.UpdateOperation:
    body = as_object(value, "payload change")
    known_only(body, _TARGET | {"payload", "key"}, "payload change")
    payload = _payload(body.get("payload"))
    key = None if body.get("key") is None else as_text(body["key"], "key")
    return _targeted(body, lambda ids: by_ids(ids, payload, key), lambda chosen: by_filter(chosen, payload, key))


def _targeted(
    body: dict[str, Any],
    by_ids: Callable[[list[Any]], edge.UpdateOperation],
    by_filter: Callable[[edge.Filter], edge.UpdateOperation],
) -> edge.UpdateOperation:
    """Return the operation on the points that the body names: ids first, as in Qdrant, else its filter."""
    unsupported(body, _SHARDING)
    if body.get("points") is not None:
        return by_ids(_some(point_ids(body["points"])))
    chosen = to_filter(body.get("filter"))
    if chosen is None:
        raise BadRequest("Format error in JSON body: name the points by `points` or by `filter`")
    return by_filter(chosen)


def _some(entries: list[T]) -> list[T]:
    if not entries:
        raise BadRequest("Bad request: Empty update request")
    return entries


def point_ids(value: Json) -> list[PointId]:
    """Return a list of point ids."""
    return [point_id(entry) for entry in as_list(value, "points")]


OPERATIONS: Final[dict[str, Callable[[Json, Sizes], edge.UpdateOperation]]] = {
    "upsert": upsert,
    "delete": delete,
    "set_payload": set_payload,
    "overwrite_payload": overwrite_payload,
    "delete_payload": delete_payload,
    "clear_payload": clear_payload,
    "update_vectors": update_vectors,
    "delete_vectors": delete_vectors,
}


def batch(value: Json, sizes: Sizes) -> list[edge.UpdateOperation]:
    """Return the operations of `POST /points/batch`, in order; one malformed operation refuses all."""
    body = as_object(value, "batch update")
    known_only(body, frozenset({"operations"}), "batch update")
    return [_operation(entry, sizes) for entry in as_list(body.get("operations"), "operations")]


def _operation(value: Json, sizes: Sizes) -> edge.UpdateOperation:
    fields = as_object(value, "operation")
    if len(fields) != 1:
        raise BadRequest("Format error in JSON body: an operation is an object with one key, its kind")
    ((kind, body),) = fields.items()
    if kind not in OPERATIONS:
        raise BadRequest(f"Format error in JSON body: unknown batch operation `{kind}`")
    return OPERATIONS[kind](body, sizes)
