"""Encoders of random weights for tests: one that needs no model, one as a folder that real processes can load."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = [
    "fridge",
    "freezer",
    "quiet",
    "double",
    "door",
    "laptop",
    "gaming",
    "ac",
    "inverter",
    "ton",
    "tv",
    "smart",
    "earbuds",
    "wireless",
    "mixer",
    "grinder",
    "oven",
    "red",
    "blue",
    "small",
    "large",
    "cheap",
    "fast",
    "slow",
]


class TinyEncoder:
    """Bags of words as sums of seeded random vectors: texts that share words are close, as with a real encoder."""

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim
        self.base_version = f"tiny/{dim}/t1"
        self.encoded: list[str] = []
        """Every text that was ever encoded, in order."""

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit float32 rows (N, D)."""
        del batch_size  # part of the interface; a bag of words needs no batches
        self.encoded += texts
        rows = [np.sum([self._word(word) for word in text.lower().split() or [""]], axis=0) for text in texts]
        matrix = np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)
        return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)

    def _word(self, word: str) -> np.ndarray:
        """Return a word's vector."""
        return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.dim)


def write_tiny_model(folder: Path, *, dim: int = 32) -> Path:
    """Write a sentence-transformers model of seeded random weights and return its folder.

    It loads in a moment, needs no network, and is real in every other respect.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel
    from transformers import BertTokenizerFast as Tokenizer  # type: ignore[attr-defined] # exported lazily

    backbone = folder / "backbone"
    backbone.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,>"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{one}" for one in letters)]
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(backbone)  # type: ignore[no-untyped-call] # ships without an annotation
    Tokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(backbone)
    transformer = Transformer(str(backbone), max_seq_length=128)
    model = SentenceTransformer(modules=[transformer, Pooling(dim)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"
