"""Rows of every bench: one form, each figure beside its peer, and judged only by what was promised."""

import pytest

from simulator.bench.report import figure, machine


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        ({}, (None, None)),
        ({"least": 0.9}, (">= 0.9", False)),
        ({"least": 0.8}, (">= 0.8", True)),
        ({"most": 0.8}, ("<= 0.8", True)),
        ({"most": 0.7}, ("<= 0.7", False)),
        ({"most": 8, "absolute": True}, ("<= 8 ms", True)),
        ({"most": 7, "absolute": True}, ("<= 7 ms", False)),
    ],
)
def test_a_figure_is_judged_by_its_goal(goal: dict[str, float], says: tuple[str | None, bool | None]) -> None:
    """By the ratio to the peer's, or by our own figure where the goal is one; without a goal there is no verdict."""
    row = figure("answers", "ms", ours=8.0, peer="bare", peer_value=10.0, **goal)  # type: ignore[arg-type] # one by one
    assert (row["goal"], row["met"]) == says
    assert set(row) == {"name", "unit", "ours", "peer", "peer_value", "ratio", "goal", "met"}


def test_figures_name_the_machine() -> None:
    """A figure without its machine says nothing."""
    assert machine()["cores"] >= 1
    assert set(machine()) == {"system", "processor", "cores", "memory_gb", "python"}
