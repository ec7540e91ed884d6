"""Releases of the two towers and the record that says which of them are in force."""

import struct
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import orjson
from pydantic import Field, TypeAdapter

from contracts import wire
from contracts.base import Count, Finite, Label, Message, Part, Release, Time
from contracts.errors import MalformedMessage

Kind = Literal["query", "product"]
SERVING_KEY: Final = b"serving"
ROLLBACK_KEY: Final = b"rollback"
Range = Annotated[tuple[Count, Count], Field(strict=False)]
PROBE_TOLERANCE: Final = 1e-4
"""Largest difference at which a recomputed probe vector still proves the release."""


def release_key(kind: Kind, release: int) -> bytes:
    """Return the key of a release on `models`.

    >>> release_key("query", 7)
    b'query-7'
    """
    return f"{kind}-{release}".encode()


ALIAS: Final = "products"
"""The alias in Qdrant under which the collection in force is found, without the deployment's prefix."""


def collection_name(product_release: int) -> str:
    """Return the collection that a product release makes, without the deployment's prefix.

    >>> collection_name(12)
    'products-r12'
    """
    return f"{ALIAS}-r{product_release}"


MANIFEST_ENTRY: Final = "manifest"
"""The entry of a release's safetensors metadata that holds its manifest as JSON."""


OVERLAP: Final = "overlap_at_10"
"""The check that tells which share of the first ten answers to recent queries stays."""


class SafetyCheck(Part):
    """One safety check of a release, with its numbers."""

    name: Label
    value: Finite
    limit: Finite
    passed: bool


class GoldenSet(Part):
    """The queries that a shop judged itself, as far as a release was measured by them."""

    sha256: str
    """Of all queries, products and grades."""
    queries: Count
    judgments: Count
    """Of these queries, and of products that the catalogue knew."""
    left_out: Count = 0
    """Queries of whose products the catalogue knew none, or whose known ones all had the same grade."""


class ReleaseManifest(Message):
    """What a release is, what it was trained on and why it was let out. The weights travel beside it."""

    kind: Kind
    release: Release
    product_release: Release
    """The product release that was solved with a query release; of a product release, its own number."""
    query_release: Release
    """The first query release of a product release; of a query release, its own number."""
    parent: Release | None = None
    """The release of the same kind that training went on from."""
    base_version: str
    dim: Annotated[int, Field(ge=1)]
    created_at: Time
    pairs_trained: Count
    lists_trained: Count
    offsets: dict[str, Count]
    """`topic/partition` -> next offset: the cut. Every record below it, and none above, is in the evidence."""
    left_out: dict[str, Annotated[tuple[Range, ...], Field(strict=False)]] = Field(default_factory=dict)
    """But these, by place: from one offset up to another, which does not belong to it. Rollbacks took them back."""
    fence: Count = 0
    """Grows with every trainer that takes over: what one that was overtaken still publishes is refused by it."""
    prior: dict[str, Finite] = Field(default_factory=dict)
    """How strongly each part of the model was held (inverse variances), and under `half_life_days` how evidence fades.

    With the cut, the parent, the catalogue, the release in force and the golden set they decide every weight.
    """
    mix: dict[str, dict[str, Finite]] = Field(default_factory=dict)
    """What words count by kind of query: nats of a `strong` and a `weak` best match; from `full` on it is strong."""
    text_nats: Finite | None = None
    """What a unit of cosine between query and product is worth; releases of before have none: it was 10."""
    gain: Finite | None = None
    """How much better left-out queries' clicks are predicted than by the text alone, in nats per click."""
    gain_error: Finite | None = None
    """Standard error of the gain."""
    golden: GoldenSet | None = None
    """What the check of judged queries rests on; None if there was no such check."""
    debiasing: dict[str, Finite] = Field(default_factory=dict)
    """How `strength` weighs showings by their examination, 1 in full and 0 not at all, and what the `exchanges` say of
    it, neighbours in random order: `loss` of full weighing and of the `naive` twin, `gain` over it with its `error`."""
    click_times: Annotated[tuple[Time, ...], Field(strict=False, max_length=256)] = ()
    """Even sample of the click times that this release learned from and its parent had not."""
    checks: Annotated[tuple[SafetyCheck, ...], Field(strict=False, max_length=32)] = ()
    probe_texts: Annotated[tuple[str, ...], Field(strict=False, max_length=64)] = ()
    """Texts whose vectors travel with the weights as `probe_vectors`, shape (probes, dim)."""
    weights_sha256: str


