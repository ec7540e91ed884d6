"""A release as it travels on `models`: one safetensors file, weights and probe vectors, its manifest in the metadata.

`unpack` trusts nothing: digest, kind, width and shapes are checked before a tower is built from the bytes. A reader
recomputes the vectors of the probe texts: encoder, folding, keys and weights are then proven to be the trainer's.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts import wire
from contracts.base import YEAR_2000_MS
from contracts.errors import CheckFailed, MalformedMessage
from contracts.releases import MANIFEST_ENTRY, PROBE_TOLERANCE, Kind, ReleaseManifest, manifest_of, release_key
from towers.features import key_of, keys_of, words
from towers.model import DEFAULT_MIX, ProductTower, QueryTower, product_vectors
from towers.text import normalised

PROBE_VECTORS: Final = "probe_vectors"
TOWERS: Final[dict[Kind, type[QueryTower] | type[ProductTower]]] = {"query": QueryTower, "product": ProductTower}
PROBE_TEXTS: Final = (
    "quiet fridge",
    "double door refrigerator 300 litres frost free",
    "1 ton inverter ac only",
    "gaming laptop under 80000",
    "sasta double door fridge",
    "wireless earbuds with long battery",
    "Front load washing machine 7 kg. Appliances > Washing machines",
    "smart tv 55 inch 4k",
    "gift for grandmother",
    "running shoes",
    "usb c charger 65w",
    "red dress size m",
    "coffee grinder",
    "USB-C to HDMI adapter. Computers > Cables",
    "stand mixer 500 w",
    "",
)
IDENTITY: Final = 0
Tower = QueryTower | ProductTower
_KEYS: Final = frozenset({"memory_queries", "features", "products"})
_TYPES: Final = {
    **dict.fromkeys((*_KEYS, "memory_counts", "memory_points"), np.uint64),
    **dict.fromkeys(("memory", "memory_nats"), np.float16),
}

ValueOf = Callable[[str], bytes | None]
"""Returns the value of a key on `models`, None if there is none."""


class Encoder(Protocol):
    """What a release needs of a base encoder; `BaseEncoder` is one."""

    dim: int
    base_version: str

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit float32 rows (N, D)."""
        ...


@dataclass(frozen=True, slots=True)
class Release:
    """A release in memory: its manifest, the tower's weights and the probe vectors by name."""

    manifest: ReleaseManifest
    tensors: dict[str, np.ndarray]

    def tower(self) -> Tower:
        """The trained tower."""
        return TOWERS[self.manifest.kind].from_tensors(self.tensors)

    def query_tower(self) -> QueryTower:
        """The tower of a query release."""
        tower = self.tower()
        if not isinstance(tower, QueryTower):
            raise CheckFailed(f"{self.manifest.kind}-{self.manifest.release} is no query release")
        return tower

    def product_tower(self) -> ProductTower:
        """The tower of a product release."""
        tower = self.tower()
        if not isinstance(tower, ProductTower):
            raise CheckFailed(f"{self.manifest.kind}-{self.manifest.release} is no product release")
        return tower


def pack(release: Release) -> bytes:
    """Make the value of a release's record on `models`."""
    return bytes(save(release.tensors, metadata={MANIFEST_ENTRY: wire.encode(release.manifest).decode()}))


def unpack(value: bytes) -> Release:
    """Read the release in a record's value.

    Raises:
        ContractError: the bytes are no release, damaged, or do not fit their manifest.
    """
    manifest = manifest_of(value)
    try:
        tensors: dict[str, np.ndarray] = load(value)
    except (SafetensorError, KeyError, ValueError) as error:
        raise MalformedMessage("malformed_release", f"not a release file: {error}") from error
    if weights_sha256(tensors) != manifest.weights_sha256:
        raise MalformedMessage("wrong_digest", "the weights are not those of the manifest", field="weights_sha256")
    _check_shapes(manifest, tensors)
    return Release(manifest, tensors)


def weights_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash tensors: names, types, shapes and little-endian bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def release_tensors(tower: Tower, encoder: Encoder) -> dict[str, np.ndarray]:
    """Make what a release of this tower carries: its weights and the vectors of the probe texts."""
    return {**tower.tensors(), PROBE_VECTORS: _vectors(tower, PROBE_TEXTS, encoder)}


