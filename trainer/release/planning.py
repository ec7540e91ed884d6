"""Decides whether a release is due, checks it, and makes the bytes that go onto `models`.

A decision is a plan: nothing here changes the learner or writes anything.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from contracts.releases import PROBE_TOLERANCE, Kind, ReleaseManifest, SafetyCheck, release_key
from towers.heads import Head, Towers
from towers.release_files import (
    PROBE_TEXTS,
    Encoder,
    Release,
    pack,
    probe_difference,
    release_tensors,
    unpack,
    weights_sha256,
)
from trainer.learner import Learner
from trainer.memory import PendingRelease, TrainingProgress
from trainer.release.safety import SafetyCaps, Verdict, first_safe

CLICK_TIMES_SENT: Final = 256
SAMPLE_QUERIES: Final = 256
SAMPLE_PRODUCTS: Final = 4096
KINDS: Final[tuple[Kind, ...]] = ("query", "product")
KEPT_RELEASES: Final = 3
"""Of each kind; the ones that a rollback could want."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """Shortest times between two decisions on releases of a kind, in milliseconds.

    Nothing is due unless a step was taken since the last decision: what was decided on once is not decided on again.
    """

    query_ms: int
    product_ms: int

    def query_due(self, progress: TrainingProgress, *, now_ms: int) -> bool:
        """Tell whether a query release may be decided on."""
        return progress.step > progress.query_decided_step and now_ms - progress.query_decided_ms >= self.query_ms

    def product_due(self, progress: TrainingProgress, *, now_ms: int) -> bool:
        """Tell whether a product release may be decided on; never while another is on its way."""
        over = now_ms - progress.product_decided_ms >= self.product_ms
        return progress.step > progress.product_decided_step and progress.pending is None and over


class PlannedRelease(NamedTuple):
    """Releases that passed every check, or why there are none."""

    values: dict[str, bytes]
    """Key -> bytes in the order in which they are published; empty if the release is refused."""
    number: int
    verdict: Verdict
    refusal: str | None

    @property
    def towers(self) -> Towers | None:
        """What is released."""
        return None if self.refusal else self.verdict.towers


def plan_query_release(learner: Learner, encoder: Encoder, *, caps: SafetyCaps, now_ms: int) -> PlannedRelease:
    """Plan the next query release for the product release in force."""
    progress, number = learner.progress, learner.progress.last_query_release + 1
    draft = _Draft("query", number, progress.product_release, number, progress.query_parent, progress.click_times)
    wanted = learner.versions.in_force.towers
    return _planned(learner, encoder, [draft], wanted=wanted, number=number, caps=caps, now_ms=now_ms)


def plan_product_release(learner: Learner, encoder: Encoder, *, caps: SafetyCaps, now_ms: int) -> PlannedRelease:
    """Plan the next product release with its first query release; the query release is published first.

    Its manifest names no click times: the query releases for the product release in force have carried those clicks to
    shoppers before the index has moved.
    """
    progress, number = learner.progress, learner.progress.last_product_release + 1
    query_number = progress.last_query_release + 1
    drafts = [
        _Draft("query", query_number, number, query_number, progress.query_parent, []),
        _Draft("product", number, number, query_number, progress.product_release, []),
    ]
    wanted = learner.versions.candidate.towers
    return _planned(learner, encoder, drafts, wanted=wanted, number=number, caps=caps, now_ms=now_ms)


def retired_keys(
    manifests: Collection[ReleaseManifest], *, in_force: tuple[int, int], pending: PendingRelease | None
) -> list[str]:
    """List the releases that nobody needs any more.

    Kept are the newest of each kind, the releases in force, a pending product release, and the first query release of
    every kept product release.

    Args:
        manifests: of the releases that are on `models`.
        in_force: (query release, product release) as `serving` says.
        pending: the product release on its way.
    """
    numbers = {kind: sorted(found.release for found in manifests if found.kind == kind) for kind in KINDS}
    products = _kept(numbers["product"], {in_force[1]} | ({pending.product_release} if pending else set()))
    firsts = {found.query_release for found in manifests if found.kind == "product" and found.release in products}
    queries = _kept(numbers["query"], {in_force[0]} | firsts | ({pending.query_release} if pending else set()))
    kept = {"query": queries, "product": products}
    return [
        release_key(kind, number).decode() for kind in KINDS for number in numbers[kind] if number not in kept[kind]
    ]


def _kept(ascending: Sequence[int], needed: set[int]) -> set[int]:
    return {*ascending[-KEPT_RELEASES:], *needed}


class _Draft(NamedTuple):
    """The numbers of a release that is being made."""

    kind: Kind
    release: int
    product_release: int
    query_release: int
    parent: int
    click_times: Sequence[int]


def _planned(
    learner: Learner,
    encoder: Encoder,
    drafts: Sequence[_Draft],
    *,
    wanted: Towers,
    number: int,
    caps: SafetyCaps,
    now_ms: int,
) -> PlannedRelease:
    """Shorten the way to the wanted heads until it is safe, and make the releases of what is left of it."""
    sample = learner.sample(queries=SAMPLE_QUERIES, products=SAMPLE_PRODUCTS)
    verdict = first_safe(learner.towers_in_force(), wanted, sample, caps=caps)
    if verdict.towers is None:
        return PlannedRelease({}, number, verdict, _reason(verdict.checks))
    heads: dict[Kind, Head] = {"query": verdict.towers.query, "product": verdict.towers.product}
    values: dict[str, bytes] = {}
    for draft in drafts:
        value, probes = _built(draft, heads[draft.kind], verdict, learner.progress, encoder=encoder, now_ms=now_ms)
        if not probes.passed:
            return PlannedRelease({}, number, verdict, _reason([probes]))
        values[release_key(draft.kind, draft.release).decode()] = value
    return PlannedRelease(values, number, verdict, None)


def _built(
    draft: _Draft, head: Head, verdict: Verdict, progress: TrainingProgress, *, encoder: Encoder, now_ms: int
) -> tuple[bytes, SafetyCheck]:
    """Make a release's bytes, and check its probe texts against what is read back from bytes."""
    tensors = release_tensors(head, encoder)
    share = SafetyCheck(name="share_of_step", value=verdict.share, limit=0.0, passed=True)
    manifest = ReleaseManifest(
        kind=draft.kind,
        release=draft.release,
        product_release=draft.product_release,
        query_release=draft.query_release,
        parent=draft.parent,
        base_version=encoder.base_version,
        dim=encoder.dim,
        created_at=now_ms,
        pairs_trained=progress.pairs_trained,
        lists_trained=progress.lists_trained,
        offsets={str(partition): offset for partition, offset in sorted(progress.offsets.items())},
        click_times=tuple(even_sample(draft.click_times, CLICK_TIMES_SENT)),
        drift_mean=verdict.query_drift_mean if draft.kind == "query" else verdict.product_drift_mean,
        checks=(*verdict.checks, share),
        probe_texts=PROBE_TEXTS,
        weights_sha256=weights_sha256(tensors),
    )
    difference = probe_difference(unpack(pack(Release(manifest, tensors))), encoder)
    probes = SafetyCheck(
        name="probe_texts", value=difference, limit=PROBE_TOLERANCE, passed=difference <= PROBE_TOLERANCE
    )
    final = manifest.model_copy(update={"checks": (*manifest.checks, probes)})
    return pack(Release(final, tensors)), probes


def even_sample(times: Sequence[int], count: int) -> list[int]:
    """Pick at most `count` of the values, evenly spread over their sorted order.

    >>> even_sample([5, 1, 4, 2, 3], 3)
    [1, 3, 5]
    >>> even_sample([2, 1], 3)
    [1, 2]
    """
    ordered = sorted(times)
    if len(ordered) <= count:
        return ordered
    places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    return [ordered[place] for place in places]


def _reason(checks: Iterable[SafetyCheck]) -> str:
    return ", ".join(f"{check.name} {check.value:.4g} (limit {check.limit:g})" for check in checks if not check.passed)
