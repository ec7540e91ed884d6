"""A day of a shop with its stream workers, in virtual time, disturbed by everything that may happen to them.

Everything is drawn from one seed: the same seed gives the same day, step for step.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from contracts.topics import partition_for
from service.settings import load_settings
from streams.registry import AGENTS
from streams.transport.output import OutRecord
from tests.faults.oracle import PERSON_KEY
from tests.simulation.edges import installed
from tests.simulation.kafka import Cluster, Faults
from tests.simulation.loop import PROCESS, Process, VirtualLoop
from tests.simulation.memory import RedisServer
from tests.simulation.shop import Shop
from tests.simulation.workers import Group, Worker

T0: Final = 1_795_196_000_000
PARTITIONS: Final = 2
WINDOW_S, LATENESS_S = 600, 10
SILENCE_S: Final = 3_600.0
"""How long a join is waited for: longer than any outage here, so that pairs are what they would be without faults."""
LOOK_EVERY_S, LOOKS = 300.0, 288
"""After the day everything is mended; whatever is not worked off within another one never will be."""
INTERRUPTED: Final = (
    "joined-searches", "late-events", "orphan-events", "preference-pairs", "training-searches", "join-progress",
    "pairs-progress", "propensity-progress", "arms-progress", "attribution",
)  # fmt: skip
"""Topics at whose writes workers are interrupted."""


class World:
    """One seed's day.

    Args:
        seed: decides everything.
        visits: how many shoppers come.
        steps: how many of the last steps are remembered.
    """

    def __init__(self, seed: int, *, visits: int = 20, steps: int = 60) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.filtered = self.rng.random() < 0.5
        """Whether filters, exploration and hold-out are on; the oracle knows none of them."""
        self.flushed = False
        """Whether Redis was emptied."""
        self.is_comparable = True
        """Whether pairs judged every list in the order of event time: it promises the same pairs only then."""
        self.failures: list[str] = []
        self.steps: deque[str] = deque(maxlen=steps)
        self.counted = itertools.count()
        self.is_over = self.mended = False
        self._interruption: tuple[str, int, Callable[[Process], None]] | None = None
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._on_unseen)
        self.faults = Faults(self.rng)
        self.cluster = Cluster(self.faults, self.epoch_ms)
        self.cluster.stamped.add("search-events")
        self.cluster.broker_ms = self._broker_ms
        self.cluster.written = self._on_written
        self.redis = RedisServer(self.faults)
        self.broker_step_ms = 0
        self.settings = load_settings(
            {
                "kafka_bootstrap": "127.0.0.1:1",
                "redis_url": "redis://127.0.0.1:1/0",
                "partitions": PARTITIONS,
                "join_window_s": WINDOW_S,
                "lateness_s": LATENESS_S,
                "join_silence_s": SILENCE_S,
                "filters": None if self.filtered else "none",
                "look_ahead_s": self.rng.choice((0, 10, 300)) if self.filtered else 0,
                "holdout_share": 0.1 if self.filtered else 0,
                "propensity_interval_s": 100_000,
                "person_key": PERSON_KEY.decode(),
            },
            environ={},
            directory=Path("/nonexistent"),
        )
        self.groups = {spec.name: Group(PARTITIONS, self.rng) for spec in AGENTS}
        self.workers = [Worker(f"worker-{number}", AGENTS, self.groups, self) for number in range(2)]
        self.shop = Shop(
            self.rng, begin_ms=T0, window_ms=1000 * WINDOW_S, lateness_ms=1000 * LATENESS_S, visits=visits,
            explored=self.filtered,
        )  # fmt: skip

    def epoch_ms(self) -> int:
        """Return the wall clock of whatever runs."""
        process = PROCESS.get()
        return T0 + int(1000 * self.loop.time()) + (0 if process is None else process.skew_ms)

    def monotonic_s(self) -> float:
        """Return a clock that never jumps."""
        return 1_000.0 + self.loop.time()

    def _broker_ms(self) -> int:
        """Return the clock of the brokers."""
        return T0 + int(1000 * self.loop.time()) + self.broker_step_ms

    def note(self, what: str, *about: object) -> None:
        """Remember a step; the last ones are shown if something is wrong."""
        number, now_s = next(self.counted), self.loop.time()
        self.steps.append(f"{number:7d} {now_s:12.3f} s  {what} {' '.join(map(str, about))}")

    def fail(self, what: str) -> None:
        """Remember that something is wrong."""
        self.note("FAILS", what)
        self.failures.append(what)

    def _on_unseen(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take an error that nobody waited for, as of a task beside the work, for one that is wrong."""
        if not self.is_over and (error := context.get("exception")) is not None:
            self.fail(f"nobody saw {error!r}")

    def restart_after_s(self) -> float:
        """Return how long whoever restarts workers takes: mostly seconds, sometimes a quarter of an hour."""
        return self.rng.choice((0.5, 5.0, 15.0, 60.0, 900.0)) if not self.mended else 0.5

    def run(self) -> None:
        """Live through the day, and the night after it until all is worked off."""
        with installed(self):
            try:
                self.loop.run_until_complete(self._day())
            finally:
                self.is_over = True
                self.loop.end_all()
                self.loop.close()

    async def _day(self) -> None:
        """Live through the day, mend everything, and wait until all is worked off."""
        for worker in self.workers:
            worker.start(self.rng.random() * 30)
        site = asyncio.create_task(self._site())
        disturber = asyncio.create_task(self._disturb())
        await site
        disturber.cancel()
        await asyncio.gather(disturber, return_exceptions=True)
        self._mend()
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK_EVERY_S)
            if self.failures or not any(self._unsettled()):
                return
        self.fail(f"not worked off in {LOOKS * LOOK_EVERY_S:g} s: {[*self._unsettled()]}")

    async def _site(self) -> None:
        """Send what the shop sends."""
        for sent in self.shop.day():
            await asyncio.sleep(max(0.0, (sent.at_ms - T0) / 1000 - self.loop.time()))
            number = partition_of(sent.key)
            if self.rng.random() < 0.01:
                self.cluster.logs["search-events", number].mark()
            self.cluster.append("search-events", number, [OutRecord(sent.key, sent.value)])
            for worker in self.workers:
                for member in worker.members:
                    if member.agent.name == "join":
                        member.stir()

    async def _disturb(self) -> None:
        """Let something happen every now and then."""
        disturbances = (
            *4 * [self._kill], *3 * [self._pause], self._restart, self._lose_requests, self._jump_clock,
             self._redis_away, self._fill_disk, self._spoil_disk, self._fill_broker, self._rebalance,
        )  # fmt: skip
        flushes = self.rng.random() < 0.25
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / 1_500))
            if flushes and self.rng.random() < 0.1:
                self.flushed = True
                self.redis.empty()
                self.note("Redis is emptied")
            await self.rng.choice(disturbances)()

    async def _at_a_write(self, interrupt: Callable[[Process], None]) -> None:
        """Interrupt a worker some steps after its next write of a kind: that is where most faults matter."""
        topic = self.rng.choice(INTERRUPTED)
        steps = int(self.rng.random() ** 2 * 20)
        self._interrupted = asyncio.get_running_loop().create_future()
        self._interruption = topic, steps, interrupt
        with suppress(TimeoutError):
            async with asyncio.timeout(1_800):
                await self._interrupted
        self._interruption = None

    def _on_written(self, topic: str, partition: int, count: int) -> None:
        """Note a write, and interrupt the worker if it is the one that is waited for."""
        process = PROCESS.get()
        self.note("" if process is None else process.name, f"writes {count} to {topic}/{partition}")
        is_list = self.cluster.logs[topic, partition].records[-1].key is not None
        if process is not None and self._interruption is not None and is_list and self._interruption[0] in topic:
            _, process.steps_left, interrupt = self._interruption
            self._interruption = None

            def interrupted() -> None:
                process.steps_left = -1
                interrupt(process)
                if not self._interrupted.done():
                    self._interrupted.set_result(None)

            process.interrupt = interrupted

    def steps_after_start(self) -> int:
        """Return after how many steps a worker that starts is killed again: mostly never."""
        return self.rng.randrange(1_000) if not self.mended and self.rng.random() < 0.2 else -1

    def _worker_of(self, process: Process) -> Worker:
        """Return the worker of a process."""
        return next(worker for worker in self.workers if worker.name == process.name)

    async def _kill(self) -> None:
        """Kill a worker between two steps of a delivery."""
        await self._at_a_write(lambda process: self._worker_of(process).kill("killed"))

    async def _pause(self) -> None:
        """Hold a worker up in a delivery, mostly for longer than its session; then it goes on where it was."""
        paused: list[Process] = []

        def pause(process: Process) -> None:
            """Hold it up now."""
            self.note("is paused", process.name)
            paused.append(process)
            self.loop.pause(process)

        await self._at_a_write(pause)
        if not paused:
            return
        (process,) = paused
        members = self._worker_of(process).members
        await asyncio.sleep(self.rng.choice((2.0, 11.0)))
        if self.rng.random() < 0.8:
            for member in members:
                member.group.leave(member)  # its session is over, which it does not know
            await asyncio.sleep(self.rng.choice((5.0, 60.0, 600.0)))
        self.note("goes on", process.name)
        for member in members:
            member.asked.set()
        self.loop.wake(process)

    async def _restart(self) -> None:
        """Stop a worker in an orderly way."""
        worker = self.rng.choice(self.workers)
        if worker.process.is_alive:
            token = PROCESS.set(worker.process)
            task = asyncio.create_task(worker.stop())
            PROCESS.reset(token)
            await asyncio.wait([task], timeout=20.0)
            if not task.done():
                worker.kill("was killed while it stopped")

    async def _rebalance(self) -> None:
        """Let partitions move."""
        group = self.rng.choice([*self.groups.values()])
        if group.members:
            self.rng.choice(group.members).asked.set()

    async def _lose_requests(self) -> None:
        """Lose sends, acknowledgements and replies for a while."""
        faults = self.faults
        chosen = self.rng.choice(("lost_send", "lost_acknowledgement", "lost_reply"))
        setattr(faults, chosen, 0.05)
        self.note("requests are lost:", chosen)
        await asyncio.sleep(self.rng.random() * 600)
        setattr(faults, chosen, 0.0)

    async def _jump_clock(self) -> None:
        """Set the clock of a worker, or of the brokers by less than the lateness."""
        if self.rng.random() < 0.3:
            self.broker_step_ms = self.rng.randrange(-2_000, 2_000)
        else:
            self.rng.choice(self.workers).process.skew_ms = self.rng.randrange(-300_000, 300_000)

    async def _redis_away(self) -> None:
        """Let Redis be away for a while."""
        self.redis.is_up = False
        self.note("Redis is away")
        await asyncio.sleep(self.rng.choice((2.0, 30.0, 600.0)))
        self.redis.is_up = True

    async def _fill_disk(self) -> None:
        """Fill the disk of a worker, or make room on it."""
        self.rng.choice(self.workers).disk_is_full = self.rng.random() < 0.7

    async def _spoil_disk(self) -> None:
        """Let a saved state lose its end."""
        disk = self.rng.choice(self.workers).disk
        for name in disk:
            disk[name] = disk[name][: self.rng.randrange(1 + len(disk[name]))]

    async def _fill_broker(self) -> None:
        """Let brokers be without room for a while; what the site sends lies on another one."""
        self.faults.broker_is_full = True
        self.note("brokers are full")
        await asyncio.sleep(self.rng.choice((5.0, 90.0, 600.0)))
        self.faults.broker_is_full = False

    def _mend(self) -> None:
        """Let nothing go wrong any more."""
        self.mended = True
        self._interruption = None
        self.faults.lost_send = self.faults.lost_acknowledgement = self.faults.lost_reply = 0.0
        self.faults.broker_is_full = False
        self.redis.is_up = True
        for worker in self.workers:
            worker.process.steps_left = -1
            worker.process.skew_ms = 0
            if worker.process.paused:
                for member in worker.members:
                    member.asked.set()
                self.loop.wake(worker.process)
            worker.start()

    def _unsettled(self) -> Iterator[str]:
        """Name what is not worked off."""
        for spec in AGENTS:
            for number in range(PARTITIONS):
                logged = self.cluster.logs[spec.source, number].records
                last = next((record.offset for record in reversed(logged) if not is_moving(record.value)), -1)
                written = self.cluster.logs[spec.progress_topic, number].records[-1:]
                known = [orjson.loads(record.value or b"") for record in written]
                come = sum(int(one["next_offset"]) for one in known)
                pending = sum(int(one["counts"].get("pending", 0)) for one in known)
                if come <= last or pending:
                    yield f"{spec.name}/{number} of {last}: {come}, pending {pending}"


def is_moving(value: bytes | None) -> bool:
    """Whether a record is a tick or a watermark: there is no last one of these."""
    return value is not None and (b'"type":"tick"' in value or b'"type":"watermark"' in value)


def partition_of(key: bytes) -> int:
    """Return the partition of a key."""
    return partition_for(key, PARTITIONS)
