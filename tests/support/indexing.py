"""What tests of the indexer and of search share: real processes, catalogue messages, releases made with the towers."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import orjson
from kafka import KafkaProducer
from typing_extensions import override

from contracts import wire
from contracts.catalog import CatalogChange, Product, ProductDeleted
from contracts.progress import CatalogCounts
from contracts.releases import SERVING, SERVING_KEY, Kind, ReleaseManifest, Serving, release_key
from contracts.topics import CATALOG, MODELS
from indexer.qdrant import connect
from service.kafka import OutgoingRecord, admin, committed_offsets, produce_all, producer_config
from service.process import Main, Shutdown
from service.settings import Settings
from tests.support.poll import eventually
from tests.support.tiny_encoder import WORDS
from tests.support.topics import read_compacted
from towers.encoder import BaseEncoder
from towers.features import FeatureSpace, keys_of
from towers.model import ProductTower, QueryTower
from towers.release_files import PROBE_TEXTS, Encoder, Release, Tower, pack, release_tensors, weights_sha256

NOW_MS = 1_795_196_600_000
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 25.0


def product(product_id: str = "P-1", version: int = 1, title: str = "quiet fridge", **fields: Any) -> Product:
    """Return a product message."""
    return Product(type="product", product_id=product_id, version=version, title=title, **fields)


def deleted(product_id: str = "P-1", version: int = 2) -> ProductDeleted:
    """Return a deletion."""
    return ProductDeleted(type="product_deleted", product_id=product_id, version=version)


def query_release(
    release: int, encoder: Encoder, *, product_release: int = 0, scale: float = 0.05, fence: int = 0
) -> Release:
    """Return a query release that moves vectors, as if it had been trained.

    Args:
        release: its number.
        encoder: the base encoder.
        product_release: that was solved with it.
        scale: how far it moves vectors.
        fence: of its trainer.
    """
    taste = 10 * scale * np.random.default_rng(release).standard_normal((encoder.dim, encoder.dim), np.float32)
    tower = replace(QueryTower.untrained(encoder.dim), taste=taste)
    return _release("query", release, encoder, tower, product_release, release, fence)


def product_release(
    release: int, encoder: Encoder, *, query_release: int = 1, nats: float | None = None, fence: int = 0
) -> Release:
    """Return a product release in which every word of the tests has a quality of its own.

    Args:
        release: its number.
        encoder: the base encoder.
        query_release: that comes with it.
        nats: the quality of each word instead.
        fence: of its trainer.
    """
    keys = keys_of(f"t:{word}" for word in WORDS)
    drawn = np.random.default_rng(release).standard_normal(len(keys), np.float32)
    quality = drawn if nats is None else np.full(len(keys), nats, np.float32)
    space = FeatureSpace(keys, np.ones(len(keys), np.float32))
    tower = replace(ProductTower.untrained(), features=space, words=quality, unseen_width=0.5, cap=5.0)
    return _release("product", release, encoder, tower, release, query_release, fence)


def _release(
    kind: Kind, release: int, encoder: Encoder, tower: Tower, product_release: int, query_release: int, fence: int
) -> Release:
    """Return a release of a tower."""
    with np.errstate(invalid="ignore"):  # some are not finite on purpose
        tensors = release_tensors(tower, encoder)
    manifest = _manifest(kind, release, encoder, tensors, product_release, query_release)
    return Release(manifest.model_copy(update={"fence": fence}), tensors)


def _manifest(
    kind: Kind,
    release: int,
    encoder: Encoder,
    tensors: Mapping[str, np.ndarray],
    product_release: int,
    query_release: int,
) -> ReleaseManifest:
    """Return what a release says of itself."""
    return ReleaseManifest(
        kind=kind,
        release=release,
        product_release=product_release,
        query_release=query_release,
        base_version=encoder.base_version,
        dim=encoder.dim,
        created_at=NOW_MS,
        pairs_trained=100,
        lists_trained=50,
        offsets={"0": 100},
        click_times=(NOW_MS,),
        probe_texts=PROBE_TEXTS,
        weights_sha256=weights_sha256(tensors),
    )


class Shop:
    """Writes to Kafka what the collector and the trainer would write.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = KafkaProducer(**producer_config(settings))

    def send(self, *changes: CatalogChange) -> None:
        """Write catalogue changes; Kafka has them on return."""
        self.send_raw(
            *((change.product_id.encode(), orjson.dumps(change.model_dump(mode="json"))) for change in changes)
        )

    def send_raw(self, *records: tuple[bytes, bytes | None]) -> None:
        """Write catalogue records as they are."""
        topic = self._settings.topic(CATALOG)
        produce_all(self._producer, [OutgoingRecord(topic, value, key=key) for key, value in records])

    def release(self, *releases: Release) -> None:
        """Write releases to `models`."""
        topic = self._settings.topic(MODELS)
        records = [
            OutgoingRecord(topic, pack(one), key=release_key(one.manifest.kind, one.manifest.release))
            for one in releases
        ]
        produce_all(self._producer, records)

    def close(self) -> None:
        """Close the connection."""
        self._producer.close()


