"""The collector on a real Kafka and a real Redis: what it accepted stands there, what failed loses nothing."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner import murmur2

from contracts import wire
from contracts.events import SHOP_EVENT, person_id
from contracts.topics import CATALOG, CURATED_PAIRS, SEARCH_EVENTS
from deploy.local.supervisor import LocalMillrace
from service.http import bind_socket
from service.kafka import admin, consumer_config, ensure_topics
from service.process import Shutdown
from service.settings import Settings
from streams.collector.__main__ import read_policy, serve
from tests.support.collector import click, impression, product, purchase
from tests.support.poll import eventually, eventually_async
from tests.support.ports import free_port

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

SettingsFactory = Callable[..., Settings]


class Client:
    """A shop's site that talks to one collector."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self.session = session
        self.base = f"http://127.0.0.1:{settings.port}"
        self.write_key, self.secret_key = settings.require("write_key", "secret_key")

    async def post(self, path: str, body: Any, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """Post JSON and return (status, answer)."""
        headers = {"Authorization": f"Bearer {key or self.write_key}", "Content-Type": "application/json"}
        async with self.session.post(
            self.base + path, data=io.BytesIO(orjson.dumps(body)), headers=headers
        ) as response:
            return response.status, await response.json()

    async def statuses(self, *events: dict[str, Any]) -> list[str]:
        """Post events, all of which are answered, and return the status of each."""
        status, answer = await self.post("/v1/events", {"events": list(events)})
        assert status == 200, answer
        return [result["status"] for result in answer["results"]]

    async def ready(self) -> bool:
        """Return whether the collector says that it is ready."""
        try:
            async with self.session.get(self.base + "/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False


@asynccontextmanager
async def running(settings: Settings, *, ack_timeout_s: float = 8.0) -> AsyncIterator[Client]:
    """Run a collector in this event loop until the block ends, then stop it as SIGTERM does."""
    await asyncio.to_thread(ensure_topics, settings)
    shutdown = Shutdown()
    serving = asyncio.create_task(serve(settings, shutdown, policy=read_policy(settings), ack_timeout_s=ack_timeout_s))
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(session, settings)
            await eventually_async(client.ready, timeout_s=30, what="collector ready")
            yield client
    finally:
        shutdown.request()
        await asyncio.wait_for(serving, 20)
        shutdown.close()


@pytest.fixture
def own(kafka_settings: SettingsFactory, redis_url: str) -> Settings:
    """Give settings with the session's servers and a free port."""
    return kafka_settings(redis_url=redis_url, port=free_port())


def current(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as if it happened now; the collector under test goes by the real clock."""
    now_ms = time.time_ns() // 1_000_000
    dated = {**event, "event_time": now_ms}
    if "search_time" in event:
        dated["search_time"] = now_ms
    if "items" in event:
        dated["items"] = [{**line, "search_time": now_ms} for line in event["items"]]
    return dated


def records_of(settings: Settings, topic: str) -> list[Any]:
    """Return every record of a topic, in the order of each partition."""
    name = settings.topic(topic)
    with KafkaConsumer(**consumer_config(settings)) as consumer:
        partitions = [TopicPartition(name, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[Any] = []
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            found += [record for records in consumer.poll(timeout_ms=500).values() for record in records]
    return found


async def test_accepted_events_stand_in_kafka_under_their_keys_with_persons_protected(own: Settings) -> None:
    """Each record lies in the partition that murmur2 of its key names, keeps its contract and names nobody."""
    sent = [impression("i1"), click("c1"), click("c2", search_id="s2"), click("c3", search_id="खोज", user_id="u1")]
    async with running(own) as client:
        assert await client.statuses(*map(current, sent), click("c4", position=0)) == ["accepted"] * 4 + ["rejected"]
    records = {orjson.loads(record.value)["event_id"]: record for record in records_of(own, SEARCH_EVENTS)}
    assert set(records) == {"i1", "c1", "c2", "c3"}
    person_key = own.require("person_key")[0].encode()
    for event in sent:
        record = records[event["event_id"]]
        key = event["search_id"].encode()
        assert record.key == key
        assert record.partition == (murmur2(key) & 0x7FFFFFFF) % own.partitions
        stored = wire.decode(record.value, SHOP_EVENT)
        assert stored.client_id == person_id("c9", person_key)
        assert stored.received_at is not None
        assert stored.user_id == (person_id("u1", person_key) if "user_id" in event else None)


async def test_a_repeat_is_a_duplicate_for_every_collector(own: Settings) -> None:
    """What one collector acknowledged, another (or the same after a restart) knows by Redis; ids are its type's own."""
    async with running(own) as client:
        assert await client.statuses(current(click("a")), current(click("a"))) == ["accepted", "duplicate"]
    other = own.model_copy(update={"port": free_port()})
    async with running(other) as client:
        again = [current(click("a")), current(click("b")), current(click("a", type="cart"))]
        assert await client.statuses(*again) == ["duplicate", "accepted", "accepted"]
    assert len(records_of(own, SEARCH_EVENTS)) == 3


async def test_an_order_stands_as_one_record_per_line_beside_its_search(own: Settings) -> None:
    """Each line of an order lies in the partition of the search that it came from."""
    async with running(own) as client:
        assert await client.statuses(current(impression("i1")), current(purchase("s1", "s2"))) == ["accepted"] * 2
    stored = {orjson.loads(record.value)["event_id"]: record for record in records_of(own, SEARCH_EVENTS)}
    assert set(stored) == {"i1", "b1#0", "b1#1"}
    assert (stored["b1#0"].key, stored["b1#1"].key) == (b"s1", b"s2")
    assert stored["b1#0"].partition == stored["i1"].partition


async def test_products_and_pairs_need_the_secret_key_and_reach_their_topics(own: Settings) -> None:
    """The write key and a wrong one are refused with 401; the secret key writes, in order per product."""
    changes = [product(), product(version=8), {"type": "product_deleted", "product_id": "P-1", "version": 9}]
    pair = {"query": "fridge", "chosen": "P-1", "rejected": "P-2"}
    async with running(own) as client:
        assert (await client.post("/v1/products", {"products": changes}))[0] == 401
        assert (await client.post("/v1/products", {"products": changes}, key="wrong"))[0] == 401
        status, answer = await client.post("/v1/products", {"products": [*changes, {}]}, key=client.secret_key)
        assert (status, answer["accepted"], answer["rejected"]) == (200, 3, 1)
        assert (await client.post("/v1/pairs", {"pairs": [pair]}, key=client.secret_key))[0] == 200
    catalog = records_of(own, CATALOG)
    assert [record.key for record in catalog] == [b"P-1"] * 3
    assert [orjson.loads(record.value)["version"] for record in catalog] == [7, 8, 9]
    assert [record.key for record in records_of(own, CURATED_PAIRS)] == [b"fridge"]


async def test_a_large_catalogue_is_taken_in_one_request(own: Settings) -> None:
    """Two thousand products in one body are acknowledged together."""
    products = [product(f"P-{number}", description="quiet " * 100) for number in range(2_000)]
    async with running(own) as client:
        status, answer = await client.post("/v1/products", {"products": products}, key=client.secret_key)
    assert (status, answer["accepted"]) == (200, 2_000)
    assert len(records_of(own, CATALOG)) == 2_000


async def test_when_kafka_does_not_acknowledge_nothing_is_accepted_and_the_resend_is(own: Settings) -> None:
    """A topic that Kafka does not serve is 503; once it is there again the same events are accepted and stand there."""
    topic = own.topic(SEARCH_EVENTS)
    async with running(own, ack_timeout_s=2.0) as client:
        assert await client.statuses(current(click("before"))) == ["accepted"]
        await asyncio.to_thread(_delete_topic, own, topic)
        status, answer = await client.post("/v1/events", {"events": [current(click("a")), current(click("b"))]})
        assert (status, answer["reason"]) == (503, "not_acknowledged")
        await asyncio.to_thread(ensure_topics, own)

        async def accepted() -> bool:
            """Send both again."""
            status, answer = await client.post("/v1/events", {"events": [current(click("a")), current(click("b"))]})
            return status == 200 and answer["accepted"] == 2

        await eventually_async(accepted, timeout_s=60, what="the resend is accepted")
    assert {orjson.loads(record.value)["event_id"] for record in records_of(own, SEARCH_EVENTS)} >= {"a", "b"}


def _delete_topic(settings: Settings, topic: str) -> None:
    """Delete a topic and wait until the broker does not know it any more."""
    with admin(settings) as client:
        client.delete_topics([topic])
        eventually(lambda: topic not in client.list_topics(), timeout_s=20, what="topic deleted")


async def test_with_redis_killed_events_are_still_accepted_and_its_return_is_noticed(
    kafka_settings: SettingsFactory, tmp_path: Path
) -> None:
    """Redis is best effort: without it repeats pass on to the join, with it they are found again."""
    with LocalMillrace(processes=["redis"], data_dir=tmp_path / "redis", environ={}) as servers:
        own = kafka_settings(redis_url=servers.urls["redis"], port=free_port())
        async with running(own) as client:
            assert await client.statuses(current(click("a"))) == ["accepted"]
            assert await client.statuses(current(click("a"))) == ["duplicate"]
            await asyncio.to_thread(servers.stop, "redis")
            assert await client.statuses(current(click("a")), current(click("b"))) == ["accepted", "accepted"]
            assert await client.ready()
            await asyncio.to_thread(servers.start, "redis")

            async def found_again() -> bool:
                """Send a repeat."""
                return await client.statuses(current(click("b"))) == ["duplicate"]

            await eventually_async(found_again, timeout_s=30, what="duplicates are found again")


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_broker_that_is_gone_makes_the_collector_not_ready_until_it_is_back(
    settings: SettingsFactory, redis_url: str, tmp_path: Path, way: signal.Signals
) -> None:
    """Without any traffic, within its patience, with one line for the outage and one for its end."""
    with LocalMillrace(processes=["kafka"], data_dir=tmp_path / "kafka", environ={}) as servers:
        bootstrap = servers.env["MILLRACE_KAFKA_BOOTSTRAP"]
        own = settings(kafka_bootstrap=bootstrap, redis_url=redis_url, port=free_port())
        async with running(own) as client:
            with structlog.testing.capture_logs() as lines:
                if way is signal.SIGKILL:
                    await asyncio.to_thread(servers.stop, "kafka")
                else:
                    servers.kill("kafka", way)

                async def not_ready() -> bool:
                    """Return whether the collector asks for no traffic."""
                    return not await client.ready()

                await eventually_async(not_ready, timeout_s=30, what="not ready without a broker")
                if way is signal.SIGKILL:
                    await asyncio.to_thread(servers.start, "kafka")
                else:
                    servers.kill("kafka", signal.SIGCONT)
                await eventually_async(client.ready, timeout_s=60, what="ready again")
    told = [(line["event"], line.get("dependency")) for line in lines if line["log_level"] != "debug"]
    assert told == [("dependency_down", "kafka"), ("dependency_back", "kafka")]


def start_process(settings: Settings) -> "subprocess.Popen[str]":
    """Start `python -m streams.collector` with exactly these settings."""
    command = [sys.executable, "-m", "streams.collector"]
    environ = {**os.environ, **settings.as_environ()}
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)


def last_line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for the end of a process and return its last log line."""
    _, errors = process.communicate(timeout=60)
    line: dict[str, Any] = orjson.loads(errors.strip().splitlines()[-1])
    return line


async def test_the_process_ends_cleanly_on_sigterm_after_finishing_what_is_open(own: Settings) -> None:
    """Requests that are under way when SIGTERM comes are answered, what was accepted stands in Kafka, the code is 0."""
    process = start_process(own)
    accepted: list[str] = []
    async with aiohttp.ClientSession() as session:
        client = Client(session, own)
        await eventually_async(client.ready, timeout_s=60, what="collector process ready")

        async def keep_sending() -> None:
            """Send one click after the other until the collector is gone."""
            for number in range(100_000):
                event_id = f"e{number}"
                try:
                    if await client.statuses(current(click(event_id))) == ["accepted"]:
                        accepted.append(event_id)
                except aiohttp.ClientConnectionError:
                    return

        sending = asyncio.create_task(keep_sending())

        async def some_are_accepted() -> bool:
            """Return whether enough clicks went through."""
            return len(accepted) >= 20

        await eventually_async(some_are_accepted, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        await sending
    assert process.stderr is not None
    process.stderr.close()
    stored = [orjson.loads(record.value)["event_id"] for record in records_of(own, SEARCH_EVENTS)]
    assert set(accepted) <= set(stored)
    assert len(stored) == len(set(stored))


def test_missing_keys_end_the_start_with_one_line_and_code_2(own: Settings) -> None:
    """Without keys nothing listens; the line names the setting and the fix."""
    process = start_process(own.model_copy(update={"write_key": None}))
    line = last_line(process)
    assert process.returncode == 2
    assert "MILLRACE_WRITE_KEY" in line["error"]
    assert "MILLRACE_WRITE_KEY" in line["fix"]


def test_a_missing_kafka_ends_the_start_with_one_line_and_code_4(settings: SettingsFactory, redis_url: str) -> None:
    """Where Kafka does not answer in time, the line names its address."""
    nowhere = f"127.0.0.1:{free_port()}"
    process = start_process(
        settings(kafka_bootstrap=nowhere, redis_url=redis_url, port=free_port(), dependency_wait_s=1)
    )
    line = last_line(process)
    assert process.returncode == 4
    assert nowhere in line["error"]


def test_a_busy_port_ends_the_start_with_one_line_and_code_4(own: Settings) -> None:
    """A port that is taken is named with the setting that changes it."""
    with bind_socket("127.0.0.1", own.port or 0):
        process = start_process(own)
        line = last_line(process)
    assert process.returncode == 4
    assert str(own.port) in line["error"]
    assert "MILLRACE_PORT" in line["fix"]
