"""What the trainer says of itself: metrics for boards, one log line per fact for people."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from contracts.releases import Kind
from contracts.telemetry import Process
from service import metrics
from service.logging import get_logger
from trainer.learner import BatchOutcome, PairRecord
from trainer.memory import TrainingProgress
from trainer.release.planning import PlannedRelease
from trainer.training import StepReport

STEPS_PER_LINE: Final = 20
"""A line per step would be one per second in a busy shop; the metrics have every step."""


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Observe how long a step took; that of the pending query head counts as a query step."""
    started_s = time.perf_counter()
    yield
    tower = "product" if name == "product" else "query"
    metrics.TRAIN_STEP_SECONDS.labels(tower).observe(time.perf_counter() - started_s)


def batch(outcome: BatchOutcome, records: Sequence[PairRecord], *, step: int) -> None:
    """Count what became of a micro-batch."""
    for source, count in outcome.trained.items():
        metrics.PAIRS_TRAINED.labels(source).inc(count)
    for reason, count in outcome.dropped.items():
        metrics.PAIRS_DROPPED.labels(reason).inc(count)
    metrics.STAGE_PROGRESS.labels(Process.TRAINER).set_to_current_time()
    for record in records:
        if record.pair is not None:
            metrics.STAGE_WATERMARK.labels(Process.TRAINER, str(record.partition)).set(record.pair.closed_at / 1000)
    for tower in ("query", "product"):
        if tower in outcome.steps:
            _step(tower, outcome.steps[tower])
    if outcome.dropped:
        get_logger().warning("pairs_dropped", **{reason.value: count for reason, count in outcome.dropped.items()})
    if outcome.steps and step % STEPS_PER_LINE == 1:
        loss = round(outcome.steps["query"].dpo, 4)
        get_logger().info("trained", step=step, prequential_loss=loss, pairs=outcome.trained.total())


def decision(tower: Kind, plan: PlannedRelease, progress: TrainingProgress) -> None:
    """Report a decision on a release with its numbers."""
    metrics.RELEASES.labels(tower, "held" if plan.refusal else "released").inc()
    numbers = {check.name: round(check.value, 4) for check in plan.verdict.checks}
    log = get_logger().bind(tower=tower, release=plan.number, pairs_trained=progress.pairs_trained, **numbers)
    if plan.refusal:
        log.warning("release_held", reason=plan.refusal)
    else:
        log.info("release_made", share_of_step=plan.verdict.share)


def saved(now_ms: int) -> None:
    """Report a durable checkpoint."""
    metrics.CHECKPOINT_TIME.set(now_ms / 1000)


def adopted(query_release: int, product_release: int) -> None:
    """Report which pair is in force."""
    metrics.RELEASE_INFO.labels("query").set(query_release)
    metrics.RELEASE_INFO.labels("product").set(product_release)
    get_logger().info("in_force", query_release=query_release, product_release=product_release)


def _step(tower: str, report: StepReport) -> None:
    metrics.TRAIN_STEPS.labels(tower).inc()
    metrics.TRAIN_LOSS.labels(tower, "dpo").set(report.dpo)
    metrics.TRAIN_LOSS.labels(tower, "multi_positive").set(report.multi_positive)
    metrics.TRAIN_LOSS.labels(tower, "kl").set(report.kl)
    metrics.GRADIENT_NORM.labels(tower).set(report.gradient_norm)
    if not math.isfinite(report.gradient_norm):
        get_logger().error("step_skipped", tower=tower, error="the gradient is not finite", loss_dpo=report.dpo)
