"""Search on a real Kafka and a vector store in a process of its own, filled and moved by a real indexer."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from contracts import wire
from contracts.arms import is_anchored
from contracts.events import SHOP_EVENT, Impression, person_id
from contracts.http import SearchAnswer
from contracts.releases import SERVING_KEY, Serving
from contracts.topics import MODELS, SEARCH_EVENTS
from indexer.app import serve as index
from indexer.search.__main__ import serve
from millrace.explaining import words_nats
from service.kafka import OutgoingRecord, consumer_config, produce_all, producer_config
from service.settings import Settings
from tests.support.indexing import (
    ServiceProcess,
    ServiceThread,
    Shop,
    deleted,
    now_ms,
    product,
    product_release,
    query_release,
    running,
)
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.qdrant_process import QdrantProcess
from towers.encoder import BaseEncoder
from towers.features import keys_of, product_features
from towers.model import DEFAULT_MIX, QueryTower, product_vectors
from towers.text import product_text

pytestmark = [pytest.mark.kafka, pytest.mark.qdrant, pytest.mark.slow]

SettingsFactory = Callable[..., Settings]

PRODUCTS = [
    product(
        "P-1",
        title="quiet fridge",
        price=400.0,
        brand="Kelto",
        category=("Appliances", "Fridges"),
        locale="en",
        currency="INR",
        url="https://shop.example/P-1",
        rating=4.5,
        attributes={"Colour": "Café crème", "capacity_l": 190},
    ),
    product("P-2", title="double door fridge", price=900.0, brand="ＡＲＶＯ", category=("Appliances", "Fridges")),
    product("P-3", title="gaming laptop", price=1200.0, brand="Kelto", category=("Computers",), in_stock=False),
    product("P-4", title="wireless earbuds", price=50.0, brand="Sonu", category=("Audio",), parent_id="V-4"),
]


@pytest.fixture
def own(kafka_settings: SettingsFactory, qdrant: QdrantProcess, model_folder: Path) -> Settings:
    """Give the settings of search with all its servers; what a test changes is asked for at once."""
    servers = {"qdrant_url": qdrant.url, "base_model": str(model_folder)}
    # Nothing is exchanged or kept for the control but where a test is about that: lists are compared by their order.
    return kafka_settings(**servers, port=free_port(), partitions=2, hot_for_s=0, anchor_share=0, swap_share=0)


@pytest.fixture
def indexer(own: Settings) -> Iterator[ServiceThread]:
    """Give an indexer that is ready."""
    with running(index, own.model_copy(update={"port": free_port()})) as service:
        yield service


@pytest.fixture
def search(own: Settings, indexer: ServiceThread) -> Iterator[ServiceThread]:
    """Give a search service that is ready."""
    assert indexer.not_ready() is None
    with running(partial(serve, deadline_s=8.0), own) as service:  # a busy machine must not degrade an answer
        yield service


def ask(search: ServiceThread, query: str, **fields: Any) -> SearchAnswer:
    """Return the answer to a search."""
    answer = httpx.post(f"{search.url}/v1/search", json={"query": query, "impression": "none", **fields}, timeout=20)
    assert answer.status_code == 200, answer.text
    return SearchAnswer.model_validate_json(answer.content)


def found(search: ServiceThread, query: str, **fields: Any) -> list[str]:
    """Return the products found, best first."""
    return [result.product_id for result in ask(search, query, **fields).results]


def load(shop: Shop, search: ServiceThread, *, count: int = len(PRODUCTS)) -> None:
    """Write the products and wait until all are found."""
    shop.send(*PRODUCTS)
    eventually(lambda: len(found(search, "fridge", k=100)) == count, timeout_s=60, what="all products are found")


def impressions(settings: Settings) -> list[Impression]:
    """Return the impressions on `search-events`."""
    with KafkaConsumer(**consumer_config(settings)) as consumer:
        partitions = [TopicPartition(settings.topic(SEARCH_EVENTS), number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Any] = []
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            records += [record for batch in consumer.poll(timeout_ms=200).values() for record in batch]
    decoded = [wire.decode(record.value, SHOP_EVENT) for record in records]
    assert [record.key.decode() for record in records] == [getattr(event, "search_id", None) for event in decoded]
    return [event for event in decoded if isinstance(event, Impression)]


def test_search_finds_filters_and_counts(search: ServiceThread, shop: Shop, own: Settings) -> None:
    """Each filter holds on every result, by GET as by POST, and the total counts what meets them."""
    load(shop, search)
    assert found(search, "quiet fridge")[0] == "P-1"
    assert set(found(search, "fridge", filters={"brand": ["KELTO", "Arvo"]})) == {"P-1", "P-2", "P-3"}
    assert set(found(search, "fridge", filters={"price": {"gte": 100, "lte": 900}})) == {"P-1", "P-2"}
    assert found(search, "fridge", filters={"category": "Audio"}) == ["P-4"]
    assert found(search, "fridge", filters={"in_stock": False}) == ["P-3"]
    assert found(search, "fridge", filters={"locale": "en"}) == ["P-1"]
    by_get = httpx.get(
        f"{search.url}/v1/search",
        params=[("q", "fridge"), ("brand", "Kelto"), ("brand", "Arvo"), ("price_lte", "900"), ("impression", "none")],
        timeout=20,
    ).json()
    assert {result["product_id"] for result in by_get["results"]} == {"P-1", "P-2"}
    assert by_get["total"] == 2
    explained = ask(search, "quiet fridge", explain=True).results[0]
    assert explained.explanation is not None
    assert list(explained.explanation) == ["text", "taste", "quality", "memory", "words"]
    assert sum(explained.explanation.values()) == pytest.approx(10 * explained.score, abs=1e-4)
    assert explained.title == "quiet fridge"
    assert explained.explanation["words"] > 0
    said = words_nats(own, f"{own.topic_prefix}products-r0", "quiet fridge", explained.product_id, mix=DEFAULT_MIX)
    assert said == pytest.approx(explained.explanation["words"], abs=1e-4)
    assert words_nats(own, f"{own.topic_prefix}products-r0", "quiet", "P-4", mix=DEFAULT_MIX) == 0.0
    assert found(search, "p4", filters={"in_stock": True})[0] == "P-4"
    assert found(search, "P-3")[0] == "P-3"


def test_search_browses_sorts_and_counts_facets(search: ServiceThread, shop: Shop, own: Settings) -> None:
    """Over what the indexer wrote; what the shop wrote one way is found another way, and shown as it wrote it."""
    load(shop, search)
    assert found(search, "fridge", filters={"brand": ["arvo"]}) == ["P-2"]
    folded = {
        "category": ["appliances", "FRIDGES"],
        "attributes": {"colour": ["cafe creme"], "Capacity_L": {"gte": 150}},
    }
    (result,) = ask(search, "", filters=folded).results
    assert (result.product_id, result.currency, result.url) == ("P-1", "INR", "https://shop.example/P-1")
    assert (result.rating, result.attributes) == (4.5, {"Colour": "Café crème", "capacity_l": 190})
    assert found(search, "", sort="price") == ["P-4", "P-1", "P-2", "P-3"]
    assert found(search, "", sort="rating")[0] == "P-1"
    counted = httpx.get(
        f"{search.url}/v1/search?facet=brand&facet=category&brand=kelto&k=1&impression=none", timeout=20
    )
    facets = counted.json()["facets"]
    assert facets["brand"] == [
        {"value": "Kelto", "count": 2},
        {"value": "ＡＲＶＯ", "count": 1},
        {"value": "Sonu", "count": 1},
    ]
    assert facets["category"] == [
        {"value": ["Appliances"], "count": 1},
        {"value": ["Appliances", "Fridges"], "count": 1},
        {"value": ["Computers"], "count": 1},
    ]
    of_query = ask(search, "quiet fridge", facets=["attributes.colour"], sort="-price", impression="server")
    assert of_query.facets is not None
    assert [(one.value, one.count) for one in of_query.facets["attributes.colour"]] == [("Café crème", 1)]
    prices = [result.price or 0.0 for result in of_query.results]
    assert prices == sorted(prices, reverse=True)
    eventually(lambda: len(impressions(own)) == 1, timeout_s=20)
    assert impressions(own)[0].ranking.sort == "-price"


def test_pages_of_a_list_stay_while_the_index_moves(search: ServiceThread, shop: Shop, own: Settings) -> None:
    """No product twice, none lost; what is deleted leaves a gap, a price is today's, and all pages are one search."""
    load(shop, search)
    asked: dict[str, Any] = {"query": "quiet fridge", "k": 2, "session_id": "k3"}
    first = ask(search, **asked, impression="server")
    ranked, by_id = found(search, "quiet fridge", k=100), {one.product_id: one for one in PRODUCTS}
    assert (first.has_more, [one.product_id for one in first.results]) == (True, ranked[:2])
    shop.send(by_id[ranked[2]].model_copy(update={"version": 2, "price": 77.0}), deleted(ranked[3], version=2))

    def second(**fields: Any) -> list[tuple[int, str, float | None]]:
        """Return what the second page shows."""
        page = ask(search, **asked, search_id=first.search_id, page=2, **fields)
        return [(one.position, one.product_id, one.price) for one in page.results]

    today = [(3, ranked[2], 77.0)]
    eventually(lambda: second() == today, timeout_s=60, what="today's second page")
    assert second(impression="server") == today
    eventually(lambda: len(impressions(own)) == 2, timeout_s=20)
    one, other = sorted(impressions(own), key=lambda sent: sent.page)
    assert (one.search_id, one.event_time) == (other.search_id, other.event_time)
    assert [slot.position for slot in (*one.slots, *other.slots)] == [1, 2, 3]


