"""Edge results -> the JSON that Qdrant answers."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import qdrant_edge as edge

from deploy.qdrant_edge.fields import Json


def to_point_id(value: int | UUID | str) -> int | str:
    """Return a point id as JSON has it."""
    return value if isinstance(value, int) else str(value)


def scored_points(points: Iterable[edge.ScoredPoint], *, with_vector: bool) -> list[dict[str, Json]]:
    """Return the hits of a query; MMR gives vectors even where none were asked for, so they are dropped here."""
    return [_scored(point, with_vector=with_vector) for point in points]


def _scored(point: edge.ScoredPoint, *, with_vector: bool) -> dict[str, Json]:
    answer: dict[str, Json] = {"id": to_point_id(point.id), "version": point.version, "score": point.score}
    return _with_rest(answer, point, with_vector=with_vector)


def records(points: Iterable[edge.Record], *, with_vector: bool) -> list[dict[str, Json]]:
    """Return stored points, as retrieve and scroll give them."""
    return [_with_rest({"id": to_point_id(point.id)}, point, with_vector=with_vector) for point in points]


def _with_rest(answer: dict[str, Json], point: Any, *, with_vector: bool) -> dict[str, Json]:
    if point.payload is not None:
        answer["payload"] = point.payload
    if with_vector:
        answer["vector"] = _vector(point.vector)
    if point.order_value is not None:
        answer["order_value"] = point.order_value
    return answer


def _vector(value: Json) -> Json:
    """Return vectors by name, or the bare list where the collection's one vector has no name."""
    if type(value) is dict and set(value) == {""}:
        return value[""]
    return value


def facet(response: edge.FacetResponse) -> dict[str, Json]:
    """Return the counts per value of a payload field."""
    return {"hits": [{"value": hit.value, "count": hit.count} for hit in response.hits]}
