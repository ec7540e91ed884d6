"""The two sides of the stream bench, each a process of its own: our worker's join, and a bare aiokafka loop.

Both decode, join and encode with the same cores, write the same records through the same `Output`, write progress and
commit. What differs is Faust with our transport on one side, and nothing on the other. Each reads a filled topic to its
end and prints what it took after its first chunk, when every connection is warm.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from typing_extensions import override

from contracts.telemetry import Process
from contracts.topics import JOINED_SEARCHES, SEARCH_EVENTS
from contracts.wire import encode
from service.logging import configure
from service.machine import epoch_ms
from service.settings import Settings, load_settings
from streams.agents.partition_agent import PROGRESS_AFTER_OUTPUT_S
from streams.agents.spec import Emit, Plan
from streams.app import tune_interpreter
from streams.join.agent import JoinAgent
from streams.join.partition_join import PartitionJoin
from streams.join.spec import JOIN
from streams.transport.app import BATCH_SIZE, COMMIT_INTERVAL_S, FETCH_WAIT_MS, consumer_arguments, producer_arguments
from streams.transport.consumer import Chunk
from streams.transport.output import Output, OutRecord


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


@dataclass(slots=True)
class Part:
    """One partition of the bare loop: its join, what may be committed, when progress was written."""

    join: PartitionJoin
    held: int = 0
    written_s: float = 0.0


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
    agent = TimedJoin(JOIN, settings)
    agent.clock = clock
    await agent.app.start()
    await clock.over.wait()


async def run_bare(settings: Settings, clock: Clock) -> None:
    """Read the log with nothing but aiokafka and the same core."""
    config = consumer_arguments(settings, "join")
    consumer = AIOKafkaConsumer(settings.topic(SEARCH_EVENTS), **config, max_poll_records=4 * BATCH_SIZE)
    producer = AIOKafkaProducer(**producer_arguments(settings))
    await asyncio.gather(consumer.start(), producer.start())
    output, parts = Output(producer), dict[TopicPartition, Part]()
    committed_s = time.monotonic()
    while not clock.over.is_set():
        for tp, records in (await consumer.getmany(timeout_ms=FETCH_WAIT_MS)).items():
            part = parts.setdefault(tp, Part(_new_join(settings, tp.partition)))
            for start in range(0, len(records), BATCH_SIZE):
                chunk = records[start : start + BATCH_SIZE]
                await _join_chunk(settings, output, part, chunk)
                clock.note(len(chunk))
        if time.monotonic() - committed_s >= COMMIT_INTERVAL_S:
            await consumer.commit({tp: part.held for tp, part in parts.items()})
            committed_s = time.monotonic()


def _new_join(settings: Settings, partition: int) -> PartitionJoin:
    """Return the same core as our agent's."""
    return PartitionJoin(partition, window_ms=settings.join_window_ms, lateness_ms=settings.lateness_ms)


async def _join_chunk(settings: Settings, output: Output, part: Part, chunk: list[Any]) -> None:
    """Join a chunk, write what came of it, and progress as often as our agent does."""
    plan: Plan = []
    for record in chunk:
        part.join.take(record, plan)
    closed = [one for one in plan if isinstance(one, Emit)]
    headers = [(JOIN.written_at, b"%d" % epoch_ms())]
    await output.send_keyed(settings.topic(JOINED_SEARCHES), settings.partitions, closed, headers=headers)
    if time.monotonic() - part.written_s < PROGRESS_AFTER_OUTPUT_S:
        return
    progress = part.join.progress()
    record = OutRecord(b"%d" % progress.partition, encode(progress))
    await output.send(settings.topic(JOIN.progress_topic), progress.partition, [record])
    part.held, part.written_s = progress.hold_offset, time.monotonic()


SIDES: Final[dict[str, Callable[[Settings, Clock], Awaitable[None]]]] = {"ours": run_ours, "bare": run_bare}


async def run_side(side: str, total: int) -> None:
    """Run one side on the settings of the environment and print its figures; the process ends without ceremony."""
    tune_interpreter()
    settings, clock = load_settings(), Clock(total)
    configure(Process.STREAMS, settings)
    await SIDES[side](settings, clock)
    sys.stdout.buffer.write(orjson.dumps(clock.report()))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(run_side(sys.argv[1], int(sys.argv[2])))
