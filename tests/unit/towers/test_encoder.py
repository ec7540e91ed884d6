"""The base encoder: one set of vectors whatever runs the model, translated once, and what is done where that fails."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from structlog.testing import capture_logs

from contracts.errors import DependencyDown
from tests.support.tiny_encoder import write_tiny_model
from towers.encoder import BaseEncoder, load_encoder
from towers.text import TEMPLATE_VERSION
from towers.torch_model import PROBES, TorchModel, translate, weights_digest
from towers.translated_model import GRAPH, TranslatedModel
from towers.weights import WeightsFolder

TEXTS = ["quiet fridge", "", "double door fridge with a large freezer, small and cheap", *PROBES]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a small real model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the cache in which the small model was translated; that takes a while."""
    made = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(made))
        load_encoder(str(tiny))
    return made


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give translated models a folder of this test's own, in which the small model is."""
    shutil.copytree(made, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache" / "millrace" / "encoders"


def original(folder: Path) -> TorchModel:
    """Return a model as sentence-transformers runs it."""
    return TorchModel(WeightsFolder(folder, "folder"))


def translated(cache: Path) -> list[Path]:
    """Return the folders of translated models."""
    return [one for one in cache.iterdir() if one.is_dir()]


def test_a_translated_model_gives_the_vectors_of_the_original(tiny: Path, cache: Path) -> None:
    """Nothing, blanks, unknown letters and too many words included, in the order of the texts, unit float32."""
    bare = SentenceTransformer(str(tiny), device="cpu")
    rows = load_encoder(str(tiny)).encode(TEXTS, batch_size=3)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, bare.encode(TEXTS, normalize_embeddings=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_a_prompt_and_another_pooling_are_translated_too(tiny: Path, tmp_path: Path) -> None:
    """What a model does besides its transformer is part of it."""
    bare = SentenceTransformer(
        modules=[Transformer(str(tiny)), Pooling(32, pooling_mode="max"), Normalize()],
        device="cpu",
        prompts={"query": "red: "},
        default_prompt_name="query",
    )
    bare.save(str(tmp_path / "model"))
    translate(original(tmp_path / "model"), tmp_path / "into")
    rows = TranslatedModel(tmp_path / "into").encode(TEXTS, batch_size=64)
    np.testing.assert_allclose(rows, bare.encode(TEXTS), atol=1e-6)


def test_a_model_is_translated_once_and_then_needs_no_torch(tiny: Path, cache: Path) -> None:
    """Later starts read the folder: they are quick and small because torch stays out."""
    (folder,) = translated(cache)
    before = (folder / GRAPH).stat().st_mtime_ns
    asked = f"""import sys
from towers.encoder import load_encoder
load_encoder({str(tiny)!r}).encode(["red"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", asked], check=True, env={**os.environ})
    assert (folder / GRAPH).stat().st_mtime_ns == before
    assert translated(cache) == [folder]


def test_no_text_gives_no_row_of_the_right_width(tiny: Path, cache: Path) -> None:
    """An empty list is not an error."""
    assert load_encoder(str(tiny)).encode([]).shape == (0, 32)


def test_base_version_names_model_weights_and_template(tiny: Path, cache: Path) -> None:
    """Whatever runs them the same weights give the same version, others another: their vectors must never meet."""
    model = original(tiny)
    version = load_encoder(str(tiny)).base_version
    assert version == BaseEncoder(model, name=tiny.name).base_version == f"model/{model.digest}/t{TEMPLATE_VERSION}"
    next(model.model.parameters()).data[0, 0] += 1
    assert weights_digest(model.model) != model.digest


@pytest.mark.parametrize("damage", ["weights", "graph"])
def test_a_damaged_folder_is_told_and_torch_runs_the_model(tiny: Path, cache: Path, damage: str) -> None:
    """Wrong vectors would meet right ones in the index; the log says which folder to remove."""
    (folder,) = translated(cache)
    broken = folder / (GRAPH if damage == "graph" else f"{GRAPH}.data")
    broken.write_bytes(bytes(len(broken.read_bytes())))
    with capture_logs() as lines:
        loaded = load_encoder(str(tiny))
    np.testing.assert_array_equal(loaded.encode(TEXTS), original(tiny).encode(TEXTS, batch_size=64))
    (warning,) = (line for line in lines if line["event"] == "base_encoder_not_translated")
    assert str(folder) in warning["error"]


def test_a_model_that_cannot_be_translated_is_run_by_torch(
    tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why is kept, so that no later start tries again."""
    model = original(tiny)
    right = model.encode

    def of_one_text(texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Give the vectors of a model that makes something of its own of several texts."""
        return right(texts, batch_size=batch_size) * (1 if len(texts) == 1 else -1)

    monkeypatch.setattr(model, "encode", of_one_text)
    translate(model, tmp_path / "into")
    with pytest.raises(ValueError, match="its vectors differ by"):
        TranslatedModel(tmp_path / "into")


def test_a_cache_that_cannot_be_written_costs_speed_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the folder should be: torch runs the model, and the log says why."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with capture_logs() as lines:
        loaded = load_encoder(str(tiny))
    np.testing.assert_array_equal(loaded.encode(TEXTS), original(tiny).encode(TEXTS, batch_size=64))
    assert [line["event"] for line in lines] == ["base_encoder_found", "base_encoder_not_translated"]


def test_a_model_that_cannot_be_read_is_said_with_its_fix(cache: Path, tmp_path: Path) -> None:
    """Weights that are none are the folder's fault and no reason to try torch."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DependencyDown) as refused:
        load_encoder(str(folder))
    assert "cannot be read" in refused.value.message
    assert "MILLRACE_BASE_MODEL" in refused.value.fix
    assert len(translated(cache)) == 1
