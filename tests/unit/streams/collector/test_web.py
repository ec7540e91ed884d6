"""The HTTP edge with a log and a memory in the test's hands: statuses, headers, answers, nothing lost on failure."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from contracts.telemetry import Process
from service.health import Health
from streams.collector.access import Keys, Limits
from streams.collector.app import Collector, Policy
from streams.collector.web import RUNNER_OPTIONS, build_app
from tests.support.collector import NOW_MS, MemoryLog, PlainMemory, click, impression, product, purchase

WRITE = {"Authorization": "Bearer write"}
SECRET = {"Authorization": "Bearer secret"}
SHOP = "https://shop.example"
POLICY = Policy(Keys(b"write", b"secret"), b"person", origins=(SHOP,))


@dataclass
class Running:
    """A collector under test."""

    client: TestClient[Any, Any]
    log: MemoryLog
    memory: PlainMemory
    health: Health

    async def post(self, path: str, body: Any, **options: Any) -> aiohttp.ClientResponse:
        """Post JSON, with the write key unless told otherwise."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **options.pop("headers", WRITE)}
        return await self.client.post(path, data=content, headers=headers, **options)

    async def send(self, *events: Any, **options: Any) -> dict[str, Any]:
        """Post events and return the answer."""
        response = await self.post("/v1/events", {"events": list(events)}, **options)
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def start(policy: Policy) -> Running:
    """Start a collector."""
    log, memory, health = MemoryLog(), PlainMemory(), Health(Process.COLLECTOR)
    collector = Collector(policy, log, memory=memory, now_ms=lambda: NOW_MS)
    server = TestServer(build_app(collector, health, redis_is_up=lambda: not memory.gone))
    await server.start_server(**RUNNER_OPTIONS)
    return Running(TestClient(server), log, memory, health)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """Give a collector with the usual limits."""
    collector = await start(POLICY)
    yield collector
    await collector.client.close()


@pytest.fixture
async def strict() -> AsyncIterator[Running]:
    """Give a collector with small limits."""
    collector = await start(replace(POLICY, limits=Limits(write_body_bytes=2_000, items=3, write_items_per_window=5)))
    yield collector
    await collector.client.close()


def statuses(answer: dict[str, Any]) -> list[str]:
    """Return the status of each item."""
    return [result["status"] for result in answer["results"]]


async def test_good_items_are_accepted_beside_bad_ones(running: Running) -> None:
    """Each item has its own result, in order, and only the good ones are written."""
    answer = await running.send(impression(), click(position=0), click("e2"), 7)
    assert (answer["accepted"], answer["rejected"]) == (2, 2)
    assert statuses(answer) == ["accepted", "rejected", "accepted", "rejected"]
    assert answer["results"][1] | {"message": ""} == {
        "event_id": "e1",
        "status": "rejected",
        "reason": "out_of_range",
        "field": "position",
        "message": "",
    }
    assert [orjson.loads(record.value)["event_id"] for record in running.log.records] == ["i1", "e2"]


async def test_a_repeat_is_a_duplicate_and_is_not_written(running: Running) -> None:
    """The same event_id counts once, within a request and across requests."""
    assert statuses(await running.send(click("a"), click("a"))) == ["accepted", "duplicate"]
    answer = await running.send(click("a"), click("b"))
    assert statuses(answer) == ["duplicate", "accepted"]
    assert answer["duplicate"] == 1
    assert len(running.log.records) == 2


async def test_a_split_order_is_one_item_of_the_answer(running: Running) -> None:
    """An order counts once for its sender, however many records it becomes, and repeats as one."""
    assert (await running.send(purchase("s1", "s2")))["accepted"] == 1
    assert len(running.log.records) == 2
    assert statuses(await running.send(purchase("s1", "s2"))) == ["duplicate"]


async def test_without_an_acknowledgement_nothing_was_accepted(running: Running) -> None:
    """A failing log is a 503 with Retry-After, and the resend with the same ids is accepted, not a duplicate."""
    running.log.acknowledges = False
    response = await running.post("/v1/events", {"events": [click("a"), click("b", position=0)]})
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    told = await response.json()
    assert told["error"] == "not_acknowledged"
    assert "nothing was accepted" in told["message"]
    running.log.acknowledges = True
    assert statuses(await running.send(click("a"))) == ["accepted"]


