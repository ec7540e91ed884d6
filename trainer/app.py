"""Puts the trainer together: followers, encoder, group, checkpoint, loop; knows every adapter, decides nothing."""

import time
from collections.abc import Callable

from kafka import KafkaProducer

from contracts.errors import MillraceError
from contracts.telemetry import Process
from contracts.topics import MODELS, PRODUCT_VECTORS
from service.follow import OnRecord, TopicFollower
from service.health import Health
from service.http import admin_server
from service.kafka import ensure_topics, producer_config, translate_kafka_errors
from service.logging import get_logger
from service.models import ModelsTable, ModelsWriter
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import BaseEncoder, load_encoder
from trainer.adapters.checkpoints import FileCheckpoints, writable_folder
from trainer.adapters.pairs_source import KafkaPairs
from trainer.adapters.query_vectors import QueryVectors
from trainer.adapters.vectors import VectorTable
from trainer.core.learner import LearnerSettings
from trainer.core.releasing import Cadence
from trainer.core.state import fresh_learner, restored_learner
from trainer.loop import LoopSettings, Ports, TrainerLoop

WAIT_S = 0.2


class TrainerApp:
    """One trainer process.

    Args:
        settings: the settings in force.
        shutdown: set when the process must stop.
    """

    def __init__(self, settings: Settings, shutdown: Shutdown) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._waiting_for: str | None = "the base encoder is being loaded"
        self._followers: list[TopicFollower] = []
        self._folder = settings.data_dir / "trainer"

    def run(self) -> None:
        """Train until stopped.

        Raises:
            MillraceError: a dependency is missing, or another trainer took over.
        """
        self._settings.require("kafka_bootstrap")
        writable_folder(self._folder)
        health = Health(Process.TRAINER)
        health.add_check("trainer", lambda: self._waiting_for)
        with admin_server(health, self._settings.host, self._settings.listen_port(Process.TRAINER)):
            encoder = load_encoder(self._settings.base_model)
            self._waiting_for = "Kafka has not answered yet"
            ensure_topics(self._settings, wait=self._shutdown.wait)
            vectors, models = VectorTable(encoder.dim, base_version=encoder.base_version), ModelsTable()
            self._follow(health, PRODUCT_VECTORS, vectors.on_record)
            self._follow(health, MODELS, models.apply, on_new_topic=models.forget)
            try:
                self._train(encoder, vectors, models)
            finally:
                for follower in self._followers:
                    follower.stop()

    def _follow(
        self, health: Health, topic: str, on_record: OnRecord, *, on_new_topic: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to follow a topic; the process is ready once it is caught up."""
        follower = TopicFollower(self._settings, topic, on_record, on_new_topic=on_new_topic)
        health.add_check(topic, follower.not_caught_up)
        follower.start()
        self._followers.append(follower)

    def _train(self, encoder: BaseEncoder, vectors: VectorTable, models: ModelsTable) -> None:
        """Join the group once the views are current, take up the checkpoint, and work."""
        if not self._wait(self._caught_up, "vectors and models are being read"):
            return
        with (
            translate_kafka_errors(self._settings),
            KafkaProducer(**producer_config(self._settings)) as producer,
            KafkaPairs(self._settings, producer) as source,
        ):
            if self._wait(source.held, "another trainer holds the preference pairs; standing by"):
                self._work(encoder, vectors, models, source=source, producer=producer)

    def _work(
        self,
        encoder: BaseEncoder,
        vectors: VectorTable,
        models: ModelsTable,
        *,
        source: KafkaPairs,
        producer: KafkaProducer,
    ) -> None:
        """Run the loop until stopped; what was learned is durable when it returns."""
        checkpoints = FileCheckpoints(self._folder, base_version=encoder.base_version)
        snapshot = checkpoints.load()
        query_vectors = QueryVectors(encoder)
        settings = LearnerSettings()
        learner = (
            fresh_learner(encoder.dim, settings=settings, products=vectors, query_vectors=query_vectors)
            if snapshot is None
            else restored_learner(snapshot, settings=settings, products=vectors, query_vectors=query_vectors)
        )
        ports = Ports(source, checkpoints, models, ModelsWriter(self._settings, producer))
        loop = TrainerLoop(learner, ports, encoder=encoder, settings=self._loop_settings(), clock_ms=epoch_ms)
        loop.resume({} if snapshot is None else snapshot.outbox)
        self._waiting_for = None
        get_logger().info("training", pairs_trained=learner.facts.pairs_trained, offsets=learner.facts.offsets)
        while not self._shutdown.is_set():
            self._check_followers()
            loop.turn()
        loop.finish()

    def _loop_settings(self) -> LoopSettings:
        """Return the sizes and times of the loop."""
        cadence = Cadence(
            query_ms=round(self._settings.release_interval_s * 1000),
            product_ms=round(self._settings.product_release_interval_s * 1000),
        )
        return LoopSettings(cadence=cadence)

    def _wait(self, ready: Callable[[], bool], reason: str) -> bool:
        """Wait until something is ready; return False where the process must stop first."""
        self._waiting_for = reason
        while not ready():
            if self._shutdown.wait(WAIT_S):
                return False
        return True

    def _caught_up(self) -> bool:
        """Return whether vectors and models have been read to their ends."""
        self._check_followers()
        return all(follower.caught_up.is_set() for follower in self._followers)

    def _check_followers(self) -> None:
        """Raise what ended a follower."""
        failures: list[MillraceError] = [each.failure for each in self._followers if each.failure is not None]
        if failures:
            raise failures[0]


def epoch_ms() -> int:
    """Return the time."""
    return time.time_ns() // 1_000_000


def main(settings: Settings, shutdown: Shutdown) -> None:
    """Run a trainer; the whole of its `__main__`."""
    TrainerApp(settings, shutdown).run()
