"""`millrace bench streams`: what a stream worker does per second, beside a join written by hand.

Two logs of shop events are joined, each by a worker of ours and by the peer in `lean_join.py`, which shares no code
with it; then our pairs agent reads what the join wrote of the shop-like one. Each side is a process of its own on a
real Kafka, one at a time, in turns. The medians over the rounds are compared, by the wall clock and by CPU time.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer

from contracts.errors import MillraceError
from contracts.joined import WATERMARK_HEADER, ClosedWatermark
from contracts.telemetry import Process
from contracts.topics import JOINED_SEARCHES, SEARCH_EVENTS, TopicSpec, partition_for
from deploy.local.supervisor import LocalMillrace
from service.kafka import admin, beginning_and_end_offsets, ensure_topics
from service.logging import configure
from service.machine import epoch_ms
from service.settings import Settings, load_settings
from simulator.bench.report import Tell, figure, machine
from streams.registry import all_topics, chosen_agents
from streams.transport.app import producer_arguments
from streams.transport.output import Output, OutRecord

ROUNDS: Final = 5
SEARCHES: Final = 25_000
SEED: Final = 1
SEARCH_EVERY_MS: Final = 10
"""Event time between two searches; with a window of seconds a few hundred are open at a time."""
WINDOW_S, LATENESS_S = 3, 1
SIDE_TIMEOUT_S: Final = 180
LEAN: Final = "aiokafka and msgspec by hand"
LEAN_TOPIC: Final = TopicSpec("lean-joined", key="session_id")
TOPICS: Final = (*all_topics(), LEAN_TOPIC)

Figures = dict[str, list[dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Log:
    """A log of shop events: lists of so many slots, each with 1.65 events on average."""

    name: str
    slots: int
    sides: tuple[str, ...]
    """Our agents that are measured on it."""


LOGS: Final = (Log("lists of 10", 10, ("join",)), Log("lists of 24", 24, ("join", "pairs")))


def run(tell: Tell, *, searches: int = SEARCHES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure every side on both logs and return the report."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        tell("starting Kafka")
        with LocalMillrace(processes=["kafka"], data_dir=Path(folder)) as running:
            for log in LOGS:
                start_ms = epoch_ms() - 86_400_000
                records = bench_log(log, searches, seed=SEED, start_ms=start_ms, partitions=running.settings.partitions)
                measured: Figures = defaultdict(list)
                for number in range(rounds):
                    for sides in (log.sides, ("lean",))[:: (1, -1)[number % 2]]:
                        for side, figures in zip(sides, _measure(running.settings, sides, records), strict=True):
                            measured[side].append(figures)
                    tell(f"{log.name}, round {number + 1} of {rounds}: {_rates(measured)}")
                results += _results(log, measured, searches / sum(map(len, records.values())))
    return {"bench": "streams", "machine": machine(), "results": results}


def _rates(measured: Figures) -> str:
    last = {side: rounds[-1] for side, rounds in measured.items()}
    return ", ".join(f"{side} {one['events'] / one['cpu_seconds']:,.0f}/CPU-s" for side, one in last.items())


def _results(log: Log, measured: Figures, searches_per_event: float) -> list[dict[str, Any]]:
    """The join by the wall clock and by CPU time; the pairs agent beside the join, in lists."""

    def per(side: str, by: str) -> list[float]:
        return [one["events"] / one[by] for one in measured[side]]

    rows = []
    for unit, by in (("events/s", "seconds"), ("events/CPU-s", "cpu_seconds")):
        name = f"joined events, {log.name}"
        ours, peers = (float(median(per(side, by))) for side in ("join", "lean"))
        rows.append(figure(name, unit, ours=ours, peer=LEAN, peer_value=peers, least=0.95))
    if measured["pairs"]:
        joined = searches_per_event * float(median(per("join", "cpu_seconds")))
        paired = float(median(per("pairs", "cpu_seconds")))
        name = f"paired searches, {log.name}"
        rows.append(figure(name, "searches/CPU-s", ours=paired, peer="our join", peer_value=joined, least=1.0))
    return rows


def _measure(base: Settings, sides: Sequence[str], log: dict[int, list[OutRecord]]) -> list[dict[str, float]]:
    """Run sides one after the other on a log that is written anew, on topics of their own."""
    own = {"topic_prefix": f"bench-{uuid.uuid4().hex[:8]}-", "join_window_s": WINDOW_S, "lateness_s": LATENESS_S}
    settings = base.model_copy(update=own)
    ensure_topics(settings, TOPICS)
    try:
        asyncio.run(_write(settings, log))
        return [_run_side(side, settings) for side in sides]
    finally:
        with admin(settings) as client:
            client.delete_topics([settings.topic(spec.name) for spec in TOPICS])


async def _write(settings: Settings, log: dict[int, list[OutRecord]]) -> None:
    async with AIOKafkaProducer(**producer_arguments(settings)) as producer:
        for partition, records in log.items():
            await Output(producer).send(settings.topic(SEARCH_EVENTS), partition, records)


async def _end_joins(settings: Settings) -> None:
    """Say on every partition that no join holds anything open, so that every list is decided."""
    ended = [ClosedWatermark(number, 0, idle=True).encode() for number in range(settings.partitions)]
    marks = [OutRecord(None, b"{}", [(WATERMARK_HEADER, told)]) for told in ended]
    async with AIOKafkaProducer(**producer_arguments(settings)) as producer:
        for partition in range(settings.partitions):
            await Output(producer).send(settings.topic(JOINED_SEARCHES), partition, marks)


def _run_side(side: str, settings: Settings) -> dict[str, float]:
    """Run one side's process to the end of what it reads and return what it measured.

    Raises:
        MillraceError: it did not come to the end.
    """
    source = JOINED_SEARCHES if side == "pairs" else SEARCH_EVENTS
    if side == "pairs":
        asyncio.run(_end_joins(settings))
    with admin(settings) as client:
        total = sum(end for _, end in beginning_and_end_offsets(client, settings, [source]).values())
    if side == "lean":
        given = {
            "bootstrap": settings.kafka_bootstrap,
            "source": settings.topic(source),
            "target": settings.topic(LEAN_TOPIC.name),
            "group": settings.group("lean"),
            "partitions": settings.partitions,
            "window_ms": settings.join_window_ms,
            "lateness_ms": settings.lateness_ms,
            "total": total,
        }
        command = [sys.executable, "-m", "simulator.bench.lean_join", orjson.dumps(given).decode()]
    else:
        command = [sys.executable, "-m", "simulator.bench.streams", side, str(total)]
    environ = {**os.environ, **settings.as_environ()}
    try:
        ended = subprocess.run(command, env=environ, capture_output=True, timeout=SIDE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MillraceError(f"side {side} did not end within {SIDE_TIMEOUT_S} s", fix="look at Kafka's log") from error
    if ended.returncode != 0:
        raise MillraceError(f"side {side} ended with {ended.returncode}: {ended.stderr[-500:].decode()}")
    figures: dict[str, float] = orjson.loads(ended.stdout)
    return figures


async def run_agent(name: str, total: int) -> dict[str, float]:
    """Let one agent of ours read so many records, and say what it took after its first chunk."""
    from streams.app import agent_class, tune_interpreter

    tune_interpreter()
    settings = load_settings()
    configure(Process.STREAMS, settings)
    (spec,) = chosen_agents(name)
    agent: Any = agent_class(spec)(spec, settings)
    take, over = agent._on_chunk, asyncio.Event()
    seen, began = 0, (0, 0.0, 0.0)

    async def take_timed(chunk: Any) -> None:
        nonlocal seen, began
        await take(chunk)
        seen += len(chunk)
        if not began[0]:
            began = (seen, time.perf_counter(), time.process_time())
        if seen >= total:
            over.set()

    agent._on_chunk = take_timed
    await agent.app.start()
    await over.wait()
    seconds, cpu_seconds = time.perf_counter() - began[1], time.process_time() - began[2]
    return {"events": total - began[0], "seconds": seconds, "cpu_seconds": cpu_seconds}


def bench_log(
    log: Log, searches: int, *, seed: int, start_ms: int, partitions: int, first: int = 0
) -> dict[int, list[OutRecord]]:
    """Write a log, for each partition in event time; the same bytes for the same seed.

    A log goes on in another one that begins with its next search, `first`.
    """
    rng = random.Random(seed)
    timed = sorted(
        (
            (event["event_time"], number, event)
            for number in range(first, first + searches)
            for event in _search(rng, log, number, start_ms + number * SEARCH_EVERY_MS)
        ),
        key=lambda one: one[:2],
    )
    records: dict[int, list[OutRecord]] = {partition: [] for partition in range(partitions)}
    for _, _, event in timed:
        key = event["search_id"].encode()
        records[partition_for(key, partitions)].append(OutRecord(key, orjson.dumps(event)))
    return records


def _search(rng: random.Random, log: Log, number: int, at_ms: int) -> Iterator[dict[str, Any]]:
    """One list, mostly with a view of it, and with a click, a dwell and a cart where shoppers like something."""
    search_id = f"bench-{number:08d}"
    listed = [f"P-{rng.randrange(100_000)}-{position}" for position in range(1, log.slots + 1)]
    slots = [{"product_id": product, "position": n, "price": 499.0} for n, product in enumerate(listed, start=1)]
    ranking = {
        "ranker": "millrace",
        "query_release": 3,
        "product_release": 1,
        "arm": "live",
        "exploration": {"policy": "none", "seed": 0},
    }
    shown = {"query": f"quiet fridge {number % 500}", "slots": slots, "ranking": ranking}
    yield {**_envelope("impression", number, at_ms), "search_id": search_id, **shown}
    on_list = {"search_id": search_id, "search_time": at_ms}
    place = min(int(rng.expovariate(0.25)), log.slots - 1)
    if rng.random() < 0.85:
        seen = [{"product_id": one, "visible_ms": 1_800} for one in listed[: max(6, place + 4)]]
        yield {**_envelope("view", number, at_ms + rng.randrange(1, 300)), **on_list, "slots": seen}
    if rng.random() >= 0.45:
        return
    product, clicked_ms = listed[place], at_ms + rng.randrange(300, 1_000)
    yield {**_envelope("click", number, clicked_ms), **on_list, "product_id": product}
    if rng.random() < 0.7:
        dwell_ms = rng.randrange(60_000)
        envelope = _envelope("dwell", number, clicked_ms + 100)
        yield {**envelope, **on_list, "product_id": product, "dwell_ms": dwell_ms}
    if rng.random() < 0.08:
        yield {**_envelope("cart", number, clicked_ms + 500), **on_list, "product_id": product, "quantity": 1}


def _envelope(kind: str, number: int, time_ms: int) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "type": kind,
        "event_id": f"{number:08x}-{kind}",
        "event_time": time_ms,
        "session_id": f"k{number % 5_000}",
        "client_id": f"{number % 3_000:064x}",
        "locale": "en-IN",
        "device": "mobile",
        "surface": "search",
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(run_agent(sys.argv[1], int(sys.argv[2])))))
    sys.stdout.flush()
    os._exit(0)
