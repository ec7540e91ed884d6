"""Which pairs a joined search gives, and with what weight."""

from itertools import count
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.outcomes import VALUE, Cell, Grade, examination, examination_ratio, filter_reason, grade
from contracts.pairs import PreferencePair
from contracts.structs import JOINED_SEARCH, JoinedSearch, JoinedSlot, encode, struct_of
from contracts.telemetry import FilterReason, UnpairedReason
from streams.pairs.pairing import PER_LIST, encode_pairs, pairs_of
from tests.support.search_events import T0

SKIPPED: dict[str, Any] = {}
CLICKED: dict[str, Any] = {"clicked": True, "click_time": T0 + 500}
LONG_CLICKED = {**CLICKED, "dwell_ms": 30_000}
BOUNCED: dict[str, Any] = {**CLICKED, "dwell_ms": 4_999}
IN_CART = {**CLICKED, "cart_quantity": 1}
BOUGHT = {**CLICKED, "purchase_quantity": 1}


def search(*slots: dict[str, Any], search_id: str = "s1", **fields: Any) -> JoinedSearch:
    """Return a joined search of slots P-1, P-2, ... with these outcomes."""
    listed = [{"product_id": f"P-{n}", "position": n, **slot} for n, slot in enumerate(slots, start=1)]
    message = {
        "search_id": search_id,
        "search_time": T0,
        "closed_at": T0 + 1_000,
        "query": "fridge",
        "slots": listed,
        "origins": [{"topic": "search-events", "partition": 1, "offset": 7}],
        **fields,
    }
    return JOINED_SEARCH.decode(orjson.dumps(message))


def messages(made_of: JoinedSearch) -> list[bytes] | UnpairedReason:
    """Return the messages of a search's pairs, or why it gives none."""
    made = pairs_of(made_of)
    return made if isinstance(made, UnpairedReason) else encode_pairs(made_of, made)


def pairs(*slots: dict[str, Any], **fields: Any) -> list[PreferencePair]:
    """Return the pairs of a search, each held to its contract."""
    made = messages(search(*slots, **fields))
    assert not isinstance(made, UnpairedReason), made
    return [PreferencePair.model_validate_json(value) for value in made]


def sides(*slots: dict[str, Any], **fields: Any) -> set[tuple[int, int]]:
    """Return the (chosen, rejected) positions of a search's pairs."""
    return {(pair.chosen.position or 0, pair.rejected.position or 0) for pair in pairs(*slots, **fields)}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (SKIPPED, Grade.SKIP),
        (CLICKED, Grade.CLICK),
        ({**CLICKED, "dwell_ms": 29_999}, Grade.CLICK),
        (LONG_CLICKED, Grade.LONG_CLICK),
        ({"dwell_ms": 10_000}, Grade.CLICK),
        (IN_CART, Grade.CART),
        ({**IN_CART, "dwell_ms": 900}, Grade.CART),
        ({**IN_CART, **BOUGHT}, Grade.PURCHASE),
    ],
)
def test_a_grade_says_how_far_the_shopper_went(outcome: dict[str, Any], expected: Grade) -> None:
    """The furthest step decides; a reported stay counts as a click."""
    assert grade(JoinedSlot(product_id="P-1", position=1, **outcome)) is expected


def test_a_bounce_is_a_short_stay_without_a_cart() -> None:
    """Without a report nothing is known, and what was bought is no bounce."""
    assert pairs_of(search(BOUNCED, SKIPPED)) is UnpairedReason.BOUNCED
    assert sides(CLICKED, SKIPPED) == {(1, 2)}
    assert sides({**BOUNCED, "cart_quantity": 1}, SKIPPED) == {(1, 2)}


def test_rejected_reach_three_below_the_last_click() -> None:
    """Further down nobody knows whether the shopper looked."""
    assert sides(SKIPPED, CLICKED, *[SKIPPED] * 6) == {(2, 1), (2, 3), (2, 4), (2, 5)}


