"""Which step the models lane takes next: a pure function of what stands on `models` and in the vector store.

One product release comes into force like this: a second collection is made and receives every new write from then on;
it is filled from the base vectors; it is checked; (query head, collection) switch as one; it is compared with the base
vectors once more. Nothing of the way is kept on disk: after a crash the same facts lead to the same steps, and steps
taken twice change nothing.

Why the collection in force then lacks no change, whichever indexers write and whenever one of them crashes. The moment
that counts is when the `serving` record that changes it is acknowledged. A writer (1) has its base vector acknowledged
on `product-vectors`, (2) writes to the collections it knows, (3) reads `models` to its end and goes back to (2) unless
the collection in force has the change, (4) commits. Whoever leads, once it has seen the record, (5) reads
`product-vectors` to its end and (6) writes what the collection lacks of the base vectors, newer-only.
- (3) after the record: the writer has seen it and does not commit before the collection has the change.
- (3) before the record: so was (1), hence (5) reads that base vector and (6) writes it.
- A writer that ends before (4) has committed nothing: the next owner of the partition takes all four steps.
- A leader that ends before (6) is done has kept nothing: the next one has not repaired this collection since it came
  into force, or has just started, and both mean (5) and (6).
So dual writes, the fill and the check decide only how little (6) finds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from contracts.releases import Kind, Serving

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
class Facts:
    """All that decides the next step.

    Args:
        serving: the pair in force; None on a deployment that never served.
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
    """Write into the collection in force what it lacks of the base vectors; make it where it is missing."""


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
    """Nothing to do until something changes; the reason is empty where all is done."""

    reason: str = ""


Step = Bootstrap | Repair | PublishAlias | ReleaseQuery | Build | Fill | Check | Switch | GiveUp | Drop | Wait


def next_step(facts: Facts) -> Step:
    """Return the next step.

    Order: something to serve; serve it completely; newest query head (also in the middle of a roll-out); roll out the
    next product release; tidy up.
    """
    if facts.serving is None:
        return Bootstrap()
    if not facts.leads:
        return _write_along(facts, facts.serving)
    if not facts.repaired:
        return Repair()
    if facts.alias_target != facts.serving.product_release:
        return PublishAlias(facts.serving.product_release)
    query = _newest_query(facts, facts.serving.product_release, above=facts.serving.query_release)
    if query is not None:
        return ReleaseQuery(query)
    return _roll_out(facts, facts.serving) or _tidy_up(facts, facts.serving) or Wait()


def _write_along(facts: Facts, serving: Serving) -> Step:
    """Return what an indexer does that does not lead: write wherever the leader may be filling."""
    candidate = _candidate(facts, serving)
    if facts.construction is not None and facts.construction.product_release != candidate:
        return GiveUp()
    if facts.construction is None and candidate is not None:
        return Build(candidate)
    return Wait()


def _roll_out(facts: Facts, serving: Serving) -> Step | None:
    """Return the next step of the roll-out in progress or due, None where there is none."""
    candidate, construction = _candidate(facts, serving), facts.construction
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
    query = _newest_query(facts, candidate, above=facts.product_releases[candidate] - 1)
    if query is None:
        return Wait(f"the first query release of product-{candidate} is not there or was refused")
    return Switch(query)


def _candidate(facts: Facts, serving: Serving) -> int | None:
    """Return the product release to roll out: the one under construction, so that it ends, else the newest."""
    newer = [
        release
        for release in facts.product_releases
        if release > serving.product_release and ("product", release) not in facts.refused
    ]
    if facts.construction is not None and facts.construction.product_release in newer:
        return facts.construction.product_release
    return max(newer, default=None)


def _newest_query(facts: Facts, product_release: int, *, above: int) -> int | None:
    """Return the newest usable query release of a product release."""
    usable = (
        release
        for release, trained_for in facts.query_releases.items()
        if trained_for == product_release and release > above and ("query", release) not in facts.refused
    )
    return max(usable, default=None)


def _tidy_up(facts: Facts, serving: Serving) -> Step | None:
    """Return the next collection to delete: all but the one in force and the one before."""
    kept = {serving.product_release, facts.previous}
    if facts.previous is None:
        kept.add(max((release for release in facts.collections if release < serving.product_release), default=0))
    superfluous = facts.collections - kept
    return Drop(min(superfluous)) if superfluous else None


def collection_release(name: str, prefix: str) -> int | None:
    """Return the product release that made a collection, None where the collection is not ours.

    >>> collection_release("shop-products-r12", "shop-"), collection_release("products-r1", "shop-")
    (12, None)
    """
    found = re.fullmatch(re.escape(prefix) + r"products-r(\d+)", name)
    return int(found[1]) if found else None


MOST_PAUSE_S: Final = 0.25


def pause_s(write_s: float, batches_left: int, time_left_s: float) -> float:
    """Return how long to leave the vector store to its searches after a batch of a fill.

    As long as the write took, so that half of the store's time is the searches'; less where the refresh window would
    be missed otherwise.

    >>> pause_s(0.1, 10, 900.0), pause_s(3.0, 10, 900.0), pause_s(0.1, 1000, 50.0)
    (0.1, 0.25, 0.0)
    """
    spare_s = time_left_s / max(batches_left, 1) - write_s
    return max(0.0, min(write_s, MOST_PAUSE_S, spare_s))