def test_impressions_stand_in_kafka_as_served(search: ServiceThread, shop: Shop, own: Settings) -> None:
    """The default writes one whole impression keyed by search_id, persons replaced; `client` and `none` write none."""
    load(shop, search)
    answer = ask(search, "fridge", impression="server", client_id="c9", session_id="k3", k=2)
    anonymous = ask(search, "laptop", impression="server")
    ask(search, "earbuds", impression="client")
    eventually(lambda: len(impressions(own)) == 2, timeout_s=20)
    written = {one.search_id: one for one in impressions(own)}
    one = written[answer.search_id]
    assert one.event_time == answer.search_time
    assert one.client_id == person_id("c9", own.require("person_key")[0].encode())
    assert (one.session_id, one.query, one.surface) == ("k3", "fridge", "search")
    assert [(slot.product_id, slot.position, slot.score) for slot in one.slots] == [
        (result.product_id, result.position, result.score) for result in answer.results
    ]
    assert (one.ranking.query_release, one.ranking.product_release, one.ranking.arm) == (0, 0, "live")
    assert written[anonymous.search_id].session_id
    assert written[anonymous.search_id].client_id is None


def test_encode_gives_vectors_that_anyone_can_ask_qdrant_with(
    search: ServiceThread, shop: Shop, own: Settings, encoder: BaseEncoder
) -> None:
    """The vectors are those of the tower in force, with its releases named; the last number asks for quality."""
    release = query_release(1, encoder)
    shop.release(release)
    eventually(lambda: ask(search, "x").query_release == 1, timeout_s=30)
    answer = httpx.post(f"{search.url}/v1/encode", json={"texts": ["quiet fridge", "tv"]}, timeout=20).json()
    assert (answer["query_release"], answer["product_release"]) == (1, 0)
    assert answer["collection"] == own.collection(0)
    expected = release.query_tower().vectors(encoder.encode(["quiet fridge", "tv"]))
    assert expected.shape == (2, encoder.dim + 1)
    np.testing.assert_allclose(np.array(answer["vectors"]), expected, atol=1e-5)


