"""The whole chain with every process: what a shop's site sends changes what its shoppers find."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaProducer
from qdrant_client import QdrantClient

from contracts.topics import CATALOG, SEARCH_EVENTS
from deploy.local.supervisor import LocalMillrace
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.e2e.shop_site import ShopSite, product
from tests.support.poll import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS: dict[str, Any] = {
    "join_window_s": 3.0,
    "lateness_s": 1.0,
    "release_interval_s": 3.0,
    "product_release_interval_s": 8.0,
    "anchor_share": 0.0,  # few shoppers decide here what every shopper is to see
    "swap_share": 0.0,
}
QUERY = "kettle"
WANTED = "P-7"
FINISHES = ("steel", "glass", "copper", "black", "white", "red", "blue", "green", "travel", "gooseneck")


def catalogue() -> list[dict[str, Any]]:
    """Return kettles that differ in a word, and other things."""
    kettles = [product(n, f"Electric kettle, {finish}", brand=f"Brand{n}") for n, finish in enumerate(FINISHES)]
    others = [product(100 + n, f"Ceiling fan model {n}", brand="Breeze") for n in range(40)]
    return kettles + others


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMillrace]:
    """Give a whole deployment of its own, with short windows."""
    with LocalMillrace(SETTINGS, data_dir=tmp_path_factory.mktemp("chain"), environ={}) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def site(running: LocalMillrace) -> Iterator[ShopSite]:
    """Give the shop's site, with its catalogue in the index."""
    write, secret = running.settings.require("write_key", "secret_key")
    made = ShopSite(running.urls["collector"], running.urls["search"], write_key=write, secret_key=secret)
    assert made.products(catalogue())["accepted"] == len(catalogue())
    eventually(
        lambda: made.search(QUERY)["total"] == len(catalogue()), timeout_s=60, what="the catalogue is searchable"
    )
    yield made
    made.close()


def test_a_new_product_is_found_and_a_deleted_one_is_not(site: ShopSite) -> None:
    """A launch is found by its name; after its deletion it is not, and a late older version does not bring it back."""
    launched = product(900, "Zorblax 9 espresso robot")
    site.products([launched])
    eventually(lambda: site.rank("Zorblax espresso robot", "P-900") == 1, timeout_s=20, what="the launch is found")
    site.products([{"schema_version": 1, "type": "product_deleted", "product_id": "P-900", "version": 3}])
    eventually(lambda: site.rank("Zorblax espresso robot", "P-900") is None, timeout_s=20, what="it is gone")
    site.products([{**launched, "version": 2}, product(901, "Zorblax 10 espresso robot")])
    eventually(lambda: site.rank("Zorblax espresso robot", "P-901") == 1, timeout_s=20, what="the next launch is found")
    assert site.rank("Zorblax espresso robot", "P-900") is None


def test_clicks_change_a_search_result(site: ShopSite) -> None:
    """Shoppers who choose one kettle, one after the other, move it to the top of their query: the query remembers."""
    shoppers = itertools.count()
    before = site.rank(QUERY, WANTED)
    assert before is not None
    assert before > 1

    def shop_and_look() -> bool:
        """Let five shoppers choose the same kettle, then look where it stands."""
        for _ in range(5):
            session = f"s-{next(shoppers)}"
            answer = site.search(QUERY, impression="server", session=session)
            if any(result["product_id"] == WANTED for result in answer["results"]):
                site.click(answer, WANTED, session)
        last = site.search(QUERY)
        return last["query_release"] >= 1 and site.rank(QUERY, WANTED) == 1

    eventually(shop_and_look, timeout_s=150, interval_s=0.5, what=f"{WANTED} moves from {before} to 1")


def send_poison(settings: Settings) -> int:
    """Produce records that no contract allows to both topics, past the collector; return how many."""
    poison = [b"\xff\xfenot json", b'{"type":"click"}', b'{"type":"impression","event_time":NaN}', b"[]"]
    topics = [settings.topic(SEARCH_EVENTS), settings.topic(CATALOG)]
    records = [OutgoingRecord(topic, value, key=b"P-1") for topic in topics for value in poison]
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, records)
    return len(records)


def test_bad_records_are_set_aside_and_nothing_dies(running: LocalMillrace, site: ShopSite) -> None:
    """Products and events sent after poison on both topics still come through, and no process was started again."""
    send_poison(running.settings)
    site.products([product(950, "Quuxward tea timer")])
    eventually(lambda: site.rank("Quuxward tea timer", "P-950") == 1, timeout_s=30, what="a product after the poison")
    assert {name: running.restarts(name) for name in running.ports if running.restarts(name)} == {}


def test_every_event_and_every_search_is_accounted_for(running: LocalMillrace, site: ShopSite) -> None:
    """When the shoppers have gone nothing is pending, the dead letters are counted, and both ledgers balance."""
    with Observer(running.settings) as observer:
        observer.wait_caught_up(30)

        def settled() -> dict[str, Any] | None:
            """Return the ledgers once nothing is pending."""
            report = ledger_report(observer.look())
            assert (report["events"]["balance"], report["searches"]["balance"]) == (0, 0), report
            return None if report["events"]["pending"] + report["searches"]["pending"] else report

        before = eventually(settled, timeout_s=60, interval_s=0.5, what="nothing is pending")
        assert before is not None
        sent = send_poison(running.settings)
        answer = site.search(QUERY, impression="server", session="last")
        clicked = next(result["product_id"] for result in answer["results"][2:] if result["product_id"] != WANTED)
        site.click(answer, clicked, "last")

        def counted() -> dict[str, Any] | None:
            """Return the ledgers once they hold what was sent and nothing is pending."""
            report = settled()
            more = report is not None and report["searches"]["paired"] > before["searches"]["paired"]
            return report if more else None

        after = eventually(counted, timeout_s=60, interval_s=0.5, what="the last search is paired")
    assert after is not None
    assert after["events"]["dead_lettered"] - before["events"]["dead_lettered"] == sent
    assert after["events"]["joined"] - before["events"]["joined"] == 3


def test_anyone_can_ask_qdrant_with_our_vectors(running: LocalMillrace, site: ShopSite) -> None:
    """What /v1/encode gives, vector and what is remembered of the query, ranks in Qdrant as search answers."""
    from millrace.client import post

    store = QdrantClient(url=running.urls["qdrant"])

    def same_answers() -> bool:
        """Ask both ways; a release that comes into force in between makes the answers differ once."""
        encoded = post(f"{running.urls['search']}/v1/encode", {"texts": [QUERY]})
        points = store.query_points("products", query=encoded["vectors"][0], using="product", limit=50).points
        remembered = encoded["remembered"][0]
        points.sort(key=lambda point: -(point.score + remembered.get(str(point.id), 0.0)))
        answer = site.search(QUERY, k=5)
        if answer["query_release"] != encoded["query_release"]:
            return False
        return [(point.payload or {})["product_id"] for point in points[:5]] == [
            result["product_id"] for result in answer["results"]
        ]

    try:
        eventually(same_answers, timeout_s=20, interval_s=0.5, what="Qdrant and search agree")
    finally:
        store.close()
