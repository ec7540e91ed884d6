"""Decides what is released, checks it, and makes the bytes that go onto `models`.

A decision is a plan: nothing here changes the trainer's state or writes anything.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from contracts.releases import PROBE_TOLERANCE, Kind, ReleaseManifest, SafetyCheck, release_key
from contracts.topics import MODELS, TOPIC_BY_NAME
from towers.release_files import (
    PROBE_TEXTS,
    Encoder,
    Release,
    Tower,
    pack,
    probe_difference,
    release_tensors,
    unpack,
    weights_sha256,
)
from trainer.learner import Learner, Towers
from trainer.release.golden import GoldenCheck
from trainer.release.safety import LEAST_OVERLAP, Verdict, first_safe
from trainer.state import Progress

CLICK_TIMES_SENT: Final = 256
KINDS: Final[tuple[Kind, ...]] = ("query", "product")
KEPT_RELEASES: Final = 3
"""Of each kind; the newest ones that a rollback could want."""
HOUR_MS: Final = 3_600_000
HOURS_KEPT: Final = 24
"""One release of each of so many hours is kept beside them."""
MOVED_NATS: Final = 0.01
"""By how much the quality of some product must differ before products are released."""
LARGEST_RELEASE_BYTES: Final = TOPIC_BY_NAME[MODELS].max_message_bytes


@dataclass(frozen=True, slots=True)
class Cadence:
    """Shortest times between two releases of a kind, in milliseconds."""

    query_ms: int
    product_ms: int

    def due(self, progress: Progress, *, now_ms: int) -> bool:
        """Tell whether to decide on a release: the last decision is long enough ago, and it did not say everything."""
        waits = progress.products_wait and self.product_due(progress, now_ms=now_ms)
        is_new = progress.records > progress.decided_records or waits
        return is_new and not progress.catch_up and now_ms - progress.query_decided_ms >= self.query_ms

    def product_due(self, progress: Progress, *, now_ms: int) -> bool:
        """Tell whether products may be released with it."""
        return now_ms - progress.product_decided_ms >= self.product_ms


class PlannedRelease(NamedTuple):
    """Releases that passed every check, or why there are none."""

    values: dict[str, bytes]
    """Key -> bytes in the order in which they are published; empty if nothing is released."""
    query_release: int
    product_release: int
    """Of the product side that belongs to it, new or not."""
    verdict: Verdict
    refusal: str | None = None


class Earlier(NamedTuple):
    """What a new release is compared with."""

    parent: Towers
    """The releases that it goes on from."""
    in_force: Towers
    """What shoppers are served."""


def plan_release(
    learner: Learner,
    wanted: Towers,
    *,
    earlier: Earlier,
    with_products: bool,
    encoder: Encoder,
    now_ms: int,
    golden: GoldenCheck | None = None,
    overlap: float = LEAST_OVERLAP,
) -> PlannedRelease | None:
    """Plan a query release of what was learned, with a product release if that is asked for.

    None if shoppers would see no difference. Both sides of one base fit one another, whichever is in force first.

    Args:
        learner: what the release is made of.
        wanted: what it computed.
        earlier: what it is compared with.
        with_products: whether products are released, too.
        encoder: for the probe texts.
        now_ms: when the release is made.
        golden: finds the queries that the shop judged itself.
        overlap: least share of the first ten answers that stays.
    """
    if not with_products:
        wanted = wanted._replace(product=earlier.in_force.product)
        if same_tower(earlier.parent.query, wanted.query):
            return None
    progress = learner.progress
    number = progress.last_query_release + 1
    product_number = progress.last_product_release + 1 if with_products else progress.product_parent
    judged = None if golden is None else golden.sample(learner)
    verdict = first_safe(earlier.in_force, wanted, learner.sample(), golden=judged, overlap=overlap)
    plan = PlannedRelease({}, number, product_number, verdict)
    if verdict.towers is None:
        return plan._replace(refusal=_reason(verdict.checks))
    query = _manifest(learner, verdict, plan, encoder=encoder, now_ms=now_ms)
    made: list[tuple[ReleaseManifest, Tower]] = [(query, verdict.towers.query)]
    if with_products:
        own = {"kind": "product", "release": product_number, "parent": progress.product_parent, "click_times": ()}
        made.append((query.model_copy(update=own), verdict.towers.product))
    for manifest, tower in made:
        value, failed = _built(manifest, tower, encoder)
        if failed:
            return plan._replace(values={}, refusal=_reason(failed))
        plan.values[release_key(manifest.kind, manifest.release).decode()] = value
    return plan


def same_tower(one: Tower, two: Tower) -> bool:
    """Whether two towers give every query, or every product, the same."""
    ours, theirs = one.tensors(), two.tensors()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def retired_keys(
    manifests: Collection[ReleaseManifest], *, needed: Mapping[Kind, Collection[int]], now_ms: int
) -> list[str]:
    """List the releases that nobody needs any more.

    Kept are the newest of each kind, the newest of each of the last 24 hours, those that are needed, and the product
    release of every kept query release. Query releases come first: none that is still there lacks its products.

    Args:
        manifests: of the releases that are on `models`.
        needed: the releases in force, those that training goes on from, and those that a step back may go to.
        now_ms: the time.
    """
    kept: dict[Kind, set[int]] = {}
    for kind in KINDS:
        found = sorted((one for one in manifests if one.kind == kind), key=lambda one: one.release)
        hourly = {one.created_at // HOUR_MS: one.release for one in found}
        recent = {release for hour, release in hourly.items() if hour > now_ms // HOUR_MS - HOURS_KEPT}
        kept[kind] = {one.release for one in found[-KEPT_RELEASES:]} | recent | set(needed[kind])
    kept["product"] |= {
        one.product_release for one in manifests if one.kind == "query" and one.release in kept["query"]
    }
    retired = [(one.kind, one.release) for one in manifests if one.release not in kept[one.kind]]
    return [release_key(*one).decode() for one in sorted(retired, key=lambda one: (KINDS.index(one[0]), one[1]))]


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


def _manifest(
    learner: Learner, verdict: Verdict, plan: PlannedRelease, *, encoder: Encoder, now_ms: int
) -> ReleaseManifest:
    """The manifest of a query release, without the hash of its weights."""
    progress = learner.progress
    gain, gain_error = learner.gain()
    return ReleaseManifest(
        kind="query",
        release=plan.query_release,
        product_release=plan.product_release,
        query_release=plan.query_release,
        parent=progress.query_parent,
        base_version=encoder.base_version,
        dim=encoder.dim,
        created_at=now_ms,
        pairs_trained=progress.pairs_trained,
        lists_trained=progress.lists_trained,
        offsets=dict(sorted(progress.offsets.items())),
        left_out={place: tuple(ranges) for place, ranges in progress.left_out.items()},
        fence=progress.fence,
        prior=learner.prior(),
        mix={} if verdict.towers is None else verdict.towers.query.mix.named(),
        text_nats=None if verdict.towers is None else verdict.towers.query.text,
        gain=gain,
        gain_error=gain_error,
        debiasing=learner.debiasing(),
        click_times=tuple(even_sample(learner.evidence.click_times, CLICK_TIMES_SENT)),
        golden=verdict.golden,
        checks=(*verdict.checks, SafetyCheck(name="share_of_step", value=verdict.share, limit=0.0, passed=True)),
        probe_texts=PROBE_TEXTS,
        weights_sha256="",
    )


def _built(manifest: ReleaseManifest, tower: Tower, encoder: Encoder) -> tuple[bytes, list[SafetyCheck]]:
    """Make a release's bytes; check their size, and the probe texts by what is read back from them."""
    tensors = release_tensors(tower, encoder)
    drafted = manifest.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    value = pack(Release(drafted, tensors))
    difference, size = probe_difference(unpack(value), encoder), len(value)
    checks = (
        SafetyCheck(name="probe_texts", value=difference, limit=PROBE_TOLERANCE, passed=difference <= PROBE_TOLERANCE),
        SafetyCheck(name="bytes", value=size, limit=LARGEST_RELEASE_BYTES, passed=size < 0.99 * LARGEST_RELEASE_BYTES),
    )
    final = drafted.model_copy(update={"checks": (*manifest.checks, *checks)})
    return pack(Release(final, tensors)), [check for check in checks if not check.passed]


def _reason(checks: Iterable[SafetyCheck]) -> str:
    return ", ".join(f"{check.name} {check.value:.4g} (limit {check.limit:g})" for check in checks if not check.passed)
