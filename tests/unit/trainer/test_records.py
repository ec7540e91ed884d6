"""What a list and a pair say, each once, in any order."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.pairs import CuratedPair, PairSource
from contracts.structs import (
    TRAINING_SEARCH,
    Exploration,
    JoinedSearch,
    JoinedSlot,
    Ranking,
    TrainingSearch,
    encode,
)
from contracts.telemetry import ListOutcome, PairDropReason
from tests.support.pairs import preference_pair
from tests.support.trainer import QUERIES, START_MS, judged, search_number
from trainer.preference.evidence import Cells
from trainer.records import (
    CURATED_WEIGHT,
    MAX_PAIR_CLICKS,
    RULE_WEIGHT,
    SPARE_NUMBERS,
    TEXT,
    Evidence,
    Seen,
)

DAY_MS = 86_400_000


def search(*slots: JoinedSlot, number: int = 0, **told: Any) -> TrainingSearch:
    """Return what a list of these slots says."""
    values = {"query": "quiet fridge", "closed_at": START_MS + 60_000, "search_time": START_MS, **told}
    return judged(JoinedSearch(search_id=f"s-{number}", slots=slots, **values))


def slot(product_id: str, position: int, **told: Any) -> JoinedSlot:
    """Return a slot."""
    return JoinedSlot(product_id=product_id, position=position, **told)


def new() -> Evidence:
    """Return evidence of nothing."""
    return Evidence(4, half_life_ms=16 * DAY_MS)


def counted(evidence: Evidence, *, digits: int = 5) -> dict[tuple[str, str], tuple[float, float]]:
    """Return clicks and showings by query and product."""
    cells: Cells = evidence.table.cells()
    queries, products = evidence.queries.texts, evidence.products.texts
    return {
        (queries[query], products[product]): (round(clicks, digits), round(float(np.exp(showings)), digits))
        for query, product, clicks, showings in zip(
            cells.queries[cells.query_of].tolist(),
            cells.products.tolist(),
            cells.clicks.tolist(),
            cells.log_showings.tolist(),
            strict=True,
        )
    }


def test_a_query_without_letters_and_digits_teaches_nothing() -> None:
    """There is nothing under which it could be remembered; it is counted as such."""
    evidence = new()
    assert evidence.take_list(search(slot("a", 1), query=" -- "), time_ms=START_MS) is ListOutcome.NO_QUERY
    assert len(evidence.table) == 0


def test_a_capped_list_counts_as_much_less_for_as_against() -> None:
    """Showings and clicks are weighed alike, so that what is preferred does not change."""
    evidence = new()
    listed = orjson.loads(encode(search(slot("a", 1), slot("b", 2, clicked=True))))
    capped = TRAINING_SEARCH.decode(orjson.dumps({**listed, "cap": 0.25}))
    evidence.take_list(capped, time_ms=START_MS + 60_000)
    assert counted(evidence) == {("quiet fridge", "a"): (0.0, 0.25), ("quiet fridge", "b"): (0.25, 0.125)}


def test_queries_that_differ_in_case_and_signs_are_one() -> None:
    """Evidence is kept under the normalised query."""
    evidence = new()
    for number, query in enumerate(("Quiet  FRIDGE", "quiet fridge!", "quiet, fridge")):
        evidence.take_list(search(slot("a", 1, clicked=True), number=number, query=query), time_ms=START_MS + 60_000)
    assert counted(evidence) == {("quiet fridge", "a"): (3.0, 3.0)}


def test_a_list_counts_once() -> None:
    """By its id and time, in whichever partition it comes again; another page counts."""
    evidence, one = new(), search(slot("a", 1, clicked=True))
    assert evidence.take_list(one, time_ms=START_MS) is ListOutcome.LEARNED
    assert evidence.take_list(one, time_ms=START_MS) is ListOutcome.DUPLICATE
    page = search(slot("b", 11, clicked=True), search_time=START_MS + 1)
    assert evidence.take_list(page, time_ms=START_MS) is ListOutcome.LEARNED
    assert evidence.table.lists == 2


def test_evidence_of_the_former_form_goes_on_and_counts_nothing_twice() -> None:
    """It was made of joined searches: what it had counted is known by id and time when the pairs stage tells it."""
    before = new()
    for number in range(20):
        before.take_list(search_number(number), time_ms=START_MS)
    state = before.state()
    texts = orjson.loads(state["names"].tobytes())
    former = {**state, "names": np.frombuffer(orjson.dumps([*texts, {"0": {"2-0": 17}}]), dtype=np.uint8)}
    after = Evidence.from_state(former, half_life_ms=16 * DAY_MS)
    told = [after.take_list(search_number(number), time_ms=START_MS) for number in range(25)]
    assert told == [ListOutcome.DUPLICATE] * 20 + [ListOutcome.LEARNED] * 5
    assert after.table.lists == 25


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)))
def test_any_order_gives_the_same_evidence(order: list[int]) -> None:
    """Lists, each twice, in any order: the same counts by name, bit by bit."""
    one, two = new(), new()
    for evidence, numbers in ((one, [*range(40)]), (two, [*order, *order[::2]])):
        for number in numbers:
            found = search_number(number)
            evidence.take_list(found, time_ms=found.closed_at)
    assert counted(one, digits=99) == counted(two, digits=99)
    assert one.click_times == two.click_times


def test_a_list_from_the_future_fades_nothing() -> None:
    """A deadline after the record was written is a wrong clock: the list counts from when it was written."""
    evidence = new()
    evidence.take_list(search(slot("a", 1, clicked=True)), time_ms=START_MS + 60_000)
    late = search(slot("b", 1, clicked=True), number=1, closed_at=START_MS + 10_000 * DAY_MS)
    evidence.take_list(late, time_ms=START_MS + 61_000)
    clicks = counted(evidence)
    assert clicks["quiet fridge", "a"][0] == pytest.approx(1.0, abs=1e-4)
    assert clicks["quiet fridge", "b"][0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("source", ["curated", "value"])
def test_a_pair_from_the_future_fades_nothing(source: PairSource) -> None:
    """Nor does a pair, whoever wrote it."""
    evidence = new()
    evidence.take_list(search(slot("a", 1, clicked=True)), time_ms=START_MS + 60_000)
    late = preference_pair(source=source, event_time=START_MS + 10_000 * DAY_MS)
    assert evidence.take_pair(late, time_ms=START_MS + 61_000) is None
    clicks = counted(evidence)
    assert clicks["quiet fridge", "a"][0] == pytest.approx(1.0, abs=1e-4)
    assert clicks["quiet fridge", "P-1"][0] == pytest.approx(1.0 if source == "value" else CURATED_WEIGHT, abs=1e-4)


def test_click_pairs_add_nothing_to_their_lists() -> None:
    """They are counted, each once; the list itself has said it already."""
    evidence, pair = new(), preference_pair()
    assert evidence.take_pair(pair, time_ms=pair.closed_at) is None
    assert evidence.take_pair(pair, time_ms=pair.closed_at) is PairDropReason.DUPLICATE
    assert len(evidence.table) == 0


def test_a_value_pair_adds_to_what_was_chosen() -> None:
    """A later purchase makes the click worth more; it shows the product to nobody."""
    evidence, bought = new(), search(slot("P-1", 1, clicked=True), slot("P-2", 2))
    evidence.take_list(bought, time_ms=START_MS + 60_000)
    pair = preference_pair(source="value", weight=9.0, event_time=START_MS + 57_000)
    assert evidence.take_pair(pair, time_ms=pair.closed_at) is None
    assert counted(evidence) == {("quiet fridge", "P-1"): (10.0, 1.0), ("quiet fridge", "P-2"): (0.0, 0.5)}
    assert evidence.table.lists == 1


def test_pairs_of_people_count_once_and_are_capped() -> None:
    """A list of two, of a weight of its own, however often it is sent and however much it claims to weigh."""
    evidence = new()
    for number in range(3):
        pair = preference_pair(f"s-{number}", source="curated", weight=2.0)
        evidence.take_pair(pair, time_ms=pair.closed_at)
    written = CuratedPair(query="Quiet fridge", chosen="P-3", rejected="P-2", weight=100.0)
    assert evidence.take_curated(written, time_ms=preference_pair().closed_at) is None
    assert evidence.take_curated(written, time_ms=START_MS) is PairDropReason.DUPLICATE
    assert counted(evidence) == {
        ("quiet fridge", "P-1"): (2 * CURATED_WEIGHT, 1.0),
        ("quiet fridge", "P-2"): (0.0, 2.0),
        ("quiet fridge", "P-3"): (MAX_PAIR_CLICKS, 1.0),
    }


def rules_of(evidence: Evidence) -> dict[tuple[str, str, str], float]:
    """Return the clicks that pairs of rules ask to count as, by query, chosen and rejected."""
    evidence.encode_queries(lambda _: np.ones(4))
    cells = evidence.rule_cells(np.ones(len(evidence.products), dtype=bool))
    names = [evidence.products.texts[number] for number in cells.products.tolist()]
    queries = [evidence.queries.texts[number] for number in cells.queries.tolist()]
    return dict(zip(zip(queries, names[::2], names[1::2], strict=True), cells.clicks[::2].tolist(), strict=True))


def test_pairs_of_rules_are_no_evidence_and_each_counts_once() -> None:
    """Through either topic, at most as much as any such pair; what was said last of the same two products stands."""
    evidence = new()
    sent = [preference_pair(f"s-{number}", source="rule", weight=2.0) for number in range(3)]
    assert [evidence.take_pair(pair, time_ms=pair.closed_at) for pair in sent] == [None] * 3
    assert evidence.take_pair(sent[0], time_ms=sent[0].closed_at) is PairDropReason.DUPLICATE
    for weight in (1.0, 100.0):
        rule = CuratedPair(query="gift", chosen="P-3", rejected_text="A red mixer", weight=weight, source="rule")
        assert evidence.take_curated(rule, time_ms=START_MS + round(weight)) is None
    assert rules_of(evidence) == {
        ("quiet fridge", "P-1", "P-2"): 2 * RULE_WEIGHT,
        ("gift", "P-3", f"{TEXT}A red mixer"): MAX_PAIR_CLICKS,
    }
    assert len(evidence.table) == 0


def test_a_rule_ends_when_it_says_and_when_it_is_said_to() -> None:
    """By the time of the newest list, or by a pair that has ended when it is sent; that one is told as expired."""
    evidence = new()

    def say(chosen: str, expires_at: int, *, time_ms: int) -> PairDropReason | None:
        rule = CuratedPair(query="gift", chosen=chosen, rejected="P-2", source="rule", expires_at=expires_at)
        return evidence.take_curated(rule, time_ms=time_ms)

    assert say("P-1", START_MS + DAY_MS, time_ms=START_MS) is None
    assert say("P-3", START_MS + 9 * DAY_MS, time_ms=START_MS) is None
    assert len(rules_of(evidence)) == 2
    tomorrow = START_MS + DAY_MS
    evidence.take_list(search(slot("P-1", 1, clicked=True), closed_at=tomorrow), time_ms=tomorrow)
    assert [chosen for _, chosen, _ in rules_of(evidence)] == ["P-3"]
    assert say("P-3", START_MS, time_ms=tomorrow) is PairDropReason.EXPIRED
    assert rules_of(evidence) == {}


def test_of_two_rules_of_a_millisecond_the_later_record_stands() -> None:
    """Though it prefers the other product and weighs less; names of rules that have faded away are given up."""
    evidence = new()
    for offset, (chosen, rejected, weight) in enumerate([("P-1", "P-2", 9.0), ("P-2", "P-1", 1.0)]):
        rule = CuratedPair(query="gift", chosen=chosen, rejected=rejected, weight=weight, source="rule")
        assert evidence.take_curated(rule, time_ms=START_MS, offset=offset) is None
    assert rules_of(evidence) == {("gift", "P-2", "P-1"): RULE_WEIGHT}
    late = START_MS + 400 * DAY_MS
    evidence.take_list(search(slot("P-3", 1, clicked=True), closed_at=late), time_ms=late)
    evidence.renumber()
    assert len(evidence.rules) == 0


def test_more_rules_than_there_is_room_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new pair is refused unless another has ended; what is said anew of known products is not."""
    monkeypatch.setattr("trainer.preference.rules.MAX_RULE_PAIRS", 1)
    evidence = new()
    ends = CuratedPair(query="a", chosen="P-1", rejected="P-2", source="rule", expires_at=START_MS + 10)
    other = CuratedPair(query="b", chosen="P-1", rejected="P-2", source="rule")
    assert evidence.take_curated(ends, time_ms=START_MS) is None
    assert evidence.take_curated(other, time_ms=START_MS + 1) is PairDropReason.TOO_MANY_RULES
    assert evidence.take_curated(ends, time_ms=START_MS + 2) is None
    assert evidence.take_curated(other, time_ms=START_MS + 10) is None
    assert [query for query, _, _ in rules_of(evidence)] == ["b"]


