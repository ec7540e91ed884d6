"""The HTTP side: forms of answers and refusals, health, the key."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from contracts.telemetry import Process
from deploy.qdrant_edge.api import MAX_BODY_BYTES, Api
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Kind, Worker
from service.health import Health
from tests.support.poll import eventually_async
from tests.unit.deploy.qdrant_edge.conftest import CREATE, HeldWorker, Http, point, serving


async def call(http: Http, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and JSON of a call."""
    answer = await http.request(method, path, json=body)
    return answer.status, orjson.loads(await answer.read())


async def test_answers_have_qdrants_form(http: Http) -> None:
    """An answer holds result, status and time."""
    status, answer = await call(http, "PUT", "/collections/a", CREATE)
    assert (status, answer["result"], answer["status"]) == (200, True, "ok")
    assert answer["time"] >= 0
    assert (await call(http, "GET", "/collections"))[1]["result"] == {"collections": [{"name": "a"}]}
    assert (await call(http, "GET", "/collections/a/exists"))[1]["result"] == {"exists": True}
    assert (await call(http, "GET", "/collections/b/exists"))[1]["result"] == {"exists": False}


async def test_root_tells_what_it_is(http: Http) -> None:
    """The version is one that qdrant-client accepts; the title does not pretend to be a server."""
    status, answer = await call(http, "GET", "/")
    assert status == 200
    assert answer["version"].startswith("1.19.")
    assert "embedded" in answer["title"]


async def test_waiting_decides_the_word_for_done(http: Http) -> None:
    """Who waits reads `completed`, who does not `acknowledged`; both are applied."""
    await call(http, "PUT", "/collections/a", CREATE)
    body = {"points": [point(1)]}
    _, waited = await call(http, "PUT", "/collections/a/points?wait=true", body)
    _, unwaited = await call(http, "PUT", "/collections/a/points", {"points": [point(2)]})
    _, several = await call(http, "POST", "/collections/a/points/batch", {"operations": [{"delete": {"points": [1]}}]})
    assert [waited["result"]["status"], unwaited["result"]["status"]] == ["completed", "acknowledged"]
    assert [entry["status"] for entry in several["result"]] == ["acknowledged"]
    assert (await call(http, "POST", "/collections/a/points/count", {}))[1]["result"] == {"count": 1}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("PUT", "/collections/a/points", b"{", 400, "JSON"),
        ("PUT", "/collections/a/points", b"", 400, "JSON"),
        ("PUT", "/collections/a/points", b'{"points":[{"id":1,"vector":{"product":[NaN,1]}}]}', 400, "JSON"),
        ("PUT", "/collections/a/points", b'{"points":[{"id":1,"vector":{"product":[1e39,1]}}]}', 400, "finite"),
        ("PUT", "/collections/a/points", b'{"points":[{"id":1,"vector":{"product":[1]}}]}', 400, "dimension"),
        ("PUT", "/collections/a/points", b'{"points":[{"id":"SKU-1","vector":{}}]}', 400, "SKU-1"),
        ("POST", "/collections/a/points/query", b"[" * 100_000, 400, "JSON"),
        ("POST", "/collections/a/points/query", b'{"filter":' * 500 + b"{}" + b"}" * 500, 400, "deeper"),
        ("PUT", "/collections/a/points", b'{"points":[]}', 400, "Empty update request"),
        ("POST", "/collections/a/points/query", b'{"limit":0}', 422, "limit"),
        ("POST", "/collections/absent/points/query", b"{}", 404, "`absent` doesn't exist"),
        ("GET", "/collections/absent", None, 404, "absent"),
        ("GET", "/collections/a/points/99", None, 404, "99"),
        ("PUT", "/collections/a", orjson.dumps(CREATE), 409, "already exists"),
        ("POST", "/collections/a/snapshots", b"{}", 501, "snapshots"),
        ("GET", "/cluster", None, 501, "/cluster"),
        ("DELETE", "/collections", None, 501, "DELETE /collections"),
        ("PUT", "/collections/%2e%2e%2fescape", orjson.dumps(CREATE), 422, "name"),
    ],
)  # fmt: skip
async def test_refusals_have_qdrants_form(
    http: Http, method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    """Every kind of wrong call is answered with its status and a sentence, and the process goes on."""
    await call(http, "PUT", "/collections/a", CREATE)
    answer = await http.request(method, path, data=body)
    assert answer.status == status
    assert says in (await answer.json())["status"]["error"]
    assert (await http.get("/live")).status == 200


async def test_body_beyond_the_limit_is_refused(http: Http) -> None:
    """A body that is too large is refused by name of the limit, not read for ever."""
    answer = await http.put("/collections/a", data=io.BytesIO(b" " * (MAX_BODY_BYTES + 1)))
    assert answer.status == 413
    assert str(MAX_BODY_BYTES) in (await answer.json())["status"]["error"]


async def test_health_and_metrics(http: Http) -> None:
    """All health paths answer, and metrics count answers by route and status."""
    await call(http, "PUT", "/collections/a", CREATE)
    for path in ("/live", "/ready", "/livez", "/readyz", "/healthz"):
        assert (await http.get(path)).status == 200, path
    labels = {"route": "/collections/{name}", "code": "404"}
    before = REGISTRY.get_sample_value("millrace_requests_total", labels) or 0
    await http.get("/collections/absent")
    assert REGISTRY.get_sample_value("millrace_requests_total", labels) == before + 1
    assert b"millrace_request_duration_seconds" in await (await http.get("/metrics")).read()


async def test_failing_disk_makes_it_not_ready(
    http: Http, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that fails is a reason against readiness, with its cause, until one succeeds."""
    monkeypatch.setattr(store, "flush", _fail)
    api.flush()
    answer = await http.get("/ready")
    assert (answer.status, "No space" in (await answer.text())) == (503, True)
    monkeypatch.undo()
    api.flush()
    assert (await http.get("/ready")).status == 200


def _fail() -> None:
    """Fail as a full disk does."""
    raise OSError(28, "No space left on device")


async def test_unforeseen_failure_is_answered(http: Http, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is a 500 in the same form, not a broken connection; its cause is in the log alone."""
    monkeypatch.setattr(store, "describe", _fail)
    with capture_logs() as lines:
        status, answer = await call(http, "GET", "/collections")
    assert (status, answer["time"]) == (500, 0.0)
    assert "the log says what" in answer["status"]["error"]
    assert [(line["event"], "No space" in line["error"]) for line in lines] == [("request_failed", True)]


@pytest.fixture
def held() -> HeldWorker:
    """A worker behind which all that a test asks for waits."""
    return HeldWorker()


@pytest.fixture
async def held_http(store: Store, held: HeldWorker) -> AsyncIterator[Http]:
    """A client of an application with that worker."""
    async with serving(Api(store, held, Health(Process.QDRANT))) as client:
        yield client


async def some_wait(worker: Worker, kind: Kind) -> int:
    """Return how many calls of a kind wait, beside the one that the application makes itself."""
    return worker.waiting(kind) - 1


async def test_overload_is_answered_at_once(held_http: Http, held: HeldWorker) -> None:
    """When as many reads wait as may, the next is told when to come back; writes, health and the waiting go on."""
    _, most_reads = Kind.READ.value
    waiting = [asyncio.create_task(held.run(Kind.READ, lambda: True)) for _ in range(most_reads - 1)]
    await eventually_async(lambda: some_wait(held, Kind.READ), what="reads wait")
    answer = await held_http.get("/collections")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "reads wait" in (await answer.json())["status"]["error"]
    assert (await held_http.get("/ready")).status == 200
    write = asyncio.create_task(call(held_http, "PUT", "/collections/a", CREATE))
    await eventually_async(lambda: some_wait(held, Kind.WRITE), what="the write waits")
    held.let_go.set()
    assert await asyncio.gather(*waiting) == [True] * (most_reads - 1)
    assert (await write)[0] == 200
    assert (await held_http.get("/collections")).status == 200


async def test_request_whose_time_is_over_is_not_begun(store: Store) -> None:
    """The `timeout` of a request is how long it may wait; a write that waited longer was not done."""
    seconds = itertools.count()
    async with serving(Api(store, Worker(lambda: next(seconds)), Health(Process.QDRANT))) as http:
        assert (await call(http, "PUT", "/collections/a?timeout=1", CREATE))[0] == 408
        assert list(store.points_counts()) == []
        assert (await call(http, "PUT", "/collections/a?timeout=9", CREATE))[0] == 200


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "soon", "²"])
async def test_impossible_timeout_is_refused(http: Http, given: str) -> None:
    """A timeout is a whole number of seconds."""
    status, answer = await call(http, "GET", f"/collections?timeout={given}")
    assert (status, "timeout" in answer["status"]["error"]) == (400, True)


