"""Groups on top of plain queries: the best hits per value of a payload field, as `query/groups` answers them.

Edge's binding has no groups, so they are gathered page by page, as a Qdrant server does it: each page leaves out points
already seen and groups already full, further pages fill groups that are still short. A server gives up after five pages
of each kind; here that holds only for what might be better, and pages grow while they bring no new group.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from qdrant_client import models

from deploy.qdrant_edge.queries import DEFAULT_LIMIT
from deploy.qdrant_edge.requests import PointId

Key = int | str
"""A group's value: Qdrant groups by strings and integers only."""

_PAGES: Final = 5
_PATH_PART: Final = re.compile(r'"([^"]*)"|([^."\[\]]+)|\[(\d*)\]')


class Hit(NamedTuple):
    """One result with the group values its payload holds."""

    point: PointId
    score: float
    keys: tuple[Key, ...]


class Page(NamedTuple):
    """What is asked for: the best hits but the points seen and the groups that are full, or only among some groups."""

    limit: int
    seen: Collection[PointId]
    full: Sequence[Key] = ()
    among: Sequence[Key] | None = None


Find = Callable[[Page], Sequence[Hit]]


def best_groups(find: Find, *, groups: int, size: int, largest_first: bool = True) -> dict[Key, list[Hit]]:
    """Find the best groups in order, each with its best hits; `find` answers a page, best hits first.

    >>> hits = [Hit(1, 0.9, ("a",)), Hit(2, 0.8, ("a",)), Hit(3, 0.7, ("b",)), Hit(4, 0.6, ())]
    >>> def find(page):
    ...     left = [hit for hit in hits if hit.point not in page.seen and not set(hit.keys) & set(page.full)]
    ...     return [hit for hit in left if page.among is None or set(hit.keys) & set(page.among)][: page.limit]
    >>> {key: [hit.point for hit in held] for key, held in best_groups(find, groups=2, size=1).items()}
    {'a': [1], 'b': [3]}
    """
    gathered = _Gathered(groups, size, largest_first=largest_first)
    limit, pages = groups * size, 0
    while gathered.lacks_groups() or (gathered.short() and pages < _PAGES):
        pages += 1
        known = len(gathered.held)
        if not gathered.add(find(Page(limit, gathered.seen, full=gathered.full()))):
            break
        if gathered.lacks_groups() and len(gathered.held) == known:
            limit *= 2
    pages = 0
    while gathered.short() or (gathered.lacks_groups() and pages < _PAGES):
        pages += 1
        if not gathered.add(find(Page(limit, gathered.seen, among=gathered.short() or None))):
            break
    return gathered.best()


class _Gathered:
    def __init__(self, groups: int, size: int, *, largest_first: bool) -> None:
        self.seen: set[PointId] = set()
        self._groups = groups
        self._size = size
        self._sign = -1 if largest_first else 1
        self.held: dict[Key, list[Hit]] = {}

    def add(self, page: Iterable[Hit]) -> bool:
        """Take a page; tell whether there was anything in it."""
        before = len(self.seen)
        for hit in page:
            self.seen.add(hit.point)
            for key in hit.keys:
                self.held.setdefault(key, []).append(hit)
        return len(self.seen) > before

    def lacks_groups(self) -> bool:
        return len(self.held) < self._groups

    def full(self) -> list[Key]:
        return [key for key, held in self.held.items() if len(held) >= self._size]

    def short(self) -> list[Key]:
        """List those of the best groups that could hold more."""
        return [key for key, held in self.best().items() if len(held) < self._size]

    def best(self) -> dict[Key, list[Hit]]:
        ordered = {key: sorted(held, key=self._rank) for key, held in self.held.items()}
        first = sorted(ordered, key=lambda key: self._rank(ordered[key][0]))[: self._groups]
        return {key: ordered[key][: self._size] for key in first}

    def _rank(self, hit: Hit) -> float:
        return self._sign * hit.score


def keys_at(payload: object, path: str) -> tuple[Key, ...]:
    """Return the group values at a path; a list counts entry by entry, a value that is no key spoils its point.

    >>> keys_at({"a": {"b": ["x", 3]}}, "a.b"), keys_at({"a": [{"b": 1}, {"b": 2}]}, "a[].b"), keys_at({"a": 0.5}, "a")
    (('x', 3), (1, 2), ())
    """
    values: list[Any] = [payload]
    for quoted, name, index in _PATH_PART.findall(path):
        key = quoted or name
        values = [found for value in values for found in (_field(value, key) if key else _entries(value, index))]
    flat = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    if any(type(entry) not in (str, int) for entry in flat):
        return ()
    return tuple(dict.fromkeys(flat))


def _field(value: object, name: str) -> list[Any]:
    return [value[name]] if isinstance(value, dict) and name in value else []


def _entries(value: object, index: str) -> list[Any]:
    if not isinstance(value, list):
        return []
    return value[int(index) : int(index) + 1] if index else value


def pages_of(
    given: models.QueryGroupsRequest, search: Callable[[models.QueryRequest], Sequence[Any]], *, size: int
) -> Find:
    """Answer the pages of a group request by plain queries, shaped as a Qdrant server shapes them.

    Prefetches fetch `size` times more, so that enough is left after each step.
    """
    path = given.group_by
    base = models.QueryRequest.model_construct(
        query=given.query,
        using=given.using,
        prefetch=_enlarged(given.prefetch, size),
        params=given.params,
        score_threshold=given.score_threshold,
        with_payload=[path.removesuffix("[]")],
    )

    def conditions(model: type[Any], name: str, keys: Sequence[Key]) -> list[models.Condition]:
        kinds = ([key for key in keys if type(key) is str], [key for key in keys if type(key) is int])
        return [models.FieldCondition(key=path, match=model(**{name: kind})) for kind in kinds if kind]

    def find(page: Page) -> list[Hit]:
        must: list[models.Condition] = conditions(models.MatchExcept, "except", page.full)
        if given.filter is not None:
            must.append(given.filter)
        if page.among:
            must.append(models.Filter(should=conditions(models.MatchAny, "any", page.among)))
        # A point without the field is in no group.
        missing = models.IsEmptyCondition(is_empty=models.PayloadField(key=path))
        seen = models.HasIdCondition.model_construct(has_id=list(page.seen))
        chosen = models.Filter.model_construct(must=must, must_not=[missing, seen])
        query = base.model_copy(update={"limit": page.limit, "filter": chosen})
        return [Hit(point.id, point.score, keys_at(point.payload, path)) for point in search(query)]

    return find


def _enlarged(given: list[models.Prefetch] | models.Prefetch | None, size: int) -> list[models.Prefetch]:
    entries = given if isinstance(given, list) else [given] if given else []
    return [
        entry.model_copy(
            update={
                "limit": (DEFAULT_LIMIT if entry.limit is None else entry.limit) * size,
                "prefetch": _enlarged(entry.prefetch, size),
            }
        )
        for entry in entries
    ]