def test_a_curated_text_is_a_product_of_its_own() -> None:
    """It has a name that no product has; a query that shows nothing is refused."""
    evidence = new()
    pair = CuratedPair(query="gift", chosen_text="A red mixer", rejected="P-2")
    assert evidence.take_curated(pair, time_ms=START_MS) is None
    assert counted(evidence)["gift", f"{TEXT}A red mixer"] == (CURATED_WEIGHT, 1.0)
    assert (
        evidence.take_curated(CuratedPair(query="??", chosen="a", rejected="b"), time_ms=0) is PairDropReason.NO_QUERY
    )


def test_a_query_is_read_as_it_was_typed_whichever_spelling_came_first() -> None:
    """One number, encoded from the least of its spellings, in any order and through a restart."""
    spellings = ["USB-C  cable", "usb c cable", "usb-c cable"]
    states = []
    for order in (spellings, spellings[::-1]):
        evidence, asked = new(), list[str]()

        def encode(text: str, asked: list[str] = asked) -> np.ndarray:
            asked.append(text)
            return np.ones(4)

        for number, query in enumerate(order):
            listed = search(slot("a", 1, clicked=True), number=number, query=query)
            evidence.take_list(listed, time_ms=START_MS)
            evidence.encode_queries(encode)
            evidence = Evidence.from_state(evidence.state(), half_life_ms=16 * DAY_MS)
        assert evidence.queries.texts == ["usb c cable"]
        assert asked[-1] == "USB-C cable"
        states.append(evidence.typed)
    assert states[0] == states[1] == ["USB-C cable"]


