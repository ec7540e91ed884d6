"""`millrace bench streams`: events through the join of one stream worker, beside a bare aiokafka loop.

Both sides run alternately on a real Kafka, each in a process of its own, on the same freshly filled topic, with the
same decoding, join and encoding. The medians over the rounds are compared, by the wall clock and by CPU time.
"""

import asyncio
import os
import platform
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer

from contracts.errors import MillraceError
from contracts.topics import SEARCH_EVENTS, TOPICS, partition_for
from deploy.local.supervisor import LocalMillrace
from service.kafka import admin, ensure_topics
from service.machine import epoch_ms
from service.settings import Settings
from streams.transport.app import producer_arguments
from streams.transport.output import Output, OutRecord

GOAL: Final = 0.95
ROUNDS: Final = 5
SEARCHES: Final = 25_000
SEED: Final = 1
EVENTS_PER_SEARCH: Final = 9
SLOTS: Final = 10
SEARCH_EVERY_MS: Final = 10
"""Event time between two searches; with a window of seconds a few hundred are open at a time."""
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
    """Both rows: by the wall clock, and by the CPU time of the process."""
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
    start_ms = epoch_ms() - 3_600_000
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


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
    }


def result(
    name: str, unit: str, *, ours: Sequence[float], peer: str, peers: Sequence[float], goal: float
) -> dict[str, Any]:
    """Compare medians over the rounds, and say whether our share of the peer's reaches the goal.

    >>> row = result("events", "events/s", ours=[9, 10, 30], peer="bare loop", peers=[10, 10, 11], goal=0.95)
    >>> row["ours"], row["ratio"], row["met"]
    (10.0, 1.0, True)
    """
    our_median, peer_median = float(median(ours)), float(median(peers))
    ratio = our_median / peer_median
    return {
        "name": name,
        "unit": unit,
        "ours": our_median,
        "peer": peer,
        "peer_value": peer_median,
        "ratio": ratio,
        "goal": goal,
        "met": ratio >= goal,
        "rounds": {"ours": list(ours), "peer": list(peers)},
    }


def bench_log(searches: int, *, seed: int, start_ms: int, partitions: int) -> dict[int, list[OutRecord]]:
    """Write the log that both sides read, for each partition in event time; the same bytes for the same seed."""
    rng = random.Random(seed)
    timed = sorted(
        (
            (event["event_time"], number, event)
            for number in range(searches)
            for event in _search(rng, number, start_ms + number * SEARCH_EVERY_MS)
        ),
        key=lambda one: one[:2],
    )
    log: dict[int, list[OutRecord]] = {partition: [] for partition in range(partitions)}
    for _, _, event in timed:
        key = event["search_id"].encode()
        log[partition_for(key, partitions)].append(OutRecord(key, orjson.dumps(event)))
    return log


def _search(rng: random.Random, number: int, at_ms: int) -> Iterator[dict[str, Any]]:
    """One list and eight events on it."""
    search_id = f"bench-{number:08d}"
    listed = [f"P-{rng.randrange(100_000)}-{position}" for position in range(1, SLOTS + 1)]
    slots = [{"product_id": product, "position": n, "price": 499.0} for n, product in enumerate(listed, start=1)]
    ranking = {"ranker": "millrace", "query_release": 3, "product_release": 1, "arm": "live"}
    shown = {"query": f"quiet fridge {number % 500}", "slots": slots, "ranking": ranking}
    yield {**_envelope("impression", number, 0, at_ms), "search_id": search_id, **shown}
    for sequence in range(1, EVENTS_PER_SEARCH):
        kind = ("click", "dwell", "view", "cart")[sequence % 4]
        product = rng.choice(listed)
        what: dict[str, Any] = {"product_id": product}
        if kind == "view":
            what = {"slots": [{"product_id": one, "visible_ms": 1_800} for one in listed[:6]]}
        if kind == "dwell":
            what["dwell_ms"] = rng.randrange(60_000)
        envelope = _envelope(kind, number, sequence, at_ms + rng.randrange(1, 2_000))
        yield {**envelope, "search_id": search_id, "search_time": at_ms, **what}


def _envelope(kind: str, number: int, sequence: int, time_ms: int) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "type": kind,
        "event_id": f"{number:08x}-{sequence}",
        "event_time": time_ms,
        "session_id": f"k{number % 5_000}",
        "client_id": f"c{number % 3_000}",
        "locale": "en-IN",
        "device": "mobile",
        "surface": "search",
    }
