"""What the preference model gets of a catalogue and its queries; base vectors are encoded once and kept beside it."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts.catalog import Product
from millrace.output import Tell
from service.machine import write_atomically
from towers.features import FeatureSpace, keys_of, product_features
from towers.release_files import Encoder
from towers.text import product_text
from trainer.preference.model import Catalogue

CACHE_FILE: Final = "base-vectors.safetensors"
BATCH: Final = 256


def encode_catalogue(
    products: Sequence[Product], queries: Sequence[str], encoder: Encoder, *, cache: Path | None, tell: Tell
) -> tuple[Catalogue, np.ndarray]:
    """Products as the model knows them, and the base vector of each query, (Q, D)."""
    texts = [*map(product_text, products), *queries]
    vectors = base_vectors(texts, encoder, cache=cache, progress=lambda done, of: tell("encoding", done, of))
    features = [keys_of(product_features(product)) for product in products]
    catalogue = Catalogue(vectors[: len(products)], FeatureSpace.of(features).matrix(features))
    return catalogue, vectors[len(products) :]


def base_vectors(
    texts: Sequence[str], encoder: Encoder, *, cache: Path | None, progress: Callable[[int, int], None]
) -> np.ndarray:
    """The unit vector of each text, (N, D); those that the cache knows are not encoded again.

    Args:
        texts: any, also repeated.
        encoder: the base encoder.
        cache: folder of the cache; None, or one that cannot be written, costs encoding the next time.
        progress: told how many of how many texts are done.
    """
    keys = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    known = {} if cache is None else _read(cache / CACHE_FILE, encoder.base_version)
    missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in known]
    missing.sort(key=lambda one: len(one[1]))
    for start in range(0, len(missing), BATCH):
        progress(start, len(missing))
        batch = missing[start : start + BATCH]
        known.update(zip((key for key, _ in batch), encoder.encode([text for _, text in batch]), strict=True))
    progress(len(missing), len(missing))
    if missing and cache is not None:
        _write(cache / CACHE_FILE, encoder.base_version, known)
    return np.stack([known[key] for key in keys]) if keys else np.empty((0, encoder.dim), dtype=np.float32)


def _read(path: Path, base_version: str) -> dict[bytes, np.ndarray]:
    """What a cache holds for this base; nothing if it cannot be read."""
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError):
        return {}
    if bytes(tensors["base_version"]).decode() != base_version:
        return {}
    keys = [row.tobytes() for row in tensors["keys"]]
    return dict(zip(keys, tensors["vectors"], strict=True))


def _write(path: Path, base_version: str, known: dict[bytes, np.ndarray]) -> None:
    keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
    version = np.frombuffer(base_version.encode(), dtype=np.uint8)
    try:
        write_atomically(path, save({"base_version": version, "keys": keys, "vectors": np.stack(list(known.values()))}))
    except OSError:
        return
