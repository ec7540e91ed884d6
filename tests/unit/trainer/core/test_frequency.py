"""The estimate of how often a product stands in a step."""

import numpy as np
import pytest

from trainer.core.frequency import FrequencyEstimator


def test_a_product_of_every_fourth_step_has_a_rate_of_a_quarter() -> None:
    """The moving average of gaps converges to the true gap."""
    estimator = FrequencyEstimator()
    for step in range(0, 400, 4):
        estimator.observe(["P-1"], step)
    assert estimator.rates(["P-1"]).item() == pytest.approx(0.25, rel=0.01)


def test_a_product_that_was_never_seen_has_rate_0() -> None:
    """Nothing is known of it."""
    assert FrequencyEstimator().rates(["P-1"]).item() == 0.0


def test_the_first_sighting_counts_the_steps_so_far() -> None:
    """Seen once in ten steps is a rate of a tenth, not of one."""
    estimator = FrequencyEstimator()
    estimator.observe(["P-1"], 9)
    assert estimator.rates(["P-1"]).item() == pytest.approx(0.1)


def test_a_launch_in_an_old_stream_is_soon_known_to_be_frequent() -> None:
    """The age of the trainer says nothing of a product that could not be seen before."""
    estimator = FrequencyEstimator()
    for step in range(100_000, 100_030):
        estimator.observe(["P-1"], step)
    assert 0.1 < estimator.rates(["P-1"]).item() <= 1.0


def test_several_sightings_in_one_step_count_once() -> None:
    """A product stands in a step or it does not."""
    once, twice = FrequencyEstimator(), FrequencyEstimator()
    once.observe(["P-1"], 3)
    twice.observe(["P-1", "P-1"], 3)
    np.testing.assert_array_equal(once.rates(["P-1"]), twice.rates(["P-1"]))
