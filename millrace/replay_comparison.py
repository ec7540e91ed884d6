"""What a replay made beside what was made then: closed searches and pairs, what differs, and why."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

REASONS: Final = {
    "window": "the join's window is another than it was then",
    "person_key": "ids of persons are replaced by another key",
    "records": "it is made of other records: what was late then is in time now, or the other way round",
    "rules": "the same records make something else: the rules have changed, or a setting of theirs",
    "log_deleted": "Kafka has deleted records that it was made of",
    "open": "it is still open at the end of what was read",
    "original_gone": "there is no original: it was deleted, or is not written yet",
    "its_list": "its list differs too",
    "rule_version": "pairs are made by another version of the rules",
    "propensity": "it is weighed by other propensities",
    "session": "it hangs on lists of the session from before the replay: caps and repeats",
}
SHOWN_EXAMPLES: Final = 3
PERSONS: Final = frozenset({"client_id", "user_id"})
WEIGHED: Final = frozenset({"propensity_version", "weight", "factors"})

Key = tuple[str, ...]


class Difference(NamedTuple):
    """Something that is not as it was.

    Args:
        key: of the list or pair.
        side: `differs`, `only_original` or `only_rebuilt`.
        reason: a key of `REASONS`.
        fields: that differ.
    """

    key: Key
    side: str
    reason: str
    fields: tuple[str, ...] = ()


def by_list(values: Iterable[bytes], from_ms: int, to_ms: int) -> dict[Key, dict[str, Any]]:
    """Return the closed searches that were shown in a time, by what identifies them."""
    found: dict[Key, dict[str, Any]] = {}
    for value in values:
        search = _object(value)
        if search.get("type") == "joined_search" and from_ms <= search["search_time"] < to_ms:
            found[str(search["search_id"]), str(search["search_time"])] = search
    return found


def by_pair(values: Iterable[bytes], search_ids: Collection[str]) -> dict[Key, dict[str, Any]]:
    """Return the pairs that clicks made in some lists, by their ids."""
    pairs = map(_object, values)
    return {
        (str(pair["pair_id"]),): pair
        for pair in pairs
        if pair.get("source") == "click" and pair.get("search_id") in search_ids
    }


def _object(value: bytes) -> dict[str, Any]:
    """Read a record of ours; of what is none nothing is compared."""
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return read if isinstance(read, dict) else {}


def compare(
    original: Mapping[Key, dict[str, Any]],
    rebuilt: Mapping[Key, dict[str, Any]],
    why: Callable[[Difference], str],
) -> tuple[int, list[Difference]]:
    """Compare what was made then with what is made now; return how many are the same, and the differences.

    Args:
        original: key -> message.
        rebuilt: key -> message.
        why: finds the reason of a difference.
    """
    same = 0
    found: list[Difference] = []
    for key in sorted(original.keys() | rebuilt.keys()):
        then, now = original.get(key), rebuilt.get(key)
        if then is None or now is None:
            found.append(Difference(key, "only_rebuilt" if then is None else "only_original", ""))
            continue
        fields = tuple(sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)))
        if set(fields) - {"origins"}:
            found.append(Difference(key, "differs", "", fields))
        else:
            same += 1
    return same, [one._replace(reason=why(one)) for one in found]


def why_a_list(
    one: Difference, original: Mapping[Key, dict[str, Any]], begins: Mapping[int, int], open_searches: int
) -> str:
    """Find why a closed search is not as it was.

    Args:
        one: the difference.
        original: the closed searches that were made then.
        begins: partition of `search-events` -> first record that Kafka still has.
        open_searches: how many were not closed at the end of what was read.
    """
    if one.side == "only_rebuilt":
        return "original_gone"
    origins = original[one.key].get("origins", ())
    if any(origin["offset"] < begins.get(origin["partition"], 0) for origin in origins):
        return "log_deleted"
    if one.side == "only_original":
        return "open" if open_searches else "records"
    if "closed_at" in one.fields:
        return "window"
    if set(one.fields) <= PERSONS:
        return "person_key"
    return "records" if "origins" in one.fields else "rules"


def why_a_pair(
    one: Difference,
    original: Mapping[Key, dict[str, Any]],
    rebuilt: Mapping[Key, dict[str, Any]],
    differing: Collection[str],
) -> str:
    """Find why a pair is not as it was.

    Args:
        one: the difference.
        original: the pairs that were made then.
        rebuilt: the pairs that are made now.
        differing: ids of the searches that differ.
    """
    pair = original.get(one.key) or rebuilt[one.key]
    if pair["search_id"] in differing:
        return "its_list"
    others = rebuilt if one.side == "only_original" else original
    if one.side != "differs":
        versions = {other["rule_version"] for other in others.values()}
        return "rule_version" if versions and pair["rule_version"] not in versions else "session"
    if "propensity_version" in one.fields and set(one.fields) <= WEIGHED:
        return "propensity"
    return "session" if _is_by_shopper(one, original[one.key], rebuilt[one.key]) else "rules"


def _is_by_shopper(one: Difference, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a pair differs only by what hangs on the shopper's other lists: its cap, and what was left out."""
    others = [{name: value for name, value in pair["factors"].items() if name != "cap"} for pair in (then, now)]
    by_cap = then["factors"] != now["factors"] and others[0] == others[1]
    return set(one.fields) <= {"weight", "factors", "filters"} and (by_cap or then["filters"] != now["filters"])


def report_of(same: int, original: int, rebuilt: int, differences: Sequence[Difference]) -> dict[str, Any]:
    """Put a comparison into stable JSON, with a few examples for each reason."""
    sides = Counter(one.side for one in differences)
    reasons = [
        {
            "reason": reason,
            "meaning": REASONS[reason],
            "count": len(own := [one for one in differences if one.reason == reason]),
            "fields": dict(sorted(Counter(name for one in own for name in one.fields).items())),
            "examples": [list(one.key) for one in own[:SHOWN_EXAMPLES]],
        }
        for reason in sorted({one.reason for one in differences})
    ]
    counted = {side: sides[side] for side in ("differs", "only_original", "only_rebuilt")}
    return {"original": original, "rebuilt": rebuilt, "same": same, **counted, "reasons": reasons}
