"""What a replay makes is what was made then, and where it is not, why."""

from typing import Any

import orjson
import pytest

from contracts.errors import UsageError
from contracts.topics import JOINED_SEARCHES, PREFERENCE_PAIRS
from millrace.replay_comparison import Difference, Key, by_list, by_pair, compare, report_of, why_a_list, why_a_pair
from millrace.replaying import Rebuilt, moments, rebuild, replay_table
from tests.conftest import SettingsFactory
from tests.support.search_events import T0, at, click, impression, log, tick

ORIGIN = {"topic": "search-events", "partition": 0, "offset": 7}


def joined(**changes: Any) -> dict[str, Any]:
    """Return a closed search."""
    return {"search_id": "s1", "search_time": T0, "closed_at": T0 + 9, "client_id": "c", "origins": [ORIGIN], **changes}


FACTORS = {"value": 1.0, "ratio": 1.0, "cap": 1.0}


def pair(**changes: Any) -> dict[str, Any]:
    """Return a pair of it."""
    made = {"pair_id": "p1", "search_id": "s1", "rule_version": 1, "weight": 1.0, "propensity_version": 0}
    return {**made, "factors": FACTORS, "filters": [], **changes}


def rebuilt_of(settings: SettingsFactory, **given: Any) -> Rebuilt:
    """Replay two lists, one of which is still open at the end."""
    events = [impression("s1"), click("d", 200, "s1"), impression("s2", 60_000), tick(62_000)]
    own = settings(join_window_s=30, lateness_s=1, partitions=2, **given)
    return rebuild(own, ((0, record) for record in log(events)))


def test_a_replay_runs_the_rules_of_both_stages(settings: SettingsFactory) -> None:
    """Lists close as event time goes on, and give their pairs; the same log gives the same bytes."""
    once, again = rebuilt_of(settings), rebuilt_of(settings)
    assert (once.events, once.open_searches) == (4, 1)
    (search,) = [orjson.loads(one.value) for one in once.made[JOINED_SEARCHES]]
    assert (search["search_id"], search["closed_at"]) == ("s1", at(30_000))
    assert {orjson.loads(one.value)["chosen"]["product_id"] for one in once.made[PREFERENCE_PAIRS]} == {"d"}
    assert once.made == again.made


def test_a_replay_looks_ahead_as_far_as_the_original_did(settings: SettingsFactory) -> None:
    """Filters that look at later lists see them: what was clicked right afterwards was not passed over."""
    clicks = [click("d", 200, "s1"), click("b", 9_000, "s2", 8_000)]
    events = [impression("s1"), clicks[0], impression("s2", 8_000), clicks[1], tick(100_000)]
    own = settings(join_window_s=30, lateness_s=1, filters="later_clicks", look_ahead_s=20)
    made = rebuild(own, ((3, record) for record in log(events))).made[PREFERENCE_PAIRS]
    pairs = [pair for pair in map(orjson.loads, (one.value for one in made)) if pair["search_id"] == "s1"]
    assert {pair["rejected"]["product_id"] for pair in pairs} == {"a", "c", "e", "f"}
    assert {tuple(pair["filters"]) for pair in pairs} == {("later_clicked",)}


def test_what_is_compared_is_what_was_shown_in_the_time() -> None:
    """Other lists, other pairs, and what is no record of ours are left out."""
    values = [orjson.dumps({"type": "joined_search", **joined(search_time=T0 + number)}) for number in (0, 5, 10)]
    assert set(by_list([*values, b"{", b"[]", b'{"type":"watermark"}'], T0, T0 + 10)) == {
        ("s1", str(T0)), ("s1", str(T0 + 5)),
    }  # fmt: skip
    pairs = [pair(source="click"), pair(source="value", pair_id="p2"), pair(source="click", search_id="s9")]
    assert set(by_pair(map(orjson.dumps, pairs), {"s1"})) == {("p1",)}


