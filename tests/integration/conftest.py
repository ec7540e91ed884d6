"""What the integration tests of indexer and search share: a small real model and a vector store of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from indexer.app import serve
from indexer.qdrant import connect
from indexer.store import ProductStore
from service.kafka import ensure_topics
from service.settings import Settings
from tests.support.indexing import ServiceThread, Shop, running
from tests.support.ports import free_port
from tests.support.qdrant_process import QdrantProcess
from tests.support.tiny_encoder import write_tiny_model
from towers.encoder import BaseEncoder, load_encoder

SettingsFactory = Callable[..., Settings]


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


@pytest.fixture
def own(kafka_settings: SettingsFactory, qdrant: QdrantProcess, model_folder: Path) -> Settings:
    """Give the settings of an indexer with all its servers."""
    return kafka_settings(
        qdrant_url=qdrant.url, base_model=str(model_folder), port=free_port(), worker_id="indexer-1", partitions=2
    )


@pytest.fixture
def indexer(own: Settings) -> Iterator[ServiceThread]:
    """Give an indexer that is ready."""
    with running(serve, own) as service:
        yield service


@pytest.fixture
def shop(own: Settings) -> Iterator[Shop]:
    """Give a writer of catalogue changes and releases."""
    ensure_topics(own)
    writer = Shop(own)
    yield writer
    writer.close()


@pytest.fixture
def store(own: Settings) -> Iterator[ProductStore]:
    """Give the store as a reader has it."""
    reader = ProductStore(connect(own))
    yield reader
    reader.close()
