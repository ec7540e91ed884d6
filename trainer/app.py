"""Puts the trainer together: followers, encoder, group, checkpoint, loop; knows every adapter, decides nothing."""

from collections.abc import Callable
from typing import Final

from kafka import KafkaProducer

from contracts.errors import DependencyDown, MillraceError
from contracts.telemetry import Process
from contracts.topics import ARMS_PROGRESS, GOLDEN_QUERIES, MODELS, PRODUCT_VECTORS
from service.follow import PATIENCE_S, OnRecord, TopicFollower
from service.health import Dependency, Health
from service.http import admin_server
from service.kafka import ensure_topics, producer_config, translate_kafka_errors
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable, ModelsWriter
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import BaseEncoder, load_encoder
from trainer.adapters.checkpoints import FileCheckpoints, writable_folder
from trainer.adapters.golden import GoldenTable
from trainer.adapters.held_out_looks import HeldOutLooks
from trainer.adapters.log_source import KafkaLog
from trainer.adapters.vectors import TextVectors, VectorTable
from trainer.decisions import ArmsTable, Decider
from trainer.learner import Learner
from trainer.loop import LoopSettings, TrainerLoop
from trainer.release.golden import GoldenCheck
from trainer.release.planning import Cadence

WAIT_S: Final = 0.2
SETTLE_MARGIN_MS: Final = 60_000


class TrainerApp:
    """One trainer process.

    Args:
        settings: the settings in force.
        shutdown: set when the process must stop.
    """

    def __init__(self, settings: Settings, shutdown: Shutdown) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._starting: str | None = "the base encoder is being loaded"
        self._kafka = Dependency(
            Process.KAFKA, meaning="nothing is learned meanwhile; no click is lost", patience_s=PATIENCE_S
        )
        self._followers: list[TopicFollower] = []
        self._golden = GoldenTable()
        self._folder = settings.data_dir / "trainer"
        self._health = Health(Process.TRAINER)

    def run(self) -> None:
        """Train until stopped.

        Raises:
            MillraceError: a dependency is missing, or another trainer took over.
        """
        settings, health = self._settings, self._health
        settings.require("kafka_bootstrap")
        writable_folder(self._folder)
        health.add_check("trainer", lambda: self._starting)
        health.add_check("kafka", self._kafka.not_ready)
        with admin_server(health, settings.host, settings.listen_port(Process.TRAINER)):
            encoder = load_encoder(settings.base_model)
            self._starting = "Kafka has not answered yet"
            ensure_topics(settings, wait=self._shutdown.wait)
            models, arms = ModelsTable(), ArmsTable()
            vectors = VectorTable(self._folder, encoder.dim, base_version=encoder.base_version)
            health.add_check("vectors", vectors.not_usable)
            self._follow(PRODUCT_VECTORS, vectors.on_record, on_new_topic=vectors.forget)
            self._follow(MODELS, models.apply, on_new_topic=models.forget)
            self._follow(ARMS_PROGRESS, arms.apply, on_new_topic=arms.forget)
            self._follow(GOLDEN_QUERIES, self._golden.on_record, on_new_topic=self._golden.forget)
            try:
                self._train(encoder, vectors, models, arms)
            finally:
                for follower in self._followers:
                    follower.stop()

    def _follow(self, topic: str, on_record: OnRecord, *, on_new_topic: Callable[[], None]) -> None:
        """Begin to follow a topic; the process is not ready before all that it holds was read."""
        follower = TopicFollower(self._settings, topic, on_record, on_new_topic=on_new_topic, kafka=self._kafka)
        self._health.add_check(topic, follower.not_caught_up)
        follower.start()
        self._followers.append(follower)

    def _train(self, encoder: BaseEncoder, vectors: VectorTable, models: ModelsTable, arms: ArmsTable) -> None:
        """Join the group once the views are current, take up the checkpoint, and work."""
        self._starting = "vectors, models, arms and golden queries are being read"
        while not self._caught_up():
            if self._shutdown.wait(WAIT_S):
                return
        with (
            translate_kafka_errors(self._settings),
            KafkaProducer(**producer_config(self._settings)) as producer,
            KafkaLog(self._settings, producer) as source,
        ):
            self._health.add_check("log", source.not_reading)
            self._starting = "the checkpoint has not been taken up yet"
            while not source.join():
                self._check_followers()
                if self._shutdown.is_set():
                    return
            for follower in self._followers:
                follower.read_to_end()  # only now does nobody else publish releases
            writer = ModelsWriter(self._settings, producer)
            looks = HeldOutLooks(
                self._settings, models, products=vectors, encoder=encoder, kafka=self._kafka, clock_ms=epoch_ms
            )
            decider = Decider(
                models, arms, writer=writer, settle_ms=_settle_ms(self._settings), held_out=lambda: looks.last
            )
            if self._settings.holdout_share:
                looks.start()
            try:
                self._work(encoder, vectors, models, source=source, writer=writer, decider=decider, looks=looks)
            finally:
                looks.stop()

    def _work(
        self,
        encoder: BaseEncoder,
        vectors: VectorTable,
        models: ModelsTable,
        *,
        source: KafkaLog,
        writer: ModelsWriter,
        decider: Decider,
        looks: HeldOutLooks,
    ) -> None:
        """Run the loop until stopped; what was learned is durable when it returns."""
        settings = self._settings
        checkpoints = FileCheckpoints(self._folder, base_version=encoder.base_version)
        learner = Learner(
            encoder.dim,
            products=vectors,
            encode=TextVectors(encoder),
            half_life_days=settings.half_life_days,
            loss=settings.loss,
            debias=settings.debias,
        )
        snapshot = checkpoints.load()
        if snapshot is not None:
            learner.restore(snapshot.tensors)
            learner.progress = snapshot.progress
        cadence = Cadence(
            query_ms=round(settings.release_interval_s * 1000),
            product_ms=round(settings.product_release_interval_s * 1000),
        )
        loop = TrainerLoop(
            learner,
            source=source,
            checkpoints=checkpoints,
            models=models,
            writer=writer,
            encoder=encoder,
            settings=LoopSettings(cadence=cadence),
            clock_ms=epoch_ms,
            golden=GoldenCheck(self._golden.look),
            judged=looks.judged,
        )
        loop.resume({} if snapshot is None else snapshot.outbox)
        self._starting = None
        while not self._shutdown.is_set():
            self._check_followers()
            loop.run_once()
            decider.look(epoch_ms())
        looks.give_up()
        loop.finish()

    def _caught_up(self) -> bool:
        self._check_followers()
        return all(follower.caught_up.is_set() for follower in self._followers)

    def _check_followers(self) -> None:
        """Raise what ended a follower: training on a view that no longer moves would be wrong in silence."""
        failures: list[MillraceError] = [each.failure for each in self._followers if each.failure is not None]
        if failures:
            raise failures[0]


def _settle_ms(settings: Settings) -> int:
    """How long lists go on being counted that were shown before: they wait for their window, and for other joins."""
    return settings.join_window_ms + settings.lateness_ms + SETTLE_MARGIN_MS


def main(settings: Settings, shutdown: Shutdown) -> None:
    """Run a trainer; the whole of its `__main__`."""
    try:
        TrainerApp(settings, shutdown).run()
    except DependencyDown as error:
        if not shutdown.is_set():
            raise
        get_logger().info("stopped_while_waiting", error=error.message)