def test_the_last_click_is_the_deepest_engaged_slot_even_a_bounce() -> None:
    """Whoever clicked at 5, for however short, has looked down to there."""
    found = sides(CLICKED, SKIPPED, SKIPPED, SKIPPED, BOUNCED, SKIPPED, search_id="deep")
    assert {rejected for _, rejected in found} <= {2, 3, 4, 6}
    assert len(found) == 3


def test_a_higher_grade_is_chosen_over_a_lower_one() -> None:
    """A purchase beats a click that beats a skip; equal grades make no pair."""
    assert sides(CLICKED, BOUGHT, CLICKED) == {(2, 1), (2, 3)}


def test_a_bounce_stands_on_neither_side() -> None:
    """Its click says nothing for it, and having been clicked nothing against it."""
    assert sides(BOUNCED, CLICKED, SKIPPED) == {(2, 3)}


@pytest.mark.parametrize("mark", [{"sponsored": True}, {"pinned": True}, {"in_stock": False}])
def test_slots_that_do_not_stand_by_rank_stand_on_neither_side(mark: dict[str, Any]) -> None:
    """A side that could only win, or only lose, would bias the model for ever."""
    assert sides({**SKIPPED, **mark}, CLICKED, {**CLICKED, **mark}, SKIPPED) == {(2, 4)}


@pytest.mark.parametrize("elsewhere", [{"sponsored": True}, {"pinned": True}])
def test_a_product_that_was_chosen_in_another_slot_is_not_rejected(elsewhere: dict[str, Any]) -> None:
    """A product may be listed twice, as an advertisement too; who took it there did not pass it over."""
    listed_twice = {"product_id": "P-twice"}
    assert sides({**CLICKED, **listed_twice, **elsewhere}, SKIPPED, CLICKED, {**SKIPPED, **listed_twice}) == {(3, 2)}
    assert sides({**SKIPPED, **listed_twice, **elsewhere}, CLICKED, {**SKIPPED, **listed_twice}) == {(2, 3)}


@pytest.mark.parametrize("query", ["", "   ", "\t\n", "\u00a0\u3000", "\u200b\ufeff", "\u3164", "\x1b\x7f"])
def test_a_list_without_a_query_gives_no_pairs(query: str) -> None:
    """Browsing a category says nothing about any query: neither none, nor blanks, nor what nobody can see."""
    assert pairs_of(search(SKIPPED, CLICKED, query=query)) is UnpairedReason.NO_QUERY


@pytest.mark.parametrize("query", ["0", " चाय ", "冷蔵庫", "?"])
def test_anything_that_can_be_read_is_a_query(query: str) -> None:
    """Every script counts, and so does a single sign."""
    assert [pair.query for pair in pairs(SKIPPED, CLICKED, query=query)] == [query]


def test_where_the_viewport_is_known_only_what_was_seen_is_rejected() -> None:
    """One view report in a list makes an unreported slot unseen; a clicked one was seen anyway."""
    seen = {"visible_ms": 900}
    assert sides({**seen}, SKIPPED, LONG_CLICKED, {"visible_ms": 0}, CLICKED) == {(3, 1), (3, 5), (5, 1)}


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ([SKIPPED, SKIPPED], UnpairedReason.NO_CLICK),
        ([BOUNCED, SKIPPED], UnpairedReason.BOUNCED),
        ([CLICKED], UnpairedReason.NO_REJECTED),
        ([CLICKED, CLICKED], UnpairedReason.NO_REJECTED),
        ([], UnpairedReason.NO_CLICK),
    ],
)
def test_a_search_without_pairs_says_why(slots: list[dict[str, Any]], reason: UnpairedReason) -> None:
    """No list disappears without a reason."""
    assert pairs_of(search(*slots)) is reason


