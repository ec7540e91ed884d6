"""Several indexers at once: whatever the order of their steps and whoever ends in the middle, no change is lost.

Both loops are the real ones; the topics are lists that each indexer reads as late as the schedule lets it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum, auto

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from contracts import wire
from contracts.catalog import CatalogChange, ProductVector
from contracts.progress import CatalogCounts
from contracts.releases import SERVING, SERVING_KEY, Serving, release_key
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.loop import CatalogLoop
from indexer.catalog.planning import CatalogRecord, PartitionProgress
from indexer.points import InForce, ProductPoint
from indexer.rollout.decisions import QUALITY_TOLERANCE
from indexer.rollout.loop import RollOutLoop
from service.models import ModelsTable
from tests.support.indexer_fakes import OWNER, FlakyStore, Log, null, record, whole
from tests.support.indexing import deleted, product, product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release, pack

Interrupt = Callable[[], None]


class Killed(BaseException):
    """An indexer ends as by SIGKILL."""


class World:
    """What outlives every indexer."""

    def __init__(self) -> None:
        self.encoder = TinyEncoder()
        self.store = InterruptedStore(self)
        self.models: list[tuple[bytes, bytes]] = []
        self.vectors: list[ProductVector] = []
        self.interrupt: Interrupt = _nobody

    def release(self, *releases: Release) -> None:
        """Put releases on `models`."""
        self.models += [(release_key(one.manifest.kind, one.manifest.release), pack(one)) for one in releases]

    def serving(self) -> Serving:
        """Return the releases in force."""
        return wire.decode([value for key, value in self.models if key == SERVING_KEY][-1], SERVING)


class InterruptedStore(FlakyStore):
    """The store: others may act before and after each write."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.points: list[ProductPoint] = []

    @override
    def write(self, collection: str, points: Iterable[ProductPoint], *, again: Collection[str] = ()) -> int:
        """Write between two interruptions."""
        self._world.interrupt()
        written = list(points)
        self.points += written
        count = super().write(collection, written, again=again)
        self._world.interrupt()
        return count


class Models(ModelsTable):
    """`models` as one indexer has read it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._read = 0

    def read(self, count: int | None = None) -> None:
        """Read some records on, all by default."""
        end = len(self._world.models) if count is None else min(len(self._world.models), self._read + count)
        for key, value in self._world.models[self._read : end]:
            self.apply(key, value)
        self._read = end

    def put_in_force(self, serving: Serving, releases: Mapping[str, bytes] | None = None) -> None:
        """Put releases in force and read them."""
        self._world.models += [(key.encode(), value) for key, value in (releases or {}).items()]
        self._world.models.append((SERVING_KEY, wire.encode(serving)))
        self._world.interrupt()
        self.read()


class Vectors(Log):
    """`product-vectors` as one indexer has read it.

    Args:
        world: the servers.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._read = 0

    @override
    def publish(self, products: Sequence[BaseProduct]) -> None:
        """Keep base vectors between two interruptions."""
        self._world.interrupt()
        self._world.vectors += [product.to_message() for product in products]
        self._world.interrupt()

    @override
    def read_to_end(self) -> None:
        """Read to the end; others act while it begins."""
        self._world.interrupt()
        for message in self._world.vectors[self._read :]:
            self.known.read(BaseProduct.from_message(message))
        self._read = len(self._world.vectors)