def test_evidence_goes_on_from_its_state() -> None:
    """Numbers, counts, vectors and what was seen: the same as without the interruption, bit by bit."""
    whole, first = new(), new()
    for evidence in (whole, first):
        for number in range(50):
            evidence.take_list(search_number(number), time_ms=START_MS)
        evidence.encode_queries(lambda text: np.full(4, len(text) / 7, dtype=np.float32))
    second = Evidence.from_state(first.state(), half_life_ms=16 * DAY_MS)
    for evidence in (whole, second):
        for number in range(30, 90):
            evidence.take_list(search_number(number), time_ms=START_MS)
        evidence.take_pair(preference_pair(source="rule"), time_ms=START_MS)
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_only_clicked_queries_are_encoded_and_each_once() -> None:
    """Encoding is what costs; a vector that is not finite becomes one that is left out."""
    evidence, asked = new(), list[str]()

    def encode(text: str) -> np.ndarray:
        asked.append(text)
        return np.full(4, np.nan if text == "broken" else 1.0, dtype=np.float32)

    lists = [("fridge", True), ("broken", True), ("oven", False)]
    for number, (query, clicked) in enumerate(lists):
        evidence.take_list(search(slot("a", 1, clicked=clicked), number=number, query=query), time_ms=START_MS)
    evidence.encode_queries(encode)
    assert asked == ["fridge", "broken"]
    evidence.encode_queries(encode)
    assert asked == ["fridge", "broken", "broken"]
    assert evidence.cells(np.array([True])).queries.tolist() == [0]