def test_where_records_stood_is_no_difference() -> None:
    """The origins alone may differ between two orders of the same events."""
    key: Key = ("s1", str(T0))
    assert compare({key: joined()}, {key: joined(origins=[])}, lambda _: "rules") == (1, [])
    same, (one,) = compare({key: joined()}, {key: joined(query="q")}, lambda _: "rules")
    assert (same, one) == (0, Difference(key, "differs", "rules", ("query",)))


@pytest.mark.parametrize(
    ("then", "now", "begin", "reason"),
    [
        (joined(), joined(closed_at=T0 + 8, origins=[]), 0, "window"),
        (joined(), joined(client_id="d"), 0, "person_key"),
        (joined(), joined(query="x", origins=[]), 0, "records"),
        (joined(), joined(query="x"), 0, "rules"),
        (joined(), joined(query="x"), 8, "log_deleted"),
        (joined(), None, 8, "log_deleted"),
        (joined(), None, 0, "records"),
        (None, joined(), 0, "original_gone"),
    ],
)
def test_a_list_that_differs_says_why(then: Any, now: Any, begin: int, reason: str) -> None:
    """By its fields, by its records, and by what Kafka still has."""
    key: Key = ("s1", str(T0))
    original, rebuilt = ({} if one is None else {key: one} for one in (then, now))
    _, (found,) = compare(original, rebuilt, lambda one: why_a_list(one, original, {0: begin}, 0))
    assert found.reason == reason


def test_a_list_that_is_still_open_is_no_loss() -> None:
    """Its window is not over in what was read."""
    key: Key = ("s1", str(T0))
    assert why_a_list(Difference(key, "only_original", ""), {key: joined()}, {}, 1) == "open"


@pytest.mark.parametrize(
    ("then", "now", "differing", "reason"),
    [
        (pair(), pair(weight=2.0), {"s1"}, "its_list"),
        (pair(), pair(weight=2.0, propensity_version=3), set(), "propensity"),
        (pair(), pair(weight=2.0), set(), "rules"),
        (pair(), pair(weight=0.5, factors={**FACTORS, "cap": 0.5}), set(), "session"),
        (pair(), pair(filters=["variant"]), set(), "session"),
        (pair(), pair(weight=0.5, factors={**FACTORS, "ratio": 0.5}), set(), "rules"),
        (pair(), None, set(), "session"),
        (None, pair(), set(), "session"),
        (pair(rule_version=0), pair(pair_id="p2"), set(), "rule_version"),
    ],
)
def test_a_pair_that_differs_says_why(then: Any, now: Any, differing: set[str], reason: str) -> None:
    """A pair of a list that differs is explained by its list; new rules make new ids."""
    original: dict[Key, Any] = {} if then is None else {(then["pair_id"],): then}
    rebuilt: dict[Key, Any] = {} if now is None else {(now["pair_id"],): now}
    _, found = compare(original, rebuilt, lambda one: why_a_pair(one, original, rebuilt, differing))
    assert {one.reason for one in found} == {reason}


def test_a_report_counts_by_side_and_reason_with_examples() -> None:
    """A few examples of each, however many there are."""
    differences = [Difference((f"s{n}", "1"), "differs", "rules", ("query",)) for n in range(9)]
    report = report_of(5, 14, 14, [*differences, Difference(("s9", "1"), "only_original", "open")])
    assert (report["same"], report["differs"], report["only_original"], report["only_rebuilt"]) == (5, 9, 1, 0)
    by_reason = {one["reason"]: one for one in report["reasons"]}
    assert (by_reason["rules"]["count"], by_reason["rules"]["fields"]) == (9, {"query": 9})
    assert len(by_reason["rules"]["examples"]) < 9
    whole = {
        "events": 1,
        "open_searches": 0,
        "joined_searches": report,
        "preference_pairs": report,
        "written": {"t": 1},
    }
    assert replay_table(whole).row_count == 3


@pytest.mark.parametrize(
    ("given", "words"), [(("soon", "1704067200"), "is no time"), (("1704067200",) * 2, "not after")]
)
def test_a_time_that_is_none_is_refused(given: tuple[str, str], words: str) -> None:
    """With what to write."""
    with pytest.raises(UsageError, match=words) as refused:
        moments(*given)
    assert refused.value.fix
