"""The lookup of propensities: what is in force when, on one scale, whatever the order of the messages."""

from itertools import permutations
from typing import Any

import pytest

from contracts.outcomes import Cell
from contracts.propensities import CELL_PROPENSITIES, CellPropensities, Propensities
from contracts.wire import decode, encode

CELL = Cell("search", "mobile")
T0 = 1_795_196_000_000


def version(
    number: int, effective_from: int, thetas: tuple[float, ...] = (1.0, 0.6, 0.4), **fields: Any
) -> CellPropensities:
    """Return a version whose last position is known by the prior only."""
    slots = tuple(
        {"position": n, "theta": t, "low": t / 2, "high": t * 2, "clicks": 200.0, "prior_only": n == len(thetas)}
        for n, t in enumerate(thetas, start=1)
    )
    base = {**CELL._asdict(), "version": number, "effective_from": T0 + effective_from, "estimated_at": T0, "lists": 9}
    base |= {"swap_clicks": 5.0, "history_clicks": 0.0, "steepness": 0.5, "slots": slots}
    return CellPropensities.model_validate({**base, **fields})


def test_before_any_version_the_prior_is_in_force() -> None:
    """1/position, under version 0, and nothing else is known."""
    propensities = Propensities([version(1, 100)])
    assert propensities.theta(CELL, 4, T0 + 99) == (0.25, 0)
    assert propensities.is_prior_only(CELL, 2, T0 + 99)


def test_a_version_is_in_force_from_its_moment_on() -> None:
    """The moment itself included, until the next one's."""
    propensities = Propensities([version(1, 100), version(2, 200, (1.0, 0.7, 0.5))])
    assert [propensities.theta(CELL, 2, T0 + at) for at in (100, 199, 200)] == [(0.6, 1), (0.6, 1), (0.7, 2)]


def test_the_order_of_messages_does_not_matter() -> None:
    """A reader that compaction served otherwise agrees."""
    messages = [version(1, 100), version(2, 200, (1.0, 0.7)), version(3, 300, (1.0, 0.8))]
    found = {
        tuple(Propensities(order).theta(CELL, 2, T0 + at) for at in (0, 150, 250, 350))
        for order in permutations(messages)
    }
    assert found == {((0.5, 0), (0.6, 1), (0.7, 2), (0.8, 3))}


def test_another_cell_has_its_own() -> None:
    """A phone's lists say nothing of a desk's."""
    assert Propensities([version(1, 0)]).theta(Cell("search", "desktop"), 2, T0) == (0.5, 0)


def test_positions_below_go_on_by_the_power_law() -> None:
    """No jump where the estimates end: from .4 at 3, steepness 1/2, position 12 has .4 (3/12)^.5."""
    propensities = Propensities([version(1, 0)])
    assert propensities.theta(CELL, 12, T0) == pytest.approx((0.2, 1))
    assert [propensities.is_prior_only(CELL, n, T0) for n in (1, 2, 3, 4)] == [False, False, True, True]


def test_a_band_is_that_of_the_version_in_force() -> None:
    """Below its positions it goes on by the power law, as the propensity itself; before it, the prior's range."""
    propensities = Propensities([version(1, 100)])
    assert propensities.band(CELL, 2, T0 + 100) == pytest.approx((0.3, 0.6, 1.2))
    assert propensities.band(CELL, 12, T0 + 100) == pytest.approx((0.1, 0.2, 0.4))
    assert propensities.band(CELL, 2, T0) == pytest.approx((2**-1.784, 0.5, 2**-0.216))
    assert propensities.band(CELL, 1, T0) == (1.0, 1.0, 1.0)


def test_what_is_taken_back_is_not_in_force() -> None:
    """The version before it is again; to take back an unknown one changes nothing."""
    propensities = Propensities([version(1, 100), version(2, 200)])
    propensities.drop(CELL, 2)
    propensities.drop(CELL, 7)
    assert propensities.theta(CELL, 2, T0 + 300) == (0.6, 1)


def test_of_two_records_under_one_key_the_later_counts() -> None:
    """As compaction keeps it, so that a reader that saw both agrees with one that saw the last."""
    propensities = Propensities([version(1, 100), version(1, 150, (1.0, 0.9))])
    assert [propensities.theta(CELL, 2, T0 + at) for at in (120, 150)] == [(0.5, 0), (0.9, 1)]


def test_a_message_keeps_its_cell_and_key() -> None:
    """On the wire and back; whatever stands in a name, keys differ."""
    odd = version(3, 0, device='mo"b,1')
    assert decode(encode(odd), CELL_PROPENSITIES) == odd
    assert odd.key == b'["search","mo\\"b,1","list",1,"examined",3]'
    assert Cell.from_key(odd.cell.key) == odd.cell
