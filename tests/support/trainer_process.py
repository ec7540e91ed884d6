"""A real trainer of a test: a process that can be asked and killed, and what it reads and writes on a real Kafka."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from kafka import KafkaProducer

from contracts import wire
from contracts.decisions import DECISIONS, DECISIONS_KEY, Decisions
from contracts.releases import Serving
from contracts.structs import encode
from contracts.topics import HOLDOUT_SEARCHES, MODELS, PRODUCT_VECTORS, TRAINING_SEARCHES
from service.kafka import OutgoingRecord, ensure_topics, produce_all, producer_config
from service.machine import epoch_ms
from service.settings import Settings
from tests.support.pairs import product_vector
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.topics import read_compacted
from tests.support.trainer import PRODUCTS, SCATTERED, search_number
from towers.encoder import BaseEncoder
from towers.release_files import Release, unpack

START_S: Final = 300.0
"""A start imports torch; on a busy machine that takes minutes."""
_RELEASES: Final = (b"query-", b"product-")


class RunningTrainer:
    """A trainer process and what it says of itself."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port = free_port()
        self._log = log
        environ = {**os.environ, **settings.as_environ(), "MILLRACE_PORT": str(self.port), "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer"], env=environ, stderr=stream, stdout=subprocess.DEVNULL
            )

    def reasons(self) -> list[str] | None:
        """Return the reasons against readiness, None while nothing answers."""
        if self.process.poll() is not None:
            raise AssertionError(f"the trainer ended with {self.process.returncode}:\n{self._log.read_text()}")
        try:
            answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/ready", timeout=2).json()
        except httpx.HTTPError:
            return None
        return list(answer["reasons"])

    def wait_ready(self) -> None:
        """Wait until it trains."""
        try:
            eventually(lambda: self.reasons() == [], timeout_s=START_S, interval_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"not ready: {self.reasons()}; log:\n{self._log.read_text()}") from error

    def lines(self) -> list[dict[str, Any]]:
        """Return its log."""
        return [orjson.loads(line) for line in self._log.read_bytes().splitlines()]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log about one event."""
        return [line for line in self.lines() if line["event"] == event]

    def published(self) -> int:
        """Return how often it wrote to `models`."""
        return len(self.said("releases_published"))


@contextmanager
def running(settings: Settings, log: Path) -> Iterator[RunningTrainer]:
    """Run a trainer for the length of a block; nothing of it is left afterwards."""
    trainer = RunningTrainer(settings, log)
    try:
        yield trainer
    finally:
        trainer.process.kill()
        trainer.process.wait(timeout=20)


class Shop:
    """A deployment's topics as a test sees them."""

    def __init__(self, settings: Settings, encoder: BaseEncoder) -> None:
        self.settings = settings
        self._encoder = encoder
        ensure_topics(settings)
        self._producer = KafkaProducer(**producer_config(settings))
        self._served = 0

    def close(self) -> None:
        """Free the connection."""
        self._producer.close()

    def send_vectors(self) -> None:
        """Write every product's base vector."""
        rows = zip(PRODUCTS, self._encoder.encode(PRODUCTS), strict=True)
        base = self._encoder.base_version
        self._send(
            PRODUCT_VECTORS,
            {name: wire.encode(product_vector(name, vector, base_version=base)) for name, vector in rows},
        )

    def send_lists(self, first: int, last: int) -> None:
        """Write the lists from `first` up to `last`: shoppers prefer products of which no word tells."""
        searches = [search_number(number, liked=SCATTERED) for number in range(first, last)]
        self._send(TRAINING_SEARCHES, {search.search_id: encode(search) for search in searches})

    def send_held_out(self, lists: dict[str, bytes]) -> None:
        """Write lists that are not learned from."""
        self._send(HOLDOUT_SEARCHES, lists)

    def send_raw(self, topic: str, key: str, value: bytes) -> None:
        """Write any bytes."""
        self._send(topic, {key: value})

    def serve(self, query_release: int, product_release: int, *, withdrawn: int = 0) -> None:
        """Put releases in force, as the indexer does; `withdrawn` is the last of those that are taken back for it."""
        self._served += 1
        serving = Serving(
            query_release=query_release,
            product_release=product_release,
            collection="products-r0",
            published_at=1_795_196_006_756 + self._served,
            withdrawn_above=query_release if withdrawn else 0,
            withdrawn=withdrawn,
        )
        self.send_raw(MODELS, "serving", wire.encode(serving))

    def releases(self) -> dict[str, Release]:
        """Return the releases that stand on `models`, unpacked."""
        found = read_compacted(self.settings, MODELS)
        return {key.decode(): unpack(value) for (_, key), value in found.items() if key.startswith(_RELEASES)}

    def record(self, key: bytes) -> bytes | None:
        """Return what stands under a key of `models`."""
        return read_compacted(self.settings, MODELS).get((0, key))

    def decisions(self) -> Decisions:
        """Return what was decided on releases; nothing before the first look."""
        value = self.record(DECISIONS_KEY)
        return Decisions(began_at=epoch_ms()) if value is None else wire.decode(value, DECISIONS)

    def newest(self, kind: str, *, lists: int = 0) -> Release | None:
        """Return the newest release of a kind if it saw so many lists."""
        releases = [
            release
            for release in self.releases().values()
            if release.manifest.kind == kind and release.manifest.lists_trained >= lists
        ]
        return max(releases, key=lambda release: release.manifest.release, default=None)

    def wait_for(self, kind: str, *, lists: int = 0) -> Release:
        """Wait for such a release."""
        what = f"a {kind} release of {lists} lists"
        found = eventually(lambda: self.newest(kind, lists=lists), timeout_s=180, interval_s=0.3, what=what)
        assert found is not None
        return found

    def _send(self, topic: str, values: dict[str, bytes]) -> None:
        """Produce and wait."""
        name = self.settings.topic(topic)
        produce_all(self._producer, [OutgoingRecord(name, value, key=key.encode()) for key, value in values.items()])