async def test_every_score_is_that_of_the_releases_it_names_while_quality_is_rewritten(
    search: ServiceThread, shop: Shop, encoder: BaseEncoder
) -> None:
    """The query's by the answer, the product's by the result: before, during and after a product release."""
    load(shop, search)
    query, products = query_release(1, encoder, product_release=1), product_release(1, encoder)
    rows = {0: QueryTower.untrained(encoder.dim), 1: query.query_tower()}
    ids, features = [one.product_id for one in PRODUCTS], [keys_of(product_features(one)) for one in PRODUCTS]
    base = encoder.encode([product_text(one) for one in PRODUCTS])
    quality = {0: np.zeros(len(ids)), 1: products.product_tower().quality(ids, features)}
    text = encoder.encode(["fridge"])
    expected = {
        (q, p): dict(zip(ids, product_vectors(base, quality[p]) @ rows[q].vectors(text)[0], strict=True))
        for q in rows
        for p in quality
    }
    seen: set[tuple[int, int]] = set()
    async with httpx.AsyncClient(timeout=20) as client:
        shop.release(query, products)
        async with asyncio.timeout(60):
            while (1, 1) not in seen:
                body = {"query": "fridge", "k": 10, "impression": "none", "explain": True}
                answer = (await client.post(f"{search.url}/v1/search", json=body)).json()
                seen.add((answer["query_release"], answer["product_release"]))
                for result in answer["results"]:
                    named = answer["query_release"], result["product_release"]
                    by_meaning = result["score"] - result["explanation"]["words"] / 10
                    assert by_meaning == pytest.approx(float(expected[named][result["product_id"]]), abs=1e-3)