def _vectors(tower: Tower, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """The vectors of texts as queries, or as products of that title and id, (N, D + 1)."""
    vectors = encoder.encode(texts)
    if isinstance(tower, QueryTower):
        return tower.vectors(vectors)
    features = [keys_of(f"t:{word}" for word in words(text)) for text in texts]
    return product_vectors(vectors, tower.quality(texts, features))


def identity_release(kind: Kind, encoder: Encoder) -> Release:
    """Return release 0 of a tower: the one that adds nothing. It is built in and never stands on a topic."""
    tower = QueryTower.untrained(encoder.dim) if kind == "query" else ProductTower.untrained()
    tensors = release_tensors(tower, encoder)
    manifest = ReleaseManifest(
        kind=kind,
        release=0,
        product_release=0,
        query_release=0,
        base_version=encoder.base_version,
        dim=encoder.dim,
        created_at=YEAR_2000_MS,
        pairs_trained=0,
        lists_trained=0,
        offsets={},
        probe_texts=PROBE_TEXTS,
        weights_sha256=weights_sha256(tensors),
    )
    return Release(manifest, tensors)


def probe_difference(release: Release, encoder: Encoder) -> float:
    """Recompute a release's probe vectors here and give the largest absolute difference.

    `contracts.releases.PROBE_TOLERANCE` is the most at which the release may be used.
    """
    recomputed = _vectors(release.tower(), release.manifest.probe_texts, encoder)
    difference = np.abs(recomputed - release.tensors[PROBE_VECTORS])
    if "memory" in release.tensors:  # releases of before had it in the vectors of repeated queries, which may be probes
        keys = np.array([key_of(normalised(text)) for text in release.manifest.probe_texts], dtype=np.uint64)
        difference = difference[~np.isin(keys, release.tensors["memory_queries"])]
    return float(difference.max(initial=0.0))


def verified_release(kind: Kind, release: int, *, value_of: ValueOf, encoder: Encoder) -> Release:
    """Return a release that may be used with this encoder; release 0 is built in.

    Raises:
        CheckFailed: it is not there, not finite, of another base encoder, or its probe texts come out differently.
        ContractError: its bytes are damaged.
    """
    if release == IDENTITY:
        return identity_release(kind, encoder)
    value = value_of(release_key(kind, release).decode())
    if value is None:
        raise CheckFailed(f"{kind} release {release} is not on the topic")
    found = unpack(value)
    manifest = found.manifest
    if (manifest.kind, manifest.release) != (kind, release):
        raise CheckFailed(f"it calls itself {manifest.kind} release {manifest.release}")
    if (manifest.base_version, manifest.dim) != (encoder.base_version, encoder.dim):
        raise CheckFailed(
            f"it was trained over {manifest.base_version}, this process has {encoder.base_version}",
            fix="give trainer, indexer and search the same MILLRACE_BASE_MODEL",
        )
    if not all(np.isfinite(tensor).all() for tensor in found.tensors.values()):
        raise CheckFailed("it holds weights that are not finite")
    difference = probe_difference(found, encoder)
    if not difference <= PROBE_TOLERANCE:
        raise CheckFailed(
            f"its probe texts differ by {difference:.2e}", fix="install the same versions for every process"
        )
    return found


def _check_shapes(manifest: ReleaseManifest, tensors: Mapping[str, np.ndarray]) -> None:
    dim, probes = manifest.dim, len(manifest.probe_texts)
    sizes = {name: len(tensors[name]) if name in tensors else 0 for name in (*_KEYS, "memory_nats")}
    shapes: dict[str, tuple[int, ...]] = {PROBE_VECTORS: (probes, dim + 1)}
    if manifest.kind == "query":
        queries, entries = sizes["memory_queries"], sizes["memory_nats"]
        shapes |= {"taste": (dim, dim), "common": (dim,), "mean_query": (dim,), "mix": np.shape(DEFAULT_MIX)}
        shapes |= {"memory_queries": (queries,)}
        if "memory" in tensors:  # as in former releases
            shapes |= {"memory": (queries, dim)}
        else:
            shapes |= {"memory_counts": (queries,), "memory_points": (entries, 2), "memory_nats": (entries,)}
        shapes |= {"text": (1,)} if "text" in tensors else {}
    else:
        shapes |= dict.fromkeys(("features", "idf", "words"), (sizes["features"],))
        shapes |= dict.fromkeys(("products", "own", "own_width"), (sizes["products"],))
        shapes |= dict.fromkeys(("unseen_width", "cap"), (1,))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise MalformedMessage(
            "wrong_shape", f"tensors {found} are not those of a {manifest.kind} tower of width {dim}"
        )
    for name, tensor in tensors.items():
        kind = _TYPES.get(name, np.float32)
        if tensor.dtype != kind:
            raise MalformedMessage("wrong_type", f"{name} is {tensor.dtype}, not {np.dtype(kind)}")
        if name in _KEYS and np.any(tensor[1:] <= tensor[:-1]):
            raise MalformedMessage("wrong_order", f"the keys in {name} do not rise")
    counts = [int(count) for count in tensors.get("memory_counts", ())]
    if counts and sum(counts) != len(tensors["memory_nats"]):
        raise MalformedMessage("wrong_shape", "the counts of remembered products do not add up to them")