class Batch:
    """One batch of the catalogue, handed out until it is committed."""

    def __init__(self, world: World, records: Sequence[CatalogRecord], ahead: Sequence[CatalogRecord]) -> None:
        self._world = world
        self._records = list(records)
        self._ahead = list(ahead)
        self.is_committed = False

    def poll(self, most: int) -> list[CatalogRecord]:
        """Return the batch."""
        return [] if self.is_committed else self._records

    def look_ahead(self) -> list[CatalogRecord]:
        """Return what comes after it."""
        return self._ahead if self.is_committed else []

    def progress(self, partition: int) -> PartitionProgress:
        """Begin at the beginning."""
        return PartitionProgress(0, CatalogCounts())

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep that it is done."""
        self._world.interrupt()
        self.is_committed = True

    def keep_membership(self) -> None:
        """Do nothing."""

    def start_again(self) -> None:
        """Do nothing."""

    def confirm(self, partitions: Iterable[int]) -> None:
        """Do nothing."""


class Indexer:
    """One process: it knows of the topics what it has read.

    Args:
        world: the servers.
        leads: whether it moves releases.
    """

    def __init__(self, world: World, *, leads: bool) -> None:
        self.world = world
        self.leads = leads
        self.models = Models(world)
        self.log = Vectors(world)
        self._steps = False
        self._rollout = RollOutLoop(
            world.store,
            OWNER,
            models=self.models,
            put_in_force=self.models.put_in_force,
            log=self.log,
            encoder=world.encoder,
            pause=lambda _seconds: False,
            refresh_window_s=900.0,
        )
        self.models.read()
        self.log.read_to_end()
        self._rollout.settle()

    def in_force(self) -> InForce:
        """Read `models` to its end; others act before and after."""
        self.world.interrupt()
        self.models.read()
        serving = self.models.serving()
        self.world.interrupt()
        assert serving is not None
        return InForce.of(serving)

    def step(self) -> bool:
        """Let the roll-out loop take a step, unless it is in one already; return whether there was one to take."""
        if self._steps:
            return False
        self._steps = True
        try:
            return self._rollout.step(leads=self.leads)
        finally:
            self._steps = False

    def pause(self, _seconds: float) -> bool:
        """Let the roll-out loop take a step while the catalogue loop pauses."""
        self.step()
        return False

    def work_off(self, batch: Batch) -> None:
        """Work off a batch of the catalogue."""
        CatalogLoop(
            batch,
            self.log,
            store=self.world.store,
            encoder=self.world.encoder,
            target=self._rollout.target,
            in_force=self.in_force,
            pause=self.pause,
        ).step()

    def rest(self) -> None:
        """Read everything and take steps until there is nothing to do."""
        self.models.read()
        while self.step():
            self.models.read()


class Turn(Enum):
    """What happens while the writer could be overtaken."""

    ON = auto()
    """The writer goes on."""
    LEAD = auto()
    """The leader reads `models` and takes a step."""
    FOLLOW = auto()
    """The roll-out loop of the writer reads a record on and takes a step."""
    RESTART = auto()
    """The leader ends; another process starts and leads."""
    INHERIT = auto()
    """The leader ends; the writer leads."""
    DIE = auto()
    """The writer ends in the middle; another process takes its partitions over."""


class Schedule:
    """Who acts whenever the writer could be overtaken.

    Args:
        world: the servers.
        turns: taken one after the other, until `ON` at each interruption; none left means that the writer goes on.
    """

    def __init__(self, world: World, turns: Sequence[Turn]) -> None:
        self._world = world
        self._turns = iter(turns)
        self._acts = False
        self._offset = -1
        self._writer = Indexer(world, leads=False)
        self.leader = Indexer(world, leads=True)

    def _interrupt(self) -> None:
        """Take turns until the writer goes on; who acts is not interrupted."""
        if self._acts:
            return
        self._acts = True
        try:
            while (turn := next(self._turns, Turn.ON)) is not Turn.ON:
                self._take(turn)
        finally:
            self._acts = False

    def _take(self, turn: Turn) -> None:
        """Do what a turn stands for."""
        match turn:
            case Turn.LEAD:
                self.leader.models.read()
                self.leader.step()
            case Turn.FOLLOW:
                self._writer.models.read(1)
                self._writer.step()
            case Turn.RESTART:
                self.leader.leads = False
                self.leader = Indexer(self._world, leads=True)
            case Turn.INHERIT:
                self.leader.leads, self._writer.leads = False, True
                self.leader = self._writer
            case Turn.DIE:
                raise Killed

    def _record(self, change: CatalogChange | str) -> CatalogRecord:
        """Return the next record of the catalogue; a product id alone deletes it by a null."""
        self._offset += 1
        return null(change, self._offset) if isinstance(change, str) else record(change, self._offset)

    def work_off(self, changes: Sequence[CatalogChange | str], *, ahead: Sequence[CatalogChange | str] = ()) -> None:
        """Have a batch committed, by whoever is left to do so, and what comes after it looked at."""
        records = [self._record(change) for change in changes]
        end = self._offset
        batch = Batch(self._world, records, [self._record(change) for change in ahead])
        self._offset = end
        self._world.interrupt = self._interrupt
        while not batch.is_committed:
            try:
                self._writer.work_off(batch)
            except Killed:
                self._replace_writer()
        self._world.interrupt = _nobody

    def _replace_writer(self) -> None:
        """Start a process in the writer's place; it leads if that one did."""
        self._acts = True
        was_leader = self._writer is self.leader
        self._writer = Indexer(self._world, leads=was_leader)
        if was_leader:
            self.leader = self._writer
        self._acts = False