async def test_without_memory_everything_is_still_accepted(running: Running) -> None:
    """With Redis gone, repeats within a request are still found, and those across requests are left to the join."""
    running.memory.gone = True
    assert statuses(await running.send(click("a"), click("a"))) == ["accepted", "duplicate"]
    assert statuses(await running.send(click("a"))) == ["accepted"]
    assert (await (await running.client.get("/ready")).json())["redis"] == "down"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/events", {}, 401),
        ("/v1/events", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/events?key=wrong", {}, 401),
        ("/v1/events?key=secret", {}, 401),
        ("/v1/events?key=write", {}, 200),
        ("/v1/events", SECRET, 200),
        ("/v1/products", {}, 401),
        ("/v1/products", WRITE, 401),
        ("/v1/products?key=write", {}, 401),
        ("/v1/products?key=secret", {}, 401),
        ("/v1/products", SECRET, 200),
        ("/v1/pairs", WRITE, 401),
        ("/v1/pairs", SECRET, 200),
    ],
)
async def test_a_key_opens_its_routes(running: Running, path: str, headers: dict[str, str], status: int) -> None:
    """A missing or wrong key is 401, and so is the write key on a route of the secret key."""
    body: dict[str, list[Any]] = {"events": [], "products": [], "pairs": []}
    response = await running.post(path, body, headers=headers)
    assert response.status == status
    assert ("WWW-Authenticate" in response.headers) is (status == 401)


async def test_products_and_pairs_are_written_to_their_topics(running: Running) -> None:
    """Each route has its list, its topic and a result per item; the same product twice is two versions, no repeat."""
    response = await running.post("/v1/products", {"products": [product(), product(version=8), {}]}, headers=SECRET)
    assert statuses(await response.json()) == ["accepted", "accepted", "rejected"]
    pair = {"query": "fridge", "chosen": "P-1", "rejected": "P-2"}
    response = await running.post("/v1/pairs", {"pairs": [pair, pair]}, headers=SECRET)
    assert statuses(await response.json()) == ["accepted", "accepted"]
    assert [record.topic for record in running.log.records] == ["catalog"] * 2 + ["curated-pairs"] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"events": [{"price": Infinity}]}', "malformed_json"),
        (b'{"events": [{"price": 1e400}]}', "malformed_json"),
        (b'{"events": ["\xff", "\\ud800", NaN]}', "malformed_json"),
        (b"[" * 5_000, "malformed_json"),
        (b"[]", "wrong_type"),
        (b"null", "wrong_type"),
        (b'{"events": {}}', "wrong_type"),
        (b'{"products": []}', "wrong_type"),
    ],
)
async def test_a_body_that_is_no_list_of_events_is_refused_whole(running: Running, body: bytes, reason: str) -> None:
    """What cannot be read at all is 400 with a reason, and nothing is written."""
    response = await running.post("/v1/events", body)
    assert response.status == 400
    assert (await response.json())["error"] == reason
    assert running.log.records == []


async def test_a_text_that_is_not_unicode_costs_its_item_alone(running: Running) -> None:
    """Half an emoji, or bytes of another encoding: refused by its field; its neighbours are written."""
    events = orjson.dumps([click("e1"), click("e2", note="HALF"), click("RAW")])
    body = b'{"events":' + events.replace(b"HALF", b"\\ud83d").replace(b"RAW", b"Z\xfcrich") + b"}"
    answer = await (await running.post("/v1/events", body)).json()
    blamed = {result["field"]: result["reason"] for result in answer["results"]}
    assert blamed == {None: None, "note": "malformed_text", "event_id": "malformed_text"}


