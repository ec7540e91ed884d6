"""The indexer put together: both lanes, what they read and write, and how it starts, says how it is, and ends."""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from kafka import KafkaProducer

from contracts.errors import DependencyDown, MillraceError, TransientError, UsageError
from contracts.telemetry import Process
from contracts.topics import MODELS, PRODUCT_VECTORS
from indexer.adapters.catalog_topic import CatalogTopic
from indexer.adapters.frontier import Frontier
from indexer.adapters.models_topic import ModelsTopic
from indexer.adapters.qdrant import ProductStore, connect
from indexer.adapters.shadow import ShadowSearch
from indexer.adapters.vectors_topic import VectorsTopic, vectors_follower
from indexer.core.base_vectors import BaseVectors
from indexer.loop import CatalogLane, Stopped
from indexer.models_lane import ModelsLane
from indexer.parts import Parts
from indexer.ports import CatchUp, InForce
from indexer.targets import Targets
from service.follow import TopicFollower
from service.health import Health
from service.http_server import AdminServer
from service.kafka import ensure_topics, producer_config, translate_kafka_errors
from service.logging import get_logger
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import BaseEncoder, load_encoder

BULK_THREADS: Final = 2
"""Torch threads where whole catalogues are encoded; more gain little on texts this short."""
IDLE_S: Final = 1.0
RETRY_S: Final = 1.0
COUNT_EVERY_S: Final = 10.0
POLL_S: Final = 0.1


