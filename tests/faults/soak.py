"""A whole deployment under shoppers and random faults for hours: nothing lost, nothing counted twice, nothing growing.

    python -m tests.faults.soak --minutes 60 --every 180 --seed 1

Every so often one process, a server or one of ours, is killed by SIGKILL, or stopped for longer than its session and
woken again. Shoppers and shop go on: what the collector acknowledged counts, what it refused is sent again. At the end
both ledgers have to balance with nothing pending, and each stage has to hold exactly what the one before it gave
(`whole_chain.py`).
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from deploy.local.supervisor import LocalMillrace
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from tests.e2e.shop_site import event, now_ms, product
from tests.faults import whole_chain

SETTINGS: Final[dict[str, Any]] = {
    "join_window_s": 3.0, "lateness_s": 1.0, "release_interval_s": 5.0, "product_release_interval_s": 30.0,
    "session_timeout_s": 6, **whole_chain.SETTINGS,
}  # fmt: skip
WORDS: Final = ("quiet fridge", "steel kettle", "red lamp", "travel mug", "ceiling fan", "desk chair")
PRODUCTS: Final = 300
FAULTED: Final = ("collector", "streams", "trainer", "indexer", "search", "redis", "kafka", "qdrant")
PAUSE_S: Final = 10.0
"""Longer than a session: the group gives a stopped member's partitions to others."""
CHANGED_SHARE: Final = 0.2
"""Of the shoppers, after each of whom the shop changes a product."""
DELETED_SHARE: Final = 0.2
"""Of the changes."""
READY_TIMEOUT_S: Final = 120.0
SETTLE_TIMEOUT_S: Final = 180.0
WARM_SHARE: Final = 0.2
"""Of the time, after which a process has what it needs: from there memory and files are compared."""


@dataclass
class Shopping:
    """What shoppers sent and were told, written by one thread."""

    acknowledged: int = 0
    refused: int = 0
    searches: int = 0
    unanswered: int = 0
    failures: list[str] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    """Ids of the clicks that were acknowledged."""
    products: dict[str, int] = field(default_factory=dict)
    """Of each product that was the newest version."""


class Shoppers(threading.Thread):
    """Search and click, one shopper after the other, and a shop that changes and deletes products meanwhile.

    What is refused is sent until it is acknowledged.
    """

    def __init__(self, running: LocalMillrace, seed: int) -> None:
        super().__init__(name="shoppers", daemon=True)
        write, secret = running.settings.require("write_key", "secret_key")
        self._collector = httpx.Client(base_url=running.urls["collector"], timeout=20)
        self._search = httpx.Client(base_url=running.urls["search"], timeout=20)
        self._write, self._secret = ({"Authorization": f"Bearer {key}"} for key in (write, secret))
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.seen = Shopping()

    def fill(self) -> None:
        """Send the catalogue."""
        names = [f"{self._random.choice(WORDS)} {number}" for number in range(PRODUCTS)]
        self._send_products([product(number, name) for number, name in enumerate(names)])

    @override
    def run(self) -> None:
        """Shop until it is over."""
        try:
            while not self._over.is_set():
                self._shop(f"s-{uuid.uuid4().hex[:12]}")
                if self._random.random() < CHANGED_SHARE:
                    self._change()
                self._over.wait(self._random.uniform(0.05, 0.3))
        except Exception as error:  # noqa: BLE001 - a thread that ended in silence would make an idle soak pass
            self.seen.failures.append(repr(error))
        finally:
            self._collector.close()
            self._search.close()

    def stop(self) -> None:
        """Have the last shopper leave."""
        self._over.set()
        self.join(timeout=READY_TIMEOUT_S)
        if self.is_alive():
            self.seen.failures.append("the shoppers did not come to an end")

    def _shop(self, session: str) -> None:
        """Search once, and click on every other list."""
        body = {"query": self._random.choice(WORDS), "session_id": session}
        try:
            answer = self._search.post("/v1/search", json=body)
        except httpx.HTTPError:
            self.seen.unanswered += 1
            return
        if not answer.is_success:
            self.seen.unanswered += 1
            return
        self.seen.searches += 1
        results = answer.json()["results"]
        if results and self._random.random() < 0.5:
            chosen = self._random.choice(results[:4])
            click = event("click", answer.json(), session)
            click |= {"product_id": chosen["product_id"], "position": chosen["position"]}
            self._send("/v1/events", {"events": [click]}, self._write, 1)
            self.seen.events.add(click["event_id"])

    def _change(self) -> None:
        """Give a product another price or another title, or delete it; what was deleted may come back."""
        number, version = self._random.randrange(PRODUCTS), now_ms()
        if self._random.random() < DELETED_SHARE:
            gone = {"type": "product_deleted", "product_id": f"P-{number}", "version": version}
            self._send_products([gone])
        else:
            title = f"{self._random.choice(WORDS)} {number}"
            self._send_products([product(number, title, version=version) | {"price": version % 1_000 + 1.0}])

    def _send_products(self, messages: list[dict[str, Any]]) -> None:
        """Send catalogue messages."""
        self._send("/v1/products", {"products": messages}, self._secret, len(messages))
        self.seen.products |= {message["product_id"]: message["version"] for message in messages}

    def _send(self, path: str, body: dict[str, Any], headers: dict[str, str], count: int) -> None:
        """Send events until the collector answers."""
        while True:
            try:
                answer = self._collector.post(path, json=body, headers=headers)
                if answer.is_success:
                    self.seen.acknowledged += answer.json()["accepted"]
                    told = [one["reason"] for one in answer.json()["results"] if one["status"] == "rejected"]
                    self.seen.failures += [f"{path}: {reason}" for reason in told]
                    return
                if answer.status_code not in {429, 503}:
                    self.seen.failures.append(f"{path}: {answer.status_code} {answer.text[:200]}")
                    return
            except httpx.HTTPError:
                pass
            self.seen.refused += count
            time.sleep(0.5)


