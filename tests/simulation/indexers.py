"""Indexers: the real loops, with topics, a group and a vector store that live in memory.

Topics are lists, the store is Qdrant's own client in memory. Every request may be the last that a process makes, may
fail, and may be done without an answer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from qdrant_client import QdrantClient
from typing_extensions import override

from contracts import wire
from contracts.catalog import Product, ProductDeleted
from contracts.errors import DependencyDown, TransientError
from contracts.progress import CatalogCounts
from contracts.releases import SERVING_KEY, Serving
from indexer.catalog.base_change import encode_anew
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.loop import CatalogLoop
from indexer.catalog.planning import CatalogRecord, PartitionProgress, Refusal
from indexer.points import InForce, ProductPoint
from indexer.ports import PartitionsMoved
from indexer.qdrant import qdrant_errors
from indexer.rollout.loop import RollOutLoop
from indexer.store import ProductStore
from service.models import ModelsTable
from tests.support.indexer_fakes import OWNER
from tests.support.tiny_encoder import TinyEncoder

PARTITIONS: Final = 2
SESSION_S: Final = 10.0
MOST_IDLE_S: Final = 1_800.0
AHEAD: Final = 6
"""Records that one look ahead takes of a partition."""
RETRY_S: Final = 120.0
"""Outages are long here and retries rare, for fewer steps a day."""


class Group:
    """The consumer group of the catalogue.

    Args:
        world: what it is in.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.generation = 0
        self.owners: dict[int, Indexer] = {}
        self.committed: dict[int, PartitionProgress] = {}
        self._members: set[Indexer] = set()
        self._joined: list[Indexer] | None = None
        """Who has joined since partitions are to be given out anew; None if they are not."""
        self._until_s = 0.0

    def rebalance(self) -> None:
        """Ask all members to join again; who does not within its session is left out."""
        if self._joined is None:
            self._joined, self._until_s = [], self._world.turns.now_s + SESSION_S
            self._world.stir()

    def leave(self, member: "Indexer") -> None:
        """Let a member go that does not answer any more."""
        if member in self._members:
            self._members.remove(member)
            self.rebalance()

    def has_moved(self, member: "Indexer") -> bool:
        """Whether a member has to join again."""
        return self._joined is not None or member.generation != self.generation

    def join(self, member: "Indexer") -> None:
        """Give a member its partitions, once all have joined."""
        member.positions = {}
        if member not in self._members:
            self._members.add(member)
            self.rebalance()
        if self._joined is None:
            member.generation = self.generation
            held = [number for number, owner in self.owners.items() if owner is member]
            member.positions = {number: self.progress(number).next_offset for number in held}
            return
        if member not in self._joined:
            self._joined.append(member)
        if self._members <= {*self._joined} or self._world.turns.now_s >= self._until_s:
            joined, self._joined = self._joined, None
            self._members, self.generation = {*joined}, self.generation + 1
            self.owners = {number: self._world.rng.choice(joined) for number in range(PARTITIONS)}

    def progress(self, number: int) -> PartitionProgress:
        """Return what was committed of a partition."""
        return self.committed.get(number, PartitionProgress(0, CatalogCounts()))


