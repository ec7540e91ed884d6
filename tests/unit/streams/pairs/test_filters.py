"""Which lists count: each filter with what it keeps out, and the same lists with the filter switched off."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from contracts.joined import ClosedWatermark
from contracts.telemetry import Filter
from contracts.topics import HOLDOUT_SEARCHES, PREFERENCE_PAIRS, TRAINING_SEARCHES
from streams.agents.spec import Emit, Plan
from streams.pairs.filters import FULL_LISTS, MOST_CLICKED, MOST_LISTS, PRODUCT_CLICKS
from streams.pairs.partition_pairs import PairsOptions, PartitionPairs, options_of
from tests.conftest import SettingsFactory
from tests.support.lines import Lines
from tests.support.search_events import T0, Record

MINUTE_MS = 60_000
WINDOW_MS = 600_000
WRITTEN_MS = T0 + 10**9
"""When the lists of these tests were written: after they closed."""


def shown(number: int, after_ms: int, clicked: str = "", query: str = "red shoe", **fields: Any) -> dict[str, Any]:
    """Return a list of six products, shown so long after T0."""
    slots: list[dict[str, Any]] = [
        {"product_id": name, "position": place, **({"clicked": True} if name in clicked else {})}
        for place, name in enumerate("abcdef", start=1)
    ]
    times = {"search_time": T0 + after_ms, "closed_at": T0 + after_ms + WINDOW_MS}
    who = {"session_id": "k1", "client_id": "c1"}
    return {"search_id": f"s{number}", "query": query, "slots": slots, **times, **who, **fields}


class Judged:
    """What became of lists under the filters that are on."""

    def __init__(self, lists: Sequence[dict[str, Any]], *on: Filter, look_ahead_ms: int = 0) -> None:
        options = PairsOptions(joins=1, filters=frozenset(on), look_ahead_ms=look_ahead_ms)
        pairs, plan = PartitionPairs(0, options=options), Plan()
        for offset, message in enumerate(lists):
            pairs.take(Record(offset, WRITTEN_MS, orjson.dumps(message)), plan)
        ended = [("millrace.watermark", ClosedWatermark(0, WRITTEN_MS, idle=True).encode())]
        pairs.take(Record(len(lists), WRITTEN_MS, b"{}", headers=ended), plan)
        counts = pairs.progress().counts
        self.filtered, self.unpaired, self.paired = counts.filtered, counts.unpaired, counts.paired
        written = [one for one in plan if isinstance(one, Emit)]
        self.told = [orjson.loads(one.value) for one in written if one.topic == TRAINING_SEARCHES]
        self.training = {told["search_id"]: told for told in self.told}
        self.pairs = [orjson.loads(one.value) for one in written if one.topic == PREFERENCE_PAIRS]

    def left_out(self, number: int) -> dict[str, str]:
        """Return what was left out of a list, with the reasons."""
        return {one["product_id"]: one["reason"] for one in self.training[f"s{number}"]["left_out"]}

    def rejected(self, number: int) -> set[str]:
        """Return what a list's pairs reject."""
        return {pair["rejected"]["product_id"] for pair in self.pairs if pair["search_id"] == f"s{number}"}


PATIENT = [0, 7_000, 31_000, 33_000, 80_000, 84_000, 190_000, 260_000, 275_000, 420_000, 431_000, 600_000]
"""When a person searches, in ms."""
QUERIES = ["red shoe", "blue hat", "warm coat", "thin belt", "wool scarf"]


def visit(times_ms: Sequence[int], clicked: str = "") -> list[dict[str, Any]]:
    """Return the lists of one visit, each of another query than those just before."""
    return [shown(n, at_ms, clicked, QUERIES[n % 5] + f" {n}") for n, at_ms in enumerate(times_ms)]


@pytest.mark.parametrize(
    ("lists", "kept_out"),
    [
        (visit(PATIENT, "b"), 0),
        (visit([n * 2_900 + n % 3 * 900 for n in range(25)]), 6),
        (visit([n * 60_000 + n % 3 * 900 for n in range(25)]), 15),
        (visit([n * n * 9_000 for n in range(25)], "c"), 6),
        (visit([0, 5_000_000], "abcdef"), 2),
        ([{**one, "session_id": f"k{n}"} for n, one in enumerate(visit([n * 60_000 for n in range(25)]))], 0),
    ],
    ids=["a person", "too quick", "too regular", "a click in each", "everything clicked", "of many sessions"],
)
def test_a_robots_lists_are_kept_out(lists: list[dict[str, Any]], kept_out: int) -> None:
    """Once its session shows that nobody sits there; switched off, all of them count."""
    judged = Judged(lists, Filter.ROBOTS)
    assert judged.filtered.get("robot", 0) == kept_out
    assert len(judged.training) == len(lists) - kept_out
    assert len(Judged(lists).training) == len(lists)