def test_a_weight_is_value_times_ratio() -> None:
    """Chosen from below counts in full, chosen from above by how much likelier it was looked at."""
    weights = {(p.chosen.position, p.rejected.position): p for p in pairs(SKIPPED, IN_CART, SKIPPED)}
    assert weights[2, 1].weight == pytest.approx(4.0)
    assert weights[2, 3].weight == pytest.approx(4.0 * 2 / 3)
    assert weights[2, 3].factors.ratio == pytest.approx(2 / 3)
    assert (weights[2, 1].factors.similarity, weights[2, 1].factors.cap, weights[2, 1].propensity_version) == (1, 1, 0)


def test_values_grow_with_the_grade() -> None:
    """Click 1, long click 1.5, cart 4, purchase 10."""
    assert [VALUE[one] for one in (Grade.CLICK, Grade.LONG_CLICK, Grade.CART, Grade.PURCHASE)] == [1.0, 1.5, 4.0, 10.0]


def test_a_pair_carries_where_it_comes_from() -> None:
    """Query, releases, arm, times and origins are those of its search."""
    ranking = {"query_release": 17, "product_release": 3, "arm": "live"}
    (pair,) = pairs(CLICKED, SKIPPED, ranking=ranking)
    assert (pair.query, pair.query_release, pair.product_release, pair.arm) == ("fridge", 17, 3, "live")
    assert (pair.event_time, pair.closed_at, pair.source) == (T0 + 500, T0 + 1_000, "click")
    assert [(origin.partition, origin.offset) for origin in pair.origins] == [(1, 7)]


def test_without_a_click_time_the_search_time_stands_in() -> None:
    """A cart straight from the list has no click."""
    (pair,) = pairs({"cart_quantity": 1}, SKIPPED)
    assert pair.event_time == T0


def test_confidence_is_lower_the_less_is_known_about_the_look() -> None:
    """Seen by report 1.0, passed on the way 0.7, only near by 0.5."""
    found = {(p.chosen.position, p.rejected.position): p.confidence for p in pairs(SKIPPED, CLICKED, SKIPPED)}
    assert found == {(2, 1): 0.7, (2, 3): 0.5}
    reported = pairs({"visible_ms": 9}, CLICKED)
    assert [pair.confidence for pair in reported] == [1.0]


def test_at_most_three_above_and_three_below_with_the_inverse_rate() -> None:
    """Nine slots above give three pairs that count three times each."""
    made = pairs(*[SKIPPED] * 9, CLICKED, SKIPPED)
    above = [pair for pair in made if (pair.rejected.position or 0) < 10]
    assert [pair.factors.sampling for pair in above] == [3.0, 3.0, 3.0]
    assert len(made) == 4


def test_at_most_twelve_pairs_a_list() -> None:
    """Many clicks share twelve pairs, which carry the chance of having been kept."""
    made = pairs(*[SKIPPED, SKIPPED, SKIPPED, CLICKED] * 5)
    assert len(made) == PER_LIST
    assert all(pair.factors.sampling > 1 for pair in made)


def test_sampling_keeps_the_weight_in_expectation() -> None:
    """Over many searches the sampled pairs stand for all: their sampling factors sum to the number of pairs."""
    slots = [SKIPPED] * 6 + [CLICKED] + [SKIPPED] * 2 + [CLICKED, SKIPPED, CLICKED, SKIPPED, SKIPPED, CLICKED]
    every = sum(abs(chosen - rejected) > 0 for chosen in (7, 10, 12, 15) for rejected in _skipped(slots))
    kept = [sum(pair.factors.sampling for pair in pairs(*slots, search_id=f"s{n}")) for n in range(400)]
    assert sum(kept) / len(kept) == pytest.approx(every, rel=0.02)
    rejected = [pair.rejected.position for n in range(400) for pair in pairs(*slots, search_id=f"s{n}")]
    assert set(rejected) == set(_skipped(slots))


def _skipped(slots: list[dict[str, Any]]) -> list[int]:
    """Return the positions of skipped slots."""
    return [position for position, slot in zip(count(1), slots, strict=False) if not slot]


