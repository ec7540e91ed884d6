"""`millrace bench collector`: what taking an event costs, beside a collector written by hand.

Both take the same log over HTTP, batch by batch over some connections, and answer once Kafka has acknowledged; each is
a process of its own, one at a time, in turns. Then one request after the other is sent to either in turn, so that
whatever else the machine does hits both alike. The peer, in `lean_collector.py`, shares no code with ours. Processor
time is that of the collector's process; Redis, which ours asks for duplicates, and Kafka are not counted.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import aiohttp
import numpy as np
import orjson
import psutil

from contracts.errors import MillraceError
from contracts.topics import SEARCH_EVENTS
from deploy.local.supervisor import LocalMillrace
from service.machine import epoch_ms
from service.settings import Settings
from simulator.bench.report import Tell, figure, machine
from simulator.bench.streams import LOGS, SEARCH_EVERY_MS, SEED, bench_log

ROUNDS: Final = 5
SEARCHES: Final = 4_000
"""Of one round, with 2.65 events each."""
BATCHES: Final = (50, 1)
"""Events of one request: a shop's server sends many, a browser few."""
CONNECTIONS: Final = 8
TURNS: Final = 300
"""Requests of ten events, each sent to both."""
LEAN: Final = "written by hand"


class _Side(NamedTuple):
    """A collector that runs: its address, and its process."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)


def run(tell: Tell, *, searches: int = SEARCHES, rounds: int = ROUNDS, turns: int = TURNS) -> dict[str, Any]:
    """Measure both collectors and return the report."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        tell("starting Kafka, Redis and both collectors")
        with (
            LocalMillrace(processes=["collector"], data_dir=Path(folder)) as running,
            _peer(running.settings) as peer,
        ):
            ours = _Side(running.urls["collector"], psutil.Process(running.pids["collector"]))
            sides = {"ours": ours, "peer": peer}
            results = asyncio.run(_measured(running.settings, sides, tell, (searches, rounds, turns)))
    return {"bench": "collector", "machine": machine(), "results": results}


@contextmanager
def _peer(settings: Settings) -> Iterator[_Side]:
    """Run the peer beside.

    Raises:
        MillraceError: it does not start.
    """
    given = {
        "bootstrap": settings.kafka_bootstrap,
        "topic": settings.topic(SEARCH_EVENTS),
        "key": settings.require("secret_key")[0],
    }
    command = [sys.executable, "-m", "simulator.bench.lean_collector", orjson.dumps(given).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            port = process.stdout.readline() if process.stdout is not None else b""
            if not port:
                raise MillraceError("the peer did not start", fix="look at what it printed above")
            yield _Side(f"http://127.0.0.1:{int(port)}", psutil.Process(process.pid))
        finally:
            process.kill()


async def _measured(
    settings: Settings, sides: dict[str, _Side], tell: Tell, size: tuple[int, int, int]
) -> list[dict[str, Any]]:
    searches, rounds, turns = size
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    waits: dict[str, list[float]] = defaultdict(list)
    logs = Logs()
    headers = {"Authorization": f"Bearer {settings.require('secret_key')[0]}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        for number in range(rounds):
            for batch in BATCHES:
                for name in [*sides][:: (1, -1)[number % 2]]:
                    bodies = logs.bodies(searches, batch)
                    used = sides[name].cpu_s()
                    taken = await _send(client, sides[name], bodies)
                    rates[batch, name].append(taken / (sides[name].cpu_s() - used))
            told = ", ".join(f"{name} {many[-1]:,.0f}/CPU-s at {batch}" for (batch, name), many in rates.items())
            tell(f"round {number + 1} of {rounds}: {told}")
        for body in logs.requests(turns, batch=10):
            for name, side in sides.items():
                began = time.perf_counter()
                await _post(client, side, body)
                waits[name].append(1000 * (time.perf_counter() - began))
    return [*_rate_rows(rates), *_wait_rows(waits)]


def _rate_rows(rates: dict[tuple[int, str], list[float]]) -> list[dict[str, Any]]:
    return [
        figure(
            f"accepted events, {batch} in a request",
            "events/CPU-s",
            ours=float(median(rates[batch, "ours"])),
            peer=LEAN,
            peer_value=float(median(rates[batch, "peer"])),
        )
        for batch in BATCHES
    ]


def _wait_rows(waits: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        figure(f"10 events accepted, p{percent}", "ms", ours=ours, peer=LEAN, peer_value=theirs)
        for percent in (50, 99)
        for ours, theirs in [(float(np.percentile(waits[name], percent)) for name in ("ours", "peer"))]
    ]


class Logs:
    """Bodies of requests with events that nobody has sent before."""

    def __init__(self) -> None:
        self._searches = 0

    def bodies(self, searches: int, batch: int) -> list[bytes]:
        """Return so many searches as requests of so many events, in event time, the newest of them now."""
        start_ms = epoch_ms() - (self._searches + searches) * SEARCH_EVERY_MS
        log = bench_log(LOGS[0], searches, seed=SEED, start_ms=start_ms, partitions=1, first=self._searches)
        self._searches += searches
        events = [record.value or b"" for record in log[0]]
        return [b'{"events":[%s]}' % b",".join(events[at : at + batch]) for at in range(0, len(events), batch)]

    def requests(self, count: int, batch: int) -> list[bytes]:
        """Return so many requests, each of so many events: a search has one at least."""
        return self.bodies(count * batch, batch)[:count]


async def _send(client: aiohttp.ClientSession, side: _Side, bodies: Sequence[bytes]) -> int:
    """Send every request over some connections; return how many events were accepted."""
    left = iter(bodies)
    counts = await asyncio.gather(*(_send_some(client, side, left) for _ in range(CONNECTIONS)))
    return sum(counts)


async def _send_some(client: aiohttp.ClientSession, side: _Side, left: Iterator[bytes]) -> int:
    return sum([await _post(client, side, body) for body in left])


async def _post(client: aiohttp.ClientSession, side: _Side, body: bytes) -> int:
    """Send one request; return how many events were accepted.

    Raises:
        MillraceError: not all of them were.
    """
    async with client.post(f"{side.url}/v1/events", data=body, headers={"Content-Type": "application/json"}) as answer:
        said = orjson.loads(await answer.read())
        if answer.status != 200 or said["accepted"] != len(said["results"]):
            raise MillraceError(f"{side.url} answered {answer.status}: {orjson.dumps(said)[:500].decode()}")
        return int(said["accepted"])
