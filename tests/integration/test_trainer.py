"""The trainer as a real process on a real Kafka: pairs in, releases out, crashes in between."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from kafka import KafkaProducer

from contracts import wire
from contracts.releases import PROBE_TOLERANCE, Serving
from contracts.topics import DEAD_LETTERS, MODELS, PREFERENCE_PAIRS, PRODUCT_VECTORS
from deploy.local.supervisor import LocalMillrace
from service.kafka import (
    OutgoingRecord,
    admin,
    committed_offsets,
    ensure_topics,
    produce_all,
    producer_config,
)
from service.settings import Settings
from tests.support.pairs import preference_pair, product_vector
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.tiny_encoder import WORDS, write_tiny_model
from tests.support.topics import read_compacted
from towers.encoder import BaseEncoder, load_encoder
from towers.release_files import Release, probe_difference, unpack

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

SettingsFactory = Callable[..., Settings]
PRODUCTS: Final = [f"{first} {second}" for first in WORDS[:8] for second in WORDS[8:13]]
START_S: Final = 300.0
"""A start imports torch; on a busy machine that takes minutes."""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny encoder that real processes can load."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> BaseEncoder:
    """Give the tiny encoder in this process."""
    return load_encoder(str(tiny_model))


class Shop:
    """A deployment's topics as a test sees them."""

    def __init__(self, settings: Settings, encoder: BaseEncoder) -> None:
        self.settings = settings
        self._encoder = encoder
        ensure_topics(settings)
        self._producer = KafkaProducer(**producer_config(settings))
        self._fed = 0

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

    def send_pairs(self, first: int, last: int) -> None:
        """Write one pair for each search from `first` up to `last`: shoppers prefer the product named first."""
        pairs = [
            preference_pair(
                f"s-{number}",
                query=WORDS[number % 8],
                chosen=PRODUCTS[number % 5],
                rejected=PRODUCTS[5 + number % 30],
            )
            for number in range(first, last)
        ]
        self._send(PREFERENCE_PAIRS, {pair.search_id: wire.encode(pair) for pair in pairs})

    def send_raw(self, topic: str, key: str, value: bytes) -> None:
        """Write any bytes."""
        self._send(topic, {key: value})

    def serve(self, query_release: int, product_release: int) -> None:
        """Put releases in force, as the indexer does."""
        serving = Serving(
            query_release=query_release,
            product_release=product_release,
            collection=f"products-r{product_release}",
            published_at=1_795_196_006_756,
        )
        self.send_raw(MODELS, "serving", wire.encode(serving))

    def releases(self) -> dict[str, Release]:
        """Return the releases that stand on `models`, unpacked."""
        found = read_compacted(self.settings, MODELS)
        return {key.decode(): unpack(value) for (_, key), value in found.items() if key != b"serving"}

    def newest(self, kind: str, *, pairs: int = 0, product_release: int | None = None) -> Release | None:
        """Return the newest release of a kind that saw so many pairs, and where asked, for that product release."""
        releases = [
            release
            for release in self.releases().values()
            if release.manifest.kind == kind
            and release.manifest.pairs_trained >= pairs
            and product_release in {None, release.manifest.product_release}
        ]
        return max(releases, key=lambda release: release.manifest.release, default=None)

    def wait_for(
        self, kind: str, *, pairs: int = 0, product_release: int | None = None, feed: Callable[[], None] | None = None
    ) -> Release:
        """Wait for such a release; `feed` keeps the shop alive meanwhile."""

        def ask() -> Release | None:
            """Look once."""
            if feed is not None:
                feed()
            return self.newest(kind, pairs=pairs, product_release=product_release)

        found = eventually(ask, timeout_s=180, interval_s=0.3, what=f"a {kind} release, {pairs=}, {product_release=}")
        assert found is not None
        return found

    def feed(self) -> None:
        """Send a few more pairs than before, of searches that were never sent."""
        self._fed += 5
        self.send_pairs(100_000 + self._fed, 100_005 + self._fed)

    def _send(self, topic: str, values: dict[str, bytes]) -> None:
        """Produce and wait."""
        name = self.settings.topic(topic)
        produce_all(self._producer, [OutgoingRecord(name, value, key=key.encode()) for key, value in values.items()])


