"""One collection: a shard of Qdrant Edge with its spec, spoken to in REST JSON.

Nothing here is shared between threads: every call comes from the one worker thread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from contracts.errors import InvariantError
from deploy.qdrant_edge import answers, grouping, translate_points
from deploy.qdrant_edge.errors import NotFound
from deploy.qdrant_edge.fields import (
    Json,
    PointId,
    as_flag,
    as_list,
    as_object,
    as_text,
    dense_vector,
    known_only,
    unsupported,
)
from deploy.qdrant_edge.group_pages import GroupPages
from deploy.qdrant_edge.refusals import refusals
from deploy.qdrant_edge.room import require_room
from deploy.qdrant_edge.translate_config import CollectionSpec, create_index, describe_indexes
from deploy.qdrant_edge.translate_filters import to_filter
from deploy.qdrant_edge.translate_queries import (
    GROUP_REQUEST,
    Scope,
    to_query,
    to_scroll,
    with_payload,
    with_vectors,
)

_SHARDING: Final = {"shard_key": "shard keys"}
_GROUPS: Final = 3
"""Groups, and hits of each, where a request does not say how many."""


class Collection:
    """One open collection.

    Args:
        name: its real name.
        spec: what it was created as.
        shard_path: folder of the shard, made by `Collection.make_shard`.
    """

    def __init__(self, name: str, spec: CollectionSpec, shard_path: Path) -> None:
        self.name = name
        self.spec = spec
        self.dirty = False
        self._sizes = spec.sizes()
        self._operation = 0
        self._folder = shard_path
        try:
            self._shard = edge.EdgeShard.load(str(shard_path))
        except Exception as exc:
            raise InvariantError(
                f"collection `{name}` cannot be opened: {exc}",
                fix=f"move {shard_path.parent} away; the indexer fills a new one from the catalogue",
            ) from exc

    @staticmethod
    def make_shard(spec: CollectionSpec, shard_path: Path) -> None:
        """Make an empty shard on disk and leave it closed."""
        require_room(shard_path.parent)
        shard_path.mkdir()
        with refusals():
            edge.EdgeShard.create(str(shard_path), spec.edge_config()).close()

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
            "config": self.spec.describe(),
            "payload_schema": describe_indexes(info.payload_schema),
            "update_queue": {"length": 0},
        }

    def write(self, kind: str, body: Json) -> dict[str, Json]:
        """Apply one update, named as in `translate_points`; it is in the log when this returns."""
        with refusals():
            return self._apply(translate_points.OPERATIONS[kind](body, self._sizes))

    def write_batch(self, body: Json) -> list[dict[str, Json]]:
        """Apply `points/batch` in order; as in Qdrant there is no transaction over it."""
        with refusals():
            return [self._apply(operation) for operation in translate_points.batch(body, self._sizes)]

    def create_index(self, body: Json) -> dict[str, Json]:
        """Create a payload index; harmless when it exists."""
        with refusals():
            return self._apply(create_index(body))

    def delete_index(self, field_name: str) -> dict[str, Json]:
        """Delete a payload index; harmless when there is none."""
        with refusals():
            return self._apply(edge.UpdateOperation.delete_field_index(field_name))

    def _apply(self, operation: edge.UpdateOperation) -> dict[str, Json]:
        require_room(self._folder)
        self.dirty = True
        self._shard.update(operation)
        self._operation += 1
        return {"operation_id": self._operation, "status": "completed"}

    def query(self, body: Json) -> dict[str, Json]:
        """Answer `points/query`."""
        with refusals():
            return self._answer_query(to_query(body, self._scope()), body)

    def query_batch(self, body: Json) -> list[dict[str, Json]]:
        """Answer `points/query/batch`; one malformed query refuses all."""
        fields = as_object(body, "batch request")
        known_only(fields, frozenset({"searches"}), "batch request")
        with refusals():
            scope = self._scope()
            queries = [(to_query(entry, scope), entry) for entry in as_list(fields.get("searches"), "searches")]
            return [self._answer_query(query, entry) for query, entry in queries]

    def _answer_query(self, query: edge.QueryRequest, body: dict[str, Any]) -> dict[str, Json]:
        wants_vector = with_vectors(body.get("with_vector")) is not False
        return {"points": answers.scored_points(self._shard.query(query), with_vector=wants_vector)}

    def query_groups(self, body: Json) -> dict[str, Json]:
        """Answer `points/query/groups`."""
        fields = as_object(body, "group request")
        known_only(fields, GROUP_REQUEST, "group request")
        unsupported(fields, {"with_lookup": "lookup in another collection"})
        path = as_text(fields.get("group_by"), "group_by")
        with refusals():
            scope = self._scope()
            size = scope.limit(fields.get("group_size"), "group_size", default=_GROUPS)
            groups = scope.limit(fields.get("limit"), default=_GROUPS)
            pages = GroupPages(self._shard, fields, scope, path=path, size=size)
            using = None if fields.get("using") is None else as_text(fields["using"], "using")
            largest_first = not self.spec.is_distance(fields.get("query"), using)
            found = grouping.best_groups(pages, groups=groups, size=size, largest_first=largest_first)
            return {"groups": self._answer_groups(found, fields)}

    def _answer_groups(
        self, found: Mapping[grouping.Key, Sequence[grouping.Hit]], fields: dict[str, Any]
    ) -> list[dict[str, Json]]:
        ids = list(dict.fromkeys(hit.point for hits in found.values() for hit in hits))
        stored = {record["id"]: record for record in self._retrieve(ids, fields)}
        return [
            {"id": key, "hits": [{"version": 0, **stored[hit.point], "score": hit.score} for hit in hits]}
            for key, hits in found.items()
        ]

    def retrieve(self, body: Json) -> list[dict[str, Json]]:
        """Answer `POST /points`: the stored points among the ids."""
        fields = as_object(body, "point request")
        known_only(fields, frozenset({"ids", "with_payload", "with_vector", "shard_key"}), "point request")
        unsupported(fields, _SHARDING)
        with refusals():
            return self._retrieve(translate_points.point_ids(fields.get("ids")), fields)

    def get(self, identity: str) -> dict[str, Json]:
        """Answer `GET /points/{id}`.

        Raises:
            NotFound: there is no such point.
        """
        wanted = [int(identity) if identity.isascii() and identity.isdigit() else identity]
        found = self.retrieve({"ids": wanted, "with_payload": True, "with_vector": True})
        if not found:
            raise NotFound(f"Not found: Point with id {identity} does not exists!")
        return found[0]

    def _retrieve(self, ids: Sequence[PointId], fields: dict[str, Any]) -> list[dict[str, Json]]:
        vectors = with_vectors(fields.get("with_vector"))
        payload = with_payload(fields.get("with_payload"), default=False)
        found = self._shard.retrieve(list(ids), payload, vectors)
        return answers.records(found, with_vector=vectors is not False)

    def scroll(self, body: Json) -> dict[str, Json]:
        """Answer `points/scroll`."""
        with refusals():
            found, following = self._shard.scroll(to_scroll(body, self._scope()))
        wants_vector = with_vectors(body.get("with_vector")) is not False
        return {
            "points": answers.records(found, with_vector=wants_vector),
            "next_page_offset": None if following is None else answers.to_point_id(following),
        }

    def count(self, body: Json) -> dict[str, Json]:
        """Answer `points/count`; always exact."""
        fields = as_object(body, "count request")
        known_only(fields, frozenset({"filter", "exact", "shard_key"}), "count request")
        unsupported(fields, _SHARDING)
        as_flag(fields.get("exact") or False, "exact")
        with refusals():
            return {"count": self._shard.count(edge.CountRequest(exact=True, filter=to_filter(fields.get("filter"))))}

    def facet(self, body: Json) -> dict[str, Json]:
        """Answer `facet`: counts per value; the field needs an index."""
        fields = as_object(body, "facet request")
        known_only(fields, frozenset({"key", "limit", "filter", "exact", "shard_key"}), "facet request")
        unsupported(fields, _SHARDING)
        exact = as_flag(fields.get("exact") or False, "exact")
        limit, chosen = self._scope().limit(fields.get("limit")), to_filter(fields.get("filter"))
        with refusals():
            request = edge.FacetRequest(as_text(fields.get("key"), "key"), limit, exact, chosen)
            return answers.facet(self._shard.facet(request))

    def _scope(self) -> Scope:
        return Scope(sizes=self._sizes, ceiling=self.points_count(), vector_of=self._vector_of)

    def _vector_of(self, example: PointId, name: str) -> list[float]:
        """Return a stored vector, for a query by example."""
        found = self._shard.retrieve([example], False, True)
        vector = found[0].vector if found else None
        stored = vector.get(name) if type(vector) is dict else vector
        if stored is None:
            raise NotFound(f"Not found: No point with id {example} found, or it has no vector `{name}`")
        return dense_vector(stored, name, self._sizes)
