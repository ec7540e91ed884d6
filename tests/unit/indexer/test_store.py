"""The product store's own decisions; what it does on real stores stands in tests/conformance."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from structlog.testing import capture_logs

from contracts.catalog import PointPayload, PointVersion, newer_only_filter, point_id
from contracts.errors import DependencyDown, InvariantError, MillraceError, TransientError, UsageError
from contracts.telemetry import Process
from indexer.filters import KEYS, KEYS_VERSION, PAYLOAD_INDEXES, stored_keys
from indexer.points import Owner, ProductPoint
from indexer.qdrant import FILTERED, LEXICAL, VECTOR_NAME, connect, qdrant_errors, write_condition
from indexer.search.retrieval import ORDERS
from indexer.store import OWNER, ProductStore
from service.health import Dependency
from service.settings import Settings
from tests.support.ports import free_port
from towers.lexical import LEXICAL_VERSION, product_words


def product(product_id: str, version: int, release: int = 1) -> ProductPoint:
    """Return a product of two dimensions."""
    return ProductPoint(product_id, version, release, [1.0, 0.0])


class Recorder:
    """A client that only notes what it is asked to write."""

    def __init__(self) -> None:
        self.upserts: list[dict[str, Any]] = []

    def upsert(self, collection: str, **arguments: Any) -> None:
        """Note one request."""
        self.upserts.append({"collection": collection, **arguments})


@pytest.fixture
def recorder() -> Recorder:
    """A client that writes nothing."""
    return Recorder()


@pytest.fixture
def store(recorder: Recorder) -> ProductStore:
    """A store of two points a request over it."""
    return ProductStore(recorder, batch_size=2)  # type: ignore[arg-type]  # stands in for a client


def refused(status: int, body: bytes = b'{"status":{"error":"because"}}', retry_after: str = "") -> UnexpectedResponse:
    """Return an answer that is an error."""
    return UnexpectedResponse(
        status, "reason", body, httpx.Headers({"Retry-After": retry_after} if retry_after else {})
    )


def test_write_goes_in_batches_one_condition_each(store: ProductStore, recorder: Recorder) -> None:
    """Five products of a batch size of two make three requests."""
    assert store.write("shop", [product(f"P-{number}", 1) for number in range(5)]) == 5
    assert [len(request["points"]) for request in recorder.upserts] == [2, 2, 1]
    assert {request["collection"] for request in recorder.upserts} == {"shop"}


def test_nothing_to_write_asks_nothing(store: ProductStore, recorder: Recorder) -> None:
    """An empty write makes no request."""
    assert store.write("shop", []) == 0
    assert recorder.upserts == []


def test_tombstone_is_a_point_without_vectors(store: ProductStore, recorder: Recorder) -> None:
    """A deletion carries no vector and only what orders it."""
    store.write("shop", [ProductPoint("P-1", 7, 2, None, {"title": "Kettle"})])
    (struct,) = recorder.upserts[0]["points"]
    assert (struct.id, struct.vector) == (point_id("P-1"), {})
    assert struct.payload == {"product_id": "P-1", "version": 7, "product_release": 2, "deleted": 1}


def test_shared_version_takes_one_condition() -> None:
    """Points of one version and release share the plain rule of the contract."""
    condition = write_condition([product("P-1", 5), product("P-2", 5)])
    assert condition == models.Filter.model_validate(newer_only_filter(PointVersion(5, 1)))


def test_mixed_versions_take_a_condition_each() -> None:
    """Points of several versions are each judged by their own, bound to their id."""
    condition = write_condition([product("P-1", 5), product("P-2", 6)])
    assert isinstance(condition.should, list)
    for entry, (product_id, version) in zip(condition.should, [("P-1", 5), ("P-2", 6)], strict=True):
        assert isinstance(entry, models.Filter)
        assert entry.must == [models.HasIdCondition(has_id=[point_id(product_id)])]
        rule = models.Filter.model_validate(newer_only_filter(PointVersion(version, 1)))
        assert entry.must_not == rule.must_not


@pytest.mark.parametrize(
    ("error", "meaning", "says"),
    [
        (ResponseHandlingException(httpx.ReadTimeout("slow")), TransientError, "in time"),
        (ResponseHandlingException(httpx.ConnectError("refused")), TransientError, "reached"),
        (ResponseHandlingException(KeyError("result")), InvariantError, "unknown"),
        (ResourceExhaustedResponse("busy", 7), TransientError, "overloaded"),
        (refused(500), TransientError, "because"),
        (refused(503, b"<html>"), TransientError, "<html>"),
        (refused(429), TransientError, "because"),
        (refused(400), InvariantError, "because"),
        (refused(404), InvariantError, "because"),
        (refused(501), InvariantError, "because"),
        (refused(401, b""), UsageError, "reason"),
        (ValueError("Collection x not found"), InvariantError, "not found"),
    ],
)
def test_foreign_errors_are_translated(error: Exception, meaning: type[MillraceError], says: str) -> None:
    """Each failure of the client means one of ours, with the cause kept, and says what to do if one can do anything."""
    with pytest.raises(meaning, match=says) as caught, qdrant_errors("write to shop"):
        raise error
    assert "write to shop" in caught.value.message
    assert caught.value.__cause__ is error
    assert caught.value.fix or meaning is InvariantError


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [(ResourceExhaustedResponse("busy", 7), 7.0), (refused(503, retry_after="3"), 3.0), (refused(503), 1.0)],
)
def test_asked_for_pause_is_kept(error: Exception, wait_s: float) -> None:
    """Where the store says when to come back, the error says so too."""
    with pytest.raises(TransientError) as caught, qdrant_errors("write"):
        raise error
    assert caught.value.retry_after_s == wait_s


def test_store_that_never_answers_is_down() -> None:
    """A start without a vector store ends with one line that names it and the fix."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(DependencyDown, match=url) as caught:
        ProductStore(connect(Settings(qdrant_url=url))).wait_until_answering(0.1, where=url)
    assert "MILLRACE_QDRANT_URL" in caught.value.fix


