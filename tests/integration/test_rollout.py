"""What a person does to a deployment that serves: another base model, and a rollback by command, on a real Kafka."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kafka import TopicPartition
from structlog.testing import capture_logs

from contracts.topics import CATALOG, PRODUCT_VECTORS
from indexer.app import serve
from indexer.qdrant import connect
from indexer.store import ProductStore
from millrace import asking, releasing
from service import logging
from service.kafka import open_consumer
from service.settings import Settings
from tests.support.indexing import (
    Shop,
    deleted,
    in_words,
    product,
    product_release,
    query_release,
    running,
    serving_of,
    titles,
)
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.tiny_encoder import write_tiny_model
from tests.support.topics import read_compacted
from towers.encoder import BaseEncoder, load_encoder

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow, pytest.mark.timeout(600)]

SettingsFactory = Callable[..., Settings]


def records_sent(settings: Settings) -> int:
    """Count what was ever written to `catalog`."""
    with open_consumer(settings) as consumer:
        partitions = [TopicPartition(settings.topic(CATALOG), number) for number in range(settings.partitions)]
        return sum(consumer.end_offsets(partitions).values())


class Shopper:
    """Searches a collection again and again; counts what was not answered."""

    def __init__(self, settings: Settings, encoder: BaseEncoder, collection: str) -> None:
        self._store = ProductStore(connect(settings))
        rows = encoder.encode(["quiet fridge", "red oven"])
        self._vectors = [[*row.tolist(), 1.0] for row in rows]
        self._collection = collection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._search, daemon=True)
        self.answered = self.missed = 0

    def __enter__(self) -> "Shopper":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=20)
        self._store.close()

    def _search(self) -> None:
        """Search until told to stop."""
        vectors = np.array(self._vectors, dtype=np.float32)
        while not self._stop.is_set():
            try:
                found = self._store.answered(self._collection, vectors)
            except Exception:  # noqa: BLE001 - whatever it is, a shopper saw it
                found = 0
            self.answered += found
            self.missed += len(vectors) - found


def test_another_base_comes_into_force_without_sending_the_catalogue_anew(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, tmp_path: Path
) -> None:
    """A restart with another base encodes what the catalogue holds; what is in force answers throughout."""
    with running(serve, own):
        shop.send(*(product(f"P-{number}", 3, in_words(number)) for number in range(200)), deleted("P-7", 4))
        shop.release(query_release(1, encoder, product_release=1), product_release(1, encoder))
        eventually(lambda: serving_of(own).product_release == 1, timeout_s=90)
        eventually(lambda: store.counts(own.collection(0)) == (199, 1), timeout_s=60)
    shop.send(product("P-late", 1, "small oven"))
    sent = records_sent(own)
    other = own.model_copy(update={"base_model": str(write_tiny_model(tmp_path, dim=24)), "port": free_port()})
    other_encoder = load_encoder(other.base_model)
    with Shopper(own, encoder, own.collection(0)) as shopper, running(serve, other):
        serving = serving_of(own)
        assert (serving.query_release, serving.product_release, serving.collection) == (0, 0, own.collection(1))
        assert serving.previous_collection == own.collection(0)
        eventually(lambda: store.counts(own.collection(1)) == (200, 1), timeout_s=60, what="what came meanwhile too")
        assert "small oven" in titles(other, other_encoder, "small oven")
        shop.release(query_release(2, other_encoder), query_release(3, encoder))
        eventually(lambda: serving_of(own).query_release == 2, timeout_s=60, what="a release over the new base")
    assert shopper.answered > 0
    assert shopper.missed == 0
    assert records_sent(own) == sent
    with running(serve, other):
        assert serving_of(own).collection == own.collection(1)


def test_the_way_back_to_the_former_base_loses_nothing_and_encodes_only_new_texts(
    own: Settings, shop: Shop, encoder: BaseEncoder, store: ProductStore, tmp_path: Path
) -> None:
    """The kept collection goes on receiving deletions and prices; going back, what it lacks is written: 0 wrong."""
    first, second = own.collection(0), own.collection(1)
    with running(serve, own):
        shop.send(*(product(f"P-{number}", 3, in_words(number)) for number in range(200)), deleted("P-7", 4))
        shop.release(query_release(1, encoder, product_release=1), product_release(1, encoder))
        eventually(lambda: serving_of(own).product_release == 1, timeout_s=90)
        eventually(lambda: store.counts(first) == (199, 1), timeout_s=60)
    other = own.model_copy(update={"base_model": str(write_tiny_model(tmp_path, dim=24)), "port": free_port()})
    with running(serve, other):
        shop.send(product("P-1", 4, in_words(1), price=9.0), deleted("P-2", 4), product("P-3", 4, "small oven"))
        shop.send(product("P-new", 1, "red oven"), product("P-7", 5, in_words(7)), product("P-8", 2, "old fridge"))
        eventually(lambda: store.counts(second) == (200, 1), timeout_s=60)
        eventually(lambda: store.versions(first)["P-2"].deleted, timeout_s=60)
        eventually(lambda: store.retrieve(first, ["P-1"])["P-1"].payload.get("price") == 9.0, timeout_s=60)
        assert "P-new" not in store.versions(first)
        assert store.versions(first)["P-3"].version == 3
    shop.send(deleted("P-9", 4), product("P-10", 4, in_words(10), price=3.0))
    back = own.model_copy(update={"port": free_port()})
    with capture_logs() as lines, running(serve, back):
        serving = serving_of(own)
        assert (serving.collection, serving.previous_collection) == (first, second)
        assert (serving.query_release, serving.product_release) == (1, 1)
        eventually(lambda: store.counts(first) == (199, 2), timeout_s=60)
        newer = {"P-1": 4, "P-2": 4, "P-3": 4, "P-7": 5, "P-9": 4, "P-10": 4, "P-new": 1}
        expected = {**{f"P-{number}": 3 for number in range(200)}, **newer}
        eventually(lambda: {one: at.version for one, at in store.versions(first).items()} == expected, timeout_s=30)
        assert {one for one, at in store.versions(first).items() if at.deleted} == {"P-2", "P-9"}
        assert "small oven" in titles(own, encoder, "small oven")
        shop.release(product_release(2, encoder))
        eventually(lambda: serving_of(own).product_release == 2, timeout_s=60)
        assert [name for name in store.collections() if name in {first, second}] == [first]
    assert [line["products"] for line in lines if line["event"] == "base_change_begins"] == [3]


def test_a_catalogue_that_was_prepared_leaves_nothing_to_the_start(
    own: Settings,
    shop: Shop,
    encoder: BaseEncoder,
    store: ProductStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command encodes beside an indexer that goes on; what changes afterwards is encoded at the start."""
    monkeypatch.setattr(releasing, "load_running_settings", lambda: own)
    printed: list[dict[str, Any]] = []
    monkeypatch.setattr(releasing, "print_json", printed.append)
    monkeypatch.setattr(logging, "configure", lambda *_arguments: None)
    model = str(write_tiny_model(tmp_path, dim=24))
    with running(serve, own):
        shop.send(*(product(f"P-{number}", 3, in_words(number)) for number in range(100)))
        eventually(lambda: store.counts(own.collection(0)).live == 100, timeout_s=90)
        releasing.base_prepare(model, json=True)
        assert "indexers" in printed[0]["next"][0]
        vectors = [orjson.loads(value) for value in read_compacted(own, PRODUCT_VECTORS).values() if value]
        assert {vector["base_version"] for vector in vectors} == {load_encoder(model).base_version}
        shop.send(product("P-5", 4, "small oven"), product("P-late", 1, "large oven"))
        eventually(lambda: store.counts(own.collection(0)).live == 101, timeout_s=60)
        eventually(lambda: "small oven" in titles(own, encoder, "small oven"), timeout_s=60)
    other = own.model_copy(update={"base_model": model, "port": free_port()})
    with capture_logs() as lines, running(serve, other):
        assert store.counts(own.collection(1)) == (101, 0)
    assert [line["products"] for line in lines if line["event"] == "base_change_begins"] == [2]