@pytest.mark.parametrize("fields", [{"query": ""}, {"page": 2}], ids=["shelves without a query", "further pages"])
def test_what_nobody_typed_makes_no_robot(fields: dict[str, Any]) -> None:
    """A home page of many shelves, or a list that is scrolled on and on, is no quick typist's; their search counts."""
    untyped = [shown(n, n * 100, **fields) for n in range(25)]
    search = shown(99, 9_000, "b", query="warm coat")
    judged = Judged([*untyped, search], Filter.ROBOTS)
    assert (judged.filtered, "s99" in judged.training) == ({}, True)


def test_who_pages_on_and_clicks_on_every_page_is_a_robot() -> None:
    """Pages that follow each other faster than anyone reads are scrolled; with clicks in each, nobody sits there."""
    judged = Judged([shown(n, n * 100, "ab", page=n + 1) for n in range(190)], Filter.ROBOTS)
    assert judged.filtered == {"robot": 180}


@pytest.mark.parametrize("fields", [{"query": ""}, {"page": 2}], ids=["shelves without a query", "further pages"])
def test_what_nobody_typed_uses_up_no_day(fields: dict[str, Any]) -> None:
    """After eight views of a home page of 25 shelves a search counts whole, and the shelves are named what they are."""
    untyped = [shown(n, n * 20_000, **fields) for n in range(MOST_LISTS)]
    judged = Judged([*untyped, shown(999, 9_000_000, "b", query="warm coat")], Filter.CAPS, Filter.ROBOTS)
    assert (judged.filtered, judged.training["s999"]["cap"]) == ({}, 1.0)


def test_shelves_that_are_shown_again_are_no_repeats() -> None:
    """Nobody asked for them: what became of them is that there was no query."""
    judged = Judged([shown(n, n * 1_000, query="") for n in range(5)], Filter.REPEATS)
    assert (judged.filtered, judged.unpaired) == ({}, {"no_query": 5})


def test_who_clicks_half_of_a_long_list_is_a_robot_and_costs_little() -> None:
    """Nobody clicks so many products of one list; what each was preferred to is not even looked at."""
    slots: list[dict[str, Any]] = [
        {"product_id": f"P-{n}", "position": n, "clicked": n % 2 == 0} for n in range(1, 501)
    ]
    lines = Lines("streams/pairs/pairing")
    with lines.counted():
        judged = Judged([shown(1, 0, slots=slots)], Filter.ROBOTS)
    assert judged.filtered == {"robot": 1}
    assert lines.count < 1_000
    few = [{**one, "clicked": one["position"] <= MOST_CLICKED} for one in slots]
    assert Judged([shown(1, 0, slots=few)], Filter.ROBOTS).filtered == {}


def test_the_same_question_of_the_same_shopper_counts_once() -> None:
    """Within half an hour, whatever its signs; another page, another shopper or another hour is another list."""
    lists = [
        shown(1, 0),
        shown(2, 29 * MINUTE_MS, query="Red  SHOE!"),
        shown(3, 29 * MINUTE_MS, client_id="c2"),
        shown(4, 29 * MINUTE_MS, page=2),
        shown(5, 29 * MINUTE_MS, query="shoe"),
        shown(6, 60 * MINUTE_MS),
    ]
    judged = Judged(lists, Filter.REPEATS)
    assert judged.filtered == {"repeated": 1}
    assert set(judged.training) == {"s1", "s3", "s4", "s5", "s6"}
    assert len(Judged(lists).training) == 6


def test_who_comes_back_to_a_list_and_goes_on_has_said_something_new() -> None:
    """A click in a list that was seen before counts; what was clicked then is no second choice, nor passed over."""
    lists = [shown(1, 0, "a"), shown(2, MINUTE_MS, "c"), shown(3, 2 * MINUTE_MS, "c"), shown(4, 3 * MINUTE_MS)]
    judged = Judged(lists, Filter.REPEATS)
    assert judged.filtered == {"repeated": 1}
    assert set(judged.training) == {"s1", "s2", "s3"}
    assert judged.left_out(2) == {}
    assert judged.left_out(3) == {"c": "repeated_click"}


