"""A day of a catalogue with its indexers, in virtual time: changes in any order, releases, rollbacks, another base."""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, CatalogChange, ProductVector
from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.releases import ROLLBACK_KEY, SERVING, SERVING_KEY, Rollback, Serving, manifest_of, release_key
from indexer.catalog import base_change
from indexer.catalog import loop as catalog_loop
from indexer.catalog.planning import CatalogRecord
from indexer.rollout import collections, refresh, rewritten
from indexer.rollout import loop as rollout_loop
from service import models
from tests.simulation.indexers import MOST_IDLE_S, PARTITIONS, RETRY_S, SESSION_S, Group, Indexer, Store
from tests.simulation.turns import Turns
from tests.support.indexer_fakes import null, record
from tests.support.indexing import deleted, in_words, product, product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release, pack

T0: Final = 1_795_196_000_000
DAY_S: Final = 86_400.0
QUIET_S: Final = 4 * MOST_IDLE_S


class IndexWorld:
    """One seed's day.

    Args:
        seed: decides everything.
        changes: how often a product is sent.
        steps: how many of the last steps are remembered.
    """

    def __init__(self, seed: int, *, changes: int = 80, steps: int = 60) -> None:
        self.seed, self._changes = seed, changes
        self.rng = random.Random(f"indexers {seed}")
        self.turns = Turns()
        self.steps: deque[str] = deque(maxlen=steps)
        self.failures: list[str] = []
        self.catalog: list[list[CatalogRecord]] = [[] for _ in range(PARTITIONS)]
        self.vectors: list[ProductVector] = []
        self.models: list[tuple[bytes, bytes | None]] = []
        self.refused: set[tuple[int, int]] = set()
        self.store_is_up, self.lost, self.mended = True, 0.0, False
        self.store = Store(self)
        self.group = Group(self)
        self.encoders = [TinyEncoder(16)]
        self.indexers: dict[str, Indexer] = {}

    def run(self) -> None:
        """Live through the day, mend everything, and wait until nothing happens any more."""
        with self._installed():
            for number in range(2):
                self._start(f"indexer-{number}", self.rng.random() * 30)
            for body in (self._shop, self._trainer, self._disturb):
                self.turns.start(body)
            self.turns.run()

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """Put the world in place of clocks and logs."""
        narrator = SimpleNamespace(info=self._tell, warning=self._tell, error=self._tell)
        with ExitStack() as stack:
            for module in (catalog_loop, rollout_loop, rewritten):
                stack.enter_context(patch.object(module, "epoch_ms", self.epoch_ms))
            for module in (catalog_loop, rollout_loop, rewritten, collections, refresh, base_change, models):
                stack.enter_context(patch.object(module, "get_logger", lambda: narrator))
            clock = {"monotonic_s": lambda: self.turns.now_s}
            stack.enter_context(patch.multiple(catalog_loop, TAKEOVER_PAUSE_S=1.0, LONGEST_PAUSE_S=RETRY_S))
            stack.enter_context(patch.dict(refresh.Refresh.__init__.__kwdefaults__, clock))
            yield

    def epoch_ms(self) -> int:
        """Return the wall clock of whoever runs."""
        process = self.turns.current and self.turns.current.process
        return T0 + int(1000 * self.turns.now_s) + (process.skew_ms if isinstance(process, Indexer) else 0)

    def _tell(self, event: str, **fields: object) -> None:
        """Take what loops log: it is part of the story."""
        process = self.turns.current and self.turns.current.process
        self.note(process.name if isinstance(process, Indexer) else "", event, fields)

    def note(self, *about: object) -> None:
        """Remember a step; the last ones are shown if something is wrong."""
        self.steps.append(f"{self.turns.now_s:12.3f} s  {' '.join(map(str, about))}")

    def change(self, one: CatalogRecord) -> CatalogChange | None:
        """Return what a record of the catalogue says; None if it is no change."""
        try:
            return wire.decode(one.value or b"", CATALOG_CHANGE)
        except MillraceError:
            return None

    def point(self, process: Indexer) -> None:
        """Let others run, read some of what is followed, and let the process be killed or held up here."""
        draw = self.rng.random()
        self.turns.wait(draw * (2.0 if draw > 0.98 else 0.02))
        if draw < 0.3:
            process.take_models(1)
            process.take_vectors(3)

    @contextmanager
    def asking(self, process: Indexer, *, is_up: bool = True) -> Iterator[None]:
        """Make a request: it may be the last, fail, or be done without an answer."""
        self._interrupted(process)
        self.point(process)
        if not is_up or self._happens():
            raise DependencyDown("no answer")
        yield
        self._interrupted(process)
        self.point(process)
        if self._happens():
            raise DependencyDown("the answer was lost")

    def _interrupted(self, process: Indexer) -> None:
        """Count down to where the process is to be killed or held up, and do it there."""
        process.steps_left -= 1
        if process.steps_left == 0:
            if self.rng.random() < 0.5:
                self.kill(process, "killed")
                self.turns.wait(0.0)
            else:
                self._hold_up(process)

    def _happens(self) -> bool:
        """Draw whether an answer is lost."""
        return self.lost > 0 and self.rng.random() < self.lost

    def stir(self, process: Indexer | None = None) -> None:
        """Something happened: whoever only waits for that wakes soon, of one process or of all."""
        for turn in self.turns.turns:
            if turn.is_idle and process in {None, turn.process}:
                turn.wake_s = min(turn.wake_s, self.turns.now_s + self.rng.random() ** 3 * 30)

    def guard(self, process: Indexer, body: Any) -> None:
        """Run a loop of a process; an error that ends it ends the process, which is started again."""
        try:
            body()
        except DependencyDown as error:
            self.kill(process, f"ends: {error}")
        except UsageError as error:
            if len(self.encoders) == 1:
                self.failures.append(f"{process.name} ended: {error!r}")
            self.kill(process, f"ends: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            self.failures.append(f"{process.name} ended: {error!r}")
            self.kill(process, f"crashed: {error!r}")

    def _start(self, name: str, after_s: float) -> None:
        """Let a process take a place."""
        process = self.indexers[name] = Indexer(self, name, self.encoders[-1])
        self.turns.start(partial(self.guard, process, process.run), process=process, after_s=after_s)

    def kill(self, process: Indexer, why: str) -> None:
        """End a process; its place is taken again after a while."""
        if not process.is_alive:
            return
        process.is_alive = False
        self.note(process.name, why)
        self.turns.kill(process)
        self.turns.start(partial(self._bury, process), after_s=SESSION_S)
        if len(self.failures) < 3:
            self._start(process.name, 1.0 if self.mended else self.rng.choice((0.5, 5.0, 60.0, 900.0)))

    def _bury(self, process: Indexer) -> None:
        """Let the group know of a process that does not answer any more."""
        self.group.leave(process)

    def _hold_up(self, process: Indexer) -> None:
        """Stop the process that runs, mostly for longer than its session."""
        held_s = self.rng.choice((2.0, 20.0, 40.0, 600.0))
        self.note(process.name, "is held up for", held_s)
        for turn in self.turns.of(process):
            turn.wake_s = max(turn.wake_s, self.turns.now_s) + held_s
        if held_s > SESSION_S:
            self.turns.start(partial(self._bury, process), after_s=SESSION_S)
        self.turns.wait(held_s)

    def _shop(self) -> None:
        """Send what a shop sends: changes late, twice and out of order, deletions, nulls, and what is no product."""
        rng = self.rng
        versions: dict[str, int] = {}
        late: list[CatalogChange] = []
        hour = 0
        for _ in range(self._changes):
            if rng.random() < 0.1:
                hour += 1
                self.turns.wait(rng.random() * DAY_S / 5)
            self.turns.wait(rng.random() * 8.0)
            if self.turns.now_s > DAY_S:
                return
            product_id = f"P-{hour}-{rng.randrange(3)}"  # mostly left alone afterwards: what went wrong stays
            draw = rng.random()
            if draw < 0.06:
                self._send(null(product_id))
                continue
            if draw < 0.08:
                self._send(record(b"no product"))
                continue
            version = versions[product_id] = versions.get(product_id, 0) + rng.randint(1, 3)
            gone = rng.random() < 0.15
            title, price = in_words(rng.randrange(40)), float(rng.randrange(9))
            change = deleted(product_id, version) if gone else product(product_id, version, title, price=price)
            late.append(change)
            for one in rng.sample(late, min(len(late), rng.choice((0, 1, 1, 2)))):
                self._send(record(one))  # in time, too late, again, or never before its successor
            if rng.random() < 0.7:
                self._send(record(change))
        for one in late[-5:]:
            self._send(record(one))

    def _send(self, one: CatalogRecord) -> None:
        """Append a record to the catalogue."""
        number = hash_of(one.key) % PARTITIONS
        log = self.catalog[number]
        log.append(CatalogRecord(number, len(log), self.epoch_ms(), one.key, one.value))
        self.stir()

    def releases(self) -> dict[bytes, bytes]:
        """Return the releases that compaction would leave on `models`."""
        newest = {key: value for key, value in self.models if key.startswith((b"query", b"product"))}
        return {key: value for key, value in newest.items() if value is not None}

    def serving(self) -> list[Serving]:
        """Return everything that was put in force."""
        return [wire.decode(value, SERVING) for key, value in self.models if key == SERVING_KEY and value is not None]

    def _trainer(self) -> None:
        """Release, ask for rollbacks, and let another base come."""
        rng = self.rng
        changes_base = rng.random() < 0.3
        for number in range(rng.randrange(4, 14)):
            self.turns.wait(rng.random() * DAY_S / 14)
            serving = max(self.serving(), key=lambda one: one.published_at, default=None)
            if serving is None or self.turns.now_s > DAY_S:
                continue
            if changes_base and number == 5:
                self.encoders.append(TinyEncoder(24))
                for process in [*self.indexers.values()]:
                    self.turns.wait(rng.choice((0.0, 5.0, 600.0)))
                    self.kill(self.indexers[process.name], "gets another base")
            elif rng.random() < 0.2 and serving.query_release > 1:
                asked = Rollback(query_release=rng.randrange(serving.query_release), requested_at=self.epoch_ms())
                written = self._nulls(asked.query_release, serving) if rng.random() < 0.5 else []
                written.insert(rng.randrange(len(written) + 1), (ROLLBACK_KEY, wire.encode(asked)))
                for key, value in written:
                    self.models.append((key, value))
                    self.stir()
                    self.turns.wait(rng.random() ** 4 * 60)
            else:
                self._release(serving, with_quality=rng.random() < 0.5)
            self.stir()

    def _nulls(self, query_release: int, serving: Serving) -> list[tuple[bytes, bytes | None]]:
        """Return what a trainer writes that retires a release, with its quality if nothing else needs it."""
        manifests = map(manifest_of, self.releases().values())
        named = {one.release: one.product_release for one in manifests if one.kind == "query"}
        quality = named.pop(query_release, serving.product_release)
        keys = [release_key("query", query_release)]
        if quality not in {serving.product_release, *named.values()}:
            keys.append(release_key("product", quality))
        return [(key, None) for key in keys]

    def _release(self, serving: Serving, *, with_quality: bool) -> None:
        """Release what was trained from what is in force."""
        numbers = [[int(key.rsplit(b"-")[-1]) for key in self.releases() if key.startswith(kind)] for kind in KINDS]
        query, quality = (max(own, default=0) + 1 for own in numbers)
        query = max(query, serving.withdrawn + 1)
        encoder = self.encoders[-1]
        made = [query_release(query, encoder, product_release=quality if with_quality else serving.product_release)]
        made[0] = with_parent(made[0], serving.query_release)
        if with_quality:
            made.insert(0, product_release(quality, encoder, query_release=query))
        for one in made:
            self.models.append((release_key(one.manifest.kind, one.manifest.release), pack(one)))
            self.turns.wait(self.rng.random())

    def _disturb(self) -> None:
        """Let something happen every now and then, and in the end mend everything."""
        rng = self.rng
        while self.turns.now_s < DAY_S:
            self.turns.wait(rng.expovariate(1 / 2_500))
            process = self.indexers[rng.choice([*self.indexers])]
            match rng.choice(("step", "step", "step", "move", "store", "lose", "clock")):
                case "step":
                    process.steps_left = 1 + int(rng.random() ** 2 * 40)
                case "move":
                    self.group.rebalance()
                case "store":
                    self.store_is_up = False
                    self.turns.wait(rng.choice((2.0, 30.0, 600.0)))
                    self.store_is_up = True
                case "lose":
                    self.lost = 0.05 - self.lost
                case "clock":
                    process.skew_ms = rng.randrange(-300_000, 300_000)
        self.mended, self.store_is_up, self.lost = True, True, 0.0
        for process in self.indexers.values():
            process.steps_left = -1
        self.stir()
        self.turns.wait(QUIET_S)
        for process in self.indexers.values():
            process.is_alive = False
            self.turns.kill(process)


KINDS: Final = (b"query", b"product")


def hash_of(key: bytes | None) -> int:
    """Return a number that the key alone decides."""
    return sum(key or b"")


def with_parent(release: Release, parent: int) -> Release:
    """Return a release that says from which one it was trained on."""
    return Release(release.manifest.model_copy(update={"parent": parent}), release.tensors)