async def test_a_large_body_is_refused_with_the_limit(strict: Running) -> None:
    """Above the limit is 413 and the message says how much may be sent; declared and streamed sizes alike."""
    body = orjson.dumps({"events": [click(extra="x" * 3_000)]})
    response = await strict.post("/v1/events", body)
    assert response.status == 413
    assert "2000 bytes" in (await response.json())["message"]

    async def pieces() -> AsyncIterator[bytes]:
        """Send the body in two pieces, its length unsaid."""
        yield body[:1_500]
        yield body[1_500:]

    streamed = await strict.client.post(
        "/v1/events", data=pieces(), headers={**WRITE, "Content-Type": "application/json"}
    )
    assert streamed.status == 413
    assert strict.log.records == []


async def test_a_secret_key_may_send_larger_bodies(strict: Running) -> None:
    """The limit of the write key does not bind a server."""
    response = await strict.post("/v1/events", {"events": [click(extra="x" * 3_000)]}, headers=SECRET)
    assert response.status == 200


async def test_a_compressed_body_is_read_and_its_real_size_counts(strict: Running) -> None:
    """A gzip body is accepted; a small body that unpacks to a large one is refused; garbage is 400."""
    packed = {**WRITE, "Content-Encoding": "gzip"}
    good = await strict.post("/v1/events", gzip.compress(orjson.dumps({"events": [click()]})), headers=packed)
    assert statuses(await good.json()) == ["accepted"]
    bomb = gzip.compress(b'{"events": ["' + b"x" * 1_000_000 + b'"]}')
    assert len(bomb) < 2_000
    assert (await strict.post("/v1/events", bomb, headers=packed)).status == 413
    for broken in (b"no gzip", gzip.compress(b'{"events": []}')[:-4], gzip.compress(b'{"events": []}') + b"more"):
        assert (await strict.post("/v1/events", broken, headers=packed)).status == 400
    assert (await strict.post("/v1/events", b"x", headers={**WRITE, "Content-Encoding": "zstd"})).status == 415


async def test_too_many_items_are_refused_with_the_limit(strict: Running) -> None:
    """More items than one request may hold is 413."""
    response = await strict.post("/v1/events", {"events": [1, 2, 3, 4]})
    assert response.status == 413
    assert "at most 3" in (await response.json())["message"]


async def test_a_caller_that_sends_too_much_is_told_when_to_return(strict: Running) -> None:
    """Above the rate is 429 with Retry-After, per key, and nothing is written."""
    for number in range(5):
        await strict.send(click(str(number)))
    response = await strict.post("/v1/events", {"events": [click("more")]})
    assert response.status == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 10
    assert len(strict.log.records) == 5
    assert (await strict.post("/v1/events", {"events": [click("more")]}, headers=SECRET)).status == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("text/plain;charset=UTF-8", 200),
        ("text/html", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_the_content_type_is_json_or_the_beacons(running: Running, content_type: str, status: int) -> None:
    """The beacon sends text/plain; everything else that is not JSON is refused."""
    response = await running.post("/v1/events", {"events": []}, headers={**WRITE, "Content-Type": content_type})
    assert response.status == status


async def test_a_crawlers_events_are_refused_unless_a_server_vouches(running: Running) -> None:
    """The bot list applies to browsers; with the secret key the user agent is the shop's own library."""
    crawler = {"User-Agent": "Googlebot/2.1"}
    answer = await running.send(click(), headers={**WRITE, **crawler})
    assert answer["results"][0]["reason"] == "bot"
    assert statuses(await running.send(click(), headers={**SECRET, **crawler})) == ["accepted"]


async def test_a_browser_that_must_not_be_followed_is_not(running: Running) -> None:
    """`Sec-GPC: 1` drops the ids of the person."""
    await running.send(click(), headers={**WRITE, "Sec-GPC": "1"})
    assert "client_id" not in orjson.loads(running.log.records[0].value)


async def test_pages_on_the_list_may_read_the_answer(running: Running) -> None:
    """CORS names the one origin, never `*`, never with credentials; the preflight allows what we need."""
    response = await running.post("/v1/events", {"events": []}, headers={**WRITE, "Origin": SHOP})
    assert response.headers["Access-Control-Allow-Origin"] == SHOP
    assert response.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in response.headers
    preflight = await running.client.options("/v1/events", headers={"Origin": SHOP})
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == SHOP
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]