def _above(record: dict[str, int]) -> int:
    return min(record["query_release"], record["withdrawn"])


class Serving(Message):
    """The releases in force: query release, product release and the collection that holds the vectors."""

    query_release: Release
    product_release: Release
    collection: str
    published_at: Time
    reason: Label = "release"
    previous_collection: str | None = None
    """The collection in force before this one, kept for a rollback; older ones are dropped."""
    fence: Count = 0
    """The highest fence of a release that was in force; releases with a lower one are refused."""
    withdrawn: Count = 0
    """The highest query release that the last rollback took back. Those above `withdrawn_above`, and what was
    trained from one of them, never come into force again; older ones may, over a base that has none in force."""
    withdrawn_above: Count = Field(default_factory=_above)
    """The query release that it went back to. Of a record of an earlier version, which has none: the one in force."""
    rollback_answered: Count = 0
    """`requested_at` of the last rollback that was asked for, whether it was carried out or refused."""

    def release_of(self, kind: Kind) -> int:
        """Return the release in force of a kind."""
        return self.query_release if kind == "query" else self.product_release


class Rollback(Message):
    """Somebody asks to go back to an older query release, and to the quality of products that belongs to it."""

    query_release: Release
    requested_at: Time
    """Tells one request from another: a later one has a higher value."""


def withdrawn(serving: Serving, manifests: Iterable[ReleaseManifest]) -> frozenset[int]:
    """Return the query releases that the last rollback took back, and those that were trained from one of them.

    A trainer may make one more before it notices: its number is new, and its parent tells.
    """
    gone = set(range(serving.withdrawn_above + 1, serving.withdrawn + 1))
    for manifest in sorted(manifests, key=lambda one: one.release):
        if manifest.kind == "query" and manifest.parent in gone:
            gone.add(manifest.release)
    return frozenset(gone)


def after(offset: int, ranges: Iterable[tuple[int, int]]) -> int:
    """The first offset from this one on that lies in no range; ranges do not meet.

    >>> after(3, [(2, 4)]), after(4, [(2, 4)])
    (4, 4)
    """
    return next((high for low, high in ranges if low <= offset < high), offset)


def was_taken_back(release: ReleaseManifest, in_force: ReleaseManifest) -> bool:
    """Whether a rollback took a release back before the one in force was made: it learned what that one leaves out."""
    return any(
        after(low, release.left_out.get(place, ())) < min(high, release.offsets.get(place, 0))
        for place, ranges in in_force.left_out.items()
        for low, high in ranges
    )


MANIFEST: Final[TypeAdapter[ReleaseManifest]] = TypeAdapter(ReleaseManifest)
SERVING: Final[TypeAdapter[Serving]] = TypeAdapter(Serving)
ROLLBACK: Final[TypeAdapter[Rollback]] = TypeAdapter(Rollback)


def manifest_of(value: bytes) -> ReleaseManifest:
    """Read the manifest of a release as it stands on `models`, without touching the weights.

    A safetensors file begins with the length of its JSON header as a little-endian 64-bit integer.
    """
    try:
        (length,) = struct.unpack_from("<Q", value)
        manifest = orjson.loads(value[8 : 8 + length])["__metadata__"][MANIFEST_ENTRY]
    except (struct.error, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedMessage("malformed_release", f"not a release file: {error!r}") from error
    return wire.decode(str(manifest).encode(), MANIFEST)
