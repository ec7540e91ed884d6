"""Pairs of rules: kept in no order, told apart from clicks, and never more than their share."""

import math

import numpy as np
import pytest

from trainer.preference.rules import RULE_SHARE, RulePairs, Said, capped

DAY_MS = 86_400_000
ALL = np.ones(9, dtype=bool)


def pairs_of(*keys: tuple[int, int, int], clicks: float = 1.0) -> RulePairs:
    """Return pairs that were said at the same time and do not end."""
    found = RulePairs()
    for key in keys:
        assert found.put(*key, Said(0.0, math.inf, clicks))
    return found


def test_each_pair_is_a_query_of_its_own() -> None:
    """Chosen before rejected, shown alike; in one order whatever came first."""
    one, other = pairs_of((1, 3, 2), (1, 3, 4), (0, 5, 6)), pairs_of((0, 5, 6), (1, 3, 4), (1, 3, 2))
    for pairs in (one, other):
        cells = pairs.cells(ALL, ALL, now_ms=0, half_life_ms=math.inf)
        assert cells.queries.tolist() == [0, 1, 1]
        assert cells.products.tolist() == [5, 6, 3, 2, 3, 4]
        assert cells.clicks.tolist() == [1.0, 0.0] * 3
        assert cells.starts.tolist() == [0, 2, 4]
        assert not cells.log_showings.any()


def test_a_pair_fades_as_clicks_do_and_needs_vectors() -> None:
    """A half-life later it weighs half; of what has no vector nothing is learned."""
    pairs = pairs_of((0, 1, 2), (0, 1, 3), (4, 1, 2))
    known = ALL.copy()
    known[3] = False
    queries = ALL.copy()
    queries[4] = False
    cells = pairs.cells(queries, known, now_ms=2 * DAY_MS, half_life_ms=DAY_MS)
    assert cells.products.tolist() == [1, 2]
    assert cells.clicks.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(("clicks", "counted"), [(1000.0, 1.0), (20.0, RULE_SHARE * 20 / 3), (0.0, None)])
def test_all_together_weigh_a_share_of_the_clicks_at_most(clicks: float, counted: float | None) -> None:
    """Each is scaled alike; few count as they are, and without clicks there is nothing to count beside."""
    asked = pairs_of((0, 1, 2), (0, 3, 2), (1, 1, 2)).cells(ALL, ALL, now_ms=0, half_life_ms=math.inf)
    found = capped(asked, clicks)
    assert found.clicks[::2].tolist() == ([] if counted is None else pytest.approx([counted] * 3))


def test_pairs_go_on_under_other_numbers() -> None:
    """The rows say all of it, and what they name can be numbered anew."""
    pairs = pairs_of((3, 1, 2), (0, 5, 6))
    assert [numbers.tolist() for numbers in pairs.used()] == [[0, 3], [1, 2, 5, 6]]
    pairs.renumber(np.array([1, -1, -1, 0]), np.array([-1, 4, 3, -1, -1, 2, 1]))
    assert RulePairs(pairs.rows()).rows()[:, :3].tolist() == [[0, 4, 3], [1, 2, 1]]
