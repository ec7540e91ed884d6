"""The learner's whole state as named arrays and JSON, and back: what a checkpoint holds.

Nothing that influences a later step is left out; a test trains on after a round trip and compares every bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from towers.heads import ProductHead, QueryHead, head_tensors
from trainer.core.facts import Facts
from trainer.core.frequency import FrequencyEstimator
from trainer.core.lanes import Lane, under
from trainer.core.learner import Lanes, Learner, LearnerSettings, Products
from trainer.core.memory import LikedProducts, RecentIds, RecentQueries


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state at rest.

    Args:
        tensors: weights, optimisers and fixed-size memories by name.
        facts: everything else, as JSON.
        outbox: releases that were decided with this state, key -> bytes; a restart publishes those that are missing.
    """

    tensors: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    outbox: Mapping[str, bytes] = field(default_factory=dict)


def fresh_learner(
    dim: int,
    *,
    settings: LearnerSettings,
    products: Products,
    query_vectors: Callable[[Sequence[str]], np.ndarray],
) -> Learner:
    """Return a learner that has seen nothing: every head is the identity."""
    loss = settings.loss
    lanes = Lanes(
        in_force=Lane(QueryHead(dim), ProductHead(dim), settings=loss),
        released=QueryHead(dim),
        candidate=Lane(QueryHead(dim), ProductHead(dim), settings=loss, joint=True),
    )
    return Learner(lanes, Facts(), settings=settings, products=products, query_vectors=query_vectors)


def snapshot_of(learner: Learner, outbox: Mapping[str, bytes] | None = None) -> Snapshot:
    """Return a learner's state; later steps do not change it."""
    lanes = learner.lanes
    tensors = {
        "pair_ids": learner.pair_ids.to_array(),
        "frequency.last_step": learner.frequencies.last_step.copy(),
        "frequency.gap_steps": learner.frequencies.gap_steps.copy(),
        **_named("released", head_tensors(lanes.released)),
        **_named("in_force", lanes.in_force.tensors()),
        **_named("candidate", lanes.candidate.tensors()),
    }
    if lanes.pending is not None and lanes.pending_released is not None:
        tensors |= _named("pending_released", head_tensors(lanes.pending_released))
        tensors |= _named("pending", lanes.pending.tensors())
    facts = {
        "numbers": learner.facts.model_dump(mode="json"),
        "queries": learner.queries.newest(len(learner.queries)),
        "liked": list(learner.liked.by_query.items()),
    }
    return Snapshot(tensors, facts, dict(outbox or {}))


def restored_learner(
    snapshot: Snapshot,
    *,
    settings: LearnerSettings,
    products: Products,
    query_vectors: Callable[[Sequence[str]], np.ndarray],
) -> Learner:
    """Return the learner that a snapshot was taken of."""
    tensors = snapshot.tensors
    facts = Facts.model_validate(snapshot.facts["numbers"])
    learner = Learner(
        _restored_lanes(tensors, settings=settings, pending=facts.pending is not None),
        facts,
        settings=settings,
        products=products,
        query_vectors=query_vectors,
    )
    learner.pair_ids = RecentIds(tensors["pair_ids"])
    learner.queries = RecentQueries(snapshot.facts["queries"])
    learner.liked = LikedProducts(dict(snapshot.facts["liked"]))
    learner.frequencies = FrequencyEstimator(
        tensors["frequency.last_step"].copy(), tensors["frequency.gap_steps"].copy()
    )
    return learner


def _restored_lanes(tensors: Mapping[str, np.ndarray], *, settings: LearnerSettings, pending: bool) -> Lanes:
    """Return the lanes of a snapshot."""
    loss = settings.loss
    lanes = Lanes(
        in_force=Lane.from_tensors(under(tensors, "in_force."), settings=loss),
        released=QueryHead.from_tensors(under(tensors, "released.")),
        candidate=Lane.from_tensors(under(tensors, "candidate."), settings=loss, joint=True),
    )
    if pending:
        lanes.pending = Lane.from_tensors(under(tensors, "pending."), settings=loss)
        lanes.pending_released = QueryHead.from_tensors(under(tensors, "pending_released."))
    return lanes


def _named(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors with a prefix to their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
