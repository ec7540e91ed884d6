"""One collection, spoken to in REST JSON: its spec, its shard, and what of both each call asks or changes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import qdrant_edge as edge
from qdrant_client import models

from deploy.qdrant_edge import groups, points
from deploy.qdrant_edge.queries import Scope, Vector, payloads, rescored, to_filter, to_query, to_scroll
from deploy.qdrant_edge.requests import (
    ApiError,
    Json,
    PointId,
    as_list,
    as_object,
    edge_errors,
    json_id,
    parse,
    point_id,
)
from deploy.qdrant_edge.shard import Shard
from deploy.qdrant_edge.spec import (
    INDEX_NAMES,
    describe,
    index_operation,
    indexing_threshold_kb,
    scanned_kb,
    scores_are_distances,
    sizes_of,
)

REBUILT_FROM: Final = 0.1
"""Share of the points that must be scanned beside a graph before it is built anew: it takes as long for few."""
_GROUPS: Final = 3
"""Groups, and hits of each, if a request does not say how many."""


class GraphState(NamedTuple):
    """What decides whether a graph is due: dense vectors that are scanned, all, and how many need none, in KiB."""

    scanned_kb: float
    all_kb: float
    threshold_kb: float

    @property
    def pays(self) -> bool:
        """Whether scanning costs more than a graph would; a threshold of 0 is for no graph ever."""
        return self.threshold_kb > 0 and self.scanned_kb > max(self.threshold_kb, REBUILT_FROM * self.all_kb)


class Collection:
    """One open collection under its real name, with what it was created as, in a folder with a shard."""

    def __init__(self, name: str, spec: models.CreateCollection, folder: Path) -> None:
        self.name = name
        self.spec = spec
        self.shard = Shard(folder, spec)
        self._sizes = sizes_of(spec)
        self._operation = 0

    def graph_state(self) -> GraphState:
        """Tell what decides whether a graph is due."""
        scanned, every = self.shard.scanned(), self.shard.points_count()
        return GraphState(
            scanned_kb(self.spec, scanned), scanned_kb(self.spec, every), indexing_threshold_kb(self.spec)
        )

    def info(self) -> dict[str, Json]:
        """Return what `GET /collections/{name}` answers."""
        info = self.shard.engine.info()
        return {
            "status": "yellow" if self.shard.is_building or self.graph_state().pays else "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": info.points_count - self.shard.scanned(),
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "config": describe(self.spec),
            "payload_schema": {
                key: {"data_type": INDEX_NAMES[entry.data_type], "points": entry.points}
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
            return self._apply_to_indexes(index_operation(body))

    def delete_index(self, field_name: str) -> dict[str, Json]:
        """Delete a payload index; harmless when there is none."""
        with edge_errors():
            return self._apply_to_indexes(edge.UpdateOperation.delete_field_index(field_name))

    def _apply(self, update: points.Update) -> dict[str, Json]:
        self.shard.update(update)
        return self._completed()

    def _apply_to_indexes(self, operation: edge.UpdateOperation) -> dict[str, Json]:
        self.shard.update_indexes(operation)
        return self._completed()

    def _completed(self) -> dict[str, Json]:
        self._operation += 1
        return {"operation_id": self._operation, "status": "completed"}

    def query(self, body: Json) -> dict[str, Json]:
        """Answer `points/query`."""
        with edge_errors():
            request = parse(models.QueryRequest, body)
            query = to_query(request, self._scope())
            return _answer(self.shard.engine.query(query), query)

    def query_batch(self, body: Json) -> list[dict[str, Json]]:
        """Answer `points/query/batch`; one malformed query refuses all."""
        fields = as_object(body, "batch request")
        parse(models.QueryRequestBatch, {**fields, "searches": []})
        with edge_errors():
            scope = self._scope()
            requests = [parse(models.QueryRequest, entry) for entry in as_list(fields.get("searches"), "searches")]
            queries = rescored(requests, scope, self._find) or [to_query(request, scope) for request in requests]
            found = self._find(queries)
        return [_answer(points, query) for points, query in zip(found, queries, strict=True)]

    def _find(self, queries: Sequence[edge.QueryRequest]) -> list[list[edge.ScoredPoint]]:
        return self.shard.engine.query_batch(edge.QueryBatchRequest(list(queries)))

    def query_groups(self, body: Json) -> dict[str, Json]:
        """Answer `points/query/groups`."""
        request = parse(models.QueryGroupsRequest, body)
        with edge_errors():
            scope = self._scope()
            size = scope.limit(request.group_size, "group_size", default=_GROUPS)
            found = groups.best_groups(
                groups.pages_of(request, lambda query: self.shard.engine.query(to_query(query, scope)), size=size),
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
        found = self.shard.engine.retrieve(list(ids), payloads(with_payload, default=False), with_vector or False)
        return _points_json(found, with_vector=with_vector)

    def scroll(self, body: Json) -> dict[str, Json]:
        """Answer `points/scroll`."""
        request = parse(models.ScrollRequest, body)
        with edge_errors():
            found, following = self.shard.engine.scroll(to_scroll(request, self._scope()))
        return {
            "points": _points_json(found, with_vector=request.with_vector),
            "next_page_offset": None if following is None else json_id(following),
        }

    def count(self, body: Json) -> dict[str, Json]:
        """Answer `points/count`; always exact."""
        request = parse(models.CountRequest, body)
        with edge_errors():
            return {"count": self.shard.engine.count(edge.CountRequest(exact=True, filter=to_filter(request.filter)))}

    def facet(self, body: Json) -> dict[str, Json]:
        """Answer `facet`: counts per value; the field needs an index."""
        request = parse(models.FacetRequest, body)
        with edge_errors():
            limit, chosen = self._scope().limit(request.limit), to_filter(request.filter)
            found = self.shard.engine.facet(edge.FacetRequest(request.key, limit, request.exact or False, chosen))
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in found.hits]}

    def _scope(self) -> Scope:
        return Scope(sizes=self._sizes, ceiling=self.shard.points_count(), vector_of=self._vector_of)

    def _vector_of(self, example: PointId, name: str) -> Vector:
        found = self.shard.engine.retrieve([example], False, True)
        vector: Any = found[0].vector if found else None
        stored: Vector | None = vector.get(name) if type(vector) is dict else vector
        if stored is None:
            raise ApiError(404, f"Not found: No point with id {example} found, or it has no vector `{name}`")
        return stored


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
