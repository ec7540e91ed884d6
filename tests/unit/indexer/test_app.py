"""The indexer put together, without its servers: how the two loops end each other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from typing_extensions import override

from contracts.errors import InvariantError, TransientError
from contracts.releases import Serving
from contracts.telemetry import Process
from indexer import app
from indexer.app import Indexer
from indexer.catalog.loop import CatalogLoop
from indexer.points import InForce
from indexer.ports import Stopped
from service.health import Health
from service.models import ModelsView
from service.process import Shutdown, expected_failure
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.support.indexer_fakes import TIME_MS, Catalog, Deployment, Topic, record
from tests.support.indexing import product
from tests.support.poll import eventually

R1 = InForce("products-r0", 1)
WAITS = "products-r0 at product release 1 came into force"


class OneBatch:
    """An indexer whose catalogue loop gets one batch while another indexer puts release 1 in force."""

    def __init__(self) -> None:
        self.shop = Deployment()
        self.shop.new_process().settle()
        self.catalog = Catalog([record(product("P-1"))])
        self.shutdown = Shutdown()
        self.catalogue = CatalogLoop(
            self.catalog,
            self.shop.log,
            store=self.shop.store,
            encoder=self.shop.encoder,
            target=self.shop.loop.target,
            in_force=lambda: R1,
            pause=self.shutdown.wait,
        )

    def run(self, look: Callable[[], ModelsView]) -> None:
        """Run both loops to their end; the roll-out loop sees this once the batch waits."""
        self.shop.loop._models = SeenLate(self, look)
        indexer = Indexer(Settings(), self.shutdown, Health(Process.INDEXER), ExitStack())
        try:
            indexer.run_loops(self.shop.loop, self.catalogue, leads=lambda: True, models_not_read=lambda: None)
        finally:
            self.shutdown.close()


class SeenLate(Topic):
    """`models`, which the roll-out loop sees once the batch waits for it to take the switch over.

    Args:
        batch: that waits.
        look: what it sees then.
    """

    def __init__(self, batch: OneBatch, look: Callable[[], ModelsView]) -> None:
        super().__init__()
        self._batch = batch
        self._look = look

    @override
    def look(self) -> ModelsView:
        """Wait and look."""
        eventually(lambda: self._batch.catalogue.waiting_for() == WAITS, interval_s=0.001)
        return self._look()


def test_a_batch_that_waits_for_a_switch_which_cannot_be_taken_over_ends_with_the_reason() -> None:
    """The roll-out loop fails on the release in force: the process ends with that failure, and commits nothing."""
    batch = OneBatch()
    serving = Serving(query_release=1, product_release=1, collection=R1.collection, published_at=TIME_MS)
    with pytest.raises(InvariantError, match="product release 1 is in force and cannot be used") as raised:
        batch.run(lambda: ModelsView(serving, {}, switches=2))
    failure = expected_failure(raised.value, process=Process.INDEXER)
    assert failure is not None
    assert failure.exit_code != 0
    assert batch.catalog.committed == {}


def test_a_batch_that_waits_for_a_switch_ends_when_asked_to() -> None:
    """Without a failure it is a stop in the middle, as ever."""
    batch = OneBatch()

    def look() -> ModelsView:
        """See nothing, while the process is asked to stop."""
        batch.shutdown.request()
        raise TransientError("models could not be read")

    with pytest.raises(Stopped):
        batch.run(look)
    assert batch.catalog.committed == {}


def test_it_is_not_ready_from_its_first_answer_on(settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks as soon as it listens is told that it starts."""
    told: list[list[str]] = []

    @contextmanager
    def listening(health: Health, _host: str, _port: int) -> Iterator[None]:
        """Ask at once, as a balancer may."""
        told.append(health.against_readiness())
        yield

    def run(_indexer: Indexer) -> None:
        """End before anything is started."""
        raise Stopped

    monkeypatch.setattr(app, "admin_server", listening)
    monkeypatch.setattr(Indexer, "run", run)
    app.serve(settings(kafka_bootstrap="127.0.0.1:1", qdrant_url="http://127.0.0.1:1"), Shutdown())
    assert told == [["start: starting"]]
