"""Writes of a request -> update operations of Edge, each with the points that it may change."""

from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from deploy.qdrant_edge.queries import to_filter
from deploy.qdrant_edge.requests import (
    MAX_DEPTH,
    ApiError,
    Json,
    PointId,
    Sizes,
    as_list,
    as_object,
    parse,
    point_id,
    to_vectors,
)

_MODES: Final = {
    models.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}


class Update(NamedTuple):
    """One operation of Edge, and which points it may change: these, or all that meet a filter before it."""

    operation: edge.UpdateOperation
    points: Collection[PointId] | edge.Filter | None


Operation = Callable[[Json, Sizes], Update]
_EMPTY: Final = "Bad request: Empty update request"
_OPERATION: Final = edge.UpdateOperation


def upsert(body: Json, sizes: Sizes) -> Update:
    """Make the operation of `PUT /points`: a list or a columnar batch; one malformed point refuses all."""
    fields = dict(as_object(body, "upsert"))
    if (batch := fields.pop("batch", None)) is not None:
        fields["points"] = _rows(as_object(batch, "batch"))
    fields, vectors = _without_vectors(fields)
    request = parse(models.PointsList, fields)
    if not request.points:
        raise ApiError(400, _EMPTY)
    points = [
        edge.Point(point_id(point.id), to_vectors(vector, sizes), point.payload or {})
        for point, vector in zip(request.points, vectors, strict=True)
    ]
    mode = _MODES[request.update_mode] if request.update_mode else None
    operation = _OPERATION.upsert_points(points, to_filter(request.update_filter), mode)
    return Update(operation, [point.id for point in points])


def _rows(batch: dict[str, Json]) -> list[dict[str, Json]]:
    vectors, payloads = batch.get("vectors"), batch.get("payloads")
    ids = parse(models.Batch, {**batch, "vectors": [], "payloads": None}).ids
    columns: dict[str, Any] = vectors if type(vectors) is dict else {"": vectors}
    payloads = payloads or [None] * len(ids)
    for name, column in (*columns.items(), ("payloads", payloads)):
        if len(as_list(column, f"batch column `{name}`")) != len(ids):
            raise ApiError(422, f"Validation error in JSON body: batch column `{name}` and ids differ in length")
    rows = []
    for row, identity in enumerate(ids):
        by_name = {name: column[row] for name, column in columns.items() if column[row] is not None}
        vector = by_name if type(vectors) is dict else by_name.get("")
        rows.append({"id": identity, "vector": vector, "payload": payloads[row]})
    return rows


def _without_vectors(fields: dict[str, Json]) -> tuple[dict[str, Json], list[Json]]:
    points = [as_object(point, "point") for point in as_list(fields.get("points"), "points")]
    vectors = [point.get("vector") for point in points]
    return {**fields, "points": [{**point, "vector": {}} if "vector" in point else point for point in points]}, vectors


def update_vectors(body: Json, sizes: Sizes) -> Update:
    """Return the operation of `PUT /points/vectors`; note that it leaves the payload, and so its version, alone."""
    fields, vectors = _without_vectors(as_object(body, "update vectors"))
    request = parse(models.UpdateVectors, fields)
    if not request.points:
        raise ApiError(422, "Validation error in JSON body: must specify points to update")
    changes = [
        edge.PointVectors(point_id(point.id), to_vectors(vector, sizes))
        for point, vector in zip(request.points, vectors, strict=True)
    ]
    operation = _OPERATION.update_vectors(changes, to_filter(request.update_filter))
    return Update(operation, [change.id for change in changes])


def _on_points(name: str, model: type[BaseModel] | None = None, *arguments: str) -> Operation:
    """Make an operation on the points that a request names: ids first, as in Qdrant, else its filter.

    Without a model the request says nothing but which points; `arguments` are its fields that Edge takes.
    """
    by_ids: Callable[..., edge.UpdateOperation] = getattr(_OPERATION, name)
    by_filter: Callable[..., edge.UpdateOperation] = getattr(_OPERATION, f"{name}_by_filter")

    def operation(body: Json, sizes: Sizes) -> Update:
        del sizes
        by_name = models.PointIdsList if type(body) is dict and "points" in body else models.FilterSelector
        request = parse(model or by_name, body)
        ids, chosen = getattr(request, "points", None), getattr(request, "filter", None)
        given = [getattr(request, name) for name in arguments]
        key = getattr(request, "key", None) or ""
        if key.count(".") + key.count("[") > MAX_DEPTH:  # it would nest the payload deeper than Edge can read back
            raise ApiError(400, f"Validation error in JSON body: `key` leads deeper than {MAX_DEPTH} levels")
        if ids:
            named = [point_id(entry) for entry in ids]
            return Update(by_ids(named, *given), named)
        if ids is not None:
            raise ApiError(400, _EMPTY)
        if chosen is None:
            raise ApiError(400, "Format error in JSON body: name the points by `points` or by `filter`")
        meets = to_filter(chosen)
        return Update(by_filter(meets, *given), meets)

    return operation


def _delete_vectors(body: Json, sizes: Sizes) -> Update:
    names = parse(models.DeleteVectors, body).vector
    if not names:
        raise ApiError(422, "Validation error in JSON body: must specify vector names to delete")
    if unknown := [name for name in names if name not in sizes]:
        raise ApiError(400, f"Wrong input: Not existing vector name error: {unknown[0]}")
    return _on_points("delete_vectors", models.DeleteVectors, "vector")(body, sizes)


OPERATIONS: Final[dict[str, Operation]] = {
    "upsert": upsert,
    "delete": _on_points("delete_points"),
    "set_payload": _on_points("set_payload", models.SetPayload, "payload", "key"),
    "overwrite_payload": _on_points("overwrite_payload", models.SetPayload, "payload", "key"),
    "delete_payload": _on_points("delete_payload", models.DeletePayload, "keys"),
    "clear_payload": _on_points("clear_payload"),
    "update_vectors": update_vectors,
    "delete_vectors": _delete_vectors,
}
"""Kind of a write, as in `points/batch` -> the operation of its body."""


def batch(body: Json, sizes: Sizes) -> list[Update]:
    """Return the operations of `POST /points/batch`, in order; one malformed operation refuses all."""
    fields = as_object(body, "batch update")
    parse(models.UpdateOperations, {**fields, "operations": []})
    return [_named(as_object(entry, "operation"), sizes) for entry in as_list(fields.get("operations"), "operations")]


def _named(fields: dict[str, Any], sizes: Sizes) -> Update:
    if len(fields) != 1:
        raise ApiError(400, "Format error in JSON body: an operation is an object with one key, its kind")
    ((kind, body),) = fields.items()
    if kind not in OPERATIONS:
        raise ApiError(400, f"Format error in JSON body: unknown batch operation `{kind}`")
    return OPERATIONS[kind](body, sizes)
