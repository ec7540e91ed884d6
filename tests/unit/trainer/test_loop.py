"""The loop's order: nothing leaves before it is durable and the group agrees; a crash repeats what is missing."""

import pytest

from contracts.errors import TransientError, UsageError
from contracts.releases import manifest_of
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import (
    DIM,
    SETTINGS,
    FakeCheckpoints,
    FakeModels,
    FakeProducts,
    FakeSource,
    new_learner,
    records,
)
from trainer.adapters.query_vectors import QueryVectors
from trainer.core.releasing import Cadence
from trainer.core.safety import SafetyCaps
from trainer.core.state import restored_learner
from trainer.loop import LoopSettings, Ports, TrainerLoop

START_MS = 1_795_196_000_000


class World:
    """Fakes, a clock in hand, and the trainer that lives in them."""

    def __init__(self, pairs: int = 0, caps: SafetyCaps | None = None) -> None:
        self.source = FakeSource(records(0, pairs))
        self.checkpoints = FakeCheckpoints()
        self.models = FakeModels()
        self.now_ms = START_MS
        cadence = Cadence(query_ms=15_000, product_ms=60_000)
        self.encoder = TinyEncoder(DIM)
        self.settings = LoopSettings(cadence, batch_pairs=16, batch_age_s=2.0, caps=caps or SafetyCaps())
        self.loop = self.start()

    def start(self) -> TrainerLoop:
        """Start a trainer as a new process would: from the newest checkpoint."""
        snapshot = self.checkpoints.load()
        encoder = self.encoder
        learner = (
            new_learner()
            if snapshot is None
            else restored_learner(
                snapshot, settings=SETTINGS, products=FakeProducts(encoder), query_vectors=QueryVectors(encoder)
            )
        )
        ports = Ports(self.source, self.checkpoints, self.models, self.models)
        self.loop = TrainerLoop(learner, ports, encoder=encoder, settings=self.settings, clock_ms=lambda: self.now_ms)
        self.loop.resume({} if snapshot is None else snapshot.outbox)
        return self.loop

    def send(self, first: int, last: int) -> None:
        """Append pairs to the topic."""
        self.source.log += records(first, last)

    def turn(self, *, after_s: float = 0.0) -> None:
        """Let time pass and do one round."""
        self.now_ms += round(after_s * 1000)
        self.loop.turn()


def test_pairs_become_a_checkpoint_a_commit_and_a_release() -> None:
    """One round of a full micro-batch does all of it, and all of it names the same offsets."""
    world = World(pairs=16)
    world.turn()
    assert world.models.order == ["query-1"]
    assert world.source.committed == [{0: 8, 1: 8}]
    assert manifest_of(world.models.values["query-1"]).offsets == {"0": 8, "1": 8}
    assert world.checkpoints.saved[-1].outbox.keys() == {"query-1"}


def test_pairs_that_wait_for_a_micro_batch_are_not_committed() -> None:
    """The offsets stand before what was not trained, until its age makes it due."""
    world = World(pairs=20)
    world.turn()
    assert world.source.committed == [{0: 8, 1: 8}]
    world.turn(after_s=2)
    assert world.loop.learner.facts.offsets == {0: 10, 1: 10}


def test_an_idle_shop_gets_neither_releases_nor_checkpoints() -> None:
    """Nothing to say is not said."""
    world = World()
    for _ in range(5):
        world.turn(after_s=100)
    assert world.models.order == []
    assert world.checkpoints.saved == []


def test_query_releases_keep_their_interval() -> None:
    """Two releases are never closer than the interval, however many pairs come."""
    world = World(pairs=16)
    world.turn()
    world.send(16, 32)
    world.turn(after_s=14)
    assert world.models.order == ["query-1"]
    world.turn(after_s=1)
    assert world.models.order == ["query-1", "query-2"]


def test_trained_pairs_are_checkpointed_even_between_releases() -> None:
    """A crash never costs more than the checkpoint interval."""
    world = World(pairs=16)
    world.turn()
    world.send(16, 32)
    world.turn(after_s=1)
    saved = len(world.checkpoints.saved)
    world.loop.finish()
    assert len(world.checkpoints.saved) == saved + 1
    assert world.source.committed[-1] == {0: 16, 1: 16}


def test_a_trainer_that_lost_its_group_publishes_nothing() -> None:
    """The commit is refused first; the release never leaves."""
    world = World(pairs=16)
    world.source.lost = TransientError("the group moved on")
    with pytest.raises(TransientError):
        world.turn()
    assert world.models.order == []


def test_a_crash_between_checkpoint_and_publication_publishes_the_same_bytes_later() -> None:
    """The checkpoint carries the release; the next start sends what the topic lacks, once."""
    world = World(pairs=16)
    world.source.lost = TransientError("killed here")
    with pytest.raises(TransientError):
        world.turn()
    world.source.lost = None
    world.start()
    assert world.models.order == ["query-1"]
    assert world.models.values["query-1"] == world.checkpoints.saved[-1].outbox["query-1"]
    world.start()
    assert world.models.order == ["query-1"]