def test_a_list_shown_again_under_its_search_id_is_a_reload_and_no_repeat() -> None:
    """It may show more; pairs that are made stay made."""
    lists = [shown(1, 0, "b"), shown(1, 5_000, "b"), shown(1, 9_000, "c")]
    assert (Judged(lists, Filter.REPEATS).filtered, Judged(lists).filtered) == ({"reload": 1}, {"reload": 1})


def test_a_list_shown_again_under_its_search_id_says_nothing_twice() -> None:
    """Neither its products are passed over once more, nor does a click count again; a further page is another list."""
    lists = [shown(1, 0, "b"), shown(1, 5_000), shown(1, 9_000, "bc"), shown(1, 12_000)]
    further = shown(1, 20_000)
    further["slots"] = [{"product_id": name, "position": place} for place, name in enumerate("ghijkl", start=7)]
    judged = Judged([*lists, further], Filter.REPEATS)
    assert judged.filtered == {"repeated": 2}
    (told,) = (one for one in judged.told if one["search_time"] == T0 + 9_000)
    assert [(one["product_id"], one["value"]) for one in told["slots"] if one["value"]] == [("c", 1.0)]
    assert [one["search_time"] - T0 for one in judged.told] == [0, 9_000, 20_000]


@pytest.mark.parametrize("variant", [0, 1, 2, 3, 4])
def test_a_pair_is_made_once_though_products_were_left_out(variant: int) -> None:
    """Which pairs of many are kept hangs on what was left out; shown again, the list makes none of them anew."""
    lists = [shown(1, 0, "f"), shown(1, 5_000, "f")]
    for one in lists:
        one["slots"][variant]["parent_id"] = one["slots"][5]["parent_id"] = "V"
    lists[1]["slots"].append({"product_id": "g", "position": 7})
    judged = Judged(lists, Filter.VARIANTS)
    assert len({pair["pair_id"] for pair in judged.pairs}) == len(judged.pairs) == 3
    assert judged.filtered == {"reload": 1}


@pytest.mark.parametrize("said", [{"dwell_ms": 900}, {"sponsored": True}, {"in_stock": False}])
def test_a_click_that_did_not_count_uses_none_up(said: dict[str, Any]) -> None:
    """After a bounce, or a click on an advertisement, the shopper's click on the product is the first that counts."""
    first = shown(1, 0, "b")
    first["slots"][1] |= said
    judged = Judged([first, shown(2, 40 * MINUTE_MS, "b")], Filter.REPEATS)
    assert judged.left_out(2) == {}
    assert {pair["chosen"]["product_id"] for pair in judged.pairs if pair["search_id"] == "s2"} == {"b"}


def test_clicks_on_shelves_use_up_none_of_a_product() -> None:
    """No query learns from them, so the shopper's first click on it in a search counts."""
    shelves = [shown(n, n * 1_000, "b", query="") for n in range(PRODUCT_CLICKS)]
    assert Judged([*shelves, shown(99, 40 * MINUTE_MS, "b")], Filter.REPEATS).left_out(99) == {}


def test_who_comes_back_to_buy_has_said_something_new() -> None:
    """Of one product the furthest that a shopper went counts, whichever list it was in; as far again does not."""
    lists = [shown(n, n * 60 * MINUTE_MS, "b") for n in range(4)]
    lists[1]["slots"][1]["purchase_quantity"] = 1
    lists[3]["slots"][1]["purchase_quantity"] = 1
    judged = Judged(lists, Filter.REPEATS)
    assert [judged.left_out(n) for n in range(4)] == [{}, {}, {"b": "repeated_click"}, {"b": "repeated_click"}]


def test_a_shoppers_click_on_a_product_counts_once_a_day_for_a_query() -> None:
    """And five times for any; the rest of the list counts, and what does not count is neither chosen nor rejected."""
    hours = 60 * MINUTE_MS
    again = [shown(1, 0, "b"), shown(2, 2 * hours, "b"), shown(3, 4 * hours, "bc"), shown(4, 30 * hours, "b")]
    judged = Judged(again, Filter.REPEATS)
    assert [judged.left_out(number) for number in (1, 2, 3, 4)] == [
        {},
        {"b": "repeated_click"},
        {"b": "repeated_click"},
        {},
    ]
    assert (judged.paired, judged.unpaired) == (3, {"not_new": 1})
    assert {pair["chosen"]["product_id"] for pair in judged.pairs if pair["search_id"] == "s3"} == {"c"}
    assert all(pair["filters"] == ["repeated_click"] for pair in judged.pairs if pair["search_id"] == "s3")
    assert "b" not in judged.rejected(3)
    assert all(Judged(again).left_out(number) == {} for number in (1, 2, 3, 4))