async def test_client_that_goes_away_takes_its_request_along(held_http: Http, held: HeldWorker, store: Store) -> None:
    """What nobody waits for any more is not begun, frees its place, and is counted."""
    labels = {"route": "/collections/{name}", "code": "499"}
    before = REGISTRY.get_sample_value("millrace_requests_total", labels) or 0
    gone = asyncio.create_task(call(held_http, "PUT", "/collections/a", CREATE))
    await eventually_async(lambda: some_wait(held, Kind.WRITE), what="the write waits")
    gone.cancel()

    async def taken_back() -> bool:
        """Return whether the request is out of the queue and counted."""
        after = REGISTRY.get_sample_value("millrace_requests_total", labels)
        return after == before + 1 and not await some_wait(held, Kind.WRITE)

    await eventually_async(taken_back)
    held.let_go.set()
    await held.run(Kind.WRITE, lambda: None)
    assert list(store.points_counts()) == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"api-key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}, {"api-key": "ü"}],
)
async def test_calls_without_the_key_are_refused(guarded_http: Http, headers: dict[str, str]) -> None:
    """Where a key is set, every call but health asks for it."""
    answer = await guarded_http.get("/collections", headers=headers)
    assert answer.status == 401
    assert "API key" in (await answer.json())["status"]["error"]
    assert (await guarded_http.get("/ready")).status == 200


@pytest.mark.parametrize("headers", [{"api-key": "sesame"}, {"Authorization": "Bearer sesame"}])
async def test_calls_with_the_key_pass(guarded_http: Http, headers: dict[str, str]) -> None:
    """The key is taken in either header that Qdrant takes."""
    assert (await guarded_http.get("/collections", headers=headers)).status == 200
