"""The learner: what it trains on and drops, what it counts, and how it moves between releases."""

import numpy as np
import pytest

from contracts.telemetry import PairDropReason
from tests.support.pairs import preference_pair
from tests.support.trainer import DIM, PRODUCTS, new_learner, pair_number, records
from towers.heads import ProductHead, QueryHead, head_tensors
from trainer.core.facts import PendingRelease
from trainer.core.learner import Learner
from trainer.core.records import PairRecord
from trainer.core.safety import Towers


def query_weights(head: QueryHead) -> np.ndarray:
    """Return the part of a query head that training moves first."""
    return head_tensors(head)["up"]


def start_roll_out(learner: Learner) -> None:
    """Put product release 1 with query release 2 on its way."""
    pending = PendingRelease(product_release=1, query_release=2)
    learner.note_product_release(pending, learner.candidate_towers(), now_ms=1)


def test_pairs_move_both_lanes_counts_and_offsets() -> None:
    """One micro-batch is one step of each lane, and the offsets stand behind it."""
    learner = new_learner()
    lesson = learner.learn(records(0, 20))
    assert lesson.trained == {"click": 20}
    assert set(lesson.reports) == {"query", "product"}
    assert learner.facts.offsets == {0: 10, 1: 10}
    assert (learner.facts.step, learner.facts.pairs_trained, learner.facts.lists_trained) == (1, 20, 20)
    assert query_weights(learner.lanes.in_force.query_head).any()
    assert query_weights(learner.lanes.candidate.query_head).any()


def test_pairs_of_one_list_count_as_one_list() -> None:
    """Lists decide when the reference moves, so they are counted apart from pairs."""
    learner = new_learner()
    same = [preference_pair("s-1", chosen=PRODUCTS[0], rejected=PRODUCTS[number]) for number in (1, 2, 3)]
    learner.learn([PairRecord(0, place, pair) for place, pair in enumerate(same[:2])])
    learner.learn([PairRecord(0, 2, same[2])])
    assert (learner.facts.pairs_trained, learner.facts.lists_trained) == (3, 1)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (None, PairDropReason.MALFORMED),
        (preference_pair(chosen="unknown", rejected=PRODUCTS[1]), PairDropReason.UNKNOWN_PRODUCT),
        (preference_pair(chosen=PRODUCTS[1], rejected="unknown"), PairDropReason.UNKNOWN_PRODUCT),
        (preference_pair(chosen=PRODUCTS[0], rejected=PRODUCTS[1], source="rule"), PairDropReason.UNSUPPORTED_SOURCE),
        (pair_number(0), PairDropReason.DUPLICATE),
    ],
)
def test_what_cannot_be_trained_is_dropped_with_its_reason_and_its_offset_passed(
    pair: object, reason: PairDropReason
) -> None:
    """Nothing is dropped silently, and nothing that is dropped stops the rest."""
    learner = new_learner()
    learner.learn([PairRecord(0, 0, pair_number(0))])
    bad = PairRecord(0, 1, pair)  # type: ignore[arg-type] # the table's column holds None and pairs
    lesson = learner.learn([bad, PairRecord(0, 2, pair_number(1))])
    assert lesson.dropped == {reason: 1}
    assert lesson.trained == {"click": 1}
    assert learner.facts.offsets == {0: 3}


def test_a_micro_batch_of_nothing_but_repeats_takes_no_step() -> None:
    """Repeats move offsets, not weights."""
    learner = new_learner()
    learner.learn(records(0, 4))
    before = query_weights(learner.lanes.in_force.query_head)
    lesson = learner.learn([PairRecord(0, 100, pair_number(1))])
    assert lesson.reports == {}
    np.testing.assert_array_equal(query_weights(learner.lanes.in_force.query_head), before)


def test_two_learners_agree_bit_for_bit() -> None:
    """The same records in the same micro-batches give the same weights."""
    one, two = new_learner(), new_learner()
    for learner in (one, two):
        learner.learn(records(0, 16))
        learner.learn(records(16, 40))
    for name, tensor in one.lanes.candidate.tensors().items():
        np.testing.assert_array_equal(two.lanes.candidate.tensors()[name], tensor, err_msg=name)