def test_unset_url_is_a_usage_error() -> None:
    """Without a URL nothing is guessed."""
    with pytest.raises(UsageError, match="MILLRACE_QDRANT_URL"):
        connect(Settings())


def test_key_travels_without_a_warning() -> None:
    """A key over plain HTTP on loopback is no cause for a warning per start."""
    client = connect(Settings(qdrant_url="http://127.0.0.1:1", qdrant_api_key=SecretStr("sesame")))
    client.close()


@pytest.fixture
def memory() -> Iterator[ProductStore]:
    """A store in memory."""
    client = QdrantClient(":memory:")
    yield ProductStore(client)
    client.close()


def test_collection_of_another_shape_is_not_taken(memory: ProductStore) -> None:
    """A collection that somebody made without our vector, or of an earlier version, is refused, not filled."""
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    memory._client.create_collection("theirs", vectors_config=params)
    memory._client.create_collection("earlier", vectors_config={VECTOR_NAME: params})
    with pytest.raises(InvariantError, match="earlier holds Cosine of width 2, not Dot of width 2"):
        memory.ensure_collection("earlier", 2)
    with pytest.raises(InvariantError, match="holds no vectors `product`"):
        memory.ensure_collection("theirs", 2)


@pytest.mark.parametrize(
    ("modifiers", "metadata", "says"),
    [
        ({}, {}, "holds no sparse vectors `grams`, `words` with idf"),
        ({"words": models.Modifier.IDF, "grams": models.Modifier.NONE}, {}, "holds no sparse vectors `grams` with idf"),
        (dict.fromkeys(("words", "grams"), models.Modifier.IDF), {LEXICAL: 0}, "holds words as of version 0, not 1"),
        (dict.fromkeys(("words", "grams"), models.Modifier.IDF), {}, "holds keys for filters as of version 0, not 1"),
    ],
)
def test_a_collection_without_todays_words_or_keys_is_not_taken(
    memory: ProductStore, modifiers: dict[str, models.Modifier], metadata: dict[str, int], says: str
) -> None:
    """One of dense vectors alone, or whose words or keys today's queries do not meet, is replaced and not filled."""
    memory._client.create_collection(
        "earlier",
        vectors_config={VECTOR_NAME: models.VectorParams(size=2, distance=models.Distance.DOT)},
        sparse_vectors_config={name: models.SparseVectorParams(modifier=one) for name, one in modifiers.items()},
        metadata=metadata,
    )
    with pytest.raises(InvariantError, match=says):
        memory.ensure_collection("earlier", 2)


