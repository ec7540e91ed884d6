"""Where weights are found, in which order, and what is said where they are not."""

from pathlib import Path

import pytest

from contracts.errors import DependencyDown
from towers import weights
from towers.weights import find_weights


def model_folder(folder: Path) -> Path:
    """Write what looks like a model and return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the hub and this machine's cache out of the tests."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights, "_cached", lambda _name: "not there")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """A name that is a model folder needs no hub."""
    folder = model_folder(tmp_path / "own")
    assert find_weights(str(folder)) == (folder, "folder")


def test_the_cache_comes_before_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the hub gave once is used again, also where the package is installed."""
    cached = model_folder(tmp_path / "cached")
    monkeypatch.setattr(weights, "_cached", lambda _name: cached)
    assert find_weights("sentence-transformers/all-MiniLM-L6-v2").source == "hub cache"


def test_the_package_stands_in_for_an_unreachable_hub() -> None:
    """The default model's weights come from the offline package, and that is said."""
    found = find_weights("sentence-transformers/all-MiniLM-L6-v2")
    assert found.source == f"package {weights.OFFLINE_PACKAGE}"
    assert (found.path / "model.safetensors").is_file()


def test_the_package_never_stands_in_for_another_model() -> None:
    """Another model's name must not silently give MiniLM; the error names every source and a fix."""
    with pytest.raises(DependencyDown) as refused:
        find_weights("sentence-transformers/all-mpnet-base-v2")
    assert "HF_HUB_OFFLINE is set" in refused.value.message
    assert "MILLRACE_BASE_MODEL" in refused.value.fix


def test_an_incomplete_folder_is_not_a_model(tmp_path: Path) -> None:
    """A folder without weights is passed over."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DependencyDown):
        find_weights(str(tmp_path))
