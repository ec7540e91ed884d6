"""A graph is built aside and takes over: searches, writes and the end of the process at any step meanwhile."""

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import DependencyDown
from deploy.qdrant_edge import optimize
from deploy.qdrant_edge.collection import Collection, GraphState
from deploy.qdrant_edge.graph import GraphBuilder, is_due
from deploy.qdrant_edge.shard import TAKEN_AT_ONCE
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Kind, Worker
from tests.support.poll import eventually_async

DIM = 24
POINTS = 2_000
THRESHOLD_KB = 50
CREATE: dict[str, Any] = {
    "vectors": {"product": {"size": DIM, "distance": "Dot"}},
    "sparse_vectors": {"words": {"modifier": "idf"}},
    "hnsw_config": {"full_scan_threshold": 10},
    "optimizers_config": {"indexing_threshold": THRESHOLD_KB},
}
RANDOM = np.random.default_rng(20_261_129)
Vectors = np.ndarray


def unit_vectors(count: int) -> Vectors:
    """Rows of length 1 around a few centres, as texts of one catalogue are, (count, DIM)."""
    rows = CENTRES[RANDOM.integers(0, len(CENTRES), count)] + 0.8 * RANDOM.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


CENTRES = np.random.default_rng(1).standard_normal((40, DIM))
BEFORE = unit_vectors(POINTS)
AFTER = unit_vectors(POINTS)
QUERIES = unit_vectors(50)


def points(vectors: Vectors, numbers: Iterable[int], version: int) -> list[dict[str, Any]]:
    """Points as REST takes them, each with a word of its own."""
    return [
        {
            "id": number,
            "vector": {"product": vectors[number].tolist(), "words": {"indices": [number % 97], "values": [1.0]}},
            "payload": {"version": version, "colour": ("red", "green", "blue")[number % 3]},
        }
        for number in numbers
    ]


def fill(collection: Collection, vectors: Vectors, numbers: Iterable[int], *, version: int = 1) -> None:
    """Write points."""
    collection.write("upsert", {"points": points(vectors, numbers, version)})


def versions(collection: Collection) -> dict[int, int]:
    """The version of each point that is there."""
    found = collection.scroll({"limit": 10 * POINTS, "with_payload": ["version"]})["points"]
    return {point["id"]: point["payload"]["version"] for point in found}


def found(collection: Collection, query: Vectors, **params: Any) -> list[int]:
    """The ids of the ten nearest points."""
    body = {"query": query.tolist(), "using": "product", "limit": 10, "params": params}
    return [point["id"] for point in collection.query(body)["points"]]


def recall(collection: Collection, **params: Any) -> float:
    """The share of the exact ten nearest that a search finds."""
    hits = [set(found(collection, query, **params)) & set(found(collection, query, exact=True)) for query in QUERIES]
    return sum(map(len, hits)) / (10 * len(QUERIES))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with a filled collection whose graph is due."""
    opened = filled(tmp_path / "qdrant")
    yield opened
    opened.close()


def filled(folder: Path) -> Store:
    """Open a new store and fill its collection."""
    opened = Store(folder)
    opened.create("shop", CREATE)
    fill(opened.collection("shop"), BEFORE, range(POINTS))
    return opened


@pytest.fixture
def shop(store: Store) -> Collection:
    """The collection."""
    return store.collection("shop")


def build(collection: Collection, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Build a graph in this process, without a worker, while something else happens."""
    shard = collection.shard
    shutil.copytree(shard.begin_copy(), shard.building)
    meanwhile()
    optimize.build(shard.building)
    while not shard.take_over():
        pass
    shard.remove_retired()


