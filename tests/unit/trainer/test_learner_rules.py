"""What pairs of rules move in what is solved, and what they do not."""

import numpy as np

from contracts.pairs import CuratedPair
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import (
    DIM,
    OPEN_GATE,
    PRODUCTS,
    QUERIES,
    START_MS,
    UNTRAINED,
    FakeProducts,
    new_learner,
    same,
    taught,
)
from trainer.learner import Learner, Towers
from trainer.preference.rules import RULE_SHARE

LAUNCH = PRODUCTS[1]
"""A product that shoppers do not prefer."""


def say_rules(learner: Learner, *, weight: float = 100.0, expires_at: int | None = None) -> None:
    """Prefer the launch to what shoppers like, for all queries and for one that nobody typed."""
    for query in (*QUERIES, "gift"):
        rule = CuratedPair(
            query=query, chosen=LAUNCH, rejected=PRODUCTS[0], weight=weight, source="rule", expires_at=expires_at
        )
        assert learner.evidence.take_curated(rule, time_ms=START_MS) is None


def lead_of_launch(towers: Towers) -> float:
    """Return by how many nats the launch leads what it is preferred to, on average over all queries."""
    encoder = TinyEncoder(DIM)
    _, vectors, features, _ = FakeProducts(encoder).look([LAUNCH, PRODUCTS[0]])
    scores = 10 * towers.query.vectors(encoder.encode(QUERIES))[:, :-1] @ vectors.T
    scores += towers.product.quality([LAUNCH, PRODUCTS[0]], features)
    return float((scores[:, 0] - scores[:, 1]).mean())


def test_a_rule_lifts_what_it_prefers_and_nobody_is_said_to_have_chosen_it() -> None:
    """The launch gains on what it is preferred to; a query that only rules name has no memory, no quality is surer."""
    without, ruled = taught(), taught()
    without.preference.learned = ruled.preference.learned = OPEN_GATE
    say_rules(ruled)
    before, after = (learner.solve(UNTRAINED).towers for learner in (without, ruled))
    assert lead_of_launch(after) > lead_of_launch(before) + 0.02
    assert after.query.memory.nats_of("gift") == {}
    assert np.allclose(before.product.own_width, after.product.own_width, rtol=0.02)
    assert np.array_equal(before.query.mean_query, after.query.mean_query)


def test_rules_weigh_a_share_of_the_clicks_however_many_there_are() -> None:
    """Ten times the weight changes nothing once the share is reached; without a click nothing is learned of them."""
    towers = []
    for weight in (10.0, 100.0):
        learner = taught()
        learner.preference.learned = OPEN_GATE
        say_rules(learner, weight=weight)
        solved = learner.solve(UNTRAINED)
        towers.append(solved.towers)
        assert solved.rules_asked > RULE_SHARE
    assert same(*towers, nats=1e-3)
    empty = new_learner()
    empty.preference.learned = OPEN_GATE
    say_rules(empty)
    assert same(empty.solve(UNTRAINED).towers, new_learner().solve(UNTRAINED).towers)


def test_rules_have_no_say_in_whether_what_is_learned_is_released() -> None:
    """Prior, gain and the weighing of showings are judged by shoppers alone, bit by bit."""
    without, ruled = taught(), taught()
    say_rules(ruled)
    for learner in (without, ruled):
        learner.learn_prior()
    assert without.preference.learned is not None
    assert ruled.preference.learned == without.preference.learned
    assert ruled.debiasing() == without.debiasing()


def test_a_rule_that_has_ended_leaves_nothing_behind() -> None:
    """All weights are as if it had never been said, up to rounding: names have other numbers, sums another order.

    Begun at a parent that was learned with it they are the same up to where the solver stops.
    """
    without, ruled, ended = new_learner(), new_learner(), new_learner()
    say_rules(ruled)
    say_rules(ended, expires_at=START_MS + 1)
    for learner in (without, ruled, ended):
        taught(learner=learner)
        learner.preference.learned = OPEN_GATE
    assert ended.evidence.table.newest_ms > START_MS
    one, other = (learner.solve(UNTRAINED).towers for learner in (without, ended))
    assert same(one, other, nats=1e-6)
    parent = ruled.solve(UNTRAINED).towers
    assert lead_of_launch(parent) > lead_of_launch(one) + 0.02
    assert same(one, ended.solve(parent).towers, nats=5e-3)
