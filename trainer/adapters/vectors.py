"""Base vectors and features of products as `product-vectors` has them, and base vectors of texts.

A million products take 0.8 GB of a mapped file and 1.0 GB of memory, and their index of words 0.3 GB.
"""

import hashlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from cachetools import LRUCache
from pydantic import TypeAdapter

from contracts import wire
from contracts.catalog import ProductVector
from contracts.errors import ContractError
from service.logging import get_logger
from towers.features import FeatureSpace, keys_of, product_features
from towers.lexical import Sparse, word_vector
from towers.release_files import Encoder
from towers.word_index import WordIndex
from trainer.learner import Looked

FIRST_ROWS: Final = 1024
KEPT_TEXTS: Final = 20_000
"""30 MB at 384 dimensions."""
VECTOR: Final[TypeAdapter[ProductVector]] = TypeAdapter(ProductVector)
NO_FEATURES: Final = np.zeros(0, dtype=np.uint64)
WORD: Final = np.dtype([("index", "<u4"), ("value", "<f4")])
"""An entry of a product's words: one array a product takes less memory than two."""
NO_WORDS: Final = np.zeros(0, dtype=WORD)


class _Product(NamedTuple):
    row: int
    features: np.ndarray
    words: np.ndarray


class VectorTable:
    """Of every product its base vector and the keys of its features, the newest version each.

    Vectors lie in a file without a name, as float16; rows of deleted products are used again. A follower's thread feeds
    it and the loop's reads, one lock between them.

    Args:
        folder: of the file.
        dim: width of a vector.
        base_version: vectors of another encoder or template are left out: they mean something else.
    """

    def __init__(self, folder: Path, dim: int, *, base_version: str) -> None:
        self._dim = dim
        self._base_version = base_version
        self._lock = threading.Lock()
        self._file, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        weakref.finalize(self, os.close, self._file)
        self._matrix = self._mapped(FIRST_ROWS)
        self._digests = np.zeros(FIRST_ROWS, dtype=np.uint64)
        """By row, of the product with its features and words; 0 of a free one."""
        self._products: dict[str, _Product] = {}
        self._versions: dict[str, int] = {}
        self._free: list[int] = []
        self.foreign_records = 0
        """Vectors of another base version that were left out."""
        self._foreign_base = ""
        self.forget()

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew, and its versions may begin anew, too."""
        with self._lock:
            self._products.clear()
            self._versions.clear()
            self._free = list(range(len(self._matrix) - 1, -1, -1))
            self._digests[:] = 0
            self.foreign_records = 0

    def on_record(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of the topic; one that breaks its contract is named in the log and changes nothing."""
        try:
            product_id = key.decode()
            vector = None if value is None else wire.decode(value, VECTOR)
        except (ContractError, UnicodeDecodeError) as error:
            get_logger().warning("product_vector_unreadable", key=repr(key), error=str(error))
            return
        if vector is None:
            self._remove(product_id, version=None)
        elif vector.deleted:
            self._remove(product_id, version=vector.version)
        else:
            self._put(vector)

    def not_usable(self) -> str | None:
        """Give the reason why no pair can be trained, as a readiness check; an empty catalogue is no reason."""
        if self._products or not self.foreign_records:
            return None
        return f"no vector is of base model {self._base_version}; the newest is of {self._foreign_base}"

    def digests(self) -> np.ndarray:
        """A number for each product with its features and words, in any order, (P,) uint64."""
        with self._lock:
            return self._digests[self._digests > 0]

    def feature_space(self) -> FeatureSpace:
        """Count the features of the whole catalogue."""
        with self._lock:
            features = [product.features for product in self._products.values()]
        return FeatureSpace.of(features)

    def word_index(self) -> WordIndex:
        """Index the words of the whole catalogue."""
        with self._lock:
            words = [product.words for product in self._products.values()]
        return WordIndex([_sparse(one) for one in words])

    def look(self, product_ids: Sequence[str]) -> Looked:
        """What is known of products."""
        with self._lock:
            found = [self._products.get(product_id) for product_id in product_ids]
            known = np.array([product is not None for product in found], dtype=bool)
            vectors = np.zeros((len(found), self._dim), dtype=np.float32)
            vectors[known] = self._matrix[[product.row for product in found if product is not None]]
        features = [NO_FEATURES if product is None else product.features for product in found]
        words = [_sparse(NO_WORDS if product is None else product.words) for product in found]
        return Looked(known, vectors, features, words)

    def _put(self, vector: ProductVector) -> None:
        """Keep a vector unless a newer version is known."""
        content = np.frombuffer(vector.vector_bytes(), dtype="<f4")
        is_ours = vector.base_version == self._base_version and content.shape == (self._dim,)
        if not is_ours or vector.payload is None:
            self._count_foreign(vector)
            return
        if not np.isfinite(content).all():
            get_logger().warning("product_vector_not_finite", product_id=vector.product_id)
            return
        features = keys_of(product_features(vector.payload))
        sparse = word_vector(vector.product_id, vector.payload)
        words = np.empty(len(sparse.indices), dtype=WORD)
        words["index"], words["value"] = sparse
        told = b"\0".join((vector.product_id.encode(), features.tobytes(), words.tobytes()))
        digest = hashlib.blake2b(told, digest_size=8).digest()
        with self._lock:
            if vector.version < self._versions.get(vector.product_id, 0):
                return
            self._versions[vector.product_id] = vector.version
            known = self._products.get(vector.product_id)
            row = self._free_row() if known is None else known.row
            self._products[vector.product_id] = _Product(row, features, words)
            self._matrix[row] = content
            self._digests[row] = int.from_bytes(digest, "little")

    def _remove(self, product_id: str, *, version: int | None) -> None:
        """Forget a product, unless a newer version of it is known."""
        with self._lock:
            if version is not None and version < self._versions.get(product_id, 0):
                return
            if version is None:
                self._versions.pop(product_id, None)
            else:
                self._versions[product_id] = version
            known = self._products.pop(product_id, None)
            if known is not None:
                self._free.append(known.row)
                self._digests[known.row] = 0

    def _free_row(self) -> int:
        """Find an unused row; the file doubles when none is left."""
        if not self._free:
            size = len(self._matrix)
            self._matrix = self._mapped(2 * size)
            self._digests = np.concatenate([self._digests, np.zeros_like(self._digests)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        return self._free.pop()

    def _mapped(self, rows: int) -> np.ndarray:
        size = rows * self._dim * 2
        os.ftruncate(self._file, size)
        return np.frombuffer(mmap.mmap(self._file, size), dtype=np.float16).reshape(rows, self._dim)

    def _count_foreign(self, vector: ProductVector) -> None:
        self.foreign_records += 1
        self._foreign_base = vector.base_version
        if self.foreign_records == 1:
            get_logger().warning("foreign_vectors_left_out", found=vector.base_version, wanted=self._base_version)


def _sparse(words: np.ndarray) -> Sparse:
    return Sparse(words["index"], words["value"])


class TextVectors:
    """Encodes each text on its own, so that its vector does not depend on which texts were encoded with it.

    That costs a few milliseconds for a text that was never seen, and buys that a trainer which was interrupted
    computes the same bits as one that was not.

    Args:
        encoder: the base encoder.
        capacity: texts that are kept.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = KEPT_TEXTS) -> None:
        self._encoder = encoder
        self._vectors: LRUCache[str, np.ndarray] = LRUCache(capacity)

    def __call__(self, text: str) -> np.ndarray:
        """The base vector of a text, (D,)."""
        vector: np.ndarray | None = self._vectors.get(text)
        if vector is None:
            vector = self._vectors[text] = self._encoder.encode([text])[0]
        return vector
