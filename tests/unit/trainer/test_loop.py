"""The loop's order: nothing leaves before it is durable and the group agrees; a crash repeats what is missing."""

import numpy as np
import pytest

from contracts.errors import TransientError, UsageError
from contracts.releases import manifest_of
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, FakeCheckpoints, FakeModels, FakeSource, new_learner, records
from towers.heads import head_tensors
from towers.release_files import unpack
from trainer.learner import PairRecord
from trainer.loop import LoopSettings, MicroBatcher, TrainerLoop
from trainer.memory import TrainingProgress
from trainer.release.planning import Cadence
from trainer.release.safety import SafetyCaps

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
        self.loop = TrainerLoop(
            new_learner(snapshot, encoder=self.encoder),
            source=self.source,
            checkpoints=self.checkpoints,
            models=self.models,
            writer=self.models,
            encoder=self.encoder,
            settings=self.settings,
            clock_ms=lambda: self.now_ms,
        )
        self.loop.resume({} if snapshot is None else snapshot.outbox)
        return self.loop

    def send(self, first: int, last: int) -> None:
        """Append pairs to the topic."""
        self.source.log += records(first, last)

    def run_once(self, *, after_s: float = 0.0) -> None:
        """Let time pass and go round the loop once."""
        self.now_ms += round(after_s * 1000)
        self.loop.run_once()


def test_pairs_become_a_checkpoint_a_commit_and_a_release() -> None:
    """One round of a full micro-batch does all of it, and all of it names the same offsets."""
    world = World(pairs=16)
    world.run_once()
    assert world.models.order == ["query-1"]
    assert world.source.committed == [{0: 8, 1: 8}]
    assert manifest_of(world.models.values["query-1"]).offsets == {"0": 8, "1": 8}
    assert world.checkpoints.saved[-1].outbox.keys() == {"query-1"}


def test_pairs_that_wait_for_a_micro_batch_are_not_committed() -> None:
    """The offsets stand before what was not trained, until its age makes it due."""
    world = World(pairs=20)
    world.run_once()
    assert world.source.committed == [{0: 8, 1: 8}]
    world.run_once(after_s=2)
    assert world.loop.learner.progress.offsets == {0: 10, 1: 10}


def test_an_idle_shop_gets_neither_releases_nor_checkpoints() -> None:
    """Nothing to say is not said."""
    world = World()
    for _ in range(5):
        world.run_once(after_s=100)
    assert world.models.order == []
    assert world.checkpoints.saved == []


def test_query_releases_keep_their_interval() -> None:
    """Two releases are never closer than the interval, however many pairs come."""
    world = World(pairs=16)
    world.run_once()
    world.send(16, 32)
    world.run_once(after_s=14)
    assert world.models.order == ["query-1"]
    world.run_once(after_s=1)
    assert world.models.order == ["query-1", "query-2"]


def test_trained_pairs_are_checkpointed_even_between_releases() -> None:
    """A crash never costs more than the checkpoint interval."""
    world = World(pairs=16)
    world.run_once()
    world.send(16, 32)
    world.run_once(after_s=1)
    saved = len(world.checkpoints.saved)
    world.loop.finish()
    assert len(world.checkpoints.saved) == saved + 1
    assert world.source.committed[-1] == {0: 16, 1: 16}


def test_a_trainer_that_lost_its_group_publishes_nothing() -> None:
    """The commit is refused first; the release never leaves."""
    world = World(pairs=16)
    world.source.lost = TransientError("the group moved on")
    with pytest.raises(TransientError):
        world.run_once()
    assert world.models.order == []


def test_a_crash_between_checkpoint_and_publication_publishes_the_same_bytes_later() -> None:
    """The checkpoint carries the release; the next start sends what the topic lacks, once."""
    world = World(pairs=16)
    world.source.lost = TransientError("killed here")
    with pytest.raises(TransientError):
        world.run_once()
    world.source.lost = None
    world.start()
    assert world.models.order == ["query-1"]
    assert world.models.values["query-1"] == world.checkpoints.saved[-1].outbox["query-1"]
    world.start()
    assert world.models.order == ["query-1"]


def test_a_crash_loses_no_pair_and_trains_none_twice() -> None:
    """What was trained after the last checkpoint is trained again from it, and counted once."""
    world = World(pairs=16)
    world.run_once()
    world.send(16, 48)
    world.run_once(after_s=1)
    assert world.loop.learner.progress.pairs_trained == 48
    world.start()
    assert world.loop.learner.progress.pairs_trained == 16
    world.run_once(after_s=20)
    assert world.loop.learner.progress.pairs_trained == 48
    assert manifest_of(world.models.values["query-2"]).pairs_trained == 48


