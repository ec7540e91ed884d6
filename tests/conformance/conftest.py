"""The vector stores that must all behave alike."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from indexer.store import ProductStore
from tests.support.qdrant_process import QdrantProcess

DIM = 8


class Backend:
    """One vector store under test.

    Args:
        name: embedded, memory or server.
        process: what can be killed, None where nothing survives or it is not ours to kill.
        url: where it answers, None for the one in memory.
    """

    def __init__(self, name: str, *, process: QdrantProcess | None = None, url: str | None = None) -> None:
        self.name = name
        self.process = process
        self.url = process.url if process else url
        self.client = self._connect()

    def _connect(self) -> QdrantClient:
        """Return a client as any user makes it."""
        return QdrantClient(url=self.url) if self.url else QdrantClient(":memory:")

    def kill_and_restart(self) -> None:
        """End the store by SIGKILL and start it again on the same folder."""
        if self.process is None:
            pytest.skip(f"{self.name}: nothing of it survives a kill, or it is not ours to kill")
        self.process.kill()
        self.process.start()

    def close(self) -> None:
        """Let go of it."""
        self.client.close()
        if self.process is not None:
            self.process.stop()


def _open(name: str, folder: Path) -> Backend:
    """Start or reach a store, or skip with the reason why it is not there."""
    if name == "memory":
        return Backend(name)
    if name == "embedded":
        return Backend(name, process=QdrantProcess.embedded(folder / "data").start())
    if url := os.environ.get("MILLRACE_QDRANT_URL"):
        return Backend(name, url=url)
    if binary := os.environ.get("QDRANT_BIN"):
        return Backend(name, process=QdrantProcess.server(binary, folder).start())
    pytest.skip("no Qdrant server: neither MILLRACE_QDRANT_URL nor QDRANT_BIN is set")


@pytest.fixture(scope="module", params=["embedded", "memory", "server"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each vector store in turn, started once for all its tests."""
    opened = _open(request.param, tmp_path_factory.mktemp(f"qdrant-{request.param}"))
    yield opened
    opened.close()


@pytest.fixture
def client(backend: Backend) -> QdrantClient:
    """The plain client that any user has."""
    return backend.client


@pytest.fixture
def store(client: QdrantClient) -> ProductStore:
    """The indexer's writer on the same store; small batches, so that several are needed."""
    return ProductStore(client, batch_size=16)


@pytest.fixture
def collection(store: ProductStore) -> Iterator[str]:
    """An empty collection of products, gone after the test."""
    name = f"conformance-{uuid.uuid4().hex[:12]}"
    store.ensure_collection(name, DIM, metadata={"product_release": 1})
    yield name
    store.drop(name)
