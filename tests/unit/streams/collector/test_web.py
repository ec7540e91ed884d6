"""The collector over HTTP with a log and a memory in the test's hands: statuses, headers, nothing lost."""

import asyncio
from typing import Any

import orjson
import pytest
import structlog

from streams.collector.web import INTAKE
from tests.support.collector import (
    SECRET,
    SHOP,
    WRITE,
    Running,
    click,
    impression,
    product,
    purchase,
    statuses,
)


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


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (b'"position":1e999', "not_finite", "position"),
        (b'"campaign":{"a":[-1e999]}', "not_finite", "campaign.a.0"),
        (b'"event_time":' + b"9" * 5_000, "not_finite", "event_time"),
        (b'"x":' + b"[" * 1_100 + b"]" * 1_100, "too_deep", None),
        (b'"x":' + b'{"a":' * 9_000 + b'"]"' + b"}" * 9_000, "too_deep", None),
        (b'"source":"\xff"', "malformed_text", "source"),
    ],
)
async def test_no_item_of_a_body_that_is_json_sinks_its_neighbours(
    running: Running, bad: bytes, reason: str, field: str | None
) -> None:
    """Numbers beyond all range and nesting without end are reasons of the item, whichever field they stand in."""
    good, last = orjson.dumps(click("good")), orjson.dumps(click("last"))
    spoilt = orjson.dumps(click("bad"))[:-1] + b"," + bad + b"}"
    body = b'{"events":[' + b",".join((good, spoilt, last)) + b"]}"
    answer = await (await running.post("/v1/events", body)).json()
    assert statuses(answer) == ["accepted", "rejected", "accepted"]
    told = answer["results"][1]
    assert (told["event_id"], told["reason"], told["field"]) == ("bad", reason, field)
    assert [orjson.loads(record.value)["event_id"] for record in running.log.records] == ["good", "last"]


async def test_a_repeat_is_a_duplicate_and_is_not_written(running: Running) -> None:
    """The same type and event_id count once, within a request and across requests."""
    assert statuses(await running.send(click("a"), click("a"))) == ["accepted", "duplicate"]
    answer = await running.send(click("a"), click("b"), click("b", type="cart"))
    assert statuses(answer) == ["duplicate", "accepted", "accepted"]
    assert answer["duplicate"] == 1
    assert len(running.log.records) == 3


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
    assert told["reason"] == "not_acknowledged"
    assert "nothing was accepted" in told["detail"]
    running.log.acknowledges = True
    assert statuses(await running.send(click("a"))) == ["accepted"]


async def test_without_memory_everything_is_still_accepted(running: Running) -> None:
    """With Redis gone, repeats within a request are still found, and those across requests are left to the join."""
    running.memory.gone = True
    assert statuses(await running.send(click("a"), click("a"))) == ["accepted", "duplicate"]
    assert statuses(await running.send(click("a"))) == ["accepted"]


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
        (b'{"events": ["\x01"]}', "malformed_json"),
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
    assert (await response.json())["reason"] == reason
    assert running.log.records == []


async def test_a_text_that_is_not_unicode_costs_its_item_alone(running: Running) -> None:
    """Half an emoji, or bytes of another encoding: refused by its field; its neighbours are written."""
    events = orjson.dumps([click("e1"), click("e2", note="HALF"), click("RAW")])
    body = b'{"events":' + events.replace(b"HALF", b"\\ud83d").replace(b"RAW", b"Z\xfcrich") + b"}"
    answer = await (await running.post("/v1/events", body)).json()
    blamed = {result["field"]: result["reason"] for result in answer["results"]}
    assert blamed == {None: None, "note": "malformed_text", "event_id": "malformed_text"}


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
    assert path in (await response.json())["detail"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/events", 405), ("GET", "/nothing", 404)])
async def test_wrong_addresses_are_answered_in_json(running: Running, method: str, path: str, status: int) -> None:
    """Unknown paths and methods have the form of every other refusal."""
    response = await running.client.request(method, path)
    assert response.status == status
    assert path in (await response.json())["detail"]


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
    assert orjson.loads(body)["reason"] == reason


async def test_an_unforeseen_failure_is_one_line_and_a_500(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours neither ends the process nor shows a traceback to the caller."""

    async def burst(_records: object) -> None:
        """Fail as nobody foresaw."""
        raise ZeroDivisionError

    monkeypatch.setattr(running.log, "write", burst)
    with structlog.testing.capture_logs() as lines:
        response = await running.post("/v1/events", {"events": [click()]})
    assert response.status == 500
    assert (await response.json())["reason"] == "internal"
    assert [line["event"] for line in lines] == ["request_failed"]


async def test_health_and_metrics_are_on_the_same_port(running: Running) -> None:
    """Readiness follows the checks, and the counters count records."""
    await running.send(purchase("s1", "s2"), click("bad", position=0), click(mail="ann@example.com"))
    assert (await running.client.get("/live")).status == 200
    assert (await running.client.get("/ready")).status == 200
    running.health.add_check("kafka", lambda: "gone")
    refused = await running.client.get("/ready")
    assert refused.status == 503
    assert (await refused.json())["reasons"] == ["kafka: gone"]
    text = await (await running.client.get("/metrics")).text()
    assert 'millrace_events_accepted_total{type="purchase"}' in text
    assert 'millrace_events_rejected_total{reason="out_of_range"}' in text
    assert 'millrace_intake_corrections_total{correction="personal_field"}' in text
    assert 'millrace_requests_total{code="200",route="/v1/events"}' in text


@pytest.mark.parametrize("path", INTAKE)
async def test_the_documented_example_of_a_route_is_accepted(running: Running, path: str) -> None:
    """What `/openapi.json` shows is what the collector takes, and `/docs` shows how to send it."""
    document = await (await running.client.get("/openapi.json")).json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]
    response = await running.post(path, schema["examples"][0], headers=SECRET)
    assert statuses(await response.json()) == ["accepted"]
    page = await (await running.client.get("/docs")).text()
    assert f"POST {path}" in page
    assert "Authorization: Bearer KEY" in page
