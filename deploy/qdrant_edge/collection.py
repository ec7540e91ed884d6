"""One collection: a shard of Qdrant Edge with its spec, spoken to in REST JSON."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge
from qdrant_client import models

from contracts.errors import InvariantError
from deploy.qdrant_edge import config, groups, points
from deploy.qdrant_edge.conditions import to_filter
from deploy.qdrant_edge.errors import ApiError, edge_errors
from deploy.qdrant_edge.queries import Scope, payloads, to_query, to_scroll
from deploy.qdrant_edge.requests import Json, PointId, as_list, as_object, dense_vector, json_id, parse, point_id

RESERVE_BYTES: Final = 256 * 1024**2
"""More than one write takes: its body, a segment of the log, and a chunk of vectors and of payload, 32 MiB each."""

_GROUPS: Final = 3
"""Groups, and hits of each, if a request does not say how many."""


class Collection:
    """One open collection.

    Args:
        name: its real name.
        spec: what it was created as.
        shard_path: folder of the shard, made by `Collection.make_shard`.
    """

    def __init__(self, name: str, spec: models.CreateCollection, shard_path: Path) -> None:
        self.name = name
        self.spec = spec
        self.dirty = False
        self._sizes = config.sizes_of(spec)
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
            edge.EdgeShard.create(str(shard_path), config.edge_config(spec)).close()

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
            "config": config.describe(self.spec),
            "payload_schema": config.describe_indexes(info.payload_schema),
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
            return self._apply(config.create_index(body))

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
            return self._answer_query(to_query(request, self._scope()))

    def query_batch(self, body: Json) -> list[dict[str, Json]]:
        """Answer `points/query/batch`; one malformed query refuses all."""
        fields = as_object(body, "batch request")
        parse(models.QueryRequestBatch, {**fields, "searches": []})
        with edge_errors():
            scope = self._scope()
            requests = [parse(models.QueryRequest, entry) for entry in as_list(fields.get("searches"), "searches")]
            queries = [to_query(request, scope) for request in requests]
            return [self._answer_query(query) for query in queries]

    def _answer_query(self, query: edge.QueryRequest) -> dict[str, Json]:
        return {"points": _to_json(self._shard.query(query), with_vector=query.with_vector)}

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
                largest_first=not config.scores_are_distances(self.spec, request.query, request.using),
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
        """Answer `GET /points/{id}`.

        Raises:
            ApiError: there is no such point.
        """
        wanted = [int(identity) if identity.isascii() and identity.isdigit() else identity]
        found = self.retrieve({"ids": wanted, "with_payload": True, "with_vector": True})
        if not found:
            raise ApiError(404, f"Not found: Point with id {identity} does not exists!")
        return found[0]

    def _retrieve(
        self, ids: Sequence[PointId], with_payload: models.WithPayloadInterface | None, with_vector: Any
    ) -> list[dict[str, Json]]:
        found = self._shard.retrieve(list(ids), payloads(with_payload, default=False), with_vector or False)
        return _to_json(found, with_vector=with_vector)

    def scroll(self, body: Json) -> dict[str, Json]:
        """Answer `points/scroll`."""
        request = parse(models.ScrollRequest, body)
        with edge_errors():
            found, following = self._shard.scroll(to_scroll(request, self._scope()))
        return {
            "points": _to_json(found, with_vector=request.with_vector),
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

    def _vector_of(self, example: PointId, name: str) -> list[float]:
        """Return a stored vector, for a query by example."""
        found = self._shard.retrieve([example], False, True)
        vector = found[0].vector if found else None
        stored = vector.get(name) if type(vector) is dict else vector
        if stored is None:
            raise ApiError(404, f"Not found: No point with id {example} found, or it has no vector `{name}`")
        return dense_vector(stored, name, self._sizes)


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


def _to_json(found: Iterable[edge.ScoredPoint | edge.Record], *, with_vector: Any) -> list[dict[str, Json]]:
    """Return points as Qdrant answers them; MMR gives vectors even if none were asked for, so they are dropped here."""
    answers = []
    for point in found:
        answer: dict[str, Json] = {"id": json_id(point.id)}
        if isinstance(point, edge.ScoredPoint):
            answer |= {"version": point.version, "score": point.score}
        if point.payload is not None:
            answer["payload"] = point.payload
        if with_vector is not None and with_vector is not False:
            vector: Any = point.vector
            # The one vector of a collection without names is a bare list.
            answer["vector"] = vector[""] if type(vector) is dict and set(vector) == {""} else vector
        if point.order_value is not None:
            answer["order_value"] = point.order_value
        answers.append(answer)
    return answers
