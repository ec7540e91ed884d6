"""Decides on releases while the trainer runs: follows what arms count, writes decisions, asks for what they want."""

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pydantic import TypeAdapter

from contracts.arms import ANCHOR, LIVE, ArmsProgress, groups_of
from contracts.decisions import Decision, Decisions, HeldOutLook
from contracts.errors import ContractError
from contracts.releases import Rollback, Serving
from contracts.wire import decode
from service import metrics
from service.logging import get_logger
from service.models import ModelsTable, ModelsView
from trainer.release.gate import Facts, decide, owed_rollback

LOOK_MS: Final = 5_000
"""How often it is looked at what was counted; intervals hold however often that is."""
SHOWN_WITHIN_S: Final = 10.0
PROGRESS: Final[TypeAdapter[ArmsProgress]] = TypeAdapter(ArmsProgress)


class ArmsTable:
    """What the arms agent has counted, by partition: fed by a follower's thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: dict[int, ArmsProgress] = {}
        self._unreadable: set[bytes] = set()
        """Keys whose newest record cannot be read: one comes every second."""

    def apply(self, key: bytes, value: bytes | None, _timestamp_ms: int = 0) -> None:
        """Take one record of the topic; one that came further stays, for a worker that was stopped may write late."""
        if value is None:
            return
        try:
            progress = decode(value, PROGRESS)
        except ContractError as error:
            if key not in self._unreadable:
                get_logger().error("progress_unreadable", key=key.decode(errors="replace"), error=error.message)
            self._unreadable.add(key)
            return
        self._unreadable.discard(key)
        with self._lock:
            if progress.supersedes(self._progress.get(progress.partition)):
                self._progress[progress.partition] = progress

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew."""
        with self._lock:
            self._progress.clear()
        self._unreadable.clear()

    def look(self) -> Sequence[ArmsProgress]:
        """Return what was counted last, partition by partition."""
        with self._lock:
            return [*self._progress.values()]


class DecisionWriter(Protocol):
    """Writes to `models`; every call returns after Kafka's acknowledgement."""

    def decide(self, decisions: Decisions) -> None:
        """Write what was decided."""

    def ask_for(self, rollback: Rollback) -> None:
        """Ask the indexer that leads for a rollback."""


class Decider:
    """Looks at the arms from time to time.

    A decision is written before what it wants is asked for: whoever takes over finds what is owed.

    Args:
        models: what is in force and what was decided.
        arms: what was counted.
        writer: of decisions.
        settle_ms: how long lists go on coming in after they were shown.
        held_out: gives the last look at held-out lists, None if they are not looked at.
    """

    def __init__(
        self,
        models: ModelsTable,
        arms: ArmsTable,
        *,
        writer: DecisionWriter,
        settle_ms: int,
        held_out: Callable[[], HeldOutLook | None] = lambda: None,
    ) -> None:
        self._models = models
        self._arms = arms
        self._writer = writer
        self._settle_ms = settle_ms
        self._held_out = held_out
        self._looked_ms = -LOOK_MS

    def look(self, now_ms: int) -> None:
        """Decide, if it is time to look again, and ask for what is owed."""
        view = self._models.look()
        if 0 <= now_ms - self._looked_ms < LOOK_MS or view.serving is None:
            return
        self._looked_ms = now_ms
        before = view.decisions
        if before is None or owed_rollback(before, view.serving, view.rollback) is None:
            decisions = decide(before, self._facts(view, view.serving), now_ms=now_ms)
            if decisions != before:
                number = 0 if before is None else before.number + 1
                self._write(decisions.model_copy(update={"number": number}), before)
        self._ask()

    def _facts(self, view: ModelsView, serving: Serving) -> Facts:
        found = self._arms.look()
        return Facts(
            counted={arm: groups_of(found, arm) for arm in (LIVE, ANCHOR)},
            serving=serving,
            manifests=[*view.manifests.values()],
            counted_to_ms=max((one.newest_closed_ms for one in found), default=-1),
            promotion=view.promotion,
            rollback=view.rollback,
            settle_ms=self._settle_ms,
            held_out=self._held_out(),
        )

    def _write(self, decisions: Decisions, before: Decisions | None) -> None:
        """Write what was decided and wait until `models` shows it; else it is decided again, by what it shows then."""
        self._writer.decide(decisions)
        is_shown = self._models.wait_until(lambda view: view.decisions == decisions, SHOWN_WITHIN_S)
        if is_shown and decisions.latest is not None and (before is None or decisions.latest != before.latest):
            _report(decisions.latest)

    def _ask(self) -> None:
        """Ask for the rollback that is owed, unless somebody's waits for its answer."""
        view = self._models.look()
        if view.decisions is None or view.serving is None or view.rollback_due() is not None:
            return
        if (rollback := owed_rollback(view.decisions, view.serving, view.rollback)) is not None:
            self._writer.ask_for(rollback)


def _report(decision: Decision) -> None:
    metrics.DECISIONS.labels(decision.verdict).inc()
    log = get_logger().warning if decision.verdict == "stepped_back" else get_logger().info
    log("decided", verdict=decision.verdict, by=decision.by, basis=decision.basis, query_release=decision.query_release,
        subject=decision.subject, reason=decision.reason)  # fmt: skip