def test_a_product_release_waits_for_its_interval_and_goes_first_with_its_query_release() -> None:
    """The interval of product releases begins with the learning."""
    world = World(pairs=16)
    world.run_once()
    world.send(16, 32)
    world.run_once(after_s=59)
    assert "product-1" not in world.models.order
    world.run_once(after_s=1)
    assert world.models.order[-2:] == ["query-3", "product-1"]


def rolled_out() -> World:
    """Return a world in which product release 1 is on its way."""
    world = World(pairs=16)
    world.run_once()
    world.send(16, 32)
    world.run_once(after_s=60)
    assert world.models.order == ["query-1", "query-2", "query-3", "product-1"]
    return world


def test_while_a_product_release_is_on_its_way_the_pair_in_force_gets_releases() -> None:
    """Shoppers go on teaching; no second product release starts."""
    world = rolled_out()
    world.send(32, 64)
    world.run_once(after_s=120)
    assert world.models.order[-1] == "query-4"
    assert manifest_of(world.models.values["query-4"]).product_release == 0


def test_when_serving_names_the_product_release_the_next_query_release_is_for_it() -> None:
    """The trainer moves only on `serving`, and its query head for the new pair has learned meanwhile."""
    world = rolled_out()
    world.models.serve(3, 1)
    world.send(32, 64)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values["query-4"])
    assert (manifest.product_release, manifest.parent) == (1, 3)
    assert world.loop.learner.progress.pending is None


def test_a_roll_out_survives_a_restart() -> None:
    """Stopped during it or served meanwhile: the restarted trainer takes it up."""
    world = rolled_out()
    world.models.serve(3, 1)
    world.start()
    progress = world.loop.learner.progress
    assert (progress.query_release, progress.product_release, progress.pending) == (3, 1, None)


def test_nothing_is_released_once_all_that_was_learned_is() -> None:
    """After its last pair a shop gets one release of each kind; then none for time, a restart or a repeated pair."""
    world = World(pairs=40)
    world.run_once()
    for _ in range(50):
        world.run_once(after_s=20)
    assert world.models.order == ["query-1", "query-2", "query-3", "product-1"]
    learner = world.loop.learner
    trained, released = learner.versions.in_force.query_head, learner.versions.released
    np.testing.assert_array_equal(head_tensors(released)["up"], head_tensors(trained)["up"])
    world.start()
    world.source.log += [PairRecord(0, 100 + number, found.pair) for number, found in enumerate(records(0, 32))]
    for _ in range(5):
        world.run_once(after_s=70)
    assert world.loop.learner.progress.offsets[0] == 132
    assert len(world.models.order) == 4


def test_a_product_release_that_comes_into_force_is_no_reason_for_a_query_release() -> None:
    """Its first query release holds everything that was learned, unless pairs came meanwhile."""
    world = rolled_out()
    world.models.serve(3, 1)
    for _ in range(2):
        world.run_once(after_s=16)
    assert world.models.order[-1] == "product-1"
    world.send(32, 64)
    world.run_once(after_s=20)
    assert world.models.order[-1] == "query-4"


def lose_disk(world: World) -> TrainingProgress:
    """Start a trainer whose checkpoints are gone and return what it knows."""
    world.checkpoints.saved.clear()
    return world.start().learner.progress


@pytest.mark.parametrize("pair_in_force", [(2, 0), (3, 1)])
def test_a_trainer_that_lost_its_disk_goes_on_from_what_is_served(pair_in_force: tuple[int, int]) -> None:
    """With the weights in force, at the offsets that they were trained up to: no pair is learned twice."""
    world = rolled_out()
    world.models.serve(*pair_in_force)
    manifest = manifest_of(world.models.values[f"query-{pair_in_force[0]}"])
    served = unpack(world.models.values[f"query-{pair_in_force[0]}"])
    world.send(32, 48)
    progress = lose_disk(world)
    assert (progress.query_release, progress.product_release) == pair_in_force
    assert (progress.last_query_release, progress.last_product_release) == (3, 1)
    assert progress.offsets == {int(number): offset for number, offset in manifest.offsets.items()} == {0: 16, 1: 16}
    head = world.loop.learner.versions.in_force.query_head
    np.testing.assert_array_equal(head_tensors(head)["up"], served.tensors["up"])
    world.run_once(after_s=30)
    assert progress.pairs_trained == progress.lists_trained == 48
    assert world.models.order[4] == "query-4"
    after = manifest_of(world.models.values["query-4"])
    assert (after.pairs_trained, after.product_release, after.parent) == (48, pair_in_force[1], pair_in_force[0])
    assert after.drift_mean < 0.05


