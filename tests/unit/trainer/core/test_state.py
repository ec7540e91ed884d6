"""A state that was put away and taken out again goes on as if nothing had happened."""

import json

import numpy as np
import pytest

from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, SETTINGS, FakeProducts, new_learner, records
from trainer.adapters.query_vectors import QueryVectors
from trainer.core.facts import PendingRelease
from trainer.core.learner import Learner
from trainer.core.state import Snapshot, restored_learner, snapshot_of


def restored(snapshot: Snapshot) -> Learner:
    """Return the learner of a snapshot whose facts went through JSON, with a catalogue and an encoder of its own."""
    encoder = TinyEncoder(DIM)
    written = Snapshot(snapshot.tensors, json.loads(json.dumps(snapshot.facts)), snapshot.outbox)
    return restored_learner(
        written, settings=SETTINGS, products=FakeProducts(encoder), query_vectors=QueryVectors(encoder)
    )


@pytest.mark.parametrize("rolling_out", [False, True])
def test_interrupted_equals_uninterrupted(rolling_out: bool) -> None:
    """Every tensor and number is equal to the bit after a restart in the middle, during a roll-out too."""
    straight = new_learner()
    straight.learn(records(0, 30))
    if rolling_out:
        pending = PendingRelease(product_release=1, query_release=2)
        straight.note_product_release(pending, straight.candidate_towers(), now_ms=1)
        straight.learn(records(30, 40))
    resumed = restored(snapshot_of(straight))
    for learner in (straight, resumed):
        learner.learn(records(40, 60))
        learner.note_query_release(3, learner.next_query_towers().query, now_ms=9)
        learner.learn([*records(55, 60), *records(60, 75)])
    one, two = snapshot_of(straight), snapshot_of(resumed)
    assert one.facts == two.facts
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(two.tensors[name], tensor, err_msg=name)


def test_a_snapshot_is_not_changed_by_later_steps() -> None:
    """A state at rest is at rest."""
    learner = new_learner()
    learner.learn(records(0, 10))
    snapshot = snapshot_of(learner)
    tensors = {name: tensor.copy() for name, tensor in snapshot.tensors.items()}
    facts = json.dumps(snapshot.facts)
    learner.learn(records(10, 30))
    assert json.dumps(snapshot.facts) == facts
    for name, tensor in snapshot.tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


def test_pairs_trained_before_the_snapshot_are_known_after_it() -> None:
    """A pair that comes again behind the checkpoint's offsets is still a duplicate."""
    learner = new_learner()
    learner.learn(records(0, 10))
    assert restored(snapshot_of(learner)).learn(records(0, 10)).trained.total() == 0
