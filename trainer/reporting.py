"""What the trainer says of itself: metrics for boards, one log line per fact for people."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from contracts.telemetry import ListOutcome, PairDropReason, Process
from contracts.topics import TRAINING_SEARCHES
from service import metrics
from service.logging import get_logger
from trainer.learner import Learner, Solved
from trainer.records import LogRecord
from trainer.release.planning import PlannedRelease
from trainer.state import Progress

SOUGHT_TOLD: Final = 10
"""Products that are named at most."""


@contextmanager
def timed(what: Literal["weights", "prior"]) -> Iterator[None]:
    """Observe how long a solve took."""
    started_s = time.perf_counter()
    yield
    metrics.SOLVE_SECONDS.labels(what).observe(time.perf_counter() - started_s)


def record(taken: LogRecord, outcome: ListOutcome | PairDropReason | None) -> None:
    """Count what became of a record; a pair without a reason against it is counted by its source."""
    metrics.STAGE_PROGRESS.labels(Process.TRAINER).set_to_current_time()
    if taken.topic == TRAINING_SEARCHES:
        metrics.LISTS_READ.labels(outcome).inc()
        closed_at = getattr(taken.content, "closed_at", None)
        if closed_at is not None:
            metrics.STAGE_WATERMARK.labels(Process.TRAINER, str(taken.partition)).set(closed_at / 1000)
    elif outcome is None:
        metrics.PAIRS_TRAINED.labels(getattr(taken.content, "source", "")).inc()
    else:
        metrics.PAIRS_DROPPED.labels(outcome).inc()


def prior(learner: Learner) -> None:
    """Report what left-out queries say of what is learned."""
    gain, error = learner.gain()
    if gain is None or error is None:
        return
    metrics.GAIN_NATS.labels("mean").set(gain)
    metrics.GAIN_NATS.labels("error").set(error)
    widths = {name: round(value, 3) for name, value in learner.prior().items()}
    lists = learner.evidence.table.lists
    debiasing = learner.debiasing()
    for name, value in debiasing.items():
        metrics.DEBIASING.labels(name).set(value)
    get_logger().info("debiasing_judged", **{name: round(value, 4) for name, value in debiasing.items()})
    get_logger().info("prior_learned", lists=lists, gain_nats=round(gain, 4), gain_error=round(error, 4), **widths)
    evidence = learner.evidence
    sought = evidence.table.sought()
    if len(sought):
        names = [evidence.products.texts[product] for product in sought[:SOUGHT_TOLD].tolist()]
        get_logger().warning("products_sought", count=len(sought), products=names)


def solved(found: Solved, learner: Learner) -> None:
    """Report a cut; a solver that ran out of its budget keeps the best that it found, and says so."""
    table = learner.evidence.table
    metrics.EVIDENCE_CELLS.set(len(table))
    metrics.EVIDENCE_DROPPED.set(table.dropped)
    metrics.EVIDENCE_SOUGHT.set(found.sought)
    metrics.RULES_ASKED.set(found.rules_asked)
    if not found.converged:
        get_logger().warning("solver_out_of_budget", iterations=found.iterations, cells=len(table))


def decision(plan: PlannedRelease, progress: Progress) -> None:
    """Report a decision on a release with its numbers."""
    kinds = {"query"} | {key.partition("-")[0] for key in plan.values}
    for kind in kinds:
        metrics.RELEASES.labels(kind, "held" if plan.refusal else "released").inc()
    numbers = {check.name: round(check.value, 4) for check in plan.verdict.checks}
    log = get_logger().bind(release=plan.query_release, lists_trained=progress.lists_trained, **numbers)
    if plan.refusal:
        log.warning("release_held", reason=plan.refusal)
    else:
        log.info("release_made", releases=list(plan.values), share_of_step=plan.verdict.share)


def saved(now_ms: int) -> None:
    """Report a durable checkpoint."""
    metrics.CHECKPOINT_TIME.set(now_ms / 1000)


def adopted(query_release: int, product_release: int) -> None:
    """Report which pair is in force."""
    metrics.RELEASE_INFO.labels("query").set(query_release)
    metrics.RELEASE_INFO.labels("product").set(product_release)
    get_logger().info("in_force", query_release=query_release, product_release=product_release)