def test_numbers_without_evidence_are_given_out_anew() -> None:
    """Names that have faded away leave; what is left keeps its counts and vectors."""
    evidence = new()
    for number in range(SPARE_NUMBERS + 100):
        evidence.take_list(search(slot(f"p{number}", 1), number=number, query=f"q {number}"), time_ms=START_MS)
    assert not evidence.renumber()
    for number in range(4):
        late = search(
            slot("P-9", 1, clicked=True), number=-1 - number, query=QUERIES[number], closed_at=START_MS + 999 * DAY_MS
        )
        evidence.take_list(late, time_ms=START_MS + 999 * DAY_MS)
    evidence.encode_queries(lambda text: np.full(4, len(text), dtype=np.float32))
    before = counted(evidence)
    assert evidence.renumber()
    assert counted(evidence) == before
    assert evidence.queries.texts == list(QUERIES[:4])
    assert evidence.query_vectors[:, 0].tolist() == [len(text) for text in QUERIES[:4]]


def test_what_was_seen_survives_in_order() -> None:
    """The oldest is forgotten first, also after a restart."""
    seen = Seen(capacity=2)
    seen.add("a")
    seen.add("b")
    again = Seen(seen.to_array(), capacity=2)
    assert not again.add("b")
    assert again.add("c")
    assert again.add("a")