def test_a_pair_is_written_as_its_contract_writes_it() -> None:
    """What the pairs of a list share is encoded once; the bytes are those of the whole message all the same."""
    ranking = {"query_release": 3, "arm": "anchor"}
    made = messages(search(SKIPPED, LONG_CLICKED, IN_CART, SKIPPED, query='Größe "42"', ranking=ranking))
    assert isinstance(made, list)
    assert [encode(msgspec.json.decode(value, type=struct_of(PreferencePair))) for value in made] == made


def test_the_same_search_gives_the_same_bytes() -> None:
    """Nothing is drawn: a replay writes the same pairs."""
    slots = [SKIPPED, CLICKED, SKIPPED, LONG_CLICKED, *[SKIPPED] * 9, BOUGHT]
    assert messages(search(*slots)) == messages(search(*slots))


@given(positions=st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_the_ratio_undoes_position_bias(positions: tuple[int, int]) -> None:
    """The two directions of a pair stand to each other as the chances of a look, and neither counts more than once."""
    i, j = map(examination, positions)
    assert examination_ratio(i, j) / examination_ratio(j, i) == pytest.approx(j / i)
    assert 0 < examination_ratio(i, j) <= 1


@given(
    slots=st.lists(
        st.sampled_from(
            [SKIPPED, SKIPPED, SKIPPED, CLICKED, LONG_CLICKED, BOUNCED, IN_CART, BOUGHT, {"sponsored": True}]
        ),
        max_size=40,
    )
)
def test_no_pair_ever_breaks_the_rules(slots: list[dict[str, Any]]) -> None:
    """Whatever happened: grades fall, nothing beyond the look, no slot against itself, caps hold, weights multiply."""
    made = messages(search(*slots))
    if isinstance(made, UnpairedReason):
        return
    engaged = [n for n, slot in enumerate(slots, start=1) if slot and "sponsored" not in slot]
    found = [PreferencePair.model_validate_json(value) for value in made]
    assert 0 < len(found) <= PER_LIST
    assert len({pair.pair_id for pair in found}) == len(found)
    for pair in found:
        assert pair.chosen.grade > pair.rejected.grade
        assert (pair.rejected.position or 0) <= max(engaged) + 3
        assert pair.weight == pytest.approx(pair.factors.weight())


def test_the_propensity_in_force_when_the_list_was_shown_weighs_its_pairs() -> None:
    """By cell and moment, with its version; what the whole list weighs and why products were left out stand beside."""

    def theta(cell: Cell, position: int, at_ms: int) -> tuple[float, int]:
        assert (cell, at_ms) == (Cell(device="mobile"), made_of.search_time)
        return 1.0 - 0.1 * position, 7

    made_of = search(SKIPPED, CLICKED, SKIPPED, device="mobile")
    pairs = pairs_of(made_of)
    assert isinstance(pairs, list)
    values = encode_pairs(made_of, pairs, theta=theta, cap=0.5, filters=["variant", "variant"])
    found = [PreferencePair.model_validate_json(value) for value in values]
    told = {pair.rejected.position: (pair.factors.ratio, pair.factors.cap, pair.weight) for pair in found}
    assert told[1] == (1.0, 0.5, 0.5)
    assert told[3] == pytest.approx((0.875, 0.5, 0.4375))
    assert {(pair.propensity_version, pair.filters) for pair in found} == {(7, ("variant",))}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"synthetic": True}, FilterReason.SYNTHETIC),
        ({"consent": "denied"}, FilterReason.CONSENT),
        ({"ranking": {"sort": "price"}}, FilterReason.SORTED),
        ({"ranking": {"sort": "price"}, "synthetic": True}, FilterReason.SYNTHETIC),
        ({"ranking": {"sort": "relevance"}}, None),
        ({"consent": "unknown"}, None),
        ({}, None),
    ],
)
def test_searches_that_must_not_be_learned_from_are_filtered(
    fields: dict[str, Any], reason: FilterReason | None
) -> None:
    """Probes, people who said no and lists that the shopper had sorted are left out, and said so."""
    assert filter_reason(search(CLICKED, SKIPPED, **fields)) is reason