def test_a_query_release_is_a_moving_average_and_ends_the_wait_of_clicks() -> None:
    """The next release goes part of the way; afterwards its clicks are not announced again."""
    learner = new_learner()
    learner.learn(records(0, 20))
    towers = learner.next_query_towers()
    trained = query_weights(learner.lanes.in_force.query_head)
    np.testing.assert_allclose(query_weights(towers.query), trained * (1 - learner.settings.keep_ratio), rtol=1e-5)
    assert len(learner.facts.click_times) == 20
    learner.note_query_release(1, towers.query, now_ms=5)
    assert learner.facts.click_times == []
    assert learner.facts.unserved_ratio == pytest.approx(learner.settings.keep_ratio)
    np.testing.assert_array_equal(query_weights(learner.towers_in_force().query), query_weights(towers.query))


def test_releases_without_further_pairs_arrive_at_what_was_learned() -> None:
    """In a shop that fell quiet the served head comes as close to the trained one as promised."""
    learner = new_learner()
    learner.learn(records(0, 20))
    trained = query_weights(learner.lanes.in_force.query_head)
    number = 0
    while learner.facts.unserved_ratio > 0.1:
        number += 1
        learner.note_query_release(number, learner.next_query_towers().query, now_ms=number)
    missing = np.abs(query_weights(learner.lanes.released) - trained).max() / np.abs(trained).max()
    assert number < 10
    assert missing < 0.1


def test_during_a_roll_out_three_lanes_learn_and_the_pair_in_force_stays() -> None:
    """The lane in force goes on beside the pending one, whose product head is the released one and stays frozen."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    pending = learner.lanes.pending
    assert pending is not None
    frozen = head_tensors(pending.product_head)
    lesson = learner.learn(records(20, 40))
    assert set(lesson.reports) == {"query", "product", "pending"}
    for name, weights in head_tensors(pending.product_head).items():
        np.testing.assert_array_equal(weights, frozen[name])
    assert learner.facts.product_release == 0
    assert not head_tensors(learner.towers_in_force().product)["output_weight"].any()


def test_adopting_the_pending_release_makes_its_lane_the_one_in_force() -> None:
    """The query head that was trained for the new product head meanwhile goes on from there."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    learner.learn(records(20, 40))
    pending = learner.lanes.pending
    learner.adopt_pending(2)
    assert learner.lanes.in_force is pending
    assert learner.lanes.pending is None
    assert (learner.facts.query_release, learner.facts.product_release, learner.facts.query_parent) == (2, 1, 2)
    assert learner.facts.unserved_ratio == 1.0


def test_adopting_without_a_pending_release_is_a_mistake() -> None:
    """It would leave the trainer without a lane."""
    with pytest.raises(ValueError, match="pending"):
        new_learner().adopt_pending(1)


def test_a_foreign_pair_restarts_every_lane_from_it() -> None:
    """A trainer without state takes up the pair that shoppers are served."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    learner.adopt_foreign(Towers(QueryHead(DIM), ProductHead(DIM)), query_release=9, product_release=4)
    assert (learner.facts.query_release, learner.facts.product_release) == (9, 4)
    assert learner.lanes.pending is None
    assert not query_weights(learner.lanes.in_force.query_head).any()
    assert not query_weights(learner.lanes.candidate.query_head).any()
    assert learner.learn(records(20, 30)).trained == {"click": 10}


def test_a_release_is_not_changed_by_later_steps() -> None:
    """What was released is a copy."""
    learner = new_learner()
    learner.learn(records(0, 20))
    learner.note_query_release(1, learner.lanes.in_force.query_head, now_ms=1)
    before = query_weights(learner.lanes.released)
    learner.learn(records(20, 40))
    np.testing.assert_array_equal(query_weights(learner.lanes.released), before)
