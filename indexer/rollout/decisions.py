"""Which step a roll-out takes next: a pure function of what `models` and the vector store hold.

A second collection is made and gets every new write from then on; it is filled from the base vectors and checked; query
head and collection switch as one; the collection is compared with the base vectors once more. Nothing of it is kept on
disk: after a crash the same state leads to the same steps, and steps taken twice change nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from contracts.releases import Kind, ReleaseManifest, Serving

# Why the collection in force lacks no change, whichever indexers write and whenever one of them crashes. The moment
# that counts is when Kafka acknowledges the `serving` record that changes it. A writer
#   (1) has its base vector acknowledged on `product-vectors`,
#   (2) writes to the collections that it knows,
#   (3) reads `models` to its end, and goes back to (2) unless the collection in force has the change,
#   (4) commits.
# Whoever leads, once it has seen the record,
#   (5) reads `product-vectors` to its end,
#   (6) writes what the collection lacks of the base vectors, newer-only.
# If (3) came after the record, the writer has seen it and does not commit before the collection has the change.
# If (3) came before the record, so did (1): then (5) reads that base vector and (6) writes it.
# A writer that ends before (4) has committed nothing: the next owner of the partition takes all four steps.
# A leader that ends before (6) is done has noted nothing: the next one has not repaired this collection since it came
# into force, or has just started, and both mean (5) and (6).
# So writing to both collections, the fill and the check decide only how little (6) finds.

CHECK_ATTEMPTS: Final = 5
"""How often a new collection is checked before its release is given up."""

ReleaseId = tuple[Kind, int]


@dataclass(frozen=True, slots=True)
class Construction:
    """A collection under construction. It receives every new write from the moment it exists."""

    product_release: int
    filled: bool = False
    checked: bool = False
    failed_checks: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """All that decides the next step.

    Args:
        serving: the releases in force; None on a deployment that never served.
        leads: whether this indexer is the one that moves releases; the others only write along.
        repaired: whether this process compared the collection in force with the base vectors since it came into force.
        query_releases: query release -> the product release that it was trained for.
        product_releases: product release -> its first query release.
        refused: releases that failed their verification here.
        construction: the collection under construction, if there is one.
        alias_target: product release that the alias points at, if it is one of ours.
        collections: product releases of which a collection exists.
        previous: product release of the collection kept for a rollback.
    """

    serving: Serving | None = None
    leads: bool = True
    repaired: bool = True
    query_releases: Mapping[int, int] = field(default_factory=dict)
    product_releases: Mapping[int, int] = field(default_factory=dict)
    refused: frozenset[ReleaseId] = frozenset()
    construction: Construction | None = None
    alias_target: int | None = None
    collections: frozenset[int] = frozenset()
    previous: int | None = None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Make the first collection and publish release 0 of both towers."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Write into the collection in force what it lacks of the base vectors; make it if it is missing."""


@dataclass(frozen=True, slots=True)
class PublishAlias:
    """Let the alias name the collection in force again."""

    product_release: int


@dataclass(frozen=True, slots=True)
class ReleaseQuery:
    """Verify a query release and put it in force for the product release that is."""

    query_release: int


@dataclass(frozen=True, slots=True)
class Build:
    """Verify a product release, make its collection and let every write go there too."""

    product_release: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Write the next batch of base vectors into the collection under construction."""


@dataclass(frozen=True, slots=True)
class Check:
    """Compare the collection under construction with the base vectors and the one in force."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Verify the query release and put (query head, collection under construction) in force as one."""

    query_release: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop the construction: its release was refused or taken back."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a collection that nothing needs any more."""

    product_release: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes; the reason is empty if all is done."""

    reason: str = ""


Step = Bootstrap | Repair | PublishAlias | ReleaseQuery | Build | Fill | Check | Switch | GiveUp | Drop | Wait


def next_step(state: State) -> Step:
    """Return the next step.

    Order: something to serve; serve it completely; newest query head (also in the middle of a roll-out); roll out the
    next product release; tidy up.
    """
    if state.serving is None:
        return Bootstrap()
    if not state.leads:
        return _write_along(state, state.serving)
    if not state.repaired:
        return Repair()
    if state.alias_target != state.serving.product_release:
        return PublishAlias(state.serving.product_release)
    query = _newest_query(state, state.serving.product_release, above=state.serving.query_release)
    if query is not None:
        return ReleaseQuery(query)
    return _roll_out(state, state.serving) or _tidy_up(state, state.serving) or Wait()


def _write_along(state: State, serving: Serving) -> Step:
    """Return what an indexer does that does not lead: write wherever the leader may be filling."""
    candidate = _candidate(state, serving)
    if state.construction is not None and state.construction.product_release != candidate:
        return GiveUp()
    if state.construction is None and candidate is not None:
        return Build(candidate)
    return Wait()


def _roll_out(state: State, serving: Serving) -> Step | None:
    """Return the next step of the roll-out in progress or due, None if there is none."""
    candidate, construction = _candidate(state, serving), state.construction
    if construction is not None and construction.product_release != candidate:
        return GiveUp()
    if candidate is None:
        return None
    if construction is None:
        return Build(candidate)
    if not construction.filled:
        return Fill()
    if not construction.checked:
        return Check()
    query = _newest_query(state, candidate, above=state.product_releases[candidate] - 1)
    if query is None:
        return Wait(f"the first query release of product-{candidate} is not there or was refused")
    return Switch(query)


def _candidate(state: State, serving: Serving) -> int | None:
    """Return the product release to roll out: the one under construction, so that it ends, else the newest."""
    newer = [
        release
        for release in state.product_releases
        if release > serving.product_release and ("product", release) not in state.refused
    ]
    if state.construction is not None and state.construction.product_release in newer:
        return state.construction.product_release
    return max(newer, default=None)


def _newest_query(state: State, product_release: int, *, above: int) -> int | None:
    usable = (
        release
        for release, trained_for in state.query_releases.items()
        if trained_for == product_release and release > above and ("query", release) not in state.refused
    )
    return max(usable, default=None)


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


def _tidy_up(state: State, serving: Serving) -> Step | None:
    """Return the next collection to delete: all but the one in force and the one before."""
    kept = {serving.product_release, state.previous}
    if state.previous is None:
        kept.add(max((release for release in state.collections if release < serving.product_release), default=0))
    superfluous = state.collections - kept
    return Drop(min(superfluous)) if superfluous else None


MOST_PAUSE_S: Final = 0.25


def pause_s(write_s: float, batches_left: int, time_left_s: float) -> float:
    """Return how long to leave the vector store to its searches after a batch of a fill.

    As long as the write took, so that half of the store's time is the searches'; less if the refresh window would
    be missed otherwise.

    >>> pause_s(0.1, 10, 900.0), pause_s(3.0, 10, 900.0), pause_s(0.1, 1000, 50.0)
    (0.1, 0.25, 0.0)
    """
    spare_s = time_left_s / max(batches_left, 1) - write_s
    return max(0.0, min(write_s, MOST_PAUSE_S, spare_s))
