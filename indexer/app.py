"""The indexer put together: both loops, what they read and write, and how it starts, says how it is, and ends."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Final

from kafka import KafkaProducer

from contracts.errors import DependencyDown, MillraceError, TransientError
from contracts.telemetry import AuditDifference, Process
from contracts.topics import MODELS
from indexer.audit import Encoded
from indexer.auditor import Auditor, Report
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.loop import CatalogLoop
from indexer.catalog.topics import CatalogTopic, VectorsTopic
from indexer.points import InForce, Owner, Target
from indexer.ports import AskInForce, Pause, Stopped
from indexer.qdrant import connect
from indexer.rollout.loop import NO_RELEASES, RollOutLoop
from indexer.store import ProductStore
from service import metrics
from service.follow import PATIENCE_S, TopicFollower
from service.health import Dependency, Health
from service.http import admin_server
from service.kafka import cluster_id, ensure_topics, producer_config, translate_kafka_errors
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable, ModelsWriter
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import load_encoder
from towers.release_files import Encoder

BULK_THREADS: Final = 2
"""Threads for whole catalogues; more gain little on texts this short."""
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
    health, stack = Health(Process.INDEXER), ExitStack()
    indexer = Indexer(settings, shutdown, health, stack)  # first: what checks nothing yet would be ready
    with admin_server(health, settings.host, settings.listen_port(Process.INDEXER)), stack:
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
        self._kafka = Dependency(Process.KAFKA, meaning="the index stays as it is", patience_s=PATIENCE_S)
        self._qdrant = Dependency(Process.QDRANT, meaning="the catalogue waits", patience_s=PATIENCE_S)
        self._starting: str | None = "starting"
        self._models_changed = threading.Event()
        self._rollout_waits: str | None = None
        self._followers: list[TopicFollower] = []
        self._failure: BaseException | None = None
        health.add_check("start", lambda: self._starting)
        health.add_check("kafka", self._kafka.not_ready)
        health.add_check("qdrant", self._qdrant.not_ready)
        health.add_check("roll-out", lambda: self._rollout_waits)

    def run(self) -> None:
        """Start and work until asked to stop.

        Raises:
            Stopped: asked to stop in the middle of something.
        """
        settings = self._settings
        self._starting = "waiting for Kafka"
        ensure_topics(settings, wait=self._shutdown.wait)
        owner = Owner(cluster_id(settings, wait=self._shutdown.wait), settings.topic_prefix)
        self._starting = "loading the base encoder"
        encoder = load_encoder(settings.base_model, threads=min(BULK_THREADS, os.cpu_count() or 1))
        self._starting = "waiting for the vector store"
        store = self._open_store(owner)
        store.wait_until_answering(settings.dependency_wait_s, where=settings.qdrant_url or "")
        store.claim(encoder.base_version, take_over=settings.qdrant_take_over)
        with translate_kafka_errors(settings):
            producer = KafkaProducer(**producer_config(settings))
        self._stack.callback(producer.close)
        models = ModelsTable(on_change=self._models_changed.set)
        followed = TopicFollower(settings, MODELS, models.apply, on_new_topic=models.forget, kafka=self._kafka)
        log = VectorsTopic(settings, producer, self._kafka, encoder=encoder, pause=self._shutdown.wait)
        self._read("models", followed)
        self._read("vectors", log.follower)
        writer = ModelsWriter(settings, producer)
        rollout = RollOutLoop(
            self._open_store(owner),  # a connection belongs to one thread
            owner,
            models=models,
            put_in_force=lambda serving, releases=NO_RELEASES: writer.put_in_force(serving, models, releases),
            log=log,
            encoder=encoder,
            pause=self._shutdown.wait,
            refresh_window_s=settings.refresh_window_s,
        )
        self._settle(rollout)
        source = CatalogTopic(settings, self._kafka)
        self._stack.callback(source.close)
        catalogue = CatalogLoop(
            source,
            log,
            store=store,
            encoder=encoder,
            target=rollout.target,
            in_force=_in_force(models, followed),
            pause=self._shutdown.wait,
        )
        self._health.add_check("catalogue", catalogue.waiting_for)
        self._health.add_check("group", source.not_assigned)
        self._health.add_check("releases", rollout.newest_refused)
        auditor = self._auditor(owner, log, encoder, rollout.target)
        auditing = threading.Thread(target=self._run_audits, args=(auditor, source.leads), name="audit", daemon=True)
        auditing.start()
        self.run_loops(rollout, catalogue, leads=source.leads, models_not_read=followed.not_caught_up)
        auditing.join(timeout=5)

    def _auditor(self, owner: Owner, log: VectorsTopic, encoder: Encoder, target: Callable[[], Target]) -> Auditor:

        def vectors() -> Iterator[tuple[str, Encoded]]:
            return ((one.product_id, Encoded.of(one)) for one in chain(log.known.foreign_states(), log.known.states()))

        def base_vectors(product_ids: Collection[str]) -> Mapping[str, BaseProduct]:
            return {name: one for name in product_ids if (one := log.known.get(name)) is not None}

        return Auditor(
            self._settings,
            self._open_store(owner),  # a connection belongs to one thread
            vectors=vectors,
            base_vectors=base_vectors,
            target=target,
            encoder=encoder,
            pause=self._shutdown.wait,
        )

    def _run_audits(self, auditor: Auditor, leads: Callable[[], bool]) -> None:
        """Audit again and again while this indexer leads; what was found is shown and said, and repaired by hand."""
        interval_s = self._settings.audit_interval_s
        while interval_s and not self._shutdown.wait(interval_s):
            try:
                show(auditor.run(seed=epoch_ms(), tell=self._go_on) if leads() else None)
            except Stopped:
                return
            except MillraceError as error:
                get_logger().warning("audit_given_up", error=error.message)
            except Exception as error:  # noqa: BLE001 - whatever it is, the main thread ends the process with it
                if not self._shutdown.is_set():
                    self._failure = error
                    self._shutdown.request()
                return

    def _go_on(self, _what: str, _done: int, _of: int) -> None:
        """Leave an audit in the middle if asked to stop."""
        if self._shutdown.is_set():
            raise Stopped

    def _open_store(self, owner: Owner) -> ProductStore:
        store = ProductStore(connect(self._settings), owner=owner, qdrant=self._qdrant)
        self._stack.callback(store.close)
        return store

    def _read(self, name: str, follower: TopicFollower) -> None:
        self._starting = f"reading {name}"
        self._followers.append(follower)
        self._stack.callback(follower.stop)
        follower.start()
        while not follower.caught_up.wait(POLL_S):
            self._check_followers()
            if self._shutdown.is_set():
                raise Stopped
        self._health.add_check(f"{name} topic", follower.not_caught_up)

    def _check_followers(self) -> None:
        """Raise what ended a follower: going on with a view that stands still would be wrong in silence."""
        for follower in self._followers:
            if follower.failure is not None:
                raise follower.failure

    def _settle(self, rollout: RollOutLoop) -> None:
        """Have releases in force and their collection complete before anything else."""
        while True:
            self._starting = "comparing the index with the base vectors"
            try:
                return rollout.settle()
            except (TransientError, DependencyDown) as error:
                self._starting = error.message
                if self._shutdown.wait(RETRY_S):
                    raise Stopped from error

    def run_loops(
        self,
        rollout: RollOutLoop,
        catalogue: CatalogLoop,
        *,
        leads: Callable[[], bool],
        models_not_read: Callable[[], str | None],
    ) -> None:
        """Run the catalogue loop here and the roll-out loop in a thread, until asked to stop or one of them fails.

        Args:
            rollout: the roll-out loop.
            catalogue: the catalogue loop.
            leads: whether this indexer moves the releases.
            models_not_read: why what `models` holds is not known, None if it is.
        """
        thread = threading.Thread(
            target=self._run_rollout, args=(rollout, leads, models_not_read), name="rollout", daemon=True
        )
        thread.start()
        self._starting = None
        get_logger().info("ready")
        try:
            while not self._shutdown.is_set():
                self._check_followers()
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

    def _run_rollout(
        self, rollout: RollOutLoop, leads: Callable[[], bool], models_not_read: Callable[[], str | None]
    ) -> None:
        """Take steps until asked to stop; an error that does not pass stops the catalogue loop too.

        That loop may be waiting, in the middle of a batch, for what this one does not do any more.
        """
        counted_at = -COUNT_EVERY_S
        while not self._shutdown.is_set():
            self._models_changed.clear()
            try:
                moved = models_not_read() is None and rollout.step(leads=leads())
                if not moved and time.monotonic() - counted_at >= COUNT_EVERY_S:
                    rollout.count_points()
                    if leads():
                        rollout.forget_deletions(epoch_ms() - int(1_000 * self._settings.deletions_kept_s))
                    counted_at = time.monotonic()
            except (TransientError, DependencyDown) as error:
                self._rollout_waits = error.message
                self._shutdown.wait(RETRY_S)
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the main thread ends the process with it
                self._failure = error
                self._shutdown.request()
                return
            self._rollout_waits = None
            if not moved:
                self._models_changed.wait(IDLE_S)


def show(report: Report | None) -> None:
    """Show what an audit found; None of an indexer that does not lead, and so knows of nothing."""
    counts = dict.fromkeys(AuditDifference, 0) if report is None else report.counts()
    for kind, count in counts.items():
        metrics.AUDIT_DIFFERENCES.labels(kind).set(count)
    if report is None:
        return
    metrics.AUDIT_TIME.set_to_current_time()
    found = {str(kind): count for kind, count in counts.items() if count}
    say = get_logger().warning if found else get_logger().info
    say("audited", products=report.products, pending=report.pending, sampled=report.sampled, **found)


def prepare_base(settings: Settings, base_model: str, *, pause: Pause) -> str:
    """Encode with another base what `product-vectors` has of it not yet, while everything goes on; return that base.

    Indexers of the present base pass its vectors over; one of that base then finds its work done.

    Raises:
        Stopped: asked to stop in the middle; what was encoded is kept.
    """
    encoder = load_encoder(base_model, threads=min(BULK_THREADS, os.cpu_count() or 1))
    kafka = Dependency(Process.KAFKA, patience_s=PATIENCE_S)
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        log = VectorsTopic(settings, producer, kafka, encoder=encoder, pause=pause)
        log.follower.start()
        try:
            while not log.follower.caught_up.wait(POLL_S):
                if log.follower.failure is not None:
                    raise log.follower.failure
                if pause(0.0):
                    raise Stopped
            log.complete()
        finally:
            log.follower.stop()
    return encoder.base_version


def _in_force(models: ModelsTable, followed: TopicFollower) -> AskInForce:

    def in_force() -> InForce:
        followed.read_to_end()
        serving = models.serving()
        if serving is None:
            raise TransientError("nothing is in force yet")
        return InForce.of(serving)

    return in_force