def test_a_crash_loses_no_pair_and_trains_none_twice() -> None:
    """What was trained after the last checkpoint is trained again from it, and counted once."""
    world = World(pairs=16)
    world.turn()
    world.send(16, 48)
    world.turn(after_s=1)
    assert world.loop.learner.facts.pairs_trained == 48
    world.start()
    assert world.loop.learner.facts.pairs_trained == 16
    world.turn(after_s=20)
    assert world.loop.learner.facts.pairs_trained == 48
    assert manifest_of(world.models.values["query-2"]).pairs_trained == 48


def test_a_product_release_waits_for_its_interval_and_goes_first_with_its_query_release() -> None:
    """The interval of the product lane begins when it begins to learn."""
    world = World(pairs=16)
    world.turn()
    world.send(16, 32)
    world.turn(after_s=59)
    assert "product-1" not in world.models.order
    world.turn(after_s=1)
    assert world.models.order[-2:] == ["query-3", "product-1"]


def rolled_out() -> World:
    """Return a world in which product release 1 is on its way."""
    world = World(pairs=16)
    world.turn()
    world.send(16, 32)
    world.turn(after_s=60)
    assert world.models.order == ["query-1", "query-2", "query-3", "product-1"]
    return world


def test_while_a_product_release_is_on_its_way_the_pair_in_force_gets_releases() -> None:
    """Shoppers go on teaching; no second product release starts."""
    world = rolled_out()
    world.send(32, 64)
    world.turn(after_s=120)
    assert world.models.order[-1] == "query-4"
    assert manifest_of(world.models.values["query-4"]).product_release == 0


def test_when_serving_names_the_product_release_the_next_query_release_is_for_it() -> None:
    """The trainer moves only on `serving`, and its lane for the new pair has learned meanwhile."""
    world = rolled_out()
    world.models.serve(3, 1)
    world.send(32, 64)
    world.turn(after_s=20)
    manifest = manifest_of(world.models.values["query-4"])
    assert (manifest.product_release, manifest.parent) == (1, 3)
    assert world.loop.learner.facts.pending is None


def test_a_roll_out_survives_a_restart() -> None:
    """Stopped during it or served meanwhile: the restarted trainer takes it up."""
    world = rolled_out()
    world.models.serve(3, 1)
    world.start()
    facts = world.loop.learner.facts
    assert (facts.query_release, facts.product_release, facts.pending) == (3, 1, None)


def test_a_trainer_without_state_goes_on_from_what_is_served() -> None:
    """An empty data folder costs the optimiser's memory, not the shop's quality or its numbers."""
    world = rolled_out()
    world.models.serve(3, 1)
    served = world.models.values["query-3"]
    world.checkpoints.saved.clear()
    world.source.log.clear()
    world.start()
    facts = world.loop.learner.facts
    assert (facts.query_release, facts.product_release) == (3, 1)
    assert (facts.last_query_release, facts.last_product_release) == (3, 1)
    world.source.log = records(100, 116)
    world.turn(after_s=30)
    assert world.models.order[-1] == "query-4"
    assert manifest_of(world.models.values["query-4"]).drift_mean < 0.05
    assert manifest_of(served).product_release == 1


@pytest.mark.parametrize(("base_version", "dim"), [("other/16/t1", DIM), ("tiny/16/t1", 2 * DIM)])
def test_a_trainer_without_state_does_not_go_on_from_another_base_model(base_version: str, dim: int) -> None:
    """Heads trained over other vectors mean nothing here: the setting is put right before anything is learned."""
    world = rolled_out()
    world.models.serve(3, 1)
    world.checkpoints.saved.clear()
    world.encoder = TinyEncoder(dim)
    world.encoder.base_version = base_version
    order = list(world.models.order)
    with pytest.raises(UsageError, match="query-3 is in force and was trained over tiny/16/t1") as raised:
        world.start()
    assert "MILLRACE_BASE_MODEL" in raised.value.fix
    assert world.models.order == order


def test_a_held_release_takes_no_number_and_is_tried_again_after_the_interval() -> None:
    """A release that fails its checks leaves no gap, no record and no busy loop."""
    world = World(pairs=16, caps=SafetyCaps(overlap=2.0))
    world.turn()
    world.turn()
    assert world.models.order == []
    assert world.loop.learner.facts.last_query_release == 0
    assert world.loop.learner.facts.query_released_ms == START_MS


def test_old_releases_are_retired_and_the_one_in_force_is_kept() -> None:
    """The topic stays small; what `serving` names is never taken away."""
    world = World(pairs=16)
    world.turn()
    world.models.serve(1, 0)
    for number in range(1, 6):
        world.send(16 * number, 16 * number + 16)
        world.turn(after_s=16)
    assert "query-1" in world.models.values
    assert world.models.retired[:2] == ["query-2", "query-3"]
