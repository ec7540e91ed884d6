"""A base model as ONNX Runtime runs it: graph, tokenizer and a description in one folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import orjson

GRAPH: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
DESCRIPTION: Final = "description.json"
VECTORS: Final = "vectors"
"""The graph's output."""
CANNOT_BE_READ: Final = 3
"""Exit status of a translation if the model's folder is at fault."""
PROBE: Final = "red small oven 60 l"
"""Text by whose vector a damaged folder is told."""
TOLERANCE: Final = 1e-5
"""By how much a number of a vector may differ: rounding of float32 over some hundred numbers."""


class TranslatedModel:
    """Texts to unit vectors by ONNX Runtime; several threads may encode at once.

    Args:
        folder: as `towers.torch_model` writes it.
        threads: of one call.

    Raises:
        ValueError: the model could not be translated, or the folder is damaged.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        import onnxruntime  # type: ignore[import-untyped] # ships without annotations
        from tokenizers import Tokenizer

        described = orjson.loads((folder / DESCRIPTION).read_bytes())
        if "refused" in described:
            raise ValueError(described["refused"])
        self.digest: str = described["digest"]
        self.dim: int = described["dim"]
        self._prompt: str = described["prompt"]
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the core meanwhile
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name for one in self._session.get_inputs()}
        if not np.allclose(self.encode([PROBE], batch_size=1)[0], described["probe"], rtol=0.0, atol=TOLERANCE):
            raise ValueError(f"{folder} is damaged: remove it, and it is made again")

    def encode(self, texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Encode at least one text to unit float32 rows (N, D), in their order."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        # Texts of like length together: a batch is as wide as its longest.
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            rows[places] = self._vectors([self._prompt + texts[place] for place in places])
        return rows

    def _vectors(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer.encode_batch(texts)
        values = {
            "input_ids": [one.ids for one in tokens],
            "attention_mask": [one.attention_mask for one in tokens],
            "token_type_ids": [one.type_ids for one in tokens],
        }
        given = {name: np.array(values[name], dtype=np.int64) for name in self._inputs}
        return np.asarray(self._session.run([VECTORS], given)[0], dtype=np.float32)