def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Index until asked to stop.

    Raises:
        MillraceError: it cannot start, or a fact that must hold does not.
    """
    settings.require("kafka_bootstrap", "qdrant_url")
    health = Health(Process.INDEXER)
    with AdminServer(health, settings.host, settings.listen_port(Process.INDEXER)), ExitStack() as stack:
        indexer = Indexer(settings, shutdown, health, stack)
        try:
            indexer.run()
        except Stopped:
            get_logger().info("stopped_in_the_middle")
        except DependencyDown as error:
            if not shutdown.is_set():
                raise
            get_logger().info("stopped_while_waiting", error=error.message)


class Indexer:
    """One indexer process.

    Args:
        settings: of the deployment.
        shutdown: ends it.
        health: what it says about itself.
        stack: closes what it opens.
    """

    def __init__(self, settings: Settings, shutdown: Shutdown, health: Health, stack: ExitStack) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._health = health
        self._stack = stack
        self._starting: str | None = "starting"
        self._models_changed = threading.Event()
        self._models_wait: str | None = None
        self._failure: BaseException | None = None
        self._catalog: CatalogTopic | None = None
        health.add_check("start", lambda: self._starting)
        health.add_check("models", lambda: self._models_wait)

    def run(self) -> None:
        """Start and work until asked to stop.

        Raises:
            Stopped: asked to stop in the middle of something.
        """
        settings = self._settings
        self._starting = "waiting for Kafka"
        ensure_topics(settings, wait=self._shutdown.wait)
        self._starting = "loading the base encoder"
        encoder = load_encoder(settings.base_model, torch_threads=min(BULK_THREADS, os.cpu_count() or 1))
        self._starting = "waiting for the vector store"
        store = ProductStore.open(settings)
        self._stack.callback(store.close)
        with translate_kafka_errors(settings):
            producer = KafkaProducer(**producer_config(settings))
        self._stack.callback(producer.close)
        models = ModelsTopic(settings, producer, self._models_changed.set)
        vectors = BaseVectors()
        vectors_topic = vectors_follower(settings, vectors)
        self._read_topics({"models": models.follower, "vectors": vectors_topic})
        _require_base_version(vectors, encoder)
        targets = Targets()
        catch_up = self._frontier(PRODUCT_VECTORS, vectors_topic).reach
        lane = self._models_lane(models, encoder, vectors, targets, catch_up)
        self._settle(lane)
        source = self._catalog = CatalogTopic(settings)
        self._stack.callback(source.close)
        catalogue = CatalogLane(
            source,
            VectorsTopic(settings, producer),
            store=store,
            encoder=encoder,
            vectors=vectors,
            targets=targets,
            in_force=_in_force(models, self._frontier(MODELS, models.follower)),
            pause=self._shutdown.wait,
        )
        self._health.add_check("catalogue", catalogue.held)
        self._health.add_check("group", source.not_assigned)
        self._run_lanes(lane, catalogue)

    def _models_lane(
        self, models: ModelsTopic, encoder: BaseEncoder, vectors: BaseVectors, targets: Targets, catch_up: CatchUp
    ) -> ModelsLane:
        """Return the models lane with connections of its own: a store belongs to one thread."""
        client = connect(self._settings)
        self._stack.callback(client.close)
        return ModelsLane(
            Parts(
                settings=self._settings,
                store=ProductStore(client),
                releases=models,
                encoder=encoder,
                vectors=vectors,
                catch_up=catch_up,
                targets=targets,
                shadow=ShadowSearch(client),
                leads=self._leads,
                pause=self._shutdown.wait,
            )
        )

    def _leads(self) -> bool:
        return self._catalog is not None and self._catalog.leads()

    def _frontier(self, topic: str, follower: TopicFollower) -> Frontier:
        frontier = Frontier(self._settings, topic, follower)
        self._stack.callback(frontier.close)
        return frontier

    def _read_topics(self, followers: Mapping[str, TopicFollower]) -> None:
        """Return once everything that the topics hold has been read."""
        for name, follower in followers.items():
            self._starting = f"reading {name}"
            self._stack.callback(follower.stop)
            follower.start()
            self._wait_for(follower)
            self._health.add_check(f"{name} topic", follower.not_caught_up)

    def _wait_for(self, follower: TopicFollower) -> None:
        while not follower.caught_up.wait(POLL_S):
            if follower.failure is not None:
                raise follower.failure
            if self._shutdown.is_set():
                raise Stopped

    def _settle(self, lane: ModelsLane) -> None:
        """Have a pair in force and its collection complete before anything else."""
        while True:
            self._starting = "comparing the index with the base vectors"
            try:
                return lane.settle()
            except (TransientError, DependencyDown) as error:
                self._starting = error.message
                get_logger().warning("start_waits", error=error.message)
                if self._shutdown.wait(RETRY_S):
                    raise Stopped from error

    def _run_lanes(self, lane: ModelsLane, catalogue: CatalogLane) -> None:
        """Run the catalogue lane here and the models lane in a thread, until asked to stop or one of them fails."""
        thread = threading.Thread(target=self._follow_models, args=(lane,), name="models-lane", daemon=True)
        thread.start()
        self._starting = None
        get_logger().info("ready")
        try:
            while not self._shutdown.is_set():
                catalogue.step()
        except Stopped:
            if self._failure is None:
                raise
        finally:
            self._shutdown.request()
            self._models_changed.set()
            thread.join(timeout=10)
        if self._failure is not None:
            raise self._failure

    def _follow_models(self, lane: ModelsLane) -> None:
        """Take the models lane's steps until asked to stop; an error that does not pass stops the catalogue lane too.

        That lane may be waiting, in the middle of a batch, for what this one does not do any more.
        """
        counted_at = -COUNT_EVERY_S
        while not self._shutdown.is_set():
            self._models_changed.clear()
            try:
                moved = lane.step()
                if not moved and time.monotonic() - counted_at >= COUNT_EVERY_S:
                    lane.count_points()
                    counted_at = time.monotonic()
            except (TransientError, DependencyDown) as error:
                self._say_models_wait(error)
                self._shutdown.wait(RETRY_S)
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the main thread ends the process with it
                self._failure = error
                self._shutdown.request()
                return
            self._models_wait = None
            if not moved:
                self._models_changed.wait(IDLE_S)

    def _say_models_wait(self, error: MillraceError) -> None:
        if self._models_wait is None:
            get_logger().warning("models_lane_waits", error=error.message, fix=error.fix)
        self._models_wait = error.message


def _require_base_version(vectors: BaseVectors, encoder: BaseEncoder) -> None:
    """Raise UsageError where the base vectors were made by another base encoder."""
    foreign = vectors.foreign_base_version(encoder.base_version)
    if foreign is not None:
        raise UsageError(
            f"the vectors on this cluster were made by {foreign}, this process has {encoder.base_version}",
            fix="set MILLRACE_BASE_MODEL back, or choose another MILLRACE_TOPIC_PREFIX and send the catalogue anew",
        )


def _in_force(models: ModelsTopic, frontier: Frontier) -> InForce:
    """Return what tells the collection in force from all that stands on `models` when asked."""

    def in_force() -> str:
        frontier.reach()
        serving = models.view().serving
        if serving is None:
            raise TransientError("nothing is in force yet")
        return serving.collection

    return in_force
