"""The loop: what is durable before what leaves, and what a crash, a rival, a lost disk or a rollback changes."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest

from contracts.errors import TransientError, UsageError
from contracts.releases import manifest_of
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import (
    DIM,
    START_MS,
    FakeCheckpoints,
    FakeModels,
    FakeSource,
    list_record,
    new_learner,
    offsets,
    records,
    search_number,
)
from towers.release_files import unpack
from trainer.loop import LoopSettings, TrainerLoop
from trainer.release.planning import Cadence
from trainer.state import Progress


class World:
    """Fakes, a clock in hand, and the trainer that lives in them."""

    def __init__(self, lists: int = 0, *, overlap: float = 0.0) -> None:
        self.source = FakeSource(records(0, lists))
        self.checkpoints = FakeCheckpoints()
        self.models = FakeModels()
        self.now_ms = START_MS
        self.encoder = TinyEncoder(DIM)
        self.settings = LoopSettings(Cadence(query_ms=15_000, product_ms=60_000), overlap=overlap)
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

    @property
    def progress(self) -> Progress:
        """How far the trainer has come."""
        return self.loop.learner.progress

    def catching_up(self) -> bool:
        """Whether the log is being read again."""
        return self.progress.catch_up is not None

    def send(self, first: int, last: int) -> None:
        """Append lists to the topic."""
        self.source.log += records(first, last)

    def run_once(self, *, after_s: float = 0.0) -> None:
        """Let time pass and go round the loop once."""
        self.now_ms += round(after_s * 1000)
        self.loop.run_once()


def test_lists_become_a_checkpoint_a_commit_and_a_release() -> None:
    """One round does all of it, and all of it names the same offsets."""
    world = World(100)
    world.run_once()
    assert world.models.order == ["query-1"]
    assert world.source.committed == [offsets(100)]
    manifest = manifest_of(world.models.values["query-1"])
    assert (manifest.offsets, manifest.fence, manifest.lists_trained) == (offsets(100), 1, 100)
    assert manifest.prior["half_life_days"] == 16.0
    assert world.checkpoints.saved[-1].outbox.keys() == {"query-1"}


def test_an_idle_shop_gets_neither_releases_nor_checkpoints() -> None:
    """Nothing to say is not said, and nothing is solved."""
    world = World()
    for _ in range(5):
        world.run_once(after_s=100)
    assert world.models.order == []
    assert world.checkpoints.saved == []


def test_lists_without_a_click_are_no_reason_for_a_release() -> None:
    """Shoppers would see no difference: the weights are untrained, as those in force."""
    world = World()
    unclicked = [search_number(number) for number in range(200)]
    quiet = [one for one in unclicked if not any(slot.clicked for slot in one.slots)]
    world.source.log = [list_record(search, offset=place) for place, search in enumerate(quiet)]
    world.run_once(after_s=100)
    assert len(quiet) > 10
    assert world.progress.lists_trained == len(quiet)
    assert world.models.order == []


def test_query_releases_keep_their_interval() -> None:
    """Two releases are never closer than the interval, however many lists come."""
    world = World(100)
    world.run_once()
    world.send(100, 200)
    world.run_once(after_s=14)
    assert world.models.order == ["query-1"]
    world.run_once(after_s=1)
    assert world.models.order == ["query-1", "query-2"]


def test_what_was_counted_is_checkpointed_even_between_releases() -> None:
    """A crash never costs more than the checkpoint interval, and a stop costs nothing."""
    world = World(100)
    world.run_once()
    world.send(100, 150)
    world.run_once(after_s=1)
    saved = len(world.checkpoints.saved)
    world.loop.finish()
    assert len(world.checkpoints.saved) == saved + 1
    assert world.source.committed[-1] == offsets(150)


def test_a_trainer_that_lost_its_group_publishes_nothing() -> None:
    """The commit is refused first; the release never leaves."""
    world = World(100)
    world.source.lost = TransientError("the group moved on")
    with pytest.raises(TransientError):
        world.run_once()
    assert world.models.order == []


def test_a_crash_between_checkpoint_and_publication_publishes_the_same_bytes_later() -> None:
    """The checkpoint carries the release; the next start sends what the topic lacks, once."""
    world = World(100)
    world.source.lost = TransientError("killed here")
    with pytest.raises(TransientError):
        world.run_once()
    world.source.lost = None
    world.start()
    assert world.models.order == ["query-1"]
    assert world.models.values["query-1"] == world.checkpoints.saved[-1].outbox["query-1"]
    world.start()
    assert world.models.order == ["query-1"]


def test_a_crash_loses_no_list_and_counts_none_twice() -> None:
    """What was counted after the last checkpoint is counted again from it, once."""
    world = World(100)
    world.run_once()
    world.send(100, 180)
    world.run_once(after_s=1)
    assert world.progress.lists_trained == 180
    world.start()
    assert world.progress.lists_trained == 100
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 180
    assert manifest_of(world.models.values[world.models.order[-1]]).lists_trained == 180


class _Killed(Exception):
    pass


class Saboteur:
    """Kills the process at the n-th thing that it does to the world, before or after it is done."""

    def __init__(self, world: World, place: int, *, after: bool) -> None:
        self.left, self.after = place, after
        for owner, name in (
            (world.checkpoints, "save"),
            (world.source, "commit"),
            (world.models, "publish"),
            (world.models, "retire"),
            (world.loop.learner, "solve"),
            (world.loop.learner, "learn_prior"),
        ):
            setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, act: Callable[..., object]) -> Callable[..., object]:
        """Surround an act."""

        def acted(*values: object, **named: object) -> object:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise _Killed
            done = act(*values, **named)
            if self.left == 0 and self.after:
                raise _Killed
            return done

        return acted


@pytest.mark.parametrize("after", [False, True])
def test_a_hundred_kills_lose_nothing_and_repeat_nothing(after: bool) -> None:
    """Killed before or after each step in turn, solves too: counts and evidence are those of one run."""
    world, kills = World(), 0
    for number in range(50):
        world.send(12 * number, 12 * number + 12)
        world.now_ms += 61_000
        Saboteur(world, 1 + number % 6, after=after)
        try:
            world.run_once()
        except _Killed:
            kills += 1
        for owner in (world.checkpoints, world.source, world.models):
            for name in ("save", "commit", "publish", "retire"):
                owner.__dict__.pop(name, None)
        world.start()
    world.run_once(after_s=61)
    world.run_once(after_s=61)
    assert kills >= 40
    whole = World(600)
    whole.run_once()
    assert world.progress.lists_trained == whole.progress.lists_trained == 600
    state, expected = world.loop.learner.evidence.state(), whole.loop.learner.evidence.state()
    assert np.array_equal(state["table.keys"], expected["table.keys"])
    assert np.array_equal(state["table.counts"], expected["table.counts"])
    assert len(world.models.order) == len(set(world.models.order)) > 10


def test_a_restarted_trainer_makes_the_same_bytes_as_one_that_was_not() -> None:
    """State, parent release and records decide every bit of the next release."""
    one = World(150)
    one.run_once()
    two = deepcopy_of(one)
    for world in (one, two):
        world.send(150, 260)
    two.start()
    two.progress.last_query_release, two.progress.fence = one.progress.last_query_release, one.progress.fence
    two.progress.last_product_release = one.progress.last_product_release
    for world in (one, two):
        world.run_once(after_s=70)
    assert one.models.order[1:] == two.models.order[1:] == ["query-2", "product-1"]
    assert one.models.values == two.models.values


def deepcopy_of(world: World) -> World:
    """Return a world of the same past."""
    other = World()
    other.source.log = list(world.source.log)
    other.checkpoints.saved = deepcopy(world.checkpoints.saved)
    other.models.publish({key: world.models.values[key] for key in world.models.order})
    other.now_ms = world.now_ms
    return other


def test_a_release_can_be_computed_again_to_the_byte() -> None:
    """Parent release, evidence at the cut, prior and catalogue are all that a release is made of."""
    world = World(150)
    world.run_once()
    world.send(150, 260)
    world.run_once(after_s=15)
    released = world.models.values["query-2"]
    parent = unpack(world.models.values["query-1"])
    learner = new_learner(world.checkpoints.saved[-1], encoder=TinyEncoder(DIM))
    manifest = manifest_of(released)
    assert manifest.parent == 1
    assert {**learner.preference.learned.prior._asdict(), "half_life_days": 16.0} == manifest.prior  # type: ignore[union-attr]
    towers = world.loop._towers(0, 0)._replace(query=parent.query_tower())
    again = learner.solve(towers).towers.query
    assert all(np.array_equal(tensor, unpack(released).tensors[name]) for name, tensor in again.tensors().items())


def test_a_product_release_waits_for_its_interval_and_goes_with_a_query_release() -> None:
    """The interval begins with the learning; what waits is released without another click."""
    world = World(100)
    world.run_once()
    for _ in range(3):
        world.run_once(after_s=15)
    assert world.models.order == ["query-1"]
    world.run_once(after_s=15)
    assert world.models.order == ["query-1", "query-2", "product-1"]
    assert manifest_of(world.models.values["query-2"]).product_release == 1
    assert manifest_of(world.models.values["product-1"]).query_release == 2


def test_nothing_is_released_once_all_that_was_learned_is() -> None:
    """After its last click a shop gets what waits; then nothing for time, a restart or a repeated list."""
    world = World(120)
    for _ in range(20):
        world.run_once(after_s=20)
    order = list(world.models.order)
    world.start()
    repeated = [record._replace(offset=100 + record.offset) for record in records(0, 60)]
    world.source.log += repeated
    for _ in range(5):
        world.run_once(after_s=70)
    assert order[-1] == "product-1"
    assert world.models.order == order
    assert world.progress.lists_trained == 120


def test_a_large_step_is_taken_in_shares_without_another_click() -> None:
    """A release that would change too many answers goes part of the way, and the rest follows."""
    world, serving = World(600, overlap=0.95), list[str]()
    for _ in range(40):
        world.run_once(after_s=15)
        serving = [key for key in world.models.order if key.startswith("query")]
        world.models.serve(len(serving), len(world.models.order) - len(serving))
    manifests = [manifest_of(world.models.values[key]) for key in serving if key in world.models.values]
    shares = [check.value for manifest in manifests for check in manifest.checks if check.name == "share_of_step"]
    assert min(shares) < 1
    assert shares[-1] == 1
    assert len(serving) < 40


def test_a_refused_release_takes_no_number_and_is_tried_again_once_more_is_learned() -> None:
    """A release that fails its checks leaves no gap, no record and no busy loop."""
    world = World(100, overlap=2.0)
    world.run_once()
    decided = world.progress.decided_records
    world.run_once(after_s=20)
    assert world.models.order == []
    assert (world.progress.last_query_release, world.progress.query_decided_ms) == (0, START_MS)
    world.send(100, 120)
    world.run_once(after_s=20)
    assert world.progress.decided_records > decided
    assert world.models.order == []


def test_each_start_leaves_numbers_out_and_raises_the_fence() -> None:
    """What a stalled predecessor still publishes has a key of its own and a lower fence."""
    world = World(100)
    world.run_once()
    world.start()
    world.send(100, 200)
    world.run_once(after_s=16)
    assert world.models.order == ["query-1", "query-5"]
    manifest = manifest_of(world.models.values["query-5"])
    assert (manifest.fence, manifest.parent) == (2, 1)


class _Stalled(Exception):
    pass


@pytest.mark.parametrize("step", ["save", "commit", "publish", "retire"])
def test_a_trainer_that_was_stalled_overwrites_nothing_and_ends(step: str) -> None:
    """Stopped at any step between save and retire and woken after its successor released, it changes nothing."""
    world = World(100)
    old, saved = world.loop, list(world.checkpoints.saved)
    owner = {"save": world.checkpoints, "commit": world.source}.get(step, world.models)
    act = getattr(owner, step)
    calls: list[tuple[object, ...]] = []

    def stall(*values: object) -> None:
        calls.append(values)
        raise _Stalled

    setattr(owner, step, stall)
    with pytest.raises(_Stalled):
        old.run_once()
    del owner.__dict__[step]
    new = world.start()
    world.send(100, 200)
    world.run_once(after_s=70)
    ours = dict(world.models.values)
    act(*calls[0])  # the stalled trainer wakes up in the middle of its step
    fence = world.progress.fence
    assert fence > old.progress.fence
    assert {key: world.models.values[key] for key in ours if key in world.models.values} == {
        key: value for key, value in ours.items() if key in world.models.values
    }
    with pytest.raises(TransientError, match=f"another trainer took over with fence {fence}"):
        old.run_once()
    assert new.progress.fence == fence
    assert len(saved) <= len(world.checkpoints.saved)


def lose_disk(world: World) -> Progress:
    """Start a trainer whose checkpoints are gone and return what it knows."""
    world.checkpoints.saved.clear()
    return world.start().learner.progress


def test_a_trainer_that_lost_its_disk_reads_the_log_again_before_it_releases() -> None:
    """It counts everything anew, publishes nothing before the cut of what is served, and goes on from that release."""
    world = World(100)
    world.run_once()
    world.models.serve(1, 0)
    expected = world.loop.learner.evidence.state()
    log, world.source.log = world.source.log, world.source.log[:60]
    progress = lose_disk(world)
    world.run_once(after_s=30)
    assert world.catching_up()
    assert (world.models.order, progress.lists_trained) == (["query-1"], 60)
    world.source.log = log
    world.run_once(after_s=30)
    state = world.loop.learner.evidence.state()
    assert not world.catching_up()
    assert np.array_equal(state["table.counts"], expected["table.counts"])
    world.send(100, 160)
    world.run_once(after_s=30)
    manifest = manifest_of(world.models.values[world.models.order[-1]])
    assert (manifest.lists_trained, manifest.offsets) == (160, offsets(160))


def test_a_lost_disk_and_a_log_that_retention_cut_end_too() -> None:
    """What is gone from the log is said and left out; the trainer does not wait for it."""
    world = World(100)
    world.run_once()
    world.models.serve(1, 0)
    world.source.log = [record for record in world.source.log if record.offset >= 40]
    world.source.begins = dict.fromkeys(world.source.begins, 40)
    progress = lose_disk(world)
    world.run_once(after_s=30)
    assert (world.catching_up(), progress.lists_trained) == (False, 20)


def test_an_older_checkpoint_than_the_release_in_force_catches_up_first() -> None:
    """A disk that was put back from a backup knows less than what is served: nothing older is released over it."""
    world = World(100)
    world.run_once()
    oldest = world.checkpoints.saved[:1]
    world.send(100, 200)
    world.run_once(after_s=20)
    world.models.serve(2, 0)
    world.checkpoints.saved = oldest
    log, world.source.log = world.source.log, world.source.log[:150]
    world.start()
    world.run_once(after_s=20)
    assert world.models.order == ["query-1", "query-2"]
    world.source.log = log
    world.run_once(after_s=20)
    assert (world.progress.lists_trained, world.catching_up()) == (200, False)


def rolled_back(world: World) -> None:
    """Release three times and go back to the first release."""
    for number in range(3):
        world.send(100 * number, 100 * number + 100)
        world.run_once(after_s=20)
        world.models.serve(number + 1, 0)
        world.run_once()
    assert world.models.order[:3] == ["query-1", "query-2", "query-3"]
    world.send(300, 400)
    world.models.serve(1, 0)


def test_a_rollback_goes_back_to_the_evidence_of_that_release() -> None:
    """What came between its cut and the rollback is left out; what comes afterwards counts."""
    world = World()
    rolled_back(world)
    world.loop._adopt()
    assert world.progress.lists_trained == 100
    assert world.progress.offsets == offsets(400)
    world.run_once(after_s=20)
    assert len(world.models.order) == 3
    world.send(400, 500)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values["query-4"])
    assert (manifest.release, manifest.parent, manifest.lists_trained) == (4, 1, 200)
    expected = new_learner()
    for record in [*records(0, 100), *records(400, 500)]:
        expected.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
    found = world.loop.learner.evidence.table.cells()
    assert found.clicks.sum() == pytest.approx(expected.evidence.table.cells().clicks.sum())


def test_a_rollback_without_a_checkpoint_reads_the_log_again_up_to_that_cut() -> None:
    """The same evidence as with one, only later."""
    world = World()
    rolled_back(world)
    world.checkpoints.saved.clear()
    world.loop._adopt()
    assert world.catching_up()
    world.run_once(after_s=20)
    assert (world.catching_up(), world.progress.lists_trained) == (False, 100)
    assert world.progress.offsets == offsets(400)
    world.send(400, 500)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 200
    assert manifest_of(world.models.values["query-4"]).parent == 1


def test_a_rollback_to_the_untrained_release_forgets_everything() -> None:
    """Release 0 knew nothing: learning begins again with what comes."""
    world = World()
    rolled_back(world)
    world.models.serve(0, 0)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 0
    world.send(400, 500)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 100


@pytest.mark.parametrize(("base_version", "dim"), [("other/16/t1", DIM), ("tiny/16/t1", 2 * DIM)])
def test_a_trainer_does_not_go_on_from_another_base_model(base_version: str, dim: int) -> None:
    """Weights over other vectors mean nothing here: the setting is put right before anything is released."""
    world = World(100)
    world.run_once()
    world.models.serve(1, 0)
    world.encoder.base_version, world.encoder.dim = base_version, dim
    world.send(100, 200)
    with pytest.raises(UsageError, match="query-1 was trained over tiny/16/t1") as raised:
        world.run_once(after_s=20)
    assert "MILLRACE_BASE_MODEL" in raised.value.fix


def test_old_releases_are_retired_and_what_is_needed_is_kept() -> None:
    """The topic stays small; what `serving` names is never taken away."""
    world = World(40)
    world.run_once()
    world.models.serve(1, 0)
    for number in range(1, 8):
        world.send(40 * number, 40 * number + 40)
        world.run_once(after_s=16)
    assert "query-1" in world.models.values
    assert world.models.retired[:2] == ["query-2", "query-3"]