def test_exchanged_neighbours_are_kept_as_far_as_both_count() -> None:
    """With what the choice of each was worth under the cap; a list that comes twice counts once."""
    evidence = new()
    slots = (slot("a", 1, clicked=True), slot("b", 2), slot("c", 3, sponsored=True), slot("d", 4, clicked=True))
    ranking = Ranking(exploration=Exploration(policy="swap", seed=6))
    told = search(*slots, ranking=ranking)
    for one in (told, told, search(*slots, number=1)):
        evidence.take_list(one, time_ms=START_MS)
    names = evidence.products.texts
    rows = evidence.exchanges.rows()
    assert [(names[int(one)], names[int(two)]) for one, two in rows[:, 1:3]] == [("a", "b")]
    assert rows[:, 3:].tolist() == [[1.0, 0.0]]


def test_exchanges_of_an_earlier_state_are_none() -> None:
    """A checkpoint that knew none goes on without any."""
    evidence = new()
    evidence.take_list(search(slot("a", 1, clicked=True)), time_ms=START_MS)
    state = evidence.state()
    del state["exchanges"]
    assert len(Evidence.from_state(state, half_life_ms=16 * DAY_MS).exchanges) == 0


def test_what_was_kept_under_another_form_of_accents_is_found() -> None:
    """A state of before kept `e` and an accent as two letters; where both forms were kept, that of now goes on."""
    evidence, composed, decomposed = new(), "th\u00e9", "the\u0301"
    for number, query in enumerate(("tea", composed)):
        evidence.take_list(search(slot("a", 1, clicked=True), number=number, query=query), time_ms=START_MS)
    state = evidence.state()
    named = orjson.loads(state["names"].tobytes())
    for former, names in ((["tea", decomposed], ["tea", composed]), ([decomposed, composed],) * 2):
        told = np.frombuffer(orjson.dumps([former, *named[1:]]), dtype=np.uint8)
        after = Evidence.from_state({**state, "names": told}, half_life_ms=16 * DAY_MS)
        assert after.queries.texts == names
        after.take_list(search(slot("a", 1, clicked=True), number=9, query=decomposed), time_ms=START_MS)
        assert counted(after)[composed, "a"][0] == 2.0