class Footprint(NamedTuple):
    """What a process takes."""

    pid: int
    mb: float
    files: int


def footprints(running: LocalMillrace) -> dict[str, Footprint]:
    """Return what each process that runs now takes."""
    found = {}
    for name, pid in running.pids.items():
        try:
            process = psutil.Process(pid)
            found[name] = Footprint(pid, process.memory_info().rss / 1e6, process.num_fds())
        except psutil.NoSuchProcess:
            continue  # it was killed just now
    return found


def strike(running: LocalMillrace, name: str, *, pauses: bool) -> float:
    """Kill a process, or stop it for longer than its session; return the seconds until all are ready again."""
    if pauses:
        running.kill(name, signal.SIGSTOP)
        time.sleep(PAUSE_S)
    began_s = time.monotonic()
    running.kill(name, signal.SIGCONT if pauses else signal.SIGKILL)
    time.sleep(1.0)
    for each in running.pids | {name: 0}:
        running.wait_ready(each, timeout_s=READY_TIMEOUT_S)
    return time.monotonic() - began_s


def settled(running: LocalMillrace) -> dict[str, Any]:
    """Return the ledgers once nothing is pending, or as they are when it takes too long."""
    ends_s = time.monotonic() + SETTLE_TIMEOUT_S
    with Observer(running.settings) as observer:
        observer.wait_caught_up(60)
        while True:
            report = ledger_report(observer.look())
            pending = report["events"]["pending"] + report["searches"]["pending"]
            if not pending or time.monotonic() > ends_s:
                return report
            time.sleep(1.0)


def soak(
    *, minutes: float, every_s: float, seed: int, data_dir: Path, console: Console, paused: float = 0.3
) -> list[str]:
    """Run it and return what was wrong at the end; `paused` is the share of faults that stop a process, not kill it."""
    chosen, faults = random.Random(seed), Counter[str]()
    with LocalMillrace(SETTINGS, data_dir=data_dir, environ={}) as running:
        shoppers = Shoppers(running, seed)
        shoppers.fill()
        shoppers.start()
        began_s = time.monotonic()
        ends_s, warm_s = began_s + 60 * minutes, began_s + WARM_SHARE * 60 * minutes
        warm: dict[str, Footprint] = {}
        slowest = 0.0
        while (left_s := ends_s - time.monotonic()) > 0:
            time.sleep(min(every_s, left_s))
            if not warm and time.monotonic() >= warm_s:
                warm = footprints(running)
            if time.monotonic() < ends_s:
                name, pauses = chosen.choice(FAULTED), chosen.random() < paused
                took_s = strike(running, name, pauses=pauses)
                what, seen = "stopped and woken" if pauses else "killed", shoppers.seen
                faults[f"{name} {what}"] += 1
                slowest = max(slowest, took_s)
                console.print(
                    f"{time.monotonic() - began_s:6.0f} s  {name} {what}, all ready after {took_s:.0f} s; "
                    f"{seen.searches} searches answered, {seen.unanswered} not, {seen.acknowledged} events acknowledged"
                )
        shoppers.stop()
        now, ledgers = footprints(running), settled(running)
        seen = shoppers.seen
        found = [*wrong(ledgers, seen)]
        found += whole_chain.differences(running.settings, events=seen.events, products=seen.products)
    console.print(", ".join(f"{what} {times} times" for what, times in sorted(faults.items())))
    title = f"{faults.total()} faults, slowest return {slowest:.0f} s"
    table = Table("process", "MB", "then", "open files", "then", title=title)
    for name, before in sorted(warm.items()):
        if name in now and now[name].pid == before.pid:
            after = now[name]
            table.add_row(name, f"{before.mb:.0f}", f"{after.mb:.0f}", str(before.files), str(after.files))
    console.print(table)
    return found


def wrong(ledgers: Mapping[str, Mapping[str, Any]], seen: Shopping) -> Iterator[str]:
    """What does not add up.

    Args:
        ledgers: of events and of searches, as `millrace ledger --json` has them.
        seen: by the shoppers.
    """
    yield from seen.failures
    if not seen.acknowledged or not seen.searches:
        yield f"nobody shopped: {seen.searches} searches answered, {seen.acknowledged} events acknowledged"
    for name in ("events", "searches"):
        if ledgers[name]["balance"] or ledgers[name]["pending"]:
            yield f"{name}: balance {ledgers[name]['balance']}, pending {ledgers[name]['pending']}"
    if ledgers["events"]["accepted"] < seen.acknowledged:
        yield f"{seen.acknowledged} events were acknowledged, {ledgers['events']['accepted']} are on the topics"


def main() -> None:
    """Run it from the command line; exit code 3 if something does not add up."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=180.0, help="seconds from one fault to the next")
    parser.add_argument("--seed", type=int, default=1, help="of shoppers and faults")
    parser.add_argument("--paused", type=float, default=0.3, help="share of the faults that stop, the others kill")
    given = parser.parse_args()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="millrace-soak-") as folder:
        found = soak(
            minutes=given.minutes,
            every_s=given.every,
            seed=given.seed,
            data_dir=Path(folder),
            console=console,
            paused=given.paused,
        )
    for line in found:
        console.print(line, style="red", markup=False)
    adds_up = "both ledgers balance, nothing is pending, each stage holds what the one before it gave"
    console.print("something does not add up" if found else adds_up)
    sys.exit(3 if found else 0)


if __name__ == "__main__":
    main()