def _nobody() -> None:
    """Let nobody act."""


FIRST: list[CatalogChange | str] = [product("P-1"), product("P-2"), product("P-3")]
SECOND: list[CatalogChange | str] = [product("P-1", 2, "large fridge"), product("P-4"), deleted("P-2", 2), "P-3"]
THIRD: list[CatalogChange | str] = [product("P-5"), product("P-4", 2, "red oven")]
NEWEST = {"P-1": (2, False), "P-2": (2, True), "P-3": (1, True), "P-4": (2, False), "P-5": (1, False)}
"""Version of each product, and whether it is deleted."""


BEFORE: list[Turn] = 7 * [Turn.ON]
"""The first batch is worked off without interruption."""
RELEASE = 4 * [Turn.LEAD]
"""The query release, the refresh, and the repair after it."""


def assert_whole(world: World, release: Release) -> None:
    """Check that nothing is missing, stale or resurrected: every product has its newest state and quality."""
    serving = world.serving()
    assert (serving.product_release, serving.collection) == (release.manifest.release, "products-r0")
    stored = world.store.stored(serving.collection)
    assert {one: (point.version.version, point.version.deleted) for one, point in stored.items()} == NEWEST
    known = BaseVectors()
    for message in world.vectors:
        known.apply(BaseProduct.from_message(message))
    live = [product for product in whole(known) if not product.is_deleted]
    quality = release.product_tower().quality([one.product_id for one in live], [one.features for one in live])
    for one, nats in zip(live, quality.tolist(), strict=True):
        assert stored[one.product_id].quality == pytest.approx(nats, abs=2 * QUALITY_TOLERANCE)


@settings(max_examples=60)
@given(turns=st.lists(st.sampled_from(Turn), max_size=60), again=st.booleans(), early=st.booleans())
# A writer that knows nothing of a release long in force, one that commits after it; a leader that ends then, or before.
@example(turns=[*BEFORE, *RELEASE], again=False, early=False)
@example(turns=[*BEFORE, Turn.LEAD, *5 * [Turn.ON], *RELEASE], again=False, early=False)
@example(turns=[*BEFORE, *2 * [Turn.LEAD], *5 * [Turn.ON], Turn.LEAD, Turn.INHERIT, *RELEASE], again=False, early=False)
@example(turns=[*BEFORE, *2 * [Turn.LEAD], Turn.RESTART, *3 * [Turn.ON], Turn.DIE, *RELEASE], again=False, early=False)
def test_the_index_has_every_committed_change_with_the_quality_in_force(
    turns: list[Turn], again: bool, early: bool
) -> None:
    """A follower works off the catalogue while leaders come, write releases in place and go: at rest all is right."""
    world = World()
    schedule = Schedule(world, turns)
    schedule.work_off(FIRST, ahead=[*SECOND, *THIRD] if early else [])
    newest = product_release(1, world.encoder)
    world.release(newest, query_release(1, world.encoder, product_release=1))
    schedule.work_off(SECOND, ahead=THIRD if early else [])
    if again:
        newest = product_release(2, world.encoder)
        world.release(newest)
    schedule.work_off(THIRD)
    schedule.leader.rest()
    assert_whole(world, newest)


def test_replayed_and_stale_writes_change_nothing() -> None:
    """Everything that was ever written, written again in any order, is refused."""
    world = World()
    schedule = Schedule(world, [])
    for batch in (FIRST, SECOND, THIRD):
        schedule.work_off(batch)
    release = product_release(1, world.encoder)
    world.release(release)
    schedule.leader.rest()
    assert_whole(world, release)
    writes = world.store.points
    for point in (*writes, *reversed(writes)):
        world.store.write("products-r0", [point])
    assert_whole(world, release)