class Service:
    """A service under test that answers over HTTP.

    Args:
        settings: with a port of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = f"http://127.0.0.1:{settings.port}"

    def died(self) -> str | None:
        """Return how it ended, None while it runs."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Wait until it says that it is ready."""
        eventually(lambda: self.not_ready() is None, timeout_s=START_TIMEOUT_S, interval_s=0.1, what="ready")

    def not_ready(self) -> str | None:
        """Return what it says against being ready, None where it is."""
        died = self.died()
        if died is not None:
            raise AssertionError(f"it ended: {died}")
        try:
            answer = httpx.get(f"{self.url}/ready", timeout=5)
        except httpx.TransportError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else answer.text

    def metric(self, line_start: str) -> float:
        """Return the value of the metric whose line begins so; 0 where there is none."""
        for line in httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines():
            if line.startswith(line_start):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


class ServiceThread(Service):
    """A service in a thread of the test's process: starts at once, because the libraries are loaded.

    Args:
        main: what its process runs.
        settings: with a port of its own.
    """

    def __init__(self, main: Main, settings: Settings) -> None:
        super().__init__(settings)
        self._main = main
        self._settings = settings
        self._shutdown = Shutdown()
        self._thread = threading.Thread(target=self._run, name="service-under-test", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        self._thread.start()
        self.wait_ready()
        return self

    @override
    def died(self) -> str | None:
        """Return how it ended, None while it runs."""
        return None if self._thread.is_alive() else f"{self._error!r}"

    def stop(self) -> BaseException | None:
        """Ask it to stop; return the error it ended with, if any."""
        self._shutdown.request()
        self._thread.join(STOP_TIMEOUT_S)
        assert not self._thread.is_alive(), "it does not stop"
        self._shutdown.close()
        return self._error

    def _run(self) -> None:
        """Run the service and keep its error."""
        try:
            outcome = self._main(self._settings, self._shutdown)
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._error = error


@contextmanager
def running(main: Main, settings: Settings) -> Iterator[ServiceThread]:
    """Run a service in a thread until the block ends; it must end without an error."""
    service = ServiceThread(main, settings)
    try:
        yield service.start()
    finally:
        error = service.stop()
    assert error is None, error


class ServiceProcess(Service):
    """A process of ours, as `millrace up` runs it.

    Args:
        module: what `python -m` runs.
        settings: with a port of its own.
        log: file for its output.
    """

    def __init__(self, module: str, settings: Settings, log: Path) -> None:
        super().__init__(settings)
        self._module = module
        self._environ = {**os.environ, **settings.as_environ(), "MILLRACE_LOG_FORMAT": "json"}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told otherwise, wait until it is ready."""
        with self._log.open("ab") as log:
            command: Sequence[str] = [sys.executable, "-m", self._module]
            self._process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)
        if wait:
            self.wait_ready()
        return self

    @override
    def died(self) -> str | None:
        """Return how it ended, None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"{self._process.returncode}: {self.log_text()[-3000:]}"

    def log_text(self) -> str:
        """Return what it wrote."""
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return its log lines of one event."""
        lines = (line for line in self.log_text().splitlines() if line.startswith("{") and line.endswith("}"))
        return [line for line in map(orjson.loads, lines) if line.get("event") == name]

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def titles(settings: Settings, encoder: BaseEncoder, text: str, limit: int = 3) -> list[str]:
    """Return the titles nearest to a text through the alias, as anyone may ask."""
    client = connect(settings)
    vector = [*encoder.encode([text])[0].tolist(), 1.0]
    answer = client.query_points(settings.alias(), query=vector, using="product", limit=limit)
    client.close()
    return [str((point.payload or {})["title"]) for point in answer.points]


def catalogue_counts(settings: Settings) -> tuple[int, int]:
    """Return (catalogue, dead-lettered) over all partitions, as they stand in the commits."""
    with admin(settings) as client:
        committed = committed_offsets(client, settings, "indexer")
    counts = [
        CatalogCounts.model_validate_json(entry.metadata) for (topic, _), entry in committed.items() if topic == CATALOG
    ]
    return sum(count.catalogue for count in counts), sum(count.dead_lettered for count in counts)


def in_words(number: int) -> str:
    """Return a title of words that differs from its neighbours'."""
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in (1, 3, 7)) + f" {number}"


def now_ms() -> int:
    """Return the time now, for events that processes with a real clock judge."""
    return time.time_ns() // 1_000_000


def serving_of(settings: Settings) -> Serving:
    """Return what `models` says is in force."""
    found = {key: value for (_, key), value in read_compacted(settings, MODELS).items()}
    return wire.decode(found[SERVING_KEY], SERVING)
