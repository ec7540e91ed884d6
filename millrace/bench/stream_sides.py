"""The two sides of the stream bench, each a process of its own: our worker's join, and a bare aiokafka loop.

Both decode, join and encode with the same cores, write the same records through the same `Output`, write progress and
commit. What differs is Faust with our transport on one side, and nothing on the other. Each reads a filled topic to its
end and prints what it took after its first chunk, when every connection is warm.
"""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from typing_extensions import override

from contracts.telemetry import Process
from contracts.topics import JOIN_PROGRESS, JOINED_SEARCHES, SEARCH_EVENTS
from contracts.wire import encode
from service.kafka import aiokafka_consumer_config
from service.logging import configure
from service.settings import Settings, load_settings
from streams.agents.join import JoinAgent
from streams.app import GC_THRESHOLDS
from streams.core.join import PartitionJoin
from streams.core.outputs import Emit, Plan
from streams.transport.app import BATCH_SIZE, FETCH_WAIT_MS, producer_arguments
from streams.transport.chunk import Chunk
from streams.transport.output import Output, OutRecord

COMMIT_EVERY_S: Final = 1.0


class Clock:
    """Counts events from the end of the first chunk on.

    Args:
        total: events in the log.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._skipped = self._seen = 0
        self._began: tuple[float, float] | None = None
        self.over = asyncio.Event()
        """Set once every event was taken."""

    def note(self, events: int) -> None:
        """Note a finished chunk."""
        self._seen += events
        if self._began is None:
            self._skipped, self._began = self._seen, (time.perf_counter(), time.process_time())
        if self._seen >= self._total:
            self.over.set()

    def report(self) -> dict[str, float]:
        """Return events, wall seconds and CPU seconds."""
        began_s, began_cpu_s = self._began or (0.0, 0.0)
        events = self._total - self._skipped
        return {
            "events": events,
            "seconds": time.perf_counter() - began_s,
            "cpu_seconds": time.process_time() - began_cpu_s,
        }


class TimedJoin(JoinAgent):
    """Our join, timed."""

    clock: Clock

    @override
    async def _on_chunk(self, chunk: Chunk) -> None:
        """Take a chunk and note when it is done."""
        await super()._on_chunk(chunk)
        self.clock.note(len(chunk))


async def run_ours(settings: Settings, clock: Clock) -> None:
    """Read the log with our agent."""
    agent = TimedJoin(settings)
    agent.clock = clock
    await agent.app.start()
    await clock.over.wait()


async def run_bare(settings: Settings, clock: Clock) -> None:
    """Read the log with nothing but aiokafka and the same core."""
    config = {**aiokafka_consumer_config(settings, "join"), "fetch_max_wait_ms": FETCH_WAIT_MS}
    consumer = AIOKafkaConsumer(settings.topic(SEARCH_EVENTS), **config, max_poll_records=4 * BATCH_SIZE)
    producer = AIOKafkaProducer(**producer_arguments(settings))
    await asyncio.gather(consumer.start(), producer.start())
    output, joins = Output(producer), dict[TopicPartition, PartitionJoin]()
    committed_s, held = time.monotonic(), dict[TopicPartition, int]()
    while not clock.over.is_set():
        for tp, records in (await consumer.getmany(timeout_ms=FETCH_WAIT_MS)).items():
            for start in range(0, len(records), BATCH_SIZE):
                chunk = records[start : start + BATCH_SIZE]
                join = joins.setdefault(tp, _new_join(settings, tp.partition))
                held[tp] = await _join_chunk(settings, output, join, chunk)
                clock.note(len(chunk))
        if time.monotonic() - committed_s >= COMMIT_EVERY_S and held:
            await consumer.commit(held)
            committed_s = time.monotonic()


def _new_join(settings: Settings, partition: int) -> PartitionJoin:
    """Return the same core as our agent's."""
    return PartitionJoin(partition, window_ms=settings.join_window_ms, lateness_ms=settings.lateness_ms)


async def _join_chunk(settings: Settings, output: Output, join: PartitionJoin, chunk: list[Any]) -> int:
    """Join a chunk, write what came of it, then progress; return the held offset."""
    plan: Plan = []
    for record in chunk:
        join.take(record, plan)
    header = [("millrace.closed_at_ms", b"%d" % (time.time_ns() // 1_000_000))]
    closed = [OutRecord(one.key, one.value, header) for one in plan if isinstance(one, Emit)]
    await output.send_keyed(settings.topic(JOINED_SEARCHES), settings.partitions, closed)
    progress = join.progress()
    await output.send(
        settings.topic(JOIN_PROGRESS), join.partition, [OutRecord(b"%d" % join.partition, encode(progress))]
    )
    return progress.hold_offset


SIDES: Final[dict[str, Callable[[Settings, Clock], Awaitable[None]]]] = {"ours": run_ours, "bare": run_bare}


async def run_side(side: str, total: int) -> None:
    """Run one side on the settings of the environment and print its figures; the process ends without ceremony."""
    gc.set_threshold(*GC_THRESHOLDS)
    settings, clock = load_settings(), Clock(total)
    configure(Process.STREAMS, settings)
    await SIDES[side](settings, clock)
    sys.stdout.buffer.write(orjson.dumps(clock.report()))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(run_side(sys.argv[1], int(sys.argv[2])))