def test_a_rollback_by_command_serves_the_older_release_and_its_quality_until_a_newer_one_comes(
    own: Settings,
    shop: Shop,
    encoder: BaseEncoder,
    store: ProductStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even a restart brings back what was taken back."""
    printed: list[dict[str, Any]] = []
    monkeypatch.setattr(releasing, "print_json", printed.append)
    for commands in (asking, releasing):
        monkeypatch.setattr(commands, "load_running_settings", lambda: own)
    with running(serve, own):
        shop.send(*(product(f"P-{number}", title=in_words(number)) for number in range(300)))
        eventually(lambda: store.counts(own.collection(0)).live == 300, timeout_s=90)
        for number in (1, 2):
            shop.release(
                query_release(number, encoder, product_release=number),
                product_release(number, encoder, query_release=number, nats=0.3 * number),
            )
            eventually(lambda number=number: serving_of(own).product_release == number, timeout_s=60)  # type: ignore[misc]
        releasing.releases_rollback(query=1, json=True)
        (report,) = printed
        assert (report["query_release"], report["product_release"], report["withdrawn"]) == (1, 5, 2)
        serving = serving_of(own)
        assert (serving.query_release, serving.product_release, serving.reason) == (1, 5, "rollback")
        stored = store.stored(own.collection(0))
        tower = product_release(1, encoder, nats=0.3).product_tower()
        assert tower.words.max() == pytest.approx(0.3)
        assert max(point.quality for point in stored.values()) > 0
        newest = max(point.version.product_release for point in stored.values())
        assert newest == 5
    with running(serve, own):
        assert serving_of(own).query_release == 1
        shop.release(query_release(6, encoder))
        eventually(lambda: serving_of(own).query_release == 6, timeout_s=60)