def test_a_favourite_counts_some_times_a_day_and_no_more() -> None:
    """However many queries it is clicked for."""
    lists = [shown(n, n * n * MINUTE_MS, "b", query=f"shoe {n}") for n in range(PRODUCT_CLICKS + 2)]
    judged = Judged(lists, Filter.REPEATS)
    assert [n for n in range(len(lists)) if judged.left_out(n)] == [PRODUCT_CLICKS, PRODUCT_CLICKS + 1]


def test_who_shows_very_many_lists_weighs_less_with_each() -> None:
    """Whole lists, for and against alike; beyond a number they do not count."""
    lists = [shown(n, n * 1_000, "b", query=f"shoe {n}") for n in range(MOST_LISTS + 10)]
    judged = Judged(lists, Filter.CAPS)
    caps = [told["cap"] for told in judged.training.values()]
    assert judged.filtered == {"capped": 10}
    assert caps == [min(1.0, FULL_LISTS / n) for n in range(1, MOST_LISTS + 1)]
    factors = [pair["factors"] for pair in judged.pairs]
    assert {one["cap"] for one in factors} == set(caps)
    assert all(
        pair["weight"] == pytest.approx(pair["factors"]["ratio"] * pair["factors"]["cap"]) for pair in judged.pairs
    )
    assert {told["cap"] for told in Judged(lists).training.values()} == {1.0}


def test_a_variant_of_what_was_clicked_was_not_passed_over() -> None:
    """A colour beside another colour says nothing; the click itself counts, and so does a variant that was clicked."""
    one = shown(1, 0, "b")
    for place, parent in ((0, "V"), (1, "V"), (3, "V"), (4, "W")):
        one["slots"][place]["parent_id"] = parent
    judged = Judged([one], Filter.VARIANTS)
    assert judged.left_out(1) == {"a": "variant", "d": "variant"}
    assert judged.rejected(1) == {"c", "e"}
    assert Judged([one]).rejected(1) == {"a", "c", "d", "e"}


@pytest.mark.parametrize(
    ("query", "after_ms", "look_ahead_ms", "left_out"),
    [
        ("shoe red cheap", 100_000, 120_000, {"a": "later_clicked"}),
        ("blue hat", 100_000, 120_000, {}),
        ("red shoe", 310_000, 400_000, {}),
        ("red shoe", 100_000, 50_000, {}),
    ],
    ids=["a like query", "another query", "much later", "beyond the look-ahead"],
)
def test_what_was_clicked_right_afterwards_was_not_passed_over(
    query: str, after_ms: int, look_ahead_ms: int, left_out: dict[str, str]
) -> None:
    """In the same session, for a query with most words in common, as far as the look-ahead reaches."""
    lists = [shown(1, 0, "b"), shown(2, after_ms, "a", query=query)]
    judged = Judged(lists, Filter.LATER_CLICKS, look_ahead_ms=look_ahead_ms)
    assert judged.left_out(1) == left_out
    assert ("a" in judged.rejected(1)) is not bool(left_out)
    assert Judged(lists, look_ahead_ms=look_ahead_ms).left_out(1) == {}
    other = [lists[0], {**lists[1], "session_id": "k2"}]
    assert Judged(other, Filter.LATER_CLICKS, look_ahead_ms=look_ahead_ms).left_out(1) == {}


def test_shelves_in_between_hide_no_later_list() -> None:
    """However many lists that nobody typed come first, what was typed and clicked right afterwards is found."""
    shelves = [shown(100 + n, 1_000 + n, query="") for n in range(25)]
    lists = [shown(1, 0), *shelves, shown(2, 8_000, "a", query="red shoe cheap")]
    judged = Judged(lists, Filter.REFORMULATIONS, look_ahead_ms=10_000)
    assert judged.filtered == {"reformulated": 1}
    assert Judged(lists, Filter.LATER_CLICKS, look_ahead_ms=10_000).left_out(1) == {"a": "later_clicked"}


