"""The learner: what it trains on and drops, what it counts, and how it moves between releases."""

import numpy as np
import pytest

from contracts.releases import ReleaseManifest
from contracts.telemetry import PairDropReason
from tests.support.pairs import preference_pair
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, PRODUCTS, new_learner, pair_number, records
from towers.heads import ProductHead, QueryHead, Towers, head_tensors
from towers.release_files import identity_release
from trainer.learner import Learner, PairRecord


def query_weights(head: QueryHead) -> np.ndarray:
    """Return the part of a query head that training moves first."""
    return head_tensors(head)["up"]


def start_roll_out(learner: Learner) -> None:
    """Put product release 1 with query release 2 on its way."""
    learner.note_product_release(1, 2, learner.versions.candidate.towers)


def test_pairs_move_heads_counts_and_offsets() -> None:
    """One micro-batch is one step of all that learns, and the offsets are past it."""
    learner = new_learner()
    outcome = learner.learn(records(0, 20))
    assert outcome.trained == {"click": 20}
    assert set(outcome.steps) == {"query", "product"}
    assert learner.progress.offsets == {0: 10, 1: 10}
    assert (learner.progress.step, learner.progress.pairs_trained, learner.progress.lists_trained) == (1, 20, 20)
    assert query_weights(learner.versions.in_force.query_head).any()
    assert query_weights(learner.versions.candidate.query_head).any()


def test_pairs_of_one_list_count_as_one_list() -> None:
    """Lists decide when the reference moves, so they are counted apart from pairs."""
    learner = new_learner()
    same = [preference_pair("s-1", chosen=PRODUCTS[0], rejected=PRODUCTS[number]) for number in (1, 2, 3)]
    learner.learn([PairRecord(0, place, pair) for place, pair in enumerate(same[:2])])
    learner.learn([PairRecord(0, 2, same[2])])
    assert (learner.progress.pairs_trained, learner.progress.lists_trained) == (3, 1)


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
    outcome = learner.learn([bad, PairRecord(0, 2, pair_number(1))])
    assert outcome.dropped == {reason: 1}
    assert outcome.trained == {"click": 1}
    assert learner.progress.offsets == {0: 3}


def test_a_micro_batch_of_nothing_but_repeats_takes_no_step() -> None:
    """Repeats move offsets, not weights."""
    learner = new_learner()
    learner.learn(records(0, 4))
    before = query_weights(learner.versions.in_force.query_head)
    outcome = learner.learn([PairRecord(0, 100, pair_number(1))])
    assert outcome.steps == {}
    np.testing.assert_array_equal(query_weights(learner.versions.in_force.query_head), before)


def test_two_learners_agree_bit_for_bit() -> None:
    """The same records in the same micro-batches give the same weights."""
    one, two = new_learner(), new_learner()
    for learner in (one, two):
        learner.learn(records(0, 16))
        learner.learn(records(16, 40))
    for name, tensor in one.versions.candidate.tensors().items():
        np.testing.assert_array_equal(two.versions.candidate.tensors()[name], tensor, err_msg=name)


def test_a_query_release_ends_the_wait_of_its_clicks() -> None:
    """The release is what shoppers are served from then on; its clicks are not announced again."""
    learner = new_learner()
    learner.learn(records(0, 20))
    head = learner.versions.in_force.query_head
    assert len(learner.progress.click_times) == 20
    learner.note_query_release(1, head)
    assert learner.progress.click_times == []
    np.testing.assert_array_equal(query_weights(learner.towers_in_force().query), query_weights(head))


def test_during_a_roll_out_three_versions_learn_and_the_pair_in_force_stays() -> None:
    """The heads in force learn on beside the pending ones, whose product head is the released one and stays frozen."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    pending = learner.versions.pending
    assert pending is not None
    frozen = head_tensors(pending.product_head)
    outcome = learner.learn(records(20, 40))
    assert set(outcome.steps) == {"query", "product", "pending"}
    for name, weights in head_tensors(pending.product_head).items():
        np.testing.assert_array_equal(weights, frozen[name])
    assert learner.progress.product_release == 0
    assert not head_tensors(learner.towers_in_force().product)["output_weight"].any()


def test_adopting_the_pending_release_puts_its_heads_in_force() -> None:
    """The query head that was trained for the new product head meanwhile goes on from there."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    learner.learn(records(20, 40))
    pending = learner.versions.pending
    learner.adopt_pending(2)
    assert learner.versions.in_force is pending
    assert learner.versions.pending is None
    assert (learner.progress.query_release, learner.progress.product_release, learner.progress.query_parent) == (
        2,
        1,
        2,
    )
    assert learner.progress.query_decided_step < learner.progress.step


def test_adopting_without_a_pending_release_is_a_mistake() -> None:
    """It would leave the trainer without heads."""
    with pytest.raises(ValueError, match="pending"):
        new_learner().adopt_pending(1)


def manifest_in_force(**changes: object) -> ReleaseManifest:
    """Return the manifest of query release 9, which another trainer made."""
    return identity_release("query", TinyEncoder(DIM)).manifest.model_copy(update={"release": 9, **changes})


def test_heads_of_another_trainer_restart_all_learning_from_them() -> None:
    """A trainer takes up the pair that shoppers are served, whatever it had learned itself."""
    learner = new_learner()
    learner.learn(records(0, 20))
    start_roll_out(learner)
    learner.adopt_published(Towers(QueryHead(DIM), ProductHead(DIM)), manifest_in_force(), product_release=4)
    assert (learner.progress.query_release, learner.progress.product_release) == (9, 4)
    assert learner.versions.pending is None
    assert not query_weights(learner.versions.in_force.query_head).any()
    assert not query_weights(learner.versions.candidate.query_head).any()
    assert learner.learn(records(20, 30)).trained == {"click": 10}


def test_what_heads_of_another_trainer_were_trained_on_is_not_learned_again() -> None:
    """Each partition goes on at the manifest's offset, or where this trainer is if that is further."""
    learner = new_learner()
    learner.learn(records(0, 20))
    manifest = manifest_in_force(offsets={"0": 7, "1": 25, "2": 4}, pairs_trained=36, lists_trained=12)
    learner.adopt_published(Towers(QueryHead(DIM), ProductHead(DIM)), manifest, product_release=4)
    assert learner.progress.offsets == {0: 10, 1: 25, 2: 4}
    assert (learner.progress.pairs_trained, learner.progress.lists_trained) == (36, 20)


def test_a_release_is_not_changed_by_later_steps() -> None:
    """What was released is a copy."""
    learner = new_learner()
    learner.learn(records(0, 20))
    learner.note_query_release(1, learner.versions.in_force.query_head)
    before = query_weights(learner.versions.released)
    learner.learn(records(20, 40))
    np.testing.assert_array_equal(query_weights(learner.versions.released), before)
