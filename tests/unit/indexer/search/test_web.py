"""The HTTP edge of search: both forms of a request, bad input by name, health and documentation."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown
from indexer.search.service import SearchService
from indexer.search.web import BODY_LIMIT_BYTES, build
from service.health import Health
from tests.support.search_fakes import Search


@pytest.fixture
def search() -> Search:
    """A search service over stand-ins."""
    return Search()


@pytest.fixture
async def client(search: Search) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket."""
    app = build(lambda: search.service, Health("search"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://search") as asking:
        yield asking


async def test_get_and_post_ask_the_same(client: httpx.AsyncClient, search: Search) -> None:
    """Every parameter has its field: the store is asked alike."""
    body = {
        "query": "fridge",
        "k": 3,
        "filters": {
            "brand": ["Kelto", "Arvo"],
            "price": {"gte": 1, "lte": 9.5},
            "category": "Fridges",
            "in_stock": True,
            "locale": "en-IN",
        },
        "session_id": "k3",
        "client_id": "c9",
        "explain": True,
        "explore": False,
        "impression": "server",
    }
    parameters = (
        "q=fridge&k=3&brand=Kelto&brand=Arvo&price_gte=1&price_lte=9.5&category=Fridges&in_stock=true&locale=en-IN"
        "&session_id=k3&client_id=c9&explain=true&explore=false&impression=server"
    )
    posted = await client.post("/v1/search", json=body)
    got = await client.get(f"/v1/search?{parameters}")
    assert (posted.status_code, got.status_code) == (200, 200)
    assert search.store.asked[0][2:] == search.store.asked[1][2:]
    ours = {"search_id", "took_ms"}
    assert {k: v for k, v in posted.json().items() if k not in ours} == {
        k: v for k, v in got.json().items() if k not in ours
    }
    assert search.impressions.sent[0].client_id == search.impressions.sent[1].client_id


@pytest.mark.parametrize(
    ("body", "status", "field", "reason"),
    [
        ({}, 422, "query", "missing"),
        ({"query": "   "}, 422, "query", "empty_query"),
        ({"query": 7}, 422, "query", "string_type"),
        ({"query": "x" * 1001}, 422, "query", "string_too_long"),
        ({"query": "x", "k": 0}, 422, "k", "greater_than_equal"),
        ({"query": "x", "k": 101}, 422, "k", "less_than_equal"),
        ({"query": "x", "filters": {"colour": "red"}}, 422, "filters.colour", "unknown_field"),
        ({"query": "x", "filters": {"price": {"lt": 5}}}, 422, "filters.price.lt", "unknown_field"),
        ({"query": "x", "filters": {"price": {"lte": -1}}}, 422, "filters.price.lte", "greater_than_equal"),
        ({"query": "x", "boost": 2}, 422, "boost", "unknown_field"),
        ({"query": "x", "impression": "maybe"}, 422, "impression", "literal_error"),
        ({"query": "x", "client_id": ""}, 422, "client_id", "string_too_short"),
        ([], 422, None, "model_attributes_type"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(
    client: httpx.AsyncClient, search: Search, body: Any, status: int, field: str | None, reason: str
) -> None:
    """One problem with the field and a stable reason; nothing is searched."""
    answer = await client.post("/v1/search", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem.get("field"), problem["reason"], problem["status"]) == (field, reason, status)
    assert problem["detail"]
    assert search.store.asked == []


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ("", "q"),
        ("q=", "q"),
        ("q=%20", "q"),
        ("q=x&k=many", "k"),
        ("q=x&price_lte=nan", "price_lte"),
        ("q=x&price_gte=inf", "price_gte"),
        ("q=x&in_stock=perhaps", "in_stock"),
        ("q=x&color=red", "color"),
        ("query=x", "q"),
    ],
)
async def test_what_is_wrong_with_a_parameter_is_named(client: httpx.AsyncClient, parameters: str, field: str) -> None:
    """Unknown parameters are refused by name, never ignored."""
    answer = await client.get(f"/v1/search?{parameters}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"query": NaN}', b""])
async def test_a_body_that_is_no_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    """It is the sender's mistake, said in one line."""
    answer = await client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_too_large_is_refused(client: httpx.AsyncClient, search: Search) -> None:
    """Before it is parsed, and the limit is named; the largest allowed one is not."""
    answer = await client.post("/v1/search", content=b" " * (BODY_LIMIT_BYTES + 1))
    assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
    padded = b'{"query":"x"' + b" " * (BODY_LIMIT_BYTES - 13) + b"}"
    headers = {"Content-Type": "application/json"}
    assert (await client.post("/v1/search", content=padded, headers=headers)).status_code == 200
    assert len(search.store.asked) == 1


async def test_encode_takes_a_list_of_texts(client: httpx.AsyncClient) -> None:
    """One vector per text, and the limits of the list are held."""
    answer = await client.post("/v1/encode", json={"texts": ["fridge", "tv"]})
    assert len(answer.json()["vectors"]) == 2
    for texts in ([], ["x"] * 257, "fridge", [1]):
        assert (await client.post("/v1/encode", json={"texts": texts})).status_code == 422


async def test_without_anything_to_answer_with_the_status_is_503(client: httpx.AsyncClient, search: Search) -> None:
    """One clear message, and when to come back."""
    search.pair = None
    answer = await client.post("/v1/search", json={"query": "x"})
    assert answer.status_code == 503
    assert "nothing is served yet" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"


async def test_while_it_starts_health_answers_and_searches_are_refused() -> None:
    """A supervisor sees why; a shopper's backend gets 503."""
    health = Health("search")
    health.add_check("start", lambda: "loading the base encoder")

    def starting() -> SearchService:
        """Refuse, as while the service starts."""
        raise DependencyDown("search is starting: loading the base encoder")

    transport = httpx.ASGITransport(build(starting, health))
    async with httpx.AsyncClient(transport=transport, base_url="http://search") as client:
        assert (await client.get("/live")).status_code == 200
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["start: loading the base encoder"])
        assert (await client.get("/v1/search?q=x")).status_code == 503
        assert "millrace_requests_total" in (await client.get("/metrics")).text


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    """404 and 405 in the same form."""
    for answer, status in ((await client.get("/v2/search"), 404), (await client.delete("/v1/search"), 405)):
        assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_an_error_nobody_foresaw_says_nothing_of_the_inside(search: Search) -> None:
    """The answer is 500 without a word of the cause; the log has it."""

    def broken() -> SearchService:
        """Fail as nobody foresaw."""
        raise RuntimeError("secret path /etc/x")

    transport = httpx.ASGITransport(build(broken, Health("search")), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://search") as client:
        answer = await client.get("/v1/search?q=x")
    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_the_interface_documents_itself(client: httpx.AsyncClient) -> None:
    """OpenAPI names both routes with their bodies and answers; the page for people is there."""
    document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == {"/v1/search", "/v1/encode"}
    body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("SearchRequest")
    assert (await client.get("/docs")).status_code == 200


async def test_requests_are_counted_by_route_and_code(client: httpx.AsyncClient) -> None:
    """Only our own routes, so that a scanner cannot make labels."""

    def counted(code: str) -> float:
        """Return how many answers had a code so far."""
        labels = {"route": "/v1/search", "code": code}
        return REGISTRY.get_sample_value("millrace_requests_total", labels) or 0.0

    good, bad = counted("200"), counted("422")
    await client.get("/v1/search?q=x")
    await client.get("/v1/search?q=")
    await client.get("/v1/never")
    assert (counted("200"), counted("422")) == (good + 1, bad + 1)
