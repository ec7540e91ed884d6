"""Two indexers on a real Kafka and one vector store: the group shares the catalogue, one of them moves the releases."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts import wire
from contracts.catalog import CatalogChange
from contracts.progress import CatalogCounts
from contracts.releases import SERVING, SERVING_KEY, Serving
from contracts.topics import CATALOG, MODELS
from contracts.versions import PointVersion
from indexer.adapters.qdrant import ProductStore, connect
from service.kafka import admin, committed_offsets, ensure_topics, read_compacted
from service.settings import Settings
from tests.support.indexing import ServiceProcess, Shop, deleted, product, product_release, query_release
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.qdrant_process import QdrantProcess
from towers.encoder import BaseEncoder

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]

SettingsFactory = Callable[..., Settings]

CATALOGUE = 800
CHANGES = 24
"""Per round: new products, newer versions, deletions."""
MOST_ROUNDS = 200
MOST_BEHIND = 240


@pytest.fixture
def own(kafka_settings: SettingsFactory, qdrant: QdrantProcess, model_folder: Path) -> Settings:
    """Give the settings of a deployment with all its servers."""
    settings = kafka_settings(qdrant_url=qdrant.url, base_model=str(model_folder), partitions=2)
    ensure_topics(settings)
    return settings


@pytest.fixture
def pair(own: Settings, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Give two indexers with a partition each, the leading one first."""
    processes = [_indexer(own, f"indexer-{number}", tmp_path) for number in (1, 2)]
    for process in processes:
        process.start(wait=False)
    for process in processes:
        process.wait_ready()
    eventually(lambda: sorted(_held(process) for process in processes) == [[0], [1]], timeout_s=60, what="one each")
    yield sorted(processes, key=_held)
    for process in processes:
        assert process.stop() == 0, process.log_text()[-3000:]


def _indexer(own: Settings, worker_id: str, folder: Path) -> ServiceProcess:
    """Return an indexer of the group."""
    settings = own.model_copy(update={"port": free_port(), "worker_id": worker_id})
    return ServiceProcess("indexer", settings, folder / f"{worker_id}.log")


def _held(process: ServiceProcess) -> list[int]:
    """Return the partitions that a process holds."""
    assigned = process.events("partitions_assigned")
    return assigned[-1]["partitions"] if assigned else []


class ChangingCatalogue:
    """A shop that never rests, and what it has sent.

    Args:
        own: the settings.
    """

    def __init__(self, own: Settings) -> None:
        self._own = own
        self._shop = Shop(own)
        self.newest = {f"P-{number}": 1 for number in range(CATALOGUE)}
        self.sent = len(self.newest)
        self._shop.send(*(product(product_id, title=f"fridge {product_id}") for product_id in self.newest))

    def send(self, number: int) -> None:
        """Send a round of changes; return once the indexers are not far behind."""
        version = number + 2
        newer = [f"P-{(number * CHANGES + step) % CATALOGUE}" for step in range(CHANGES // 2)]
        arrived = [f"N-{number}-{step}" for step in range(CHANGES // 3)]
        gone = [f"P-{(number * 7 + step * 131) % CATALOGUE}" for step in range(CHANGES // 6)]
        changes: list[CatalogChange] = [
            *(product(product_id, version, f"oven {number}") for product_id in newer if product_id not in gone),
            *(product(product_id, version, f"laptop {number}") for product_id in arrived),
            *(deleted(product_id, version) for product_id in dict.fromkeys(gone)),
        ]
        self._shop.send(*changes)
        self.newest |= {change.product_id: version for change in changes}
        self.sent += len(changes)
        eventually(lambda: self.counted() >= self.sent - MOST_BEHIND, timeout_s=120)

    def counted(self) -> int:
        """Return how many records the group has worked off."""
        with admin(self._own) as client:
            committed = committed_offsets(client, self._own, "indexer")
        entries = [entry for (topic, _), entry in committed.items() if topic == CATALOG]
        return sum(CatalogCounts.model_validate_json(entry.metadata).catalogue for entry in entries)

    def close(self) -> None:
        """Close the connection."""
        self._shop.close()


@pytest.fixture
def catalogue(own: Settings) -> Iterator[ChangingCatalogue]:
    """Give a catalogue that can change all the time."""
    changing = ChangingCatalogue(own)
    yield changing
    changing.close()


def serving_of(settings: Settings) -> Serving:
    """Return the pair that `models` says is in force."""
    found = {key: value for (_, key), value in read_compacted(settings, MODELS).items()}
    return wire.decode(found[SERVING_KEY], SERVING)


@pytest.mark.parametrize("ends", ["who leads", "who follows"])
def test_a_catalogue_that_never_rests_is_rolled_out_whole(
    ends: str, own: Settings, encoder: BaseEncoder, pair: list[ServiceProcess], catalogue: ChangingCatalogue
) -> None:
    """The release comes into force under steady changes, and its collection has the newest version of every product.

    One of the two indexers is killed in the middle of the roll-out and comes back.
    """
    eventually(lambda: catalogue.counted() == catalogue.sent, timeout_s=180, interval_s=0.5)
    shop = Shop(own)
    shop.release(query_release(1, encoder, product_release=1), product_release(1, encoder, query_release=1))
    shop.close()
    leader, follower = pair
    rounds = iter(range(MOST_ROUNDS))
    eventually(lambda: leader.events("rollout_progress"), timeout_s=60, interval_s=0.01)
    ending = leader if ends == "who leads" else follower
    ending.kill()
    ending.start(wait=False)
    while serving_of(own).product_release == 0:
        catalogue.send(next(rounds))
    for _ in range(3):
        catalogue.send(next(rounds))
    eventually(lambda: catalogue.counted() == catalogue.sent, timeout_s=120, interval_s=0.5)

    store = ProductStore(connect(own))
    expected = {product_id: PointVersion(version, 1) for product_id, version in catalogue.newest.items()}
    eventually(lambda: store.versions(own.collection(1)) == expected, timeout_s=60, interval_s=0.5)
    store.close()
    assert serving_of(own).collection == own.collection(1)
    refused = [line for process in pair for line in process.events("release_refused")]
    assert refused == []
    for process in pair:
        process.wait_ready()