def test_a_trainer_that_lost_its_newest_checkpoints_does_not_teach_the_heads_in_force_twice() -> None:
    """An older checkpoint knows nothing of the product release in force, whose heads know more pairs than it."""
    world = World(pairs=16)
    world.run_once()
    oldest = world.checkpoints.saved[:1]
    world.send(16, 32)
    world.run_once(after_s=60)
    world.models.serve(3, 1)
    world.checkpoints.saved = oldest
    progress = world.start().learner.progress
    assert (progress.product_release, progress.offsets, progress.pairs_trained) == (1, {0: 16, 1: 16}, 32)
    world.send(32, 64)
    world.run_once(after_s=20)
    assert progress.pairs_trained == 64


def test_pairs_that_wait_are_read_again_if_heads_of_another_trainer_come_into_force() -> None:
    """Nobody has trained them: they count for the new heads, once."""
    world = rolled_out()
    old = World()
    old.models = world.models
    old.checkpoints.saved = list(world.checkpoints.saved[:1])
    old.source = world.source
    world.models.serve(2, 0)
    world.send(32, 40)
    learner = old.start().learner
    old.run_once()
    waiting = learner.progress.pairs_trained
    world.models.serve(3, 1)
    old.run_once(after_s=1)
    old.run_once(after_s=2)
    old.run_once(after_s=2)
    assert waiting == 32
    assert learner.progress.pairs_trained == 40
    assert learner.progress.offsets == {0: 20, 1: 20}


def test_without_the_heads_in_force_a_fresh_trainer_learns_from_the_first_pair() -> None:
    """A release that is gone from the topic cannot be gone on from; what it knew is learned anew."""
    world = rolled_out()
    world.models.serve(2, 0)
    world.models.retire(["query-2"])
    progress = lose_disk(world)
    assert progress.offsets == {}
    world.run_once()
    assert progress.pairs_trained == 32


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


def test_a_refused_release_takes_no_number_and_is_tried_again_once_more_is_learned() -> None:
    """A release that fails its checks leaves no gap, no record and no busy loop."""
    world = World(pairs=16, caps=SafetyCaps(overlap=2.0))
    world.run_once()
    progress = world.loop.learner.progress
    world.run_once(after_s=20)
    assert world.models.order == []
    assert progress.last_query_release == 0
    assert (progress.query_decided_ms, progress.query_decided_step) == (START_MS, 1)
    world.send(16, 32)
    world.run_once(after_s=20)
    assert progress.query_decided_step == 2
    assert world.models.order == []


def test_old_releases_are_retired_and_the_one_in_force_is_kept() -> None:
    """The topic stays small; what `serving` names is never taken away."""
    world = World(pairs=16)
    world.run_once()
    world.models.serve(1, 0)
    for number in range(1, 6):
        world.send(16 * number, 16 * number + 16)
        world.run_once(after_s=16)
    assert "query-1" in world.models.values
    assert world.models.retired[:2] == ["query-2", "query-3"]


def test_a_full_micro_batch_is_due_at_once_in_order_of_arrival() -> None:
    """Size decides first, and nothing is overtaken."""
    batcher = MicroBatcher[int](size=2, max_age_s=10)
    batcher.add([1, 2, 3, 4, 5], now_s=0)
    assert [batcher.take(now_s=0) for _ in range(3)] == [[1, 2], [3, 4], []]
    assert len(batcher) == 1


def test_the_oldest_pair_does_not_wait_longer_than_the_age() -> None:
    """A quiet shop's pairs are trained too; later arrivals do not restart the wait."""
    batcher = MicroBatcher[int](size=10, max_age_s=5)
    batcher.add([1], now_s=0)
    batcher.add([2], now_s=4)
    assert batcher.take(now_s=4.9) == []
    assert batcher.take(now_s=5) == [1, 2]


def test_the_age_counts_anew_from_the_first_pair_after_a_pause() -> None:
    """A pair that arrives after an idle hour is not old."""
    batcher = MicroBatcher[int](size=10, max_age_s=5)
    batcher.add([1], now_s=0)
    batcher.take(now_s=5)
    batcher.add([2], now_s=3600)
    assert batcher.take(now_s=3601) == []


def test_nothing_waiting_is_never_due() -> None:
    """An empty micro-batch does not exist."""
    assert MicroBatcher[int](size=1, max_age_s=0).take(now_s=100) == []