@pytest.mark.parametrize(
    ("scanned_kb", "all_kb", "before_kb", "due"),
    [
        (101, 101, 101, True),
        (100, 100, 100, False),
        (101, 101, 90, False),
        (101, 1_011, 101, False),
        (203, 2_000, 200, True),
    ],
    ids=["large enough", "scanned sooner", "it is being filled", "little beside its graph", "grown beside its graph"],
)
def test_a_graph_is_due_where_it_pays(scanned_kb: float, all_kb: float, before_kb: float, *, due: bool) -> None:
    """Scanning must cost more than a graph, as much as is worth a rebuild, and no longer grow fast."""
    assert is_due(GraphState(scanned_kb, all_kb, threshold_kb=100), before_kb) is due
    assert not is_due(GraphState(scanned_kb, all_kb, threshold_kb=0), before_kb)


def test_search_finds_what_a_scan_finds_while_a_fifth_is_rewritten(shop: Collection) -> None:
    """Recall at ten stays at .97 or more, without a graph, with one, while points move out of it, and built anew."""
    build(shop)
    assert shop.graph_state().scanned_kb == 0
    assert recall(shop, hnsw_ef=1) < 1  # a graph it is: no scan misses anything
    assert recall(shop) >= 0.97
    for begin in range(0, POINTS // 5, 50):
        fill(shop, AFTER, range(begin, begin + 50), version=2)
        assert found(shop, AFTER[begin])[0] == begin
        assert recall(shop) >= 0.97
    assert shop.info()["indexed_vectors_count"] == POINTS - POINTS // 5
    build(shop)
    assert shop.info()["indexed_vectors_count"] == POINTS
    assert recall(shop) >= 0.97


def test_every_kind_of_write_while_a_graph_is_built_is_there_after(shop: Collection, store: Store) -> None:
    """Points changed, deleted or made by id or by filter, and indexes, are as they would be without a graph."""
    store.create("plain", {**CREATE, "optimizers_config": {"indexing_threshold": 0}})
    plain = store.collection("plain")
    fill(plain, BEFORE, range(POINTS))

    def write() -> None:
        for one in (shop, plain):
            fill(one, AFTER, range(600), version=2)
            one.write("delete", {"points": [*range(500, 900)]})
            fill(one, AFTER, range(880, 890), version=3)
            one.write("delete", {"filter": {"must": [{"key": "colour", "match": {"value": "red"}}]}})
            blue = {"must": [{"key": "colour", "match": {"value": "blue"}}]}
            one.write("set_payload", {"payload": {"seen": True}, "filter": blue})
            one.write("delete_vectors", {"points": [1000], "vector": ["product"]})
            one.create_index({"field_name": "version", "field_schema": "integer"})
            one.create_index({"field_name": "colour", "field_schema": "keyword"})
            one.delete_index("version")

    build(shop, write)
    everything = {"limit": 2 * POINTS, "with_payload": True, "with_vector": True}
    assert shop.scroll(everything) == plain.scroll(everything)
    assert shop.info()["payload_schema"] == plain.info()["payload_schema"]
    for query in QUERIES:
        assert found(shop, query, exact=True) == found(plain, query)


def test_writes_between_the_steps_of_the_change_over_are_kept(shop: Collection) -> None:
    """What is written while changed points are taken over is taken over too, the last write last."""
    shard = shop.shard
    shutil.copytree(shard.begin_copy(), shard.building)
    fill(shop, AFTER, range(3 * TAKEN_AT_ONCE), version=2)
    assert not shard.take_over()
    fill(shop, BEFORE, range(TAKEN_AT_ONCE), version=3)
    shop.write("delete", {"points": [0, POINTS - 1]})
    steps = 1
    while not shard.take_over():
        steps += 1
    assert steps > 1
    expected = dict.fromkeys(range(POINTS), 1) | dict.fromkeys(range(3 * TAKEN_AT_ONCE), 2)
    expected |= dict.fromkeys(range(TAKEN_AT_ONCE), 3)
    assert versions(shop) == {number: version for number, version in expected.items() if number not in (0, POINTS - 1)}


def test_the_change_over_ends_although_more_is_written_than_a_step_takes(shop: Collection) -> None:
    """Each step gains on the writes, and the last of them is there."""
    shard = shop.shard
    shutil.copytree(shard.begin_copy(), shard.building)
    fill(shop, AFTER, range(3 * TAKEN_AT_ONCE), version=2)
    for step in range(3, 9):
        if shard.take_over():
            break
        fill(shop, AFTER, range(POINTS - 2 * TAKEN_AT_ONCE, POINTS), version=step)
    assert not shard.is_building
    assert versions(shop)[POINTS - 1] == step - 1


async def test_a_change_over_that_failed_leaves_nothing_and_the_next_succeeds(
    shop: Collection, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when memory is short while the copy opens: searches go on by scanning, and no folder is in the way."""
    worker = Worker()
    task = asyncio.create_task(worker.work())
    with monkeypatch.context() as broken:
        broken.setattr("deploy.qdrant_edge.shard.Shard._take", broken_step)
        with pytest.raises(OSError, match="broken"):
            await GraphBuilder(store, worker).build(shop)
    assert [entry.name for entry in (tmp_path / "qdrant" / "shop").glob("shard*")] == ["shard"]
    await GraphBuilder(store, worker).build(shop)
    await stop([task])
    assert shop.shard.has_graph


def broken_step(*_given: object) -> None:
    """Fail as the engine does."""
    raise OSError("broken")


@pytest.mark.parametrize("steps", range(5))
def test_the_end_of_the_process_at_any_step_loses_and_revives_nothing(
    shop: Collection, tmp_path: Path, steps: int
) -> None:
    """The files as they are after any step open with every write that was acknowledged, and no leftovers."""
    shard = shop.shard
    fill(shop, AFTER, range(10), version=2)
    doing: list[Callable[[], object]] = [
        lambda: shutil.copytree(shard.begin_copy(), shard.building),
        lambda: fill(shop, AFTER, range(5, TAKEN_AT_ONCE + 30), version=3),
        shard.take_over,
        lambda: shop.write("delete", {"points": [*range(7)]}),
        lambda: [None for _ in iter(shard.take_over, True)],
    ]
    for step in doing[: steps + 1]:
        step()
    shutil.copytree(tmp_path / "qdrant", tmp_path / "after", ignore=shutil.ignore_patterns(".lock"))
    reopened = Store(tmp_path / "after")
    assert versions(reopened.collection("shop")) == versions(shop)
    assert [entry.name for entry in (tmp_path / "after").iterdir() if entry.is_dir()] == ["shop"]
    assert len([*(tmp_path / "after" / "shop").glob("shard*")]) == 1
    reopened.close()


def test_a_graph_and_what_is_scanned_beside_it_outlive_the_process(tmp_path: Path) -> None:
    """After a restart the graph answers, and the points written since count as scanned."""
    store = filled(tmp_path)
    build(store.collection("shop"))
    fill(store.collection("shop"), AFTER, range(100), version=2)
    store.close()
    reopened = Store(tmp_path)
    again = reopened.collection("shop")
    assert again.info()["indexed_vectors_count"] == POINTS - 100
    assert versions(again)[0] == 2
    assert recall(again) >= 0.97
    reopened.close()


async def test_the_builder_builds_what_is_due_while_calls_run(shop: Collection, store: Store) -> None:
    """A process of its own builds it; searches and writes are answered meanwhile and nothing is left over."""
    worker = Worker()
    tasks = [
        asyncio.create_task(worker.work()),
        asyncio.create_task(GraphBuilder(store, worker, interval_s=0.01).work()),
    ]
    answered = 0

    async def is_built() -> bool:
        """Write a point and find it; then tell whether the graph answers."""
        nonlocal answered
        number = answered % POINTS
        await worker.run(Kind.WRITE, lambda: fill(shop, AFTER, [number], version=2))
        assert (await worker.run(Kind.READ, lambda: found(shop, AFTER[number])))[0] == number
        answered += 1
        return shop.shard.has_graph and not shop.shard.is_building

    await eventually_async(is_built, timeout_s=60, what="the graph is built")
    await stop(tasks)
    assert versions(shop) == {number: 2 if number < answered else 1 for number in range(POINTS)}
    assert recall(shop) >= 0.97


async def stop(tasks: list["asyncio.Task[None]"]) -> None:
    """End tasks."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_failed_build_leaves_the_store_as_it_was(
    shop: Collection, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cause is told, the copy is gone, and the next try succeeds."""
    worker = Worker()
    task = asyncio.create_task(worker.work())
    builder = GraphBuilder(store, worker)
    with monkeypatch.context() as broken:
        broken.setattr("sys.executable", "/bin/false")
        with pytest.raises(DependencyDown, match="ended with 1"):
            await builder.build(shop)
    assert [entry.name for entry in (tmp_path / "qdrant").iterdir() if entry.is_dir()] == ["shop"]
    assert (shop.shard.has_graph, shop.shard.is_building) == (False, False)
    fill(shop, AFTER, [0], version=2)
    await builder.build(shop)
    await stop([task])
    assert (shop.shard.has_graph, versions(shop)[0]) == (True, 2)


async def test_a_collection_may_go_while_its_graph_is_built(shop: Collection, store: Store, tmp_path: Path) -> None:
    """Deleted, and made again under its name, it keeps nothing of what was built for the one before."""
    worker = Worker()
    task = asyncio.create_task(worker.work())
    building = asyncio.create_task(GraphBuilder(store, worker).build(shop))
    await eventually_async(lambda: is_copied(shop), what="the files are copied")
    await worker.run(Kind.WRITE, lambda: store.delete("shop"))
    await worker.run(Kind.WRITE, lambda: store.create("shop", CREATE))
    await building
    await stop([task])
    assert store.points_counts() == {"shop": 0}
    assert [entry.name for entry in (tmp_path / "qdrant").iterdir() if entry.is_dir()] == ["shop"]


async def is_copied(collection: Collection) -> bool:
    """Whether a copy is being given its graph."""
    return collection.shard.is_building and collection.shard.building.exists()


ARMS = [
    {"query": QUERIES[0].tolist(), "using": "product", "limit": 30},
    {"query": {"indices": [3, 50, 96], "values": [1.0, 0.5, 2.0]}, "using": "words", "limit": 20},
]
RED = {"must": [{"key": "colour", "match": {"value": "red"}}]}
BY_MEANING = {"query": QUERIES[0].tolist(), "using": "product"}
BY_WORDS = {"query": ARMS[1]["query"], "using": "words"}
BATCHES: dict[str, list[dict[str, Any]]] = {
    "both arms": [{**BY_MEANING, "limit": 60}, {**BY_WORDS, "limit": 60}],
    "payload and vectors": [{**BY_MEANING, "limit": 60, "with_payload": True, "with_vector": ["product"]}],
    "a filter, a page, a bound": [{**BY_MEANING, "filter": RED, "offset": 2, "limit": 5, "score_threshold": 0.2}],
    "an example": [{"query": 7, "using": "product", "limit": 60}, {**BY_WORDS, "limit": 60}],
}


@pytest.mark.parametrize("has_graph", [False, True], ids=["scanned", "with a graph"])
@pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)
def test_a_batch_over_the_same_prefetches_is_answered_as_edge_answers_each(
    shop: Collection, requests: list[dict[str, Any]], *, has_graph: bool
) -> None:
    """Searching the prefetches once for all requests gives the points, scores and order of one request at a time."""
    if has_graph:
        build(shop)
    batch = [{"prefetch": ARMS, **request} for request in requests]
    assert shop.query_batch({"searches": batch}) == [shop.query(request) for request in batch]


def test_nothing_found_is_nothing_scored(shop: Collection) -> None:
    """Where no prefetch finds anything, no request does, instead of every one finding everything."""
    nobody = {"must": [{"key": "colour", "match": {"value": "none"}}]}
    prefetch = [{**arm, "filter": nobody} for arm in ARMS]
    batch = {"searches": [{"prefetch": prefetch, **BY_MEANING}, {"prefetch": prefetch, **BY_WORDS}]}
    assert shop.query_batch(batch) == [{"points": []}, {"points": []}]
