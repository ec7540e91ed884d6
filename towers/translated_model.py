"""A base model as ONNX Runtime runs it: graph, tokenizer and a description in one folder."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

if TYPE_CHECKING:
    from tokenizers import Encoding

GRAPH: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
DESCRIPTION: Final = "description.json"
VECTORS: Final = "vectors"
"""The graph's output."""
BATCH_TOKENS: Final = 512
"""Of a batch, padding included. More of them at once take longer each, for they outgrow the processor's cache, and the
memory of the largest batch is kept."""
SORTED_AT_ONCE: Final = 4_096
"""Texts that are sorted by length at once."""


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds what its description says: a model, or why there is none."""
    try:
        described = orjson.loads((folder / DESCRIPTION).read_bytes())
        return all(digest_of(folder / name) == digest for name, digest in described["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


class TranslatedModel:
    """Texts to unit vectors by ONNX Runtime; several threads may encode at once.

    Args:
        folder: as `towers.torch_model` writes it.
        threads: of one call.

    Raises:
        ValueError: the model could not be translated.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        import onnxruntime  # type: ignore[import-untyped] # ships without annotations
        from tokenizers import Tokenizer

        described = orjson.loads((folder / DESCRIPTION).read_bytes())
        if "refused" in described:
            raise ValueError(f"{described['refused']} (remove {folder} to try again)")
        self.digest: str = described["digest"]
        self.dim: int = described["dim"]
        self._prompt: str = described["prompt"]
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._padding = self._tokenizer.padding or {"pad_id": 0, "pad_type_id": 0, "direction": "right"}
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the core meanwhile
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name for one in self._session.get_inputs()}

    def encode(self, texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Encode at least one text to unit float32 rows (N, D), in their order; a batch may have fewer than asked."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), SORTED_AT_ONCE):
            some = [self._prompt + text for text in texts[start : start + SORTED_AT_ONCE]]
            tokens = self._tokenizer.encode_batch_fast(some)
            for places in batches_of([len(one) for one in tokens], batch_size):
                rows[[start + place for place in places]] = self._vectors([tokens[place] for place in places])
        return rows

    def _vectors(self, tokens: list["Encoding"]) -> np.ndarray:
        width = max(len(one) for one in tokens)
        rows = {
            "input_ids": [(one.ids, self._padding["pad_id"]) for one in tokens],
            "attention_mask": [(one.attention_mask, 0) for one in tokens],
            "token_type_ids": [(one.type_ids, self._padding["pad_type_id"]) for one in tokens],
        }
        given = {name: np.array([self._padded(*row, width) for row in rows[name]], np.int64) for name in self._inputs}
        return np.asarray(self._session.run([VECTORS], given)[0], dtype=np.float32)

    def _padded(self, row: list[int], filler: int, width: int) -> list[int]:
        filling = [filler] * (width - len(row))
        return filling + row if self._padding["direction"] == "left" else row + filling


def batches_of(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Give the places of texts of like length together, each batch as wide as its longest text.

    >>> list(batches_of([2, 900, 3, 1200], 64)), list(batches_of([1, 1, 1], 2))
    ([[3], [1], [2, 0]], [[0, 1], [2]])
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