class Indexer:
    """A process: the topics as it has read them, its place in the group, and both loops.

    Args:
        world: the servers.
        name: of its place; the next process there has the same.
        encoder: the base.
    """

    def __init__(self, world: Any, name: str, encoder: TinyEncoder) -> None:
        self.world, self.name, self.encoder = world, name, encoder
        self.is_alive = True
        self.skew_ms = 0
        self.steps_left = -1
        """In so many requests it is killed or held up; never if negative."""
        self.generation = -1
        self.positions: dict[int, int] = {}
        self.known = BaseVectors(encoder.base_version)
        self.models = ModelsTable(on_change=lambda: world.stir(self))
        self._read_models = self._read_vectors = 0
        self._looked_until: dict[int, int] = {}

    def run(self) -> None:
        """Do what `indexer.app` does: read, settle, then run both loops, until an error ends them."""
        world = self.world
        self.take_models()
        self.read_to_end()
        self._rollout = RollOutLoop(
            world.store, OWNER, models=self.models, put_in_force=self.put_in_force, log=self, encoder=self.encoder,
            pause=self._pause, refresh_window_s=900.0,
        )  # fmt: skip
        while True:
            try:
                self._rollout.settle()
                break
            except (TransientError, DependencyDown):
                world.turns.wait(world.rng.random() * RETRY_S)
        self._catalog = CatalogLoop(
            self, self, store=world.store, encoder=self.encoder, target=self._rollout.target, in_force=self.in_force,
            pause=self._pause,
        )  # fmt: skip
        world.turns.start(partial(world.guard, self, self._move_releases), process=self)
        while True:
            if not self._catalog.step() and self._catalog.waiting_for() is None:
                self._idle()

    def _move_releases(self) -> None:
        """Run the roll-out loop."""
        while True:
            try:
                if not self._rollout.step(leads=0 in self.positions):
                    self._idle()
                    self.take_models()
            except (TransientError, DependencyDown):
                self.world.turns.wait(self.world.rng.random() * RETRY_S)

    def _idle(self) -> None:
        """Wait for something to happen."""
        self.world.turns.wait(self.world.rng.random() * MOST_IDLE_S, is_idle=True)

    def _pause(self, seconds: float) -> bool:
        """Wait; nobody asks to stop."""
        self.world.turns.wait(seconds)
        return False

    def take_models(self, most: int | None = None) -> None:
        """Read `models` on."""
        unread = self.world.models[self._read_models :][:most]
        self._read_models += len(unread)
        for key, value in unread:
            self.models.apply(key, value)

    def take_vectors(self, most: int | None = None) -> None:
        """Read `product-vectors` on."""
        unread = self.world.vectors[self._read_vectors :][:most]
        self._read_vectors += len(unread)
        for message in unread:
            self.known.read(BaseProduct.from_message(message))

    def put_in_force(self, serving: Serving, releases: Mapping[str, bytes] | None = None) -> None:
        """Write to `models`, one record after the other."""
        for key, value in [*(releases or {}).items(), (SERVING_KEY.decode(), wire.encode(serving))]:
            with self.world.asking(self):
                self.world.models.append((key.encode(), value))
        self.take_models()

    def in_force(self) -> InForce:
        """Return what is in force."""
        with self.world.asking(self):
            self.take_models()
        serving = self.models.serving()
        assert serving is not None
        return InForce.of(serving)

    def publish(self, products: Sequence[BaseProduct]) -> None:
        """Write base vectors, one after the other."""
        for one in products:
            with self.world.asking(self):
                self.world.vectors.append(one.to_message())

    def read_to_end(self) -> None:
        """Read all of `product-vectors`."""
        with self.world.asking(self):
            self.take_vectors()

    def complete(self) -> None:
        """Read all of it, and encode what is of another base."""
        self.read_to_end()
        if any(True for _ in self.known.foreign_states()):
            changes = [self.world.change(one) for log in self.world.catalog for one in log if one.value]
            sent = [one for one in changes if isinstance(one, Product)]
            go_on = partial(self.world.turns.wait, 0.01)
            encode_anew(self.known, sent, encoder=self.encoder, publish=self.publish, go_on=go_on)

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Keep refused records."""
        with self.world.asking(self):
            self.world.refused |= {(one.record.partition, one.record.offset) for one in refusals}

    def poll(self, most: int) -> list[CatalogRecord]:
        """Return some of the next records."""
        self.world.point(self)
        group, rng = self.world.group, self.world.rng
        if group.has_moved(self):
            group.join(self)
            self._looked_until.clear()
            self.world.turns.wait(rng.random() * 3)
            return []
        found: list[CatalogRecord] = []
        for number in self.positions:
            found += self.world.catalog[number][self.positions[number] :][: min(rng.choice((1, 3, 12)), most)]
        for one in found:
            self.positions[one.partition] = one.offset + 1
        return found

    def look_ahead(self) -> list[CatalogRecord]:
        """Return the last records that were not polled yet, each once."""
        found: list[CatalogRecord] = []
        with self.world.asking(self):
            for number, position in self.positions.items():
                log = self.world.catalog[number]
                found += log[max(position, self._looked_until.get(number, 0), len(log) - AHEAD) :]
                self._looked_until[number] = len(log)
        return found

    def forget(self, product_ids: Sequence[str]) -> None:
        """Deletions are kept for longer than a day."""
        raise AssertionError(product_ids)

    def progress(self, partition: int) -> PartitionProgress:
        """Return what was committed."""
        done: PartitionProgress = self.world.group.progress(partition)
        return done

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Commit, if the group takes it from this member."""
        with self.world.asking(self):
            if self.generation != self.world.group.generation:
                raise PartitionsMoved("others have the partitions")
            for number, done in progress.items():
                self._check_written(number, self.progress(number).next_offset, done.next_offset)
            self.world.group.committed.update(progress)

    def _check_written(self, number: int, begin: int, end: int) -> None:
        """What is committed is in the index, for nobody will read it again; but if something newer is still to come."""
        log = self.world.catalog[number]
        to_come = {one.key for one in log[end:]}
        changes = [one for record in log[begin:end] if record.key not in to_come and (one := self.world.change(record))]
        collection = self._rollout.target().collection
        stored = self.world.store.peek(collection, [one.product_id for one in changes])
        for change in changes:
            point = stored.get(change.product_id)
            wanted = change.version, isinstance(change, ProductDeleted)
            if point is None or (point.version, point.is_tombstone) < wanted:
                self.world.failures.append(
                    f"{change.product_id} is committed at {wanted}, and {collection} has {point}"
                )

    def confirm(self, partitions: Iterable[int]) -> None:
        """Commit again what is committed."""
        self.commit({number: self.progress(number) for number in partitions})

    def keep_membership(self) -> None:
        """Join again if the group wants it; then the batch in hand is over."""
        if self.world.group.has_moved(self):
            self.world.group.join(self)
            raise PartitionsMoved("the group moves partitions")

    def start_again(self) -> None:
        """Go back to what was committed."""
        self.positions = {number: self.progress(number).next_offset for number in self.positions}


class Store(ProductStore):
    """The vector store: each request may be the last, may fail, and may be done without an answer.

    Args:
        world: what it is in.
    """

    def __init__(self, world: Any) -> None:
        super().__init__(QdrantClient(":memory:"), owner=OWNER)
        self._world = world
        self._peeks = False

    def peek(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Look at points, as no process does: at once."""
        self._peeks = True
        try:
            return self.retrieve(collection, product_ids)
        finally:
            self._peeks = False

    @contextmanager
    @override
    def _asking(self, doing: str) -> Iterator[None]:
        """Ask the store as whoever runs; the check, when the day is over, is nobody."""
        turn = self._world.turns.current
        asker = None if turn is None else turn.process
        if self._peeks or not isinstance(asker, Indexer):
            yield
            return
        with self._world.asking(asker, is_up=self._world.store_is_up), qdrant_errors(doing):
            yield

    @override
    def answered(self, collection: str, vectors: Any) -> int:
        """Answer; what it answers is the index's business, and takes the client in memory long."""
        return len(vectors)
