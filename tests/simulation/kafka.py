"""Kafka in memory: partitions of records, groups whose partitions move, and what our agents use of the clients."""

import asyncio
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from typing_extensions import override

from contracts.errors import DependencyDown
from streams.transport.output import PATIENCE_S, Headers, Output, Writable


class Stored(NamedTuple):
    """A record of a log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.end = 0
        self.readers: list[Callable[[], None]] = []
        """Told when there is more to read."""

    def append(self, timestamp: int, record: Writable, common: Headers = ()) -> None:
        """Append a record."""
        headers = (*record.headers, *common)
        self.records.append(Stored(self.end, timestamp, record.key, record.value, headers))
        self.end += 1
        for reader in self.readers:
            reader()

    def mark(self) -> None:
        """Take up an offset at which nobody finds a record, as the end of a transaction does."""
        self.end += 1

    def read(self, offset: int, most: int) -> list[Stored]:
        """Return the next records from an offset on."""
        first = bisect_left(self.records, offset, key=lambda record: record.offset)
        return self.records[first : first + most]


class Faults:
    """What may go wrong with each request, as chances.

    Args:
        rng: decides.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.slow_s = 0.05
        self.lost_send = self.lost_acknowledgement = self.lost_reply = 0.0
        self.broker_is_full = False
        """Whether brokers have no room left: they give what they hold, and take nothing."""

    def happens(self, chance: float) -> bool:
        """Draw."""
        return chance > 0 and self.rng.random() < chance

    async def pass_time(self) -> None:
        """Let a request take its time: mostly next to none, sometimes long."""
        draw = self.rng.random()
        await asyncio.sleep(0 if draw < 0.6 else self.slow_s * draw * (40 if draw > 0.99 else 1))


class Cluster:
    """Every log there is.

    Args:
        faults: of its requests.
        now_ms: the clock of whoever asks.
    """

    def __init__(self, faults: Faults, now_ms: Callable[[], int]) -> None:
        self.logs: dict[tuple[str, int], Log] = defaultdict(Log)
        self.faults = faults
        self.now_ms = now_ms
        self.broker_ms: Callable[[], int] = now_ms
        self.stamped: set[str] = set()
        """Topics whose records the broker stamps."""
        self.written: Callable[[str, int, int], None] = lambda topic, partition, count: None
        """Told of every write."""

    def append(self, topic: str, partition: int, records: Iterable[Writable], common: Headers = ()) -> None:
        """Append records as one batch."""
        log = self.logs[topic, partition]
        before, now_ms = log.end, self.broker_ms() if topic in self.stamped else self.now_ms()
        for record in records:
            log.append(now_ms, record, common)
        if log.end > before:
            self.written(topic, partition, log.end - before)

    @asynccontextmanager
    async def reader(self, _settings: Any) -> AsyncIterator["Reader"]:
        """Open a consumer without a group, in place of `log_reader`."""
        await self.faults.pass_time()
        yield Reader(self)


class LoggedOutput(Output):
    """Writes to the cluster; a send may be lost, or only its acknowledgement.

    Args:
        cluster: where to.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(None)
        self._cluster = cluster

    @override
    async def send(self, topic: str, partition: int, records: Iterable[Writable], *, headers: Headers = ()) -> None:
        """Append records, unless they are lost."""
        records, faults = list(records), self._cluster.faults
        await faults.pass_time()
        if faults.broker_is_full:
            await asyncio.sleep(PATIENCE_S)
        if faults.broker_is_full:
            raise DependencyDown("nothing was acknowledged")
        if faults.happens(faults.lost_send):
            self._cluster.append(topic, partition, records[: faults.rng.randrange(len(records))], headers)
            raise DependencyDown("a send was lost")
        self._cluster.append(topic, partition, records, headers)
        await faults.pass_time()
        if faults.happens(faults.lost_acknowledgement):
            raise DependencyDown("an acknowledgement was lost")


class Reader:
    """A consumer without a group, as far as progress and propensities are read by one.

    Args:
        cluster: what is read.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._positions: dict[Any, int] = {}

    def _log(self, tp: Any) -> Log:
        """Return the log of a partition."""
        return self._cluster.logs[tp.topic, tp.partition]

    async def beginning_offsets(self, tps: Iterable[Any]) -> dict[Any, int]:
        """Return where logs begin."""
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: Iterable[Any]) -> dict[Any, int]:
        """Return where logs end."""
        await self._cluster.faults.pass_time()
        return {tp: self._log(tp).end for tp in tps}

    def partitions_for_topic(self, _topic: str) -> set[int]:
        """Return the partitions of a topic that has one."""
        return {0}

    def assign(self, tps: Iterable[Any]) -> None:
        """Choose partitions."""
        self._positions = dict.fromkeys(tps, 0)

    def seek(self, tp: Any, offset: int) -> None:
        """Go somewhere."""
        self._positions[tp] = offset

    async def position(self, tp: Any) -> int:
        """Return where reading goes on."""
        return self._positions[tp]

    async def getmany(self, *tps: Any, timeout_ms: int) -> dict[Any, list[Stored]]:
        """Return what comes next."""
        await self._cluster.faults.pass_time()
        found = {}
        for tp in sorted(tps):
            found[tp] = self._log(tp).read(self._positions[tp], 500)
            self._positions[tp] = found[tp][-1].offset + 1 if found[tp] else self._log(tp).end
        return found
