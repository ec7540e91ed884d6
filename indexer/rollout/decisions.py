"""Which step comes next: a pure function of what `models` and the vector store hold.

A query release comes into force by itself. A product release is written into the collection in force, where quality
moves, and comes into force then. Nothing of it is kept on disk: after a crash the same state leads to the same steps,
and steps taken twice change nothing. Another base needs another collection, which is made at a start (`loop.settle`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from contracts.releases import Kind, ReleaseManifest, Rollback, Serving

# Why the collection in force lacks no change, and no product the quality of the product release in force, whichever
# indexers write and whenever one of them crashes. The moment that counts is when Kafka acknowledges the `serving`
# record that changes (collection, product release). A writer
#   (1) has its base vector acknowledged on `product-vectors`,
#   (2) writes its point to the collection it knows, with the quality of the product release it knows,
#   (3) reads `models` to its end, and goes back to (2) unless what is in force is what it wrote,
#   (4) commits.
# Whoever leads has compared the collection with the base vectors since it began to lead: of each product it knows the
# version whose quality is stored, and that quality. Once it has seen the record, it
#   (5) reads `product-vectors` to its end,
#   (6) writes, newer-only, each product whose base vector is newer than the version it knows, and each whose quality
#       is not the one it knows.
# If (3) came after the record, the writer has seen it and does not commit before its point has that quality.
# If (3) came before the record, so did (1): then (5) reads that base vector and (6) writes it. The point of (2) does
# not keep it out, for it is of the same version and of an older product release.
# A writer that ends before (4) has committed nothing: the next owner of the partition takes all four steps.
# A leader that ends before (6) is done has noted nothing: the next one begins to lead, compares, and takes (5) and (6).
# A stalled leader writes what the next one writes too, or older, which is refused.
# So what is written before the record decides only how little (6) finds.
#
# A version is stored with the quality of an older release if that differs by QUALITY_TOLERANCE at most; a repeated
# write may bring it to the release in force meanwhile. Both lie within the tolerance of what the leader knows, hence
# within twice the tolerance of what is in force. And a point may be ahead, if a leader ended in the middle of a
# release that was taken back then: it is right again with the next product release.

QUALITY_TOLERANCE: Final = 0.01
"""Nats. A point is written again if its quality moved by more: products this near to one another swap places unseen."""

ReleaseId = tuple[Kind, int]


@dataclass(frozen=True, slots=True)
class State:
    """All that decides the next step.

    Args:
        serving: the releases in force; None on a deployment that never served.
        leads: whether this indexer is the one that moves releases; the others follow.
        repaired: whether this process compared the collection with the base vectors since that came into force and
            since it leads.
        releases: that there are, and may come into force.
        alias_target: the collection that the alias names.
        collections: ours, with their numbers.
        rollback: that was asked for and not answered yet.
    """

    serving: Serving | None = None
    leads: bool = True
    repaired: bool = True
    releases: frozenset[ReleaseId] = frozenset()
    alias_target: str | None = None
    collections: Mapping[str, int] = field(default_factory=dict)
    rollback: Rollback | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Make or take up a collection, fill it, and put the newest releases that can be used here in force with it."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Write into the collection in force what it lacks of the base vectors and of quality; make it if it is missing."""


@dataclass(frozen=True, slots=True)
class PublishAlias:
    """Let the alias name the collection in force again."""


@dataclass(frozen=True, slots=True)
class ReleaseQuery:
    """Verify a query release and put it in force, whatever product release is: over one base they fit one another."""

    query_release: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """Put an older query release in force at once, and release the quality of products that belongs to it anew."""

    request: Rollback


@dataclass(frozen=True, slots=True)
class Refresh:
    """Verify a product release, write the next points whose quality it moves; after the last, put it in force."""

    product_release: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a collection that nothing needs any more."""

    collection: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes."""


Step = Begin | RollBack | Repair | PublishAlias | ReleaseQuery | Refresh | Drop | Wait


def next_step(state: State) -> Step:
    """Return the next step.

    Order: something to serve; a rollback; serve it completely; newest query release, also in the middle of a refresh;
    newest product release; tidy up.
    """
    serving = state.serving
    if serving is None:
        return Begin()
    if not state.leads:
        return Wait()
    return _leading(state, serving)


def _leading(state: State, serving: Serving) -> Step:
    if state.rollback is not None:
        return RollBack(state.rollback)
    if not state.repaired:
        return Repair()
    if state.alias_target != serving.collection:
        return PublishAlias()
    if (query := _newest(state, "query")) > serving.query_release:
        return ReleaseQuery(query)
    if (product := _newest(state, "product")) > serving.product_release:
        return Refresh(product)
    if superfluous := _superfluous(state.collections, serving):
        return Drop(superfluous)
    return Wait()


def _newest(state: State, kind: Kind) -> int:
    return max((number for its_kind, number in state.releases if its_kind == kind), default=0)


def _superfluous(collections: Mapping[str, int], serving: Serving) -> str | None:
    """Return the next collection to delete: older than the one in force, and not the one before it.

    One with a higher number is being filled by an indexer of another base.
    """
    in_force = collections.get(serving.collection, 0)
    older = {number: name for name, number in collections.items() if number < in_force}
    return next((older[number] for number in sorted(older) if older[number] != serving.previous_collection), None)


def newest_refused(
    serving: Serving, manifests: Iterable[ReleaseManifest], refused: Mapping[ReleaseId, str]
) -> str | None:
    """Return why nothing newer comes into force, None if the newest release of each tower was not refused.

    Args:
        serving: the releases in force.
        manifests: of the releases that there are.
        refused: release -> the reason.
    """
    newest: dict[Kind, int] = {"product": serving.product_release, "query": serving.query_release}
    for manifest in manifests:
        newest[manifest.kind] = max(manifest.release, newest[manifest.kind])
    reasons = (
        f"{kind}-{number} was refused: {refused[kind, number]}"
        for kind, number in newest.items()
        if (kind, number) in refused
    )
    return next(reasons, None)


MOST_PAUSE_S: Final = 0.25


def pause_s(write_s: float, batches_left: int, time_left_s: float) -> float:
    """Return how long to leave the vector store to its searches after a batch.

    As long as the write took, so that half of the store's time is the searches'; less if the refresh window would
    be missed otherwise.

    >>> pause_s(0.1, 10, 900.0), pause_s(3.0, 10, 900.0), pause_s(0.1, 1000, 50.0)
    (0.1, 0.25, 0.0)
    """
    spare_s = time_left_s / max(batches_left, 1) - write_s
    return max(0.0, min(write_s, MOST_PAUSE_S, spare_s))
