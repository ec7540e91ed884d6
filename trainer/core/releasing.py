"""Decides whether a release is due, checks it, and makes the bytes that go onto `models`.

A decision is a plan: nothing here changes the learner or writes anything.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from contracts.releases import PROBE_TOLERANCE, Kind, ReleaseManifest, SafetyCheck, release_key
from towers.heads import Head
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
from trainer.core.facts import Facts, PendingRelease
from trainer.core.learner import Learner
from trainer.core.memory import even_sample
from trainer.core.safety import SafetyCaps, Towers, Verdict, first_safe

CLICK_TIMES_SENT: Final = 256
SAMPLE_QUERIES: Final = 256
SAMPLE_PRODUCTS: Final = 4096
SERVED_ENOUGH: Final = 0.1
"""Once the released head lacks less than this of what was learned, a quiet shop gets no further releases."""

KEPT_RELEASES: Final = 3
"""Of each kind; the ones that a rollback could want."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """Shortest times between two releases of a kind, in milliseconds."""

    query_ms: int
    product_ms: int

    def query_due(self, facts: Facts, *, now_ms: int) -> bool:
        """Return whether the query lane may release: it learned what is not served yet and the interval is over."""
        return facts.unserved_ratio > SERVED_ENOUGH and now_ms - facts.query_released_ms >= self.query_ms

    def product_due(self, facts: Facts, *, now_ms: int) -> bool:
        """Return whether the product lane may release; never while another is on its way."""
        over = now_ms - facts.product_released_ms >= self.product_ms
        return facts.product_lane_moved and facts.pending is None and over


class PlannedRelease(NamedTuple):
    """Releases that passed every check, or why there are none."""

    values: dict[str, bytes]
    """Key -> bytes in the order in which they are published; empty where the release is held."""
    towers: Towers | None
    number: int
    verdict: Verdict
    held: str | None


def plan_query_release(learner: Learner, encoder: Encoder, *, caps: SafetyCaps, now_ms: int) -> PlannedRelease:
    """Return the next query release for the product release in force."""
    facts, number = learner.facts, learner.facts.last_query_release + 1
    sample = learner.sample(queries=SAMPLE_QUERIES, products=SAMPLE_PRODUCTS)
    verdict = first_safe(learner.towers_in_force(), learner.next_query_towers(), sample, caps=caps)
    if verdict.towers is None:
        return PlannedRelease({}, None, number, verdict, _reason(verdict.checks))
    manifest = _Draft("query", number, facts.product_release, number, facts.query_parent, facts.click_times)
    value, probes = _built(manifest, verdict.towers.query, verdict, facts=facts, encoder=encoder, now_ms=now_ms)
    return _checked({release_key("query", number).decode(): value}, number, verdict, probes=(probes,))


def plan_product_release(learner: Learner, encoder: Encoder, *, caps: SafetyCaps, now_ms: int) -> PlannedRelease:
    """Return the next product release with its first query release; the query release is published first.

    Its manifest names no click times: the query releases for the pair in force have carried those clicks to shoppers
    before the index has moved.
    """
    facts, number = learner.facts, learner.facts.last_product_release + 1
    query_number = facts.last_query_release + 1
    sample = learner.sample(queries=SAMPLE_QUERIES, products=SAMPLE_PRODUCTS)
    verdict = first_safe(learner.towers_in_force(), learner.candidate_towers(), sample, caps=caps)
    if verdict.towers is None:
        return PlannedRelease({}, None, number, verdict, _reason(verdict.checks))
    query = _Draft("query", query_number, number, query_number, facts.query_parent, [])
    product = _Draft("product", number, number, query_number, facts.product_release, [])
    first, second = (
        _built(draft, head, verdict, facts=facts, encoder=encoder, now_ms=now_ms)
        for draft, head in ((query, verdict.towers.query), (product, verdict.towers.product))
    )
    values = {
        release_key("query", query_number).decode(): first[0],
        release_key("product", number).decode(): second[0],
    }
    return _checked(values, number, verdict, probes=(first[1], second[1]))


def retired_keys(
    keys: Iterable[str],
    first_queries: Mapping[int, int],
    *,
    in_force: tuple[int, int],
    pending: PendingRelease | None,
) -> list[str]:
    """Return the releases that nobody needs any more.

    Kept are the newest of each kind, the pair in force, a pending product release, and the first query release of
    every kept product release.

    Args:
        keys: releases that stand on `models`.
        first_queries: product release -> its first query release.
        in_force: (query release, product release) as `serving` says.
        pending: the product release on its way.

    >>> retired_keys(["query-1", "query-2", "query-3", "query-4", "query-5", "product-1"], {1: 2},
    ...              in_force=(5, 1), pending=None)
    ['query-1']
    """
    found: dict[str, list[int]] = {"query": [], "product": []}
    for key in keys:
        kind, _, number = key.partition("-")
        found[kind].append(int(number))
    products = _kept(found["product"], {in_force[1]} | ({pending.product_release} if pending else set()))
    firsts = {first_queries[number] for number in products if number in first_queries}
    queries = _kept(found["query"], {in_force[0]} | firsts | ({pending.query_release} if pending else set()))
    kept = {"query": queries, "product": products}
    return [f"{kind}-{number}" for kind in found for number in sorted(found[kind]) if number not in kept[kind]]


def _kept(numbers: Collection[int], needed: set[int]) -> set[int]:
    """Return the newest numbers and those that are needed."""
    return set(sorted(numbers)[-KEPT_RELEASES:]) | needed


class _Draft(NamedTuple):
    """The numbers of a release that is being made."""

    kind: Kind
    release: int
    product_release: int
    query_release: int
    parent: int
    click_times: list[int]


def _built(
    draft: _Draft, head: Head, verdict: Verdict, *, facts: Facts, encoder: Encoder, now_ms: int
) -> tuple[bytes, SafetyCheck]:
    """Return a release's bytes, and the check of the probe texts against what was read back from bytes."""
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
        pairs_trained=facts.pairs_trained,
        lists_trained=facts.lists_trained,
        offsets={str(partition): offset for partition, offset in sorted(facts.offsets.items())},
        click_times=tuple(even_sample(draft.click_times, CLICK_TIMES_SENT)),
        drift_mean=verdict.query_drift_mean if draft.kind == "query" else verdict.product_drift_mean,
        checks=(*verdict.checks, share),
        probe_texts=PROBE_TEXTS,
        weights_sha256=weights_sha256(tensors),
    )
    difference = probe_difference(unpack(pack(Release(manifest, tensors))), encoder)
    check = SafetyCheck(
        name="probe_texts", value=difference, limit=PROBE_TOLERANCE, passed=difference <= PROBE_TOLERANCE
    )
    final = manifest.model_copy(update={"checks": (*manifest.checks, check)})
    return pack(Release(final, tensors)), check


def _checked(
    values: dict[str, bytes], number: int, verdict: Verdict, *, probes: tuple[SafetyCheck, ...]
) -> PlannedRelease:
    """Return the plan, held where the probe texts did not come back."""
    if all(check.passed for check in probes):
        return PlannedRelease(values, verdict.towers, number, verdict, None)
    return PlannedRelease({}, None, number, verdict, _reason(probes))


def _reason(checks: Iterable[SafetyCheck]) -> str:
    """Return which checks failed, with their numbers."""
    return ", ".join(f"{check.name} {check.value:.4g} (limit {check.limit:g})" for check in checks if not check.passed)