def test_both_arms_answer_over_one_collection_and_say_how(
    indexer: ServiceThread, shop: Shop, own: Settings, encoder: BaseEncoder
) -> None:
    """After releases of both towers the anchor arm scores by text and words alone, the live one by what was learned."""
    assert indexer.not_ready() is None
    anchored, live = (
        next(f"k{n}" for n in range(99) if is_anchored(f"k{n}", 0.5) == wanted) for wanted in (True, False)
    )
    experiment = own.model_copy(update={"port": free_port(), "anchor_share": 0.5, "swap_share": 1.0})
    with running(partial(serve, deadline_s=8.0), experiment) as search:
        load(shop, search)
        assert ask(search, "fridge", session_id=anchored).arm == "live"
        shop.release(query_release(1, encoder, product_release=1), product_release(1, encoder))
        eventually(lambda: ask(search, "fridge", session_id=live).product_release == 1, timeout_s=60)
        answers = [ask(search, "fridge", session_id=one, explain=True, impression="server") for one in (anchored, live)]
        told = [(one.arm, one.query_release, one.product_release, one.exploration.policy) for one in answers]
        assert told == [("anchor", 0, 0, "jitter"), ("live", 1, 1, "swap")]
        text = encoder.encode(["fridge"])[0]
        texts = encoder.encode([product_text(one) for one in PRODUCTS])
        rows = {one.product_id: row for one, row in zip(PRODUCTS, texts, strict=True)}
        for result in answers[0].results:
            assert result.explanation is not None
            by_meaning = 10 * result.score - result.explanation["words"]
            assert by_meaning == pytest.approx(10 * float(text @ rows[result.product_id]), abs=1e-2)
        assert any((one.explanation or {})["quality"] for one in answers[1].results)
        eventually(lambda: len(impressions(own)) == 2, timeout_s=20)
    draft = own.model_copy(update={"port": free_port(), "interleave_share": 1.0})
    with running(partial(serve, deadline_s=8.0), draft) as search:
        eventually(lambda: ask(search, "fridge").query_release == 1, timeout_s=60)
        answers.append(ask(search, "quiet fridge", impression="server"))
        assert (answers[-1].arm, answers[-1].exploration.policy) == ("interleaved", "team-draft")
        assert {one.team for one in answers[-1].results} == {"live", "anchor"}
        eventually(lambda: len(impressions(own)) == 3, timeout_s=20)
    shown = {one.search_id: [slot.team for slot in one.slots] for one in impressions(own)}
    written = {one.search_id: one.ranking for one in impressions(own)}
    for answer in answers:
        assert shown[answer.search_id] == [one.team for one in answer.results]
        ranking = written[answer.search_id]
        assert (ranking.arm, ranking.exploration) == (answer.arm, answer.exploration)


