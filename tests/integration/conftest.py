"""What the integration tests of indexer and search share: a small real model and a vector store of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.qdrant_process import QdrantProcess
from tests.support.tiny_encoder import write_tiny_model
from towers.encoder import BaseEncoder, load_encoder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small real model as a folder."""
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model_folder: Path) -> BaseEncoder:
    """Give the encoder that the processes load."""
    return load_encoder(str(model_folder))


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantProcess]:
    """Give a vector store of this test's own: the embedded one, or a Qdrant server where QDRANT_BIN names one."""
    process = QdrantProcess.at_hand(tmp_path / "qdrant").start()
    yield process
    process.stop()
