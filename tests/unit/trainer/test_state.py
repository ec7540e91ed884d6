"""A state that was put away and taken out again goes on as if nothing had happened."""

import json

import numpy as np
import pytest

from tests.support.trainer import new_learner, records
from trainer.learner import Learner
from trainer.state import Snapshot, snapshot_of


def restored(snapshot: Snapshot) -> Learner:
    """Return the learner of a snapshot whose numbers went through JSON, with a catalogue and an encoder of its own."""
    return new_learner(Snapshot(snapshot.tensors, json.loads(json.dumps(snapshot.numbers)), snapshot.outbox))


@pytest.mark.parametrize("rolling_out", [False, True])
def test_interrupted_equals_uninterrupted(rolling_out: bool) -> None:
    """Every tensor and number is equal to the bit after a restart in the middle, during a roll-out too."""
    straight = new_learner()
    straight.learn(records(0, 30))
    if rolling_out:
        straight.note_product_release(1, 2, straight.versions.candidate.towers)
        straight.learn(records(30, 40))
    resumed = restored(snapshot_of(straight))
    for learner in (straight, resumed):
        learner.learn(records(40, 60))
        learner.note_query_release(3, learner.versions.in_force.query_head)
        learner.learn([*records(55, 60), *records(60, 75)])
    one, two = snapshot_of(straight), snapshot_of(resumed)
    assert one.numbers == two.numbers
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(two.tensors[name], tensor, err_msg=name)


def test_a_snapshot_is_not_changed_by_later_steps() -> None:
    """A state at rest is at rest."""
    learner = new_learner()
    learner.learn(records(0, 10))
    snapshot = snapshot_of(learner)
    tensors = {name: tensor.copy() for name, tensor in snapshot.tensors.items()}
    numbers = json.dumps(snapshot.numbers)
    learner.learn(records(10, 30))
    assert json.dumps(snapshot.numbers) == numbers
    for name, tensor in snapshot.tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


def test_pairs_trained_before_the_snapshot_are_known_after_it() -> None:
    """A pair that comes again behind the checkpoint's offsets is still a duplicate."""
    learner = new_learner()
    learner.learn(records(0, 10))
    assert restored(snapshot_of(learner)).learn(records(0, 10)).trained.total() == 0