@pytest.fixture
def shop(kafka_settings: SettingsFactory, encoder: BaseEncoder, tiny_model: Path) -> Iterator[Shop]:
    """Give a deployment with its catalogue's vectors on the topic."""
    opened = Shop(
        kafka_settings(
            base_model=str(tiny_model),
            release_interval_s=1,
            product_release_interval_s=2,
            session_timeout_s=6,
            log_format="json",
        ),
        encoder,
    )
    opened.send_vectors()
    yield opened
    opened.close()


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

    def published(self) -> int:
        """Return how often it wrote to `models`."""
        return sum(line["event"] == "releases_published" for line in self.lines())


@contextmanager
def running(settings: Settings, log: Path) -> Iterator[RunningTrainer]:
    """Run a trainer for the length of a block; nothing of it is left afterwards."""
    trainer = RunningTrainer(settings, log)
    try:
        yield trainer
    finally:
        trainer.process.kill()
        trainer.process.wait(timeout=20)


def test_pairs_become_releases_of_both_towers(shop: Shop, encoder: BaseEncoder, tmp_path: Path) -> None:
    """Pairs become a query and a product release whose probe texts hold here and whose offsets say what they saw."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_raw(PREFERENCE_PAIRS, "bad", b'{"pair_id": "x"}')
        shop.send_pairs(0, 200)
        query = shop.wait_for("query", pairs=200, product_release=0)
        product = shop.wait_for("product", feed=shop.feed)
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.process.wait(timeout=20) == 0
    assert probe_difference(query, encoder) <= PROBE_TOLERANCE
    assert probe_difference(product, encoder) <= PROBE_TOLERANCE
    assert query.manifest.click_times
    assert all(check.passed for check in query.manifest.checks)
    first = shop.releases()[f"query-{product.manifest.query_release}"]
    assert first.manifest.product_release == product.manifest.release == 1
    letters = [line for line in trainer.lines() if line["event"] == "dead_letter"]
    assert [(line["reason"], line["topic"]) for line in letters] == [("missing", PREFERENCE_PAIRS)]
    assert len(read_compacted(shop.settings, DEAD_LETTERS)) == 1


def test_the_query_lane_moves_to_a_product_release_only_when_serving_names_it(shop: Shop, tmp_path: Path) -> None:
    """While a product release is on its way, query releases stay with the releases in force; afterwards they move."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        product = shop.wait_for("product", feed=shop.feed).manifest
        seen = product.pairs_trained
        before = shop.wait_for("query", pairs=seen + 50, product_release=0, feed=shop.feed).manifest
        shop.serve(product.query_release, product.release)
        after = shop.wait_for("query", pairs=before.pairs_trained + 1, product_release=1, feed=shop.feed).manifest
    assert product.release == 1
    assert before.release > product.query_release
    assert after.release > before.release
    assert after.parent is not None
    assert after.parent >= product.query_release


def test_sigkill_neither_loses_a_pair_nor_trains_one_twice(shop: Shop, tmp_path: Path) -> None:
    """After a SIGKILL in the middle of work the counts of the next trainer are exactly those of the pairs sent."""
    with running(shop.settings, tmp_path / "first.log") as trainer:
        trainer.wait_ready()
        shop.send_pairs(0, 150)
        first = shop.wait_for("query", pairs=128)
        shop.send_pairs(150, 400)
        trainer.process.kill()
        trainer.process.wait(timeout=20)
    with running(shop.settings, tmp_path / "second.log") as trainer:
        trainer.wait_ready()
        second = shop.wait_for("query", pairs=400)
        shop.send_pairs(0, 50)  # the stream worker repeats itself after a crash of its own
        shop.send_pairs(400, 500)
        third = shop.wait_for("query", pairs=500)
    assert second.manifest.release > first.manifest.release
    assert second.manifest.pairs_trained == second.manifest.lists_trained == 400
    assert third.manifest.pairs_trained == 500
    loaded = [line for line in trainer.lines() if line["event"] == "checkpoint_loaded"]
    assert loaded