def test_a_list_that_was_not_read_says_nothing_against_its_products() -> None:
    """Whoever types something else within ten seconds, without a click, has not read it; with a click, they have.

    A list of something that nobody typed, such as a shelf beside the results, is nothing else.
    """
    lists = [
        shown(1, 0),
        shown(2, 8_000, query="red shoe cheap"),
        shown(5, 9_000, query=""),
        shown(3, 30_000, "a", query="hat"),
        shown(4, 35_000, query="cap"),
    ]
    judged = Judged(lists, Filter.REFORMULATIONS, look_ahead_ms=10_000)
    assert judged.filtered == {"reformulated": 1}
    assert set(judged.training) == {"s2", "s3", "s4"}
    assert Judged(lists, Filter.REFORMULATIONS, look_ahead_ms=5_000).filtered == {}
    assert Judged(lists, look_ahead_ms=10_000).filtered == {}


def test_robots_that_are_a_third_of_all_traffic_move_no_product() -> None:
    """Three clients click one product in each of 150 lists: without filters it leads, with them it keeps its place."""
    people = [
        shown(
            n, n * 20_000, "aaaaaaaaabbbbbcccdde"[n % 20], query=QUERIES[n % 5], session_id=f"k{n}", client_id=f"c{n}"
        )
        for n in range(350)
    ]
    robots = [
        shown(1_000 + n, n * 45_000 + n % 7 * 3_000, "f", QUERIES[n % 5], session_id=f"r{n % 3}", client_id=f"r{n % 3}")
        for n in range(150)
    ]
    lists = sorted([*people, *robots], key=lambda one: one["closed_at"])
    honest, flooded, guarded = Judged(people), Judged(lists), Judged(lists, *Filter)
    assert (order(honest).index("f"), order(flooded).index("f")) == (5, 0)
    moves = [abs(order(guarded).index(name) - place) for place, name in enumerate(order(honest))]
    assert max(moves) <= 1
    clicks_of_robots = sum(
        told["cap"] * slot["value"]
        for name, told in guarded.training.items()
        if int(name[1:]) >= 1_000
        for slot in told["slots"]
    )
    assert 0 < clicks_of_robots <= 3 * PRODUCT_CLICKS


def order(judged: Judged) -> list[str]:
    """Return the products by clicks a showing, the best first."""
    sums = {name: [0.0, 0.0] for name in "abcdef"}
    for told in judged.training.values():
        for slot in told["slots"]:
            sums[slot["product_id"]][0] += told["cap"] * slot["value"]
            sums[slot["product_id"]][1] += told["cap"] * slot["showing"]
    return sorted(sums, key=lambda name: -sums[name][0] / sums[name][1])


def test_rules_and_settings_have_the_same_filters_on_by_default(settings: SettingsFactory) -> None:
    """Whoever feeds the rules without a deployment judges lists as one does."""
    assert PairsOptions().filters == options_of(settings()).filters


def test_shares_of_shoppers_and_of_queries_are_never_learned_from() -> None:
    """By hash, so always the same ones; what robots send is no evidence for anything, and is not held out either."""
    lists = [
        shown(n, n * 20_000, "b", query=f"shoe {n % 40}", session_id=f"k{n}", client_id=f"c{n % 50}")
        for n in range(200)
    ]
    lists += [shown(500 + n, n, "abcdef", session_id=f"r{n}", client_id=f"c{n}") for n in range(20)]
    options = PairsOptions(filters=frozenset({Filter.ROBOTS}), holdout_share=0.1)
    pairs, plan = PartitionPairs(0, options=options), Plan()
    for offset, message in enumerate(lists):
        pairs.take(Record(offset, T0, orjson.dumps(message)), plan)
    written = [one for one in plan if isinstance(one, Emit)]
    held = [orjson.loads(one.value) for one in written if one.topic == HOLDOUT_SEARCHES]
    learned = [orjson.loads(one.value) for one in written if one.topic == TRAINING_SEARCHES]
    counts = pairs.progress().counts
    assert (counts.held_out, counts.paired, counts.filtered) == (len(held), len(learned), {"robot": 20})
    assert len(held) + len(learned) == 200
    assert all(one == lists[int(one["search_id"][1:])] for one in held)
    clients, queries = ({one[name] for one in lists[:200]} for name in ("client_id", "query"))
    kept_clients = {lists[int(one["search_id"][1:])]["client_id"] for one in learned}
    kept_queries = {one["query"] for one in learned}
    assert 0 < len(clients - kept_clients) <= 10
    assert 0 < len(queries - kept_queries) <= 10
    gone = (clients - kept_clients, queries - kept_queries)
    assert all(one["client_id"] in gone[0] or one["query"] in gone[1] for one in held)
