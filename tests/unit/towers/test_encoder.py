"""The base encoder's contract, on a model of two weights."""

from typing import Any, cast

import numpy as np
import torch

from towers.encoder import BaseEncoder
from towers.text import TEMPLATE_VERSION


class TwoWeights(torch.nn.Module):
    """Stands for a sentence-transformers model: same calls, a vector made of a text's length."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([weight, 1.0]))

    def encode(self, texts: list[str], *, normalize_embeddings: bool, **_: Any) -> np.ndarray:
        """Return one row per text."""
        rows = np.array([[len(text), 1.0] for text in texts], dtype=np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize_embeddings else rows


def encoder(weight: float = 1.0) -> BaseEncoder:
    """Return an encoder over such a model."""
    return BaseEncoder(cast("Any", TwoWeights(weight)), name="two")


def test_rows_are_float32_and_of_unit_length() -> None:
    """Whatever the model gives, both towers see unit float32 rows in the order of the texts."""
    rows = encoder().encode(["abc", ""])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert rows[0, 0] > rows[1, 0]


def test_no_text_gives_no_row_of_the_right_width() -> None:
    """An empty list is not an error."""
    assert encoder().encode([]).shape == (0, 2)


def test_base_version_names_model_weights_and_template() -> None:
    """The same weights give the same version, others another: their vectors must never meet."""
    assert encoder().base_version == encoder().base_version
    assert encoder().base_version != encoder(weight=2.0).base_version
    assert encoder().base_version.startswith("two/")
    assert encoder().base_version.endswith(f"/t{TEMPLATE_VERSION}")
