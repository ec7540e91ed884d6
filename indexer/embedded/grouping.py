"""Groups on top of plain queries: the best hits per value of a payload field, as `query/groups` answers them.

Edge has no groups. The first query asks for ever more hits until enough groups were seen; since hits come best first,
these are the best groups. Groups that are still short are then filled by queries that only see their values.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Key = int | str
"""A group's value: Qdrant groups by strings and integers only."""


class Hit(NamedTuple):
    """One result, best first, with the group values its payload holds."""

    point: int | str
    score: float
    keys: tuple[Key, ...]


Find = Callable[[int, Sequence[Key] | None], Sequence[Hit]]
"""`find(limit, among)`: the best hits, only of groups `among` where given."""

_GROWTH = 4


def best_groups(find: Find, *, groups: int, size: int) -> dict[Key, list[Hit]]:
    """Return the best groups in order, each with its best hits.

    >>> hits = [Hit(1, 0.9, ("a",)), Hit(2, 0.8, ("a",)), Hit(3, 0.7, ("b",)), Hit(4, 0.6, ())]
    >>> def find(limit, among):
    ...     return [hit for hit in hits if among is None or set(hit.keys) & set(among)][:limit]
    >>> {key: [hit.point for hit in found] for key, found in best_groups(find, groups=2, size=1).items()}
    {'a': [1], 'b': [3]}
    """
    found, exhausted = _grow(
        lambda limit: find(limit, None), groups * size, lambda hits: len(_grouped(hits, groups, size)) == groups
    )
    chosen = _grouped(found, groups, size)
    short = [key for key, hits in chosen.items() if len(hits) < size]
    if not exhausted and short:
        filling, _ = _grow(
            lambda limit: find(limit, short),
            len(short) * size,
            lambda hits: all(len(group) == size for group in _grouped(hits, None, size, short).values()),
        )
        filled = _grouped(filling, None, size, short)
        chosen = {key: max(hits, filled.get(key, []), key=len) for key, hits in chosen.items()}
    return chosen


def _grow(
    find: Callable[[int], Sequence[Hit]], limit: int, enough: Callable[[Sequence[Hit]], bool]
) -> tuple[Sequence[Hit], bool]:
    """Ask for more until it is enough or there is no more; return the hits and whether there is no more."""
    while True:
        hits = find(limit)
        exhausted = len(hits) < limit
        if exhausted or enough(hits):
            return hits, exhausted
        limit *= _GROWTH


def _grouped(
    hits: Sequence[Hit], groups: int | None, size: int, wanted: Sequence[Key] | None = None
) -> dict[Key, list[Hit]]:
    """Return hits by group, groups in order of their best hit, none beyond the wanted number, none overfull."""
    grouped: dict[Key, list[Hit]] = {key: [] for key in wanted or ()}
    for hit in hits:
        for key in hit.keys:
            if key not in grouped and (wanted is not None or (groups is not None and len(grouped) >= groups)):
                continue
            group = grouped.setdefault(key, [])
            if len(group) < size:
                group.append(hit)
    return grouped


def keys_at(payload: object, path: str) -> tuple[Key, ...]:
    """Return the group values at a dotted path; entries of a list count each, others than text and integers not.

    >>> keys_at({"a": {"b": ["x", 3, None, True]}}, "a.b")
    ('x', 3)
    """
    value: Any = payload
    for part in path.split("."):
        value = value.get(part.removesuffix("[]")) if isinstance(value, dict) else None
    entries = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(entry for entry in entries if type(entry) in (str, int)))