def test_words_are_written_with_the_product_and_never_with_a_tombstone(memory: ProductStore) -> None:
    """They come back as they were written."""
    words = product_words("P-1", PointPayload(title="Kelto KG-36 fridge"))
    memory.ensure_collection("shop", 2)
    points = [ProductPoint("P-1", 1, 1, [1.0, 0.0], {}, words), ProductPoint("P-2", 1, 1, None, {}, words)]
    memory.write("shop", points)
    stored = memory.retrieve("shop", ["P-1", "P-2"])
    found = stored["P-1"].words
    assert found is not None
    for one, other in zip(found, words, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_allclose(one.values, other.values, rtol=1e-6)
    assert stored["P-2"].words is None


def test_filtered_fields_are_indexed() -> None:
    """Every field that search filters, counts or sorts by has an index, and no other."""
    everything = PointPayload(
        brand="b",
        seller_id="s",
        category=("c",),
        locale="l",
        attributes={"a": 1},
        price=1.0,
        rating=1.0,
        launched_at=1_795_100_000_000,
    )
    keys = {f"{KEYS}.{field}" for field in stored_keys(everything)}
    ordered = {field for field, _ in ORDERS.values()}
    assert set(PAYLOAD_INDEXES) == {*keys, *ordered, "in_stock", "deleted"}


OURS, THEIRS = Owner("our-cluster", "t-"), Owner("their-cluster", "t-")


@pytest.fixture
def shared() -> Iterator[QdrantClient]:
    """A vector store that two deployments of one prefix share by mistake; theirs is there already."""
    client = QdrantClient(":memory:")
    theirs = ProductStore(client, owner=THEIRS)
    theirs.claim("base")
    theirs.ensure_collection("t-products-r0", 2, metadata={"base_version": "base"})
    theirs.write("t-products-r0", [product("P-1", 5)])
    theirs.publish_alias("t-products", "t-products-r0")
    yield client
    client.close()


def test_a_collection_names_its_owner(shared: QdrantClient) -> None:
    """Kafka's cluster and the prefix, beside what else its maker wanted remembered."""
    assert ProductStore(shared).form("t-products-r0").metadata == {
        "base_version": "base",
        OWNER: "their-cluster/t-",
        LEXICAL: LEXICAL_VERSION,
        FILTERED: KEYS_VERSION,
    }


def test_a_second_deployment_touches_nothing_of_the_first(shared: QdrantClient) -> None:
    """It may not write, drop or move the alias; it refuses to start, with what to do."""
    ours = ProductStore(shared, owner=OURS)
    with pytest.raises(UsageError, match="t-products-r0 belongs to their-cluster/t-, not to our-cluster/t-") as caught:
        ours.claim("base")
    assert "MILLRACE_QDRANT_TAKE_OVER=true" in caught.value.fix
    with pytest.raises(UsageError):
        ours.ensure_collection("t-products-r0", 2)
    with pytest.raises(UsageError):
        ours.write("t-products-r0", [product("P-1", 9)])
    with pytest.raises(UsageError):
        ours.drop("t-products-r0")
    with pytest.raises(UsageError):
        ours.publish_alias("t-products", "t-products-r0")
    assert ours.ensure_collection("t-products-r1", 2)
    with pytest.raises(UsageError):
        ours.publish_alias("t-products", "t-products-r1")
    reader = ProductStore(shared)
    assert reader.alias_target("t-products") == "t-products-r0"
    assert reader.versions("t-products-r0") == {"P-1": PointVersion(5, 1)}


def test_deployments_of_different_prefixes_share_a_store(shared: QdrantClient) -> None:
    """Each has its own names; neither sees the other's."""
    other = Owner("our-cluster", "")
    store = ProductStore(shared, owner=other)
    store.claim("base")
    store.ensure_collection("products-r0", 2)
    store.publish_alias("products", "products-r0")
    assert [other.number_of(name) for name in store.collections()] == [0, None]


def test_the_collections_of_an_older_kafka_are_taken_over_on_purpose(shared: QdrantClient) -> None:
    """They are dropped, alias and all, to be filled anew; those of other names stay."""
    ProductStore(shared, owner=Owner("other", "")).ensure_collection("products-r0", 2)
    ours = ProductStore(shared, owner=OURS)
    ours.claim("base", take_over=True)
    assert ours.collections() == ["products-r0"]
    assert ours.alias_target("t-products") is None
    ours.ensure_collection("t-products-r0", 2)
    ours.claim("base", take_over=True)
    assert ours.collections() == ["products-r0", "t-products-r0"]


def test_a_collection_of_an_earlier_version_becomes_ours_if_its_vectors_fit() -> None:
    """Nothing is filled anew at the upgrade, and it is said."""
    client = QdrantClient(":memory:")
    ProductStore(client).ensure_collection("t-products-r3", 2, metadata={"base_version": "base", "product_release": 3})
    ours = ProductStore(client, owner=OURS)
    with capture_logs() as lines:
        ours.claim("base")
        ours.claim("base")
    assert [line["event"] for line in lines] == ["collection_claimed"]
    assert ours.form("t-products-r3").metadata == {
        "base_version": "base",
        "product_release": 3,
        OWNER: "our-cluster/t-",
        LEXICAL: LEXICAL_VERSION,
        FILTERED: KEYS_VERSION,
    }
    ours.drop("t-products-r3")
    client.close()


@pytest.mark.parametrize("metadata", [{}, {"base_version": "other"}])
def test_a_collection_without_an_owner_that_does_not_fit_is_refused(metadata: dict[str, Any]) -> None:
    """Somebody made it under our name."""
    client = QdrantClient(":memory:")
    ProductStore(client).ensure_collection("t-products-r3", 2, metadata=metadata)
    with pytest.raises(UsageError, match="t-products-r3 belongs to nobody known"):
        ProductStore(client, owner=OURS).claim("base")
    client.close()


def test_an_alias_that_names_something_else_is_refused_and_never_dropped() -> None:
    """Somebody's own collection under our alias is not ours to take over."""
    client = QdrantClient(":memory:")
    reader = ProductStore(client)
    reader.ensure_collection("inventory", 2)
    reader.publish_alias("t-products", "inventory")
    ours = ProductStore(client, owner=OURS)
    for take_over in (False, True):
        with pytest.raises(UsageError, match="alias t-products names inventory, which Millrace did not make"):
            ours.claim("base", take_over=take_over)
    ours.ensure_collection("t-products-r0", 2)
    with pytest.raises(UsageError):
        ours.publish_alias("t-products", "t-products-r0")
    assert reader.alias_target("t-products") == "inventory"
    client.close()


def test_a_write_to_a_collection_that_is_gone_is_refused_by_the_store() -> None:
    """It belongs to nobody: whoever writes learns that it is not there."""
    client = QdrantClient(":memory:")
    with pytest.raises(InvariantError, match="not found"):
        ProductStore(client, owner=OURS).write("t-products-r9", [product("P-1", 1)])
    client.close()


def test_a_deletion_replaces_the_product_of_its_version() -> None:
    """By whichever release either was written, and in either order."""
    client = QdrantClient(":memory:")
    store = ProductStore(client)
    store.ensure_collection("shop", 2)
    gone = ProductPoint("P-1", 5, 1, None)
    store.write("shop", [product("P-1", 5, 3)])
    store.write("shop", [gone])
    store.write("shop", [product("P-1", 5, 9)])
    assert store.versions("shop") == {"P-1": PointVersion(5, 1, deleted=True)}
    client.close()


def test_whether_the_store_answers_is_noted() -> None:
    """Every call tells, so that readiness and the log know of an outage once."""
    qdrant = Dependency(Process.QDRANT)
    store = ProductStore(connect(Settings(qdrant_url=f"http://127.0.0.1:{free_port()}")), qdrant=qdrant)
    with pytest.raises(TransientError):
        store.collections()
    assert "Qdrant cannot be reached" in (qdrant.not_ready() or "")
    store.close()
