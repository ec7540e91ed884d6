"""How far the trainer has come, and everything it knows, as a checkpoint holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from pydantic import BaseModel

from contracts.releases import ReleaseManifest

OF_THE_BASE: Final = ("evidence.query_vectors", "preference.")
"""Names of what a learner knows, or their beginnings, that mean nothing over another base model."""


Ranges = Mapping[str, Sequence[tuple[int, int]]]
"""By place, offsets from the first number of each pair up to the second, which does not belong to it; rising."""


def joined(one: Ranges, other: Ranges) -> dict[str, list[tuple[int, int]]]:
    """What lies in either; ranges that meet become one.

    >>> joined({"a": [(2, 4)]}, {"a": [(4, 7), (9, 9)], "b": [(0, 3)]})
    {'a': [(2, 7)], 'b': [(0, 3)]}
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for place in sorted({*one, *other}):
        kept: list[tuple[int, int]] = []
        for low, high in sorted((*one.get(place, ()), *other.get(place, ()))):
            if kept and low <= kept[-1][1]:
                kept[-1] = kept[-1][0], max(high, kept[-1][1])
            elif low < high:
                kept.append((low, high))
        if kept:
            found[place] = kept
    return found


def of_this_log(ranges: Ranges, known: Mapping[str, int], ends: Mapping[str, int]) -> Ranges:
    """Those of a log that was not made anew since: one that ends before what was known of it holds other records.

    >>> of_this_log({"a": [(2, 4)], "b": [(2, 4)]}, {"a": 9, "b": 9}, {"a": 9, "b": 8})
    {'a': [(2, 4)]}
    """
    return {
        place: kept
        for place, kept in ranges.items()
        if max(known.get(place, 0), *(high for _, high in kept)) <= ends.get(place, 0)
    }


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
    catch_up: dict[str, int] = {}
    """Place -> offset that has to be reached before anything is released: the log is read again up to there."""
    kept_for: list[int] = []
    """Query releases that a step back may go to: the state of each is kept."""
    left_out: dict[str, list[tuple[int, int]]] = {}
    """Records that rollbacks took back, by place: they are never learned from again."""

    def over_another_base(self) -> "Progress":
        """The same counts over another base model: no release is gone on from, and one is due at once."""
        none = {"query_release": 0, "product_release": 0, "query_parent": 0, "product_parent": 0}
        return self.model_copy(update={**none, "decided_records": -1, "query_decided_ms": 0, "product_decided_ms": 0})


def cut_of(manifest: ReleaseManifest | None, ends: Mapping[str, int]) -> dict[str, int]:
    """The offsets up to which a release knew the log, as far as it goes now: its topics may have been made anew.

    Manifests of former versions name no topic.
    """
    offsets = {} if manifest is None else manifest.offsets
    return {place: min(offset, ends.get(place, 0)) for place, offset in offsets.items() if "/" in place}


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
