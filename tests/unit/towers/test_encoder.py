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
from towers.encoder import BaseEncoder, _key, load_encoder
from towers.text import TEMPLATE_VERSION
from towers.torch_model import PROBES, TorchModel, translate, weights_digest
from towers.translated_model import DESCRIPTION, GRAPH, TOKENIZER, TranslatedModel
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


@pytest.mark.parametrize("damage", ["a part of the weights", "graph", "tokenizer", "description", "all"])
def test_a_damaged_folder_is_made_again(tiny: Path, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong vectors would meet right ones in the index, also if only those of some words are wrong."""
    (folder,) = translated(cache)
    if damage == "a part of the weights":
        content = (folder / f"{GRAPH}.data").read_bytes()
        changed = bytes(255 - one for one in content[100:108])
        (folder / f"{GRAPH}.data").write_bytes(content[:100] + changed + content[108:])
    elif damage == "all":
        shutil.rmtree(folder)
    else:
        names = {"graph": GRAPH, "tokenizer": TOKENIZER, "description": DESCRIPTION}
        (folder / names[damage]).write_bytes(b"")
    left = cache / f"under-way-{folder.name}-of-a-killed-process"
    left.mkdir()
    monkeypatch.setattr("towers.encoder._translate", lambda _weights, into: translate(original(tiny), into))
    with capture_logs() as lines:
        loaded = load_encoder(str(tiny))
    assert [line["event"] for line in lines] == ["base_encoder_found", "base_encoder_translates"]
    np.testing.assert_allclose(loaded.encode(TEXTS), original(tiny).encode(TEXTS, batch_size=64), atol=1e-6)
    assert translated(cache) == [folder]


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
    (folder,) = translated(cache)
    shutil.rmtree(folder)
    translate(model, folder)
    with capture_logs() as lines:
        loaded = load_encoder(str(tiny))
    np.testing.assert_array_equal(loaded.encode(TEXTS), original(tiny).encode(TEXTS, batch_size=64))
    found, warning = lines
    assert found["event"] == "base_encoder_found"
    assert "its vectors differ by" in warning["error"]
    assert str(folder) in warning["error"]
    assert [one.name for one in folder.iterdir()] == [DESCRIPTION]


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError(), ImportError("onnxscript")])
def test_what_says_nothing_of_the_model_is_not_kept_against_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The next start tries again."""

    def fails(*_: object) -> None:
        """Fail as a machine does."""
        raise error

    monkeypatch.setattr("towers.torch_model._write", fails)
    with pytest.raises(type(error)):
        translate(original(tiny), tmp_path / "into")
    assert not (tmp_path / "into" / DESCRIPTION).exists()


def test_a_translation_that_dies_costs_speed_alone(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that needs more memory than it is given does: torch runs the model, and nothing is left."""
    (folder,) = translated(cache)
    shutil.rmtree(folder)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with capture_logs() as lines:
        load_encoder(str(tiny))
    assert "ended with 1" in lines[-1]["error"]
    assert [one.suffix for one in cache.iterdir()] == [".lock"]


def test_a_folder_that_is_linked_counts_as_what_it_holds(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """Two models of which only a linked part differs are two; one that adapts another model is run by torch."""
    keys = set[str]()
    for content in ("a", "b"):
        (tmp_path / content).mkdir()
        (tmp_path / content / "weights.safetensors").write_text(content)
        model = tmp_path / f"model-{content}"
        shutil.copytree(tiny, model)
        (model / "2_Dense").symlink_to(tmp_path / content)
        keys.add(_key(model))
    assert len(keys) == 2
    (tiny.parent / "adapter").mkdir()
    (tiny.parent / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="lies elsewhere"):
        _key(tiny.parent / "adapter")


def test_texts_of_any_number_and_length_keep_their_order(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are sorted and cut into batches some at a time."""
    monkeypatch.setattr("towers.translated_model.SORTED_AT_ONCE", 7)
    monkeypatch.setattr("towers.translated_model.BATCH_TOKENS", 20)
    texts = [" ".join(["red", "small", "oven", "quiet"][: number % 5]) + f" {number}" for number in range(40)]
    rows = load_encoder(str(tiny)).encode(texts, batch_size=3)
    np.testing.assert_allclose(rows, original(tiny).encode(texts, batch_size=64), atol=1e-6)


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
    """Torch cannot run it either, and says why."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DependencyDown) as refused:
        load_encoder(str(folder))
    assert "cannot be read" in refused.value.message
    assert "MILLRACE_BASE_MODEL" in refused.value.fix
    assert len(translated(cache)) == 1
