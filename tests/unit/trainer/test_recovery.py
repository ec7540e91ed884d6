"""What a crash, a rival, a lost disk or a rollback changes: nothing that shoppers or the evidence would show."""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import override

from contracts.errors import TransientError
from contracts.releases import manifest_of
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import (
    DIM,
    World,
    lose_disk,
    new_learner,
    offsets,
)
from towers.release_files import unpack
from trainer.adapters.checkpoints import FileCheckpoints


class Killed(Exception):
    """The end of a process."""


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
                raise Killed
            done = act(*values, **named)
            if self.left == 0 and self.after:
                raise Killed
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
        except Killed:
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


LISTS = 900
"""More than a hundred lives come to, however far each gets: a life that finds nothing to do says no word."""


def live(folder: Path, begun: Connection, until: str | None = None) -> None:
    """Live on from the newest checkpoint on disk, two lists a round, and say of each solve and save that it begins.

    After the round that it is to be killed in it waits for that: a quick machine comes no further than a slow one.
    """
    said: set[str] = set()

    def say(name: str) -> None:
        said.add(name)
        begun.send(name)

    world = World(LISTS)
    checkpoints = FileCheckpoints(folder, base_version=world.encoder.base_version)
    world.checkpoints = checkpoints  # type: ignore[assignment] # the port has two adapters, the fake world one
    learner = world.start().learner
    for owner, name in ((learner, "solve"), (checkpoints, "save")):
        setattr(owner, name, told(getattr(owner, name), partial(say, name)))
    while world.progress.lists_trained < LISTS:
        world.source.readable = world.progress.lists_trained + 2
        world.run_once(after_s=61)
        if until in said:
            threading.Event().wait()


def told(act: Callable[..., object], tell: Callable[[], None]) -> Callable[..., object]:
    """Surround an act by a word that it begins."""

    def acted(*values: object, **named: object) -> object:
        tell()
        return act(*values, **named)

    return acted


def test_a_hundred_kills_in_solves_and_saves_leave_a_whole_state(tmp_path: Path) -> None:
    """SIGKILL while it solves or writes: the newest state is whole and never older, and nothing counts twice."""
    rng, known = np.random.default_rng(5), 0
    clean = multiprocessing.get_context("forkserver")  # a fork of this process may inherit locks that threads hold
    clean.set_forkserver_preload([__name__])
    read = FileCheckpoints(tmp_path, base_version=TinyEncoder(DIM).base_version).load
    for kill in range(100):
        hears, says = clean.Pipe(duplex=False)
        wanted = "save" if kill % 2 else "solve"
        process = clean.Process(target=live, args=(tmp_path, says, wanted))
        process.start()
        says.close()
        while hears.recv() != wanted:
            pass
        process.join(float(rng.uniform(0, 0.02)))
        process.kill()
        process.join()
        snapshot = read()
        lists = 0 if snapshot is None else snapshot.progress.lists_trained
        assert known <= lists
        known = lists
    assert 60 < known < LISTS
    _hears, says = clean.Pipe(duplex=False)
    live(tmp_path, says)
    snapshot, whole = read(), World(LISTS)
    whole.run_once()
    assert snapshot is not None
    assert snapshot.progress.lists_trained == LISTS
    for name, expected in whole.loop.learner.evidence.state().items():
        if name.startswith(("table.", "recent.")):
            np.testing.assert_array_equal(snapshot.tensors[f"evidence.{name}"], expected, err_msg=name)


@pytest.mark.parametrize(("lists", "release"), [(240, "product-1"), (260, "query-2")])
def test_a_restarted_trainer_makes_the_same_bytes_as_one_that_was_not(lists: int, release: str) -> None:
    """State, parent release and records decide every bit of the next release, the prior learned anew among them."""
    one = World(150)
    one.run_once()
    two = deepcopy_of(one)
    for world in (one, two):
        world.send(150, lists)
    two.start()
    two.progress.last_query_release, two.progress.fence = one.progress.last_query_release, one.progress.fence
    two.progress.last_product_release = one.progress.last_product_release
    for world in (one, two):
        world.run_once(after_s=70)
    assert one.models.order[1:] == two.models.order[1:]
    assert release in one.models.order[1:]
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


class Stalled(Exception):
    """A process that is stopped for a while."""


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
        raise Stalled

    setattr(owner, step, stall)
    with pytest.raises(Stalled):
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


def test_a_trainer_that_lost_its_disk_reads_the_log_again_before_it_releases() -> None:
    """It counts everything anew, publishes nothing before the cut of what is served, and goes on from that release."""
    world = World(100)
    world.run_once()
    world.models.serve(1, 0)
    expected = world.loop.learner.evidence.state()
    world.source.readable = 60
    progress = lose_disk(world)
    world.run_once(after_s=30)
    assert world.catching_up()
    assert (world.models.order, progress.lists_trained) == (["query-1"], 60)
    world.source.readable = None
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
    world.source.readable = 150
    world.start()
    world.run_once(after_s=20)
    assert world.models.order == ["query-1", "query-2"]
    world.source.readable = None
    world.run_once(after_s=20)
    assert (world.progress.lists_trained, world.catching_up()) == (200, False)


def test_release_0_of_another_base_is_no_rollback() -> None:
    """An indexer of another base begins with it: what was counted stays."""
    world = World(100)
    world.run_once(after_s=20)
    world.models.serve(1, 0)
    world.run_once()
    world.models.serve(0, 0)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 100


class OtherEncoder(TinyEncoder):
    """Another base model."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.base_version = f"other/{DIM}/t1"

    @override
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Turn what the first one says."""
        return np.roll(super().encode(texts, batch_size=batch_size), 1, axis=1)


def test_another_base_model_keeps_the_evidence_and_releases_at_once(tmp_path: Path) -> None:
    """Queries are encoded and everything is solved anew, from nothing; numbers go on, and no list is needed."""
    world = World(600)
    world.checkpoints = FileCheckpoints(tmp_path, base_version=world.encoder.base_version)  # type: ignore[assignment]
    world.run_once()
    world.models.serve(1, 0)
    world.run_once()
    world.loop.finish()
    counted = world.loop.learner.evidence.state()
    world.encoder = OtherEncoder()
    world.checkpoints = FileCheckpoints(tmp_path, base_version=world.encoder.base_version)  # type: ignore[assignment]
    world.start()
    world.run_once(after_s=20)
    released = unpack(world.models.values[max(world.models.values)])
    manifest = released.manifest
    assert (manifest.base_version, manifest.lists_trained, manifest.parent) == (world.encoder.base_version, 600, 0)
    assert manifest.release > 1
    state = world.loop.learner.evidence.state()
    assert np.array_equal(state["table.counts"], counted["table.counts"])
    texts = world.loop.learner.evidence.typed
    expected = world.encoder.encode(texts).astype(np.float16)
    encoded = state["query_vectors"].any(axis=1)
    np.testing.assert_array_equal(state["query_vectors"][encoded], expected[encoded])
    world.models.serve(0, 0)
    world.send(600, 650)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 650
