"""Facts that a decision on releases is made on: what arms counted, what is in force, what was decided before."""

from collections.abc import Sequence
from typing import Any, Final

from contracts.arms import ANCHOR, LIVE, PersonGroup
from contracts.comparison import GROUPS
from contracts.decisions import Decisions
from contracts.releases import ReleaseManifest, Serving
from trainer.release.gate import RENEWED_MS, Counted, Facts, decide

T0: Final = 1_790_000_000_000
IN_FORCE: Final = 40


def manifest(release: int, *, base: str = "base", kind: Any = "query") -> ReleaseManifest:
    """A release that was made so many minutes after the start."""
    return ReleaseManifest(
        kind=kind, release=release, product_release=1, query_release=release, base_version=base, dim=2,
        created_at=T0 + release * 60_000, pairs_trained=0, lists_trained=0, offsets={}, weights_sha256="",
    )  # fmt: skip


MANIFESTS: Final = tuple(map(manifest, (3, 10, 20, 30, 39, IN_FORCE)))


def serving(query_release: int = IN_FORCE, **changes: Any) -> Serving:
    """What is in force."""
    values = {"query_release": query_release, "product_release": 1, "collection": "c", "published_at": T0, **changes}
    return Serving.model_validate(values)


def groups(lists: int, clicked: float, value: float = 0.0, *, noise: Sequence[float] = (0.0,)) -> list[PersonGroup]:
    """An arm: so many lists in each group of persons, of which a share was clicked, each list worth so much."""
    wobble = [noise[number % len(noise)] for number in range(GROUPS)]
    return [
        PersonGroup(searches=lists, clicked=round(lists * (clicked + more)), value=lists * (value + more))
        for more in wobble
    ]


WOBBLE: Final = (-0.01, 0.01)
EQUAL: Final[Counted] = {LIVE: groups(1000, 0.4, 1.0, noise=WOBBLE), ANCHOR: groups(100, 0.4, 1.0, noise=WOBBLE)}
BETTER: Final[Counted] = {LIVE: groups(1000, 0.5, 1.1, noise=WOBBLE), ANCHOR: groups(100, 0.4, 1.0, noise=WOBBLE)}
WORSE: Final[Counted] = {LIVE: groups(1000, 0.3, 0.9, noise=WOBBLE), ANCHOR: groups(100, 0.4, 1.0, noise=WOBBLE)}
BAIT: Final[Counted] = {LIVE: groups(1000, 0.5, 0.9, noise=WOBBLE), ANCHOR: groups(100, 0.4, 1.0, noise=WOBBLE)}
SCARCE: Final[Counted] = {LIVE: groups(1000, 0.4), ANCHOR: groups(5, 0.4)}


def begun(**changes: Any) -> Decisions:
    """A comparison that began at the start."""
    values: dict[str, Any] = {"began_at": T0, "since": {}, "collection": "c", **changes}
    return Decisions(**values)


def facts(counted: Counted, **changes: Any) -> Facts:
    """What a decision is made on."""
    known = {"serving": serving(), "manifests": MANIFESTS, "counted_to_ms": T0 + 2 * RENEWED_MS}
    values: dict[str, Any] = {"counted": counted, **known, **changes}
    return Facts(**values)


def decided(counted: Counted, before: Decisions | None = None, *, now_ms: int = T0, **changes: Any) -> Decisions:
    """Decide once."""
    return decide(before or begun(), facts(counted, **changes), now_ms=now_ms)
