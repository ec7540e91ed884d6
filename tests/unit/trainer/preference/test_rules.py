"""Pairs of rules: kept in no order, told apart from clicks, and never more than their share."""

import math

import numpy as np
import pytest

from trainer.preference.rules import RULE_SHARE, RulePairs, Said, capped

DAY_MS = 86_400_000
ALL = np.ones(9, dtype=bool)


def pairs_of(*keys: tuple[int, int, int], clicks: float = 1.0, half_life_ms: float = math.inf) -> RulePairs:
    """Return pairs that were said at the same time and do not expire."""
    found = RulePairs(half_life_ms=half_life_ms)
    for key in keys:
        assert found.put(*key, Said(0.0, 0, math.inf, clicks))
    return found


def test_each_pair_is_a_query_of_its_own() -> None:
    """Chosen before rejected, shown alike; in one order whatever came first."""
    one, other = pairs_of((1, 3, 2), (1, 3, 4), (0, 5, 6)), pairs_of((0, 5, 6), (1, 3, 4), (1, 3, 2))
    for pairs in (one, other):
        cells = pairs.cells(ALL, ALL, now_ms=0)
        assert cells.queries.tolist() == [0, 1, 1]
        assert cells.products.tolist() == [5, 6, 3, 2, 3, 4]
        assert cells.clicks.tolist() == [1.0, 0.0] * 3
        assert cells.starts.tolist() == [0, 2, 4]
        assert not cells.log_showings.any()


def test_a_pair_fades_as_clicks_do_and_needs_vectors() -> None:
    """A half-life later it weighs half; of what has no vector nothing is learned."""
    pairs = pairs_of((0, 1, 2), (0, 1, 3), (4, 1, 2), half_life_ms=DAY_MS)
    known = ALL.copy()
    known[3] = False
    queries = ALL.copy()
    queries[4] = False
    cells = pairs.cells(queries, known, now_ms=2 * DAY_MS)
    assert cells.products.tolist() == [1, 2]
    assert cells.clicks.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(("clicks", "counted"), [(1000.0, 1.0), (20.0, RULE_SHARE * 20 / 3), (0.0, None)])
def test_all_together_weigh_a_share_of_the_clicks_at_most(clicks: float, counted: float | None) -> None:
    """Each is scaled alike; few count as they are, and without clicks there is nothing to count beside."""
    asked = pairs_of((0, 1, 2), (0, 3, 2), (1, 1, 2)).cells(ALL, ALL, now_ms=0)
    found = capped(asked, clicks)
    assert found.clicks[::2].tolist() == ([] if counted is None else pytest.approx([counted] * 3))


def test_pairs_go_on_under_other_numbers() -> None:
    """The rows say all of it, and what they name can be numbered anew."""
    pairs = pairs_of((3, 1, 2), (0, 5, 6))
    assert [numbers.tolist() for numbers in pairs.used()] == [[0, 3], [1, 2, 5, 6]]
    pairs.renumber(np.array([1, -1, -1, 0]), np.array([-1, 4, 3, -1, -1, 2, 1]))
    assert RulePairs(pairs.rows(), half_life_ms=math.inf).rows()[:, :3].tolist() == [[0, 4, 3], [1, 2, 1]]


def test_what_has_faded_away_leaves_as_what_has_expired() -> None:
    """A click is a thousandth of one after ten half-lives: then neither names nor room are kept for it."""
    pairs = pairs_of((0, 1, 2), (3, 4, 5), half_life_ms=DAY_MS)
    assert pairs.put(3, 4, 5, Said(DAY_MS, 0, math.inf, 1.0))
    pairs.drop_ended(10 * DAY_MS)
    assert [numbers.tolist() for numbers in pairs.used()] == [[3], [4, 5]]
    pairs.drop_ended(11 * DAY_MS)
    assert len(pairs) == 0
    assert pairs.put(0, 1, 2, Said(0.0, 0, math.inf, 0.0))
    pairs.drop_ended(0.0)
    assert len(pairs) == 0


def test_what_is_refused_goes_through_no_other_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; the first pair that ends makes room, by what was said of it last."""
    monkeypatch.setattr("trainer.preference.rules.MAX_RULE_PAIRS", 2)
    pairs = pairs_of((0, 1, 2), (0, 1, 3))
    for time_ms, expires_ms in ((1.0, 20.0), (2.0, 50.0)):
        assert pairs.put(0, 1, 3, Said(time_ms, 0, expires_ms, 1.0))
    pairs = RulePairs(pairs.rows(), half_life_ms=math.inf)
    with monkeypatch.context() as patch:
        patch.delattr(RulePairs, "rows")
        assert not any(pairs.put(1, 1, number, Said(49.0, 0, math.inf, 1.0)) for number in range(2, 9))
        assert pairs.put(1, 1, 2, Said(50.0, 0, math.inf, 1.0))
        assert not pairs.put(1, 1, 3, Said(999.0, 0, math.inf, 1.0))
    assert pairs.rows()[:, :3].tolist() == [[0, 1, 2], [1, 1, 2]]


def test_what_is_said_again_and_again_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Former ends are not kept for ever, and the last one counts."""
    monkeypatch.setattr("trainer.preference.rules.MAX_RULE_PAIRS", 2)
    pairs = pairs_of((0, 1, 2))
    for time_ms in range(1, 99):
        assert pairs.put(0, 1, 2, Said(time_ms, 0, 1000.0 - time_ms, 1.0))
    assert len(pairs._ends) <= 4
    pairs.drop_ended(901.0)
    assert len(pairs) == 1
    pairs.drop_ended(902.0)
    assert len(pairs) == 0


@pytest.mark.parametrize("forwards", [True, False])
def test_what_was_said_last_of_two_products_stands(forwards: bool) -> None:
    """In whichever direction and order of arrival; within a millisecond the later record, though it asks for less."""
    pairs = RulePairs(half_life_ms=math.inf)
    said = [
        (1, 2, Said(5.0, 9, math.inf, 9.0)),
        (2, 1, Said(6.0, 3, 90.0, 4.0)),
        (1, 2, Said(6.0, 4, 80.0, 2.0)),
    ]
    for chosen, rejected, one in said if forwards else said[::-1]:
        assert pairs.put(0, chosen, rejected, one)
    assert pairs.rows().tolist() == [[0, 1, 2, 6, 4, 80, 2]]
    assert pairs.put(0, 2, 1, Said(7.0, 5, 7.0, 1.0))
    assert len(pairs.cells(ALL, ALL, now_ms=7.0)) == 0
