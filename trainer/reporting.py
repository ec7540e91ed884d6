"""What the trainer says of itself: metrics for boards, one log line per fact for people."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from contracts.releases import Kind
from service import metrics
from service.logging import get_logger
from trainer.core.facts import Facts
from trainer.core.learner import Lesson
from trainer.core.records import PairRecord
from trainer.core.releasing import PlannedRelease

STAGE = "trainer"
STEPS_PER_LINE = 20
"""A line per step would be one per second in a busy shop; the metrics have every step."""


class Reporting:
    """Counts and logs; takes no decision."""

    @contextmanager
    def timed(self, lane: str) -> Iterator[None]:
        """Observe how long a step of a lane took; the pending lane is a query lane."""
        started_s = time.perf_counter()
        yield
        tower = "product" if lane == "product" else "query"
        metrics.TRAIN_STEP_SECONDS.labels(tower).observe(time.perf_counter() - started_s)

    def lesson(self, lesson: Lesson, records: Sequence[PairRecord], *, step: int) -> None:
        """Count what became of a micro-batch."""
        for source, count in lesson.trained.items():
            metrics.PAIRS_TRAINED.labels(source).inc(count)
        for reason, count in lesson.dropped.items():
            metrics.PAIRS_DROPPED.labels(reason).inc(count)
        metrics.STAGE_PROGRESS.labels(STAGE).set_to_current_time()
        self._watermarks(records)
        for lane in ("query", "product"):
            self._step(lesson, lane)
        if lesson.dropped:
            get_logger().warning("pairs dropped", **{reason.value: count for reason, count in lesson.dropped.items()})
        if lesson.reports and step % STEPS_PER_LINE == 1:
            report = lesson.reports["query"]
            get_logger().info("trained", step=step, prequential_loss=round(report.dpo, 4), pairs=lesson.trained.total())

    def plan(self, tower: Kind, plan: PlannedRelease, facts: Facts) -> None:
        """Report a decision on a release with its numbers."""
        decision = "held" if plan.held else "released"
        metrics.RELEASES.labels(tower, decision).inc()
        numbers = {check.name: round(check.value, 4) for check in plan.verdict.checks}
        log = get_logger().bind(tower=tower, release=plan.number, pairs_trained=facts.pairs_trained, **numbers)
        if plan.held:
            log.warning("release held", reason=plan.held)
        else:
            log.info("release made", share_of_step=plan.verdict.share)

    def saved(self, now_ms: int) -> None:
        """Report a durable checkpoint."""
        metrics.CHECKPOINT_TIME.set(now_ms / 1000)

    def adopted(self, query_release: int, product_release: int) -> None:
        """Report which pair is in force."""
        metrics.RELEASE_INFO.labels("query").set(query_release)
        metrics.RELEASE_INFO.labels("product").set(product_release)
        get_logger().info("in force", query_release=query_release, product_release=product_release)

    def _step(self, lesson: Lesson, lane: str) -> None:
        """Observe one lane's step."""
        report = lesson.reports.get(lane)
        if report is None:
            return
        metrics.TRAIN_STEPS.labels(lane).inc()
        metrics.TRAIN_LOSS.labels(lane, "dpo").set(report.dpo)
        metrics.TRAIN_LOSS.labels(lane, "multi_positive").set(report.multi_positive)
        metrics.TRAIN_LOSS.labels(lane, "kl").set(report.kl)
        metrics.GRADIENT_NORM.labels(lane).set(report.gradient_norm)
        if not math.isfinite(report.gradient_norm):
            get_logger().error("step_skipped", lane=lane, error="the gradient is not finite", loss_dpo=report.dpo)

    def _watermarks(self, records: Sequence[PairRecord]) -> None:
        """Observe how far in event time each partition has come."""
        for record in records:
            if record.pair is not None:
                metrics.STAGE_WATERMARK.labels(STAGE, str(record.partition)).set(record.pair.closed_at / 1000)
