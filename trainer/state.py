"""How far the trainer has come, and everything it knows, as a checkpoint holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from pydantic import BaseModel

OF_THE_BASE: Final = ("evidence.query_vectors", "preference.")
"""Names of what a learner knows, or their beginnings, that mean nothing over another base model."""


class CatchUp(BaseModel):
    """The log is being read again because the state of that time is lost; nothing is released meanwhile."""

    cut: dict[str, int]
    """Place -> offset that has to be reached."""
    then: dict[str, int] | None = None
    """After a rollback: where reading goes on. What lies between the cut and these offsets is left out."""


class Progress(BaseModel):
    """Positions, counts, releases."""

    offsets: dict[str, int] = {}
    """`topic/partition` -> offset of the next record to learn from."""
    fence: int = 0
    """Grows with every trainer that takes over."""
    last_query_release: int = 0
    """Highest number given out; numbers only grow."""
    last_product_release: int = 0
    query_release: int = 0
    """In force, as `serving` says."""
    product_release: int = 0
    withdrawn: int = 0
    """The highest query release that a rollback took back, as `serving` says."""
    taken_back: list[tuple[int, int]] = []
    """Of each rollback the query release that was gone back to, and the highest one that was taken back by it."""
    query_parent: int = 0
    """Last release of each kind that was made, or that was adopted since: the next one goes on from it."""
    product_parent: int = 0
    pairs_trained: int = 0
    lists_trained: int = 0
    records: int = 0
    """Records that changed the evidence."""
    decided_records: int = 0
    """The same at the last decision on a release, whether it was made or refused."""
    query_decided_ms: int = 0
    product_decided_ms: int = 0
    """When products were last released, or when learning began."""
    products_wait: bool = False
    """Whether a quality moved and no product release carries it yet."""
    catch_up: CatchUp | None = None

    def over_another_base(self) -> "Progress":
        """The same counts over another base model: no release is gone on from, and one is due at once."""
        none = {"query_release": 0, "product_release": 0, "query_parent": 0, "product_parent": 0}
        return self.model_copy(update={**none, "decided_records": -1, "query_decided_ms": 0, "product_decided_ms": 0})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The trainer's state at one moment; later records do not change it.

    Args:
        tensors: what the learner knows, by name.
        progress: how far it has come.
        outbox: releases that were decided with this state, key -> bytes; a restart publishes those that are missing.
    """

    tensors: Mapping[str, np.ndarray]
    progress: Progress
    outbox: Mapping[str, bytes] = field(default_factory=dict)