def test_a_release_that_cannot_be_proven_is_refused_and_the_one_before_goes_on(
    search: ServiceThread, shop: Shop, own: Settings
) -> None:
    """`serving` that names a release which is not there moves nothing; what is in force again ends that."""
    load(shop, search)
    refused = 'millrace_releases_total{decision="refused",tower="query"}'
    before = search.metric(refused)
    serving = Serving(query_release=5, product_release=0, collection=own.collection(0), published_at=now_ms())
    publish(own, serving)
    eventually(lambda: search.metric(refused) == before + 1, timeout_s=20, what="refused")
    assert ask(search, "fridge").query_release == 0
    assert "query release 5 was refused" in (search.not_ready() or "")
    publish(own, serving.model_copy(update={"query_release": 0, "published_at": now_ms() + 1}))
    eventually(lambda: search.not_ready() is None, timeout_s=20)


def publish(settings: Settings, serving: Serving) -> None:
    """Write a pair to `models` as the indexer would."""
    producer = KafkaProducer(**producer_config(settings))
    produce_all(producer, [OutgoingRecord(settings.topic(MODELS), wire.encode(serving), key=SERVING_KEY)])
    producer.close()


def test_without_the_vector_store_search_answers_what_it_remembers(
    search: ServiceThread, shop: Shop, qdrant: QdrantProcess
) -> None:
    """A search asked before is answered and marked; a new one is refused with the fix; both heal."""
    load(shop, search)
    whole = ask(search, "quiet fridge")
    qdrant.kill()
    remembered = ask(search, "quiet fridge")
    assert remembered.degraded == "remembered"
    assert remembered.results == whole.results
    assert remembered.age_s is not None
    assert remembered.search_id != whole.search_id
    refused = httpx.post(f"{search.url}/v1/search", json={"query": "never asked", "impression": "none"}, timeout=20)
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert "vector store does not answer" in refused.json()["detail"]
    qdrant.start()
    eventually(lambda: ask(search, "quiet fridge").degraded is None, timeout_s=30)


def test_the_process_is_not_ready_before_a_pair_is_in_force_and_ends_cleanly(
    own: Settings, shop: Shop, tmp_path: Path
) -> None:
    """Without an indexer /ready says what is missing; once `serving` stands there it answers, until SIGTERM."""
    process = ServiceProcess("indexer.search", own, tmp_path / "search.log")
    try:
        process.start(wait=False)
        eventually(lambda: "no release is in force" in (process.not_ready() or ""), timeout_s=90, interval_s=0.2)
        answer = httpx.post(f"{process.url}/v1/search", json={"query": "fridge"}, timeout=20)
        assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
        with running(index, own.model_copy(update={"port": free_port()})):
            process.wait_ready()
            shop.send(*PRODUCTS)
            body = {"query": "fridge", "session_id": "k1"}

            def answered() -> bool:
                """Search; a busy machine may need more than the deadline, and then no impression is written."""
                return httpx.post(f"{process.url}/v1/search", json=body, timeout=20).status_code == 200

            for _ in range(5):
                eventually(answered, timeout_s=60)
        assert process.stop() == 0
    finally:
        process.kill()
    assert len(impressions(own)) == 5
