"""Two indexers on a real Kafka and one vector store: the group shares the catalogue, one of them moves the releases."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from contracts.catalog import CatalogChange, ProductDeleted
from contracts.progress import CatalogCounts
from contracts.topics import CATALOG
from indexer.qdrant import connect
from indexer.rollout.decisions import QUALITY_TOLERANCE
from indexer.store import ProductStore
from service.kafka import admin, committed_offsets, ensure_topics
from service.settings import Settings
from tests.support.indexing import ServiceProcess, Shop, deleted, product, product_release, query_release, serving_of
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.qdrant_process import QdrantProcess
from towers.encoder import BaseEncoder
from towers.features import keys_of

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]

SettingsFactory = Callable[..., Settings]

CATALOGUE = 600
"""Ten batches of a refresh."""
CHANGES = 24
"""Per round: new products, newer versions, deletions."""
MOST_BEHIND = 240
ROLL_OUT_S = 240.0


@pytest.fixture
def own(kafka_settings: SettingsFactory, qdrant: QdrantProcess, model_folder: Path) -> Settings:
    """Give the settings of a deployment with all its servers."""
    settings = kafka_settings(qdrant_url=qdrant.url, base_model=str(model_folder), partitions=2)
    ensure_topics(settings)
    return settings


@pytest.fixture
def pair(own: Settings, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Give two indexers with a partition each."""
    processes = [_indexer(own, f"indexer-{number}", tmp_path) for number in (1, 2)]
    for process in processes:
        process.start(wait=False)
    try:
        _wait_for_both(processes)
        yield processes
    finally:
        ends = [process.stop() for process in processes]
    assert ends == [0, 0], [process.log_text()[-3000:] for process in processes]


def _indexer(own: Settings, worker_id: str, folder: Path) -> ServiceProcess:
    """Return an indexer of the group."""
    settings = own.model_copy(update={"port": free_port(), "worker_id": worker_id})
    return ServiceProcess("indexer", settings, folder / f"{worker_id}.log")


def _held(process: ServiceProcess) -> list[int]:
    """Return the partitions that a process holds."""
    assigned = process.events("partitions_assigned")
    return assigned[-1]["partitions"] if assigned else []


def _wait_for_both(processes: Sequence[ServiceProcess]) -> None:
    """Wait until both are ready and hold a partition each."""
    for process in processes:
        process.wait_ready()
    eventually(lambda: sorted(_held(process) for process in processes) == [[0], [1]], timeout_s=60, what="one each")


def _has_begun(process: ServiceProcess, release: int) -> bool:
    """Return whether a process has written some of the points that a product release moves."""
    return any(line["product_release"] == release for line in process.events("rollout_progress"))


class ChangingCatalogue:
    """A shop that never rests, and what it has sent.

    Args:
        own: the settings.
    """

    def __init__(self, own: Settings) -> None:
        self._own = own
        self._shop = Shop(own)
        self._rounds = count()
        self.newest: dict[str, tuple[int, str | None]]
        """Version of each product, and the word of its title that has a quality; None once it is deleted."""
        self.newest = {f"P-{number}": (1, "fridge") for number in range(CATALOGUE)}
        self.sent = len(self.newest)
        self._shop.send(*(product(product_id, title=f"fridge {product_id}") for product_id in self.newest))

    def send(self) -> None:
        """Send a round of changes; return once the indexers are not far behind."""
        number = next(self._rounds)
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
        self.newest |= {
            change.product_id: (version, None if isinstance(change, ProductDeleted) else change.title.split()[0])
            for change in changes
        }
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


def _roll_out(
    release: int,
    ending: ServiceProcess,
    leading: ServiceProcess,
    *,
    own: Settings,
    encoder: BaseEncoder,
    catalogue: ChangingCatalogue,
) -> None:
    """Bring a release into force under steady changes, kill one process in the middle and start it again."""
    shop = Shop(own)
    shop.release(product_release(release, encoder), query_release(release, encoder, product_release=release))
    eventually(lambda: _has_begun(leading, release), timeout_s=60, interval_s=0.01, what="the refresh has begun")
    ending.kill()
    ending.start(wait=False)
    shop.close()

    def is_in_force() -> bool:
        """Send another round, and ask."""
        catalogue.send()
        return serving_of(own).product_release == release

    eventually(is_in_force, timeout_s=ROLL_OUT_S, interval_s=0)
    for _ in range(3):
        catalogue.send()


def _assert_whole(release: int, own: Settings, encoder: BaseEncoder, catalogue: ChangingCatalogue) -> None:
    """Check that a release is in force, and that every product has its newest version with the quality it gives."""
    eventually(lambda: catalogue.counted() == catalogue.sent, timeout_s=120, interval_s=0.5)
    store, tower = ProductStore(connect(own)), product_release(release, encoder).product_tower()
    words = ["fridge", "oven", "laptop"]
    quality = dict(zip(words, tower.quality(words, [keys_of([f"t:{one}"]) for one in words]).tolist(), strict=True))

    def wrong() -> list[str]:
        """Name the products that are missing, stale, resurrected, or of another quality."""
        stored = store.stored(own.collection(0))
        assert stored.keys() <= catalogue.newest.keys()
        return [
            product_id
            for product_id, (version, word) in catalogue.newest.items()
            if (point := stored.get(product_id)) is None
            or (point.version.version, point.version.deleted) != (version, word is None)
            or (word is not None and abs(point.quality - quality[word]) > 2 * QUALITY_TOLERANCE)
        ]

    eventually(lambda: not wrong(), timeout_s=60, interval_s=0.5)
    store.close()
    assert serving_of(own).collection == own.collection(0)


def test_a_catalogue_that_never_rests_is_rolled_out_whole(
    own: Settings, encoder: BaseEncoder, pair: list[ServiceProcess], catalogue: ChangingCatalogue
) -> None:
    """A release comes into force under steady changes, and every product has its newest version and quality.

    One of the two indexers is killed in the middle of each refresh and comes back: first who leads, then who follows.
    """
    eventually(lambda: catalogue.counted() == catalogue.sent, timeout_s=180, interval_s=0.5)
    for release in (1, 2):
        leader, follower = sorted(pair, key=_held)
        ending = leader if release == 1 else follower
        _roll_out(release, ending, leader, own=own, encoder=encoder, catalogue=catalogue)
        _assert_whole(release, own, encoder, catalogue)
        _wait_for_both(pair)
    assert [line for process in pair for line in process.events("release_refused")] == []