async def test_other_pages_are_refused(running: Running) -> None:
    """A browser on a foreign page gets 403 and no CORS header, preflight included."""
    foreign = {"Origin": "https://evil.example"}
    for response in (
        await running.post("/v1/events", {"events": [click()]}, headers={**WRITE, **foreign}),
        await running.client.options("/v1/events", headers=foreign),
    ):
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers
    assert running.log.records == []


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/ubi_events"), ("POST", "/ubi_queries"), ("GET", "/millrace.js")]
)
async def test_what_is_not_built_is_refused_by_name(running: Running, method: str, path: str) -> None:
    """A route of a later version says so; it is never silently ignored."""
    response = await running.client.request(method, path)
    assert response.status == 501
    assert path in (await response.json())["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/events", 405), ("GET", "/nothing", 404)])
async def test_wrong_addresses_are_answered_in_json(running: Running, method: str, path: str, status: int) -> None:
    """Unknown paths and methods have the form of every other refusal."""
    response = await running.client.request(method, path)
    assert response.status == status
    assert path in (await response.json())["message"]


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ("Authorization: Bearer \xff", 401, "wrong_key"),
        ("Origin: http://\xff", 403, "origin_not_allowed"),
        ("Origin: http://[", 403, "origin_not_allowed"),
        ("Authorization: Bearer write\r\nContent-Encoding: \xff", 415, "content_encoding"),
    ],
)
async def test_headers_that_are_no_text_are_refused_as_any_other(
    running: Running, headers: str, status: int, reason: str
) -> None:
    """Bytes that are no UTF-8, and an origin that is no address, are the sender's fault and never a 500."""
    server = running.client.server
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(f"POST /v1/events HTTP/1.0\r\nContent-Length: 2\r\n{headers}\r\n\r\n{{}}".encode("latin-1"))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert int(head.split()[1]) == status
    assert orjson.loads(body)["error"] == reason


async def test_an_unforeseen_failure_is_one_line_and_a_500(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours neither ends the process nor shows a traceback to the caller."""

    async def burst(_records: object) -> None:
        """Fail as nobody foresaw."""
        raise ZeroDivisionError

    monkeypatch.setattr(running.log, "write", burst)
    with structlog.testing.capture_logs() as lines:
        response = await running.post("/v1/events", {"events": [click()]})
    assert response.status == 500
    assert (await response.json())["error"] == "internal"
    assert [line["event"] for line in lines] == ["request failed"]


async def test_health_and_metrics_are_on_the_same_port(running: Running) -> None:
    """Readiness follows the checks, Redis is information only, and the counters count records."""
    await running.send(purchase("s1", "s2"), click("bad", position=0))
    assert (await running.client.get("/live")).status == 200
    ready = await running.client.get("/ready")
    assert (ready.status, (await ready.json())["redis"]) == (200, "up")
    running.health.add_check("kafka", lambda: "gone")
    refused = await running.client.get("/ready")
    assert refused.status == 503
    assert (await refused.json())["reasons"] == ["kafka: gone"]
    text = await (await running.client.get("/metrics")).text()
    assert 'millrace_events_accepted_total{type="purchase"}' in text
    assert 'millrace_events_rejected_total{reason="out_of_range"}' in text
    assert 'millrace_requests_total{code="200",route="/v1/events"}' in text


async def test_requests_beyond_what_can_be_held_are_sent_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Kafka hangs, open requests are bounded: the next one is 503 at once."""
    monkeypatch.setattr("streams.collector.app.MAX_OPEN_REQUESTS", 1)
    under_way, release = asyncio.Event(), asyncio.Event()

    async def hang(_records: object) -> None:
        """Wait until the test lets go."""
        under_way.set()
        await release.wait()

    monkeypatch.setattr(running.log, "write", hang)
    first = asyncio.create_task(running.post("/v1/events", {"events": [click("a")]}))
    await under_way.wait()
    second = await running.post("/v1/events", {"events": [click("b")]})
    release.set()
    assert (second.status, (await second.json())["error"]) == (503, "busy")
    assert (await first).status == 200
