"""One group request as pages of plain queries, shaped as a Qdrant server shapes them."""

from collections.abc import Sequence
from typing import Any

import qdrant_edge as edge

from deploy.qdrant_edge import answers, grouping
from deploy.qdrant_edge.fields import Json
from deploy.qdrant_edge.translate_queries import DEFAULT_LIMIT, QUERY_FIELDS, Scope, to_query


class GroupPages:
    """Answers the pages of a group request.

    Args:
        shard: where to look.
        fields: of the group request.
        scope: of the collection.
        path: of the payload field to group by.
        size: of a group; prefetches fetch as many times more, so that enough is left after each stage.
    """

    def __init__(self, shard: edge.EdgeShard, fields: dict[str, Any], scope: Scope, *, path: str, size: int) -> None:
        self._shard = shard
        self._scope = scope
        self._path = path
        kept = {name: value for name, value in fields.items() if name in QUERY_FIELDS}
        self._body = {**kept, "prefetch": _enlarged(kept.get("prefetch"), size), "with_vector": None}
        self._body["with_payload"] = [path.removesuffix("[]")]

    def __call__(self, page: grouping.Page) -> list[grouping.Hit]:
        """Return the hits of a page; points without the field are in no group, so they are left out as well."""
        conditions = [{"should": self._match("any", page.among)}] if page.among is not None else []
        conditions += self._match("except", page.full)
        must_not = [{"is_empty": {"key": self._path}}, {"has_id": list(page.seen)}]
        given = [self._body["filter"]] if self._body.get("filter") is not None else []
        body = {**self._body, "limit": page.limit, "filter": {"must": [*given, *conditions], "must_not": must_not}}
        return [self._hit(point) for point in self._shard.query(to_query(body, self._scope))]

    def _match(self, kind: str, keys: Sequence[grouping.Key]) -> list[dict[str, Json]]:
        """Return the conditions on the group value, one for each type of key."""
        kinds = ([key for key in keys if type(key) is str], [key for key in keys if type(key) is int])
        return [{"key": self._path, "match": {kind: of_kind}} for of_kind in kinds if of_kind]

    def _hit(self, point: edge.ScoredPoint) -> grouping.Hit:
        return grouping.Hit(answers.to_point_id(point.id), point.score, grouping.keys_at(point.payload, self._path))


def _enlarged(prefetch: Json, size: int) -> Json:
    """Return prefetches with their limits multiplied; what is malformed is left for the query to refuse."""
    if type(prefetch) is list:
        return [_enlarged(entry, size) for entry in prefetch]
    if type(prefetch) is not dict:
        return prefetch
    limit = DEFAULT_LIMIT if prefetch.get("limit") is None else prefetch["limit"]
    larger = limit * size if type(limit) is int else limit
    return {**prefetch, "limit": larger, "prefetch": _enlarged(prefetch.get("prefetch"), size)}
