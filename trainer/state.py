"""The learner's whole state as named arrays and JSON, and back: what a checkpoint holds.

Nothing that influences a later step is left out; a test trains on after a round trip and compares every bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from towers.heads import ProductHead, QueryHead, Towers, head_tensors
from trainer.learner import Learner, LearnerSettings, Products, QueryVectors, TowerVersions
from trainer.memory import FrequencyEstimator, LikedProducts, RecentIds, RecentQueries, TrainingProgress
from trainer.training import LossSettings, TowersInTraining, under


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A learner's state at one moment; later steps do not change it.

    Args:
        tensors: weights, optimisers and fixed-size memories by name.
        numbers: everything else, as JSON.
        outbox: releases that were decided with this state, key -> bytes; a restart publishes those that are missing.
    """

    tensors: Mapping[str, np.ndarray]
    numbers: Mapping[str, Any]
    outbox: Mapping[str, bytes] = field(default_factory=dict)


def snapshot_of(learner: Learner, outbox: Mapping[str, bytes] | None = None) -> Snapshot:
    """Copy a learner's state."""
    versions = learner.versions
    tensors = {
        "pair_ids": learner.pair_ids.to_array(),
        "frequency.last_step": learner.frequencies.last_step.copy(),
        "frequency.gap_steps": learner.frequencies.gap_steps.copy(),
        **_named("released", head_tensors(versions.released)),
        **_named("in_force", versions.in_force.tensors()),
        **_named("candidate", versions.candidate.tensors()),
    }
    if versions.pending is not None and versions.pending_released is not None:
        tensors |= _named("pending_released", head_tensors(versions.pending_released))
        tensors |= _named("pending", versions.pending.tensors())
    numbers = {
        "progress": learner.progress.model_dump(mode="json"),
        "queries": learner.queries.newest(len(learner.queries)),
        "liked": list(learner.liked.by_query.items()),
    }
    return Snapshot(tensors, numbers, dict(outbox or {}))


def learner_from(
    snapshot: Snapshot | None,
    *,
    dim: int,
    settings: LearnerSettings,
    products: Products,
    query_vectors: QueryVectors,
) -> Learner:
    """Make the learner that a snapshot was taken of.

    Args:
        snapshot: None for a learner that has seen nothing: every head is the identity.
        dim: width of the base vectors.
        settings: how to learn on.
        products: base vectors of the catalogue.
        query_vectors: base vectors of texts.
    """
    if snapshot is None:
        untrained = TowerVersions.begin(Towers(QueryHead(dim), ProductHead(dim)), settings=settings.loss)
        return Learner(untrained, TrainingProgress(), settings=settings, products=products, query_vectors=query_vectors)
    tensors, numbers = snapshot.tensors, snapshot.numbers
    progress = TrainingProgress.model_validate(numbers["progress"])
    learner = Learner(
        _versions(tensors, settings=settings.loss, pending=progress.pending is not None),
        progress,
        settings=settings,
        products=products,
        query_vectors=query_vectors,
    )
    learner.pair_ids = RecentIds(tensors["pair_ids"])
    learner.queries = RecentQueries(numbers["queries"])
    learner.liked = LikedProducts(dict(numbers["liked"]))
    learner.frequencies = FrequencyEstimator(
        tensors["frequency.last_step"].copy(), tensors["frequency.gap_steps"].copy()
    )
    return learner


def _versions(tensors: Mapping[str, np.ndarray], *, settings: LossSettings, pending: bool) -> TowerVersions:
    versions = TowerVersions(
        in_force=TowersInTraining.from_tensors(under(tensors, "in_force."), settings=settings),
        released=QueryHead.from_tensors(under(tensors, "released.")),
        candidate=TowersInTraining.from_tensors(under(tensors, "candidate."), settings=settings, joint=True),
    )
    if pending:
        versions.pending = TowersInTraining.from_tensors(under(tensors, "pending."), settings=settings)
        versions.pending_released = QueryHead.from_tensors(under(tensors, "pending_released."))
    return versions


def _named(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