def test_a_trainer_that_was_succeeded_cannot_publish(shop: Shop, tmp_path: Path) -> None:
    """A trainer that stalls past its session finds the group gone: it stops with one line and publishes nothing."""
    with running(shop.settings, tmp_path / "first.log") as first:
        first.wait_ready()
        with running(shop.settings, tmp_path / "second.log") as second:
            eventually(lambda: _stands_by(second), timeout_s=START_S, what="the second stands by")
            shop.send_pairs(0, 130)
            shop.wait_for("query", pairs=130)
            first.process.send_signal(signal.SIGSTOP)
            published = first.published()
            second.wait_ready()
            shop.send_pairs(130, 300)
            shop.wait_for("query", pairs=300)
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(timeout=60) == 4
            assert second.reasons() == []
    assert first.published() == published
    (line,) = [line for line in first.lines() if line["level"] == "error"]
    assert line["kind"] == "TransientError"


def test_a_trainer_that_lost_its_disk_goes_on_from_what_is_served(shop: Shop, tmp_path: Path) -> None:
    """It learns what came after the release in force, and nothing twice; numbers and counts go on."""
    with running(shop.settings, tmp_path / "first.log") as trainer:
        trainer.wait_ready()
        shop.send_pairs(0, 200)
        served = shop.wait_for("query", pairs=200, product_release=0).manifest
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.process.wait(timeout=20) == 0
    shop.serve(served.release, 0)
    shutil.rmtree(shop.settings.data_dir / "trainer")
    shop.send_pairs(200, 260)
    with running(shop.settings, tmp_path / "second.log") as trainer:
        trainer.wait_ready()
        release = shop.wait_for("query", pairs=260)
        (training,) = [line for line in trainer.lines() if line["event"] == "training"]
    assert training["offsets"] == served.offsets
    assert training["pairs_trained"] == 200
    assert release.manifest.pairs_trained == release.manifest.lists_trained == 260
    assert sum(release.manifest.offsets.values()) == 260


def test_a_kafka_that_restarts_is_waited_for(
    settings: SettingsFactory, encoder: BaseEncoder, tiny_model: Path, tmp_path: Path
) -> None:
    """Not ready meanwhile, one line for the outage and one for its end; the same process then learns what comes."""
    with LocalMillrace(processes=["kafka"], data_dir=tmp_path / "kafka", environ={}) as servers:
        bootstrap = servers.env["MILLRACE_KAFKA_BOOTSTRAP"]
        own = settings(
            kafka_bootstrap=bootstrap,
            base_model=str(tiny_model),
            release_interval_s=1,
            session_timeout_s=60,
            log_format="json",
        )
        shop = Shop(own, encoder)
        shop.send_vectors()
        shop.close()
        with running(own, tmp_path / "trainer.log") as trainer:
            trainer.wait_ready()
            servers.stop("kafka")
            eventually(trainer.reasons, timeout_s=60, what="not ready without Kafka")
            servers.start("kafka")
            eventually(lambda: trainer.reasons() == [], timeout_s=120, what="ready again")
            shop = Shop(own, encoder)
            shop.send_pairs(0, 130)
            assert shop.wait_for("query", pairs=130).manifest.pairs_trained == 130
            shop.close()
    told = [line["event"] for line in trainer.lines() if line.get("dependency") == "kafka"]
    assert told == ["dependency_down", "dependency_back"]


def _stands_by(trainer: RunningTrainer) -> bool:
    """Return whether a trainer waits for another to go."""
    return any("standing by" in reason for reason in trainer.reasons() or [])


def test_the_offsets_in_kafka_are_those_of_the_checkpoint(shop: Shop, tmp_path: Path) -> None:
    """What the group committed is what the newest manifest says was trained, so that lag can be read from outside."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_pairs(0, 100)
        release = shop.wait_for("query", pairs=100)
    with admin(shop.settings) as client:
        committed = committed_offsets(client, shop.settings, "trainer")
    by_partition = {str(partition): found.offset for (_, partition), found in committed.items() if found.offset}
    assert by_partition == release.manifest.offsets
