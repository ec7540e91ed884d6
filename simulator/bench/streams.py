"""`millrace bench streams`: events through the join of one stream worker, beside a bare aiokafka loop.

Both sides run alternately on a real Kafka, each in a process of its own, on the same freshly filled topic, with the
same decoding, join and encoding. The medians over the rounds are compared, by the wall clock and by CPU time.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer

from contracts.errors import MillraceError
from contracts.topics import SEARCH_EVENTS, TOPICS
from deploy.local.supervisor import LocalMillrace
from service.kafka import admin, ensure_topics
from service.settings import Settings
from simulator.bench.report import machine, result
from simulator.bench.stream_log import EVENTS_PER_SEARCH, bench_log
from streams.transport.app import producer_arguments
from streams.transport.output import Output

GOAL: Final = 0.95
ROUNDS: Final = 5
SEARCHES: Final = 25_000
SEED: Final = 1
WINDOW_S, LATENESS_S = 3, 1
SIDE_TIMEOUT_S: Final = 180
PEER: Final = "bare aiokafka loop, same decode, join and encode"

Tell = Callable[[str], None]


def run(tell: Tell, *, searches: int = SEARCHES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure both sides and return the report.

    Args:
        tell: told what is being done.
        searches: size of the log; nine events each.
        rounds: how often each side runs.
    """
    figures: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        tell("starting Kafka")
        with LocalMillrace(processes=["kafka"], data_dir=Path(folder)) as running:
            for number in range(1, rounds + 1):
                for side, measured in figures.items():
                    measured.append(_measure(running.settings, side, searches))
                    rate = measured[-1]["events"] / measured[-1]["seconds"]
                    tell(f"round {number} of {rounds}, {side}: {rate:,.0f} events/s")
    return {"bench": "streams", "machine": machine(), "results": _results(figures)}


def _results(figures: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return both rows: by the wall clock, and by the CPU time of the process."""
    rows = (("joined events", "events/s", "seconds"), ("joined events per CPU", "events/CPU-s", "cpu_seconds"))
    return [
        result(
            name,
            unit,
            ours=[one["events"] / one[by] for one in figures["ours"]],
            peer=PEER,
            peers=[one["events"] / one[by] for one in figures["bare"]],
            goal=GOAL,
        )
        for name, unit, by in rows
    ]


def _measure(base: Settings, side: str, searches: int) -> dict[str, float]:
    """Run one side once, on topics of its own."""
    own = {"topic_prefix": f"bench-{uuid.uuid4().hex[:8]}-", "join_window_s": WINDOW_S, "lateness_s": LATENESS_S}
    settings = base.model_copy(update=own)
    ensure_topics(settings)
    try:
        asyncio.run(_fill(settings, searches))
        return _run_side(settings, side, searches * EVENTS_PER_SEARCH)
    finally:
        with admin(settings) as client:
            client.delete_topics([settings.topic(spec.name) for spec in TOPICS])


async def _fill(settings: Settings, searches: int) -> None:
    """Write the log."""
    start_ms = time.time_ns() // 1_000_000 - 3_600_000
    log = bench_log(searches, seed=SEED, start_ms=start_ms, partitions=settings.partitions)
    async with AIOKafkaProducer(**producer_arguments(settings)) as producer:
        for partition, records in log.items():
            await Output(producer).send(settings.topic(SEARCH_EVENTS), partition, records)


def _run_side(settings: Settings, side: str, total: int) -> dict[str, float]:
    """Run one side's process and return what it measured.

    Raises:
        MillraceError: it did not come to the end of the log.
    """
    command = [sys.executable, "-m", "simulator.bench.stream_sides", side, str(total)]
    try:
        ended = subprocess.run(
            command, env=_environ(settings), capture_output=True, timeout=SIDE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MillraceError(f"side {side} did not end within {SIDE_TIMEOUT_S} s", fix="look at Kafka's log") from error
    if ended.returncode != 0:
        raise MillraceError(f"side {side} ended with {ended.returncode}: {ended.stderr[-500:].decode()}")
    figures: dict[str, float] = orjson.loads(ended.stdout)
    return figures


def _environ(settings: Settings) -> dict[str, str]:
    """Return the environment of a side's process."""
    return {**os.environ, **settings.as_environ()}
