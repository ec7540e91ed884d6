"""Search over HTTP: both forms of a request, bad input by name, health and documentation."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import ValidationError

from contracts.errors import DependencyDown
from indexer.search.service import SearchService
from indexer.search.web import BODY_LIMIT_BYTES, SearchParameters, build
from service.health import Health
from tests.support.search_fakes import UNHURRIED_S, Search

Client = TestClient[Any, Any]


@pytest.fixture
def search() -> Search:
    """A search service over stand-ins."""
    return Search(deadline_s=UNHURRIED_S)


@pytest.fixture
async def client(search: Search) -> AsyncIterator[Client]:
    """A client of the application."""
    async with TestClient(TestServer(build(lambda: search.service, Health("search")))) as asking:
        yield asking


async def test_get_and_post_ask_the_same(client: Client, search: Search) -> None:
    """Every parameter has its field: the store is asked alike."""
    search.store.said = {"parent_id": None}
    body = {
        "query": "fridge",
        "k": 1,
        "filters": {
            "brand": ["Kelto", "Arvo"],
            "seller": ["S-2"],
            "price": {"gte": 1, "lt": 9.6, "lte": 9.5},
            "category": ["Kitchen", "Fridges"],
            "attributes": {"colour": ["red", "blue"], "new": ["true"], "capacity_l": {"gte": 100, "lte": 200}},
            "in_stock": True,
            "locale": "en-IN",
            "launched_at": {"gte": 1_795_000_000_000, "lte": 1_795_100_000_000},
        },
        "sort": "-price",
        "facets": ["brand", "attributes.colour"],
        "session_id": "k3",
        "client_id": "c9",
        "explain": True,
        "explore": False,
        "impression": "server",
        "page": 2,
        "group_variants": True,
        "per_seller": 2,
        "diversity": 0.5,
    }
    parameters = (
        "q=fridge&k=1&brand=Kelto&brand=Arvo&price_gte=1&price_lt=9.6&price_lte=9.5&seller=S-2"
        "&category_path=Kitchen&category_path=Fridges&in_stock=true&locale=en-IN&attr.colour=red&attr.colour=blue"
        "&attr.new=true&attr.capacity_l_gte=100&attr.capacity_l_lte=200&launched_gte=1795000000000"
        "&launched_lte=1795100000000&sort=-price&facet=brand&facet=attributes.colour"
        "&session_id=k3&client_id=c9&explain=true&explore=false&impression=server"
        "&page=2&group_variants=true&per_seller=2&diversity=0.5"
    )
    posted = await client.post("/v1/search", json=body)
    got = await client.get(f"/v1/search?{parameters}")
    assert (posted.status, got.status) == (200, 200)
    asked = [one[2:] for one in search.store.asked]
    assert asked == [asked[0], *asked[1:3]] * 2
    assert asked[0] != asked[1] != asked[2]
    ours = {"search_id", "took_ms"}
    assert {k: v for k, v in (await posted.json()).items() if k not in ours} == {
        k: v for k, v in (await got.json()).items() if k not in ours
    }
    assert search.impressions.sent[0].client_id == search.impressions.sent[1].client_id


@pytest.mark.parametrize(
    ("body", "status", "field", "reason"),
    [
        ({}, 422, "query", "missing"),
        ({"query": "   "}, 422, "query", "empty_query"),
        ({"query": "\u200b\ufeff"}, 422, "query", "empty_query"),
        ({"query": 7}, 422, "query", "wrong_type"),
        ({"query": "x" * 1001}, 422, "query", "too_long"),
        ({"query": "x", "k": 0}, 422, "k", "out_of_range"),
        ({"query": "x", "k": 101}, 422, "k", "out_of_range"),
        ({"query": "x", "filters": {"colour": "red"}}, 422, "filters.colour", "unknown_field"),
        ({"query": "x", "filters": {"price": {"gt": 5}}}, 422, "filters.price.gt", "unknown_field"),
        ({"query": "x", "filters": {"price": {"lte": -1}}}, 422, "filters.price.lte", "out_of_range"),
        ({"query": "x", "boost": 2}, 422, "boost", "unknown_field"),
        ({"query": "x", "impression": "maybe"}, 422, "impression", "wrong_type"),
        ({"query": "x", "client_id": ""}, 422, "client_id", "too_short"),
        ([], 422, None, "wrong_type"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(
    client: Client, search: Search, body: Any, status: int, field: str | None, reason: str
) -> None:
    """One problem with the field and a stable reason; nothing is searched."""
    answer = await client.post("/v1/search", json=body)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = await answer.json()
    assert (problem.get("field"), problem["reason"], problem["status"]) == (field, reason, status)
    assert problem["detail"]
    assert search.store.asked == []


def test_what_a_form_left_empty_counts_as_left_out() -> None:
    """Browsers send every field; but for the query, of which nothing is a mistake, and for names that do not exist."""
    named = (
        "k",
        "brand",
        "category",
        "category_path",
        "attr.litres",
        "attr.litres_gte",
        "price_lte",
        "in_stock",
        "sort",
    )
    empty = {"q": "x", **dict.fromkeys(named, ""), "seller": ["", "S-1"], "facet": ["", ""]}
    read = SearchParameters.model_validate(empty).to_request()
    assert read == SearchParameters.model_validate({"q": "x", "seller": "S-1"}).to_request()
    assert not SearchParameters.model_validate({"q": "x", "explore": False}).explore
    with pytest.raises(ValidationError, match="color"):
        SearchParameters.model_validate({"q": "x", "color": ""})


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
        ("query=x", "query"),
        ("q=x&facet=colour", "facet.0"),
        ("q=x&sort=cheapest", "sort"),
        ("q=x&attr.litres_gte=many", "attr.NAME.litres.bounds.gte"),
        (f"q=x&attr.litres={'1' * 400}", "attr.NAME.litres.values.0"),
    ],
)
async def test_what_is_wrong_with_a_parameter_is_named(client: Client, parameters: str, field: str) -> None:
    """Unknown parameters are refused by name, never ignored."""
    answer = await client.get(f"/v1/search?{parameters}")
    assert (answer.status, (await answer.json())["field"]) == (422, field)


async def test_what_a_facet_may_be_called_is_told(client: Client) -> None:
    """A name that is none is no text with NUL."""
    problem = await (await client.get("/v1/search?q=x&facet=colour")).json()
    assert problem["detail"].startswith("facet.0: must have the form ^(brand|seller|")


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"query": NaN}', b""])
async def test_a_body_that_is_no_json_is_refused(client: Client, body: bytes) -> None:
    """It is the sender's mistake, said in one line."""
    answer = await client.post("/v1/search", data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, (await answer.json())["reason"]) == (400, "malformed_json")
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("parameters", "body", "meant"),
    [
        ("q=x&brnd=Kelto", {"query": "x", "impresion": "none"}, ("brand", "impression")),
        ("q=x&attrs.NAME=red", {"query": "x", "filters": {"prize": {}}}, ("attr.NAME", "price")),
        ("q=x&facets=brand", {"query": "x", "filters": {"price": {"lt_": 1}}}, ("facet", None)),
        ("query=x", {"query": "x", "limit": 5}, ("q", "k")),
    ],
)
async def test_what_was_probably_meant_is_suggested(
    client: Client, parameters: str, body: Any, meant: tuple[str, str | None]
) -> None:
    """Of parameters, fields, fields within fields, and what other services call them."""
    refused = [await client.get(f"/v1/search?{parameters}"), await client.post("/v1/search", json=body)]
    for answer, name in zip(refused, meant, strict=True):
        problem = await answer.json()
        assert (answer.status, problem["reason"]) == (422, "unknown_field")
        assert name is None or problem["detail"].endswith(f"; did you mean {name}?")


async def test_what_nobody_sees_leaves_no_impression(client: Client, search: Search) -> None:
    """HEAD has no list, and behind the last page there is nothing; that nothing was found is worth knowing."""
    await client.head("/v1/search?q=x")
    behind = await (await client.get("/v1/search?q=x&page=500")).json()
    assert (behind["results"], behind["has_more"], search.impressions.sent) == ([], False, [])
    search.store.size = 0
    await client.get("/v1/search?sort=price")
    assert [one.slots for one in search.impressions.sent] == [()]


async def test_a_category_is_a_label_or_a_path(client: Client, search: Search) -> None:
    """Of two that were given none is left out in silence."""
    answer = await client.get("/v1/search?q=x&category=Kettles&category_path=Kitchen&category_path=Fridges")
    problem = await answer.json()
    assert (answer.status, problem["reason"], search.store.asked) == (422, "inconsistent", [])
    assert "category and category_path" in problem["detail"]


@pytest.mark.parametrize("given", ["attr.l=3&attr.l_gte=2", "attr.l_gte=2&attr.l=3"])
async def test_an_attribute_has_values_or_bounds(client: Client, given: str) -> None:
    """Both of one are a mistake, in whichever order they come."""
    answer = await client.get(f"/v1/search?q=x&{given}")
    problem = await answer.json()
    assert (answer.status, problem["reason"]) == (422, "inconsistent")
    assert "attr.l has values and bounds" in problem["detail"]


@pytest.mark.parametrize("given", ["brand=Kelto", "sort=newest", "facet=brand", "q=&attr.colour=red", "in_stock=false"])
async def test_filters_sort_and_facets_are_browsed_without_a_query(client: Client, search: Search, given: str) -> None:
    """Nothing is asked by words or meaning."""
    answer = await client.get(f"/v1/search?{given}")
    assert (answer.status, len(search.store.browsed), search.store.asked) == (200, 1, [])


async def test_a_body_too_large_is_refused(client: Client, search: Search) -> None:
    """Before it is parsed, and the limit is named; the largest allowed one is not."""
    answer = await client.post("/v1/search", data=b" " * (BODY_LIMIT_BYTES + 1))
    assert (answer.status, (await answer.json())["reason"]) == (413, "too_large")
    padded = b'{"query":"x"' + b" " * (BODY_LIMIT_BYTES - 13) + b"}"
    headers = {"Content-Type": "application/json"}
    assert (await client.post("/v1/search", data=padded, headers=headers)).status == 200
    assert len(search.store.asked) == 1


async def test_encode_takes_a_list_of_texts(client: Client) -> None:
    """One vector per text, and the limits of the list are held."""
    answer = await client.post("/v1/encode", json={"texts": ["fridge", "tv"]})
    assert len((await answer.json())["vectors"]) == 2
    for texts in ([], ["x"] * 257, "fridge", [1]):
        assert (await client.post("/v1/encode", json={"texts": texts})).status == 422


async def test_without_anything_to_answer_with_the_status_is_503(client: Client, search: Search) -> None:
    """One clear message, and when to come back."""
    search.release = None
    answer = await client.post("/v1/search", json={"query": "x"})
    assert answer.status == 503
    assert "nothing is served yet" in (await answer.json())["detail"]
    assert answer.headers["Retry-After"] == "1"


async def test_while_it_starts_health_answers_and_searches_are_refused() -> None:
    """A supervisor sees why; a shopper's backend gets 503."""
    health = Health("search")
    health.add_check("start", lambda: "loading the base encoder")

    def starting() -> SearchService:
        """Refuse, as while the service starts."""
        raise DependencyDown("search is starting: loading the base encoder")

    async with TestClient(TestServer(build(starting, health))) as client:
        assert (await client.get("/live")).status == 200
        ready = await client.get("/ready")
        assert (ready.status, (await ready.json())["reasons"]) == (503, ["start: loading the base encoder"])
        assert (await client.get("/v1/search?q=x")).status == 503
        assert "millrace_requests_total" in await (await client.get("/metrics")).text()


async def test_unknown_paths_and_methods_are_problems_too(client: Client) -> None:
    """404 and 405 in the same form."""
    for answer, status in ((await client.get("/v2/search"), 404), (await client.delete("/v1/search"), 405)):
        assert (answer.status, (await answer.json())["status"]) == (status, status)


async def test_answers_are_not_kept(client: Client, search: Search) -> None:
    """A list is made for one shopper at one moment, vectors for one release, and no error outlives its cause."""
    answers = [
        await client.get("/v1/search?q=x"),
        await client.post("/v1/search", json={"query": "x"}),
        await client.post("/v1/encode", json={"texts": ["x"]}),
        await client.get("/v1/search"),
    ]
    search.store.down = True
    answers += [await client.get("/v1/search?q=x"), await client.get("/v1/search?q=y")]
    assert [answer.status for answer in answers] == [200, 200, 200, 422, 200, 503]
    assert {answer.headers["Cache-Control"] for answer in answers} == {"no-store"}


async def test_a_search_that_is_too_much_is_refused_as_busy(client: Client, search: Search) -> None:
    """With the store's own time to come back: nothing is broken, so nothing else needs to be done."""
    search.store.sheds = True
    answer = await client.get("/v1/search?q=x")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    assert (await answer.json())["reason"] == "busy"


async def test_requests_beyond_the_bound_are_shed(search: Search) -> None:
    """While the store is slow, the next search is 503 with Retry-After at once."""
    search.store.gate = asyncio.Event()
    app = build(lambda: search.service, Health("search"), max_open=1)
    async with TestClient(TestServer(app)) as client:
        first = asyncio.create_task(client.get("/v1/search?q=x"))
        await search.store.was_asked.wait()
        shed = await client.post("/v1/search", json={"query": "x"})
        assert (shed.status, (await shed.json())["reason"], shed.headers["Retry-After"]) == (503, "busy", "1")
        search.store.gate.set()
        assert (await first).status == 200


async def test_the_interface_documents_itself(client: Client) -> None:
    """OpenAPI names both routes with their bodies and answers, and its examples are answered."""
    document = await (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == {"/v1/search", "/v1/encode"}
    for path in document["paths"]:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        (example,) = document["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]["examples"]
        assert (await client.post(path, json=example)).status == 200
    parameters = document["paths"]["/v1/search"]["get"]["parameters"]
    given = {one["name"]: one["example"] for one in parameters if "example" in one}
    assert (await client.get("/v1/search", params=given)).status == 200
    assert "/v1/encode" in await (await client.get("/docs")).text()


async def test_a_page_of_a_list_that_is_gone_is_refused_as_gone(client: Client) -> None:
    """By 410, with what to do; one of another search by 400, with the field."""
    answer = await client.get("/v1/search?q=fridge&search_id=01J&page=2")
    assert (answer.status, (await answer.json())["reason"]) == (410, "expired")
    assert "without search_id" in (await answer.json())["detail"]
    assert answer.headers["Cache-Control"] == "no-store"
    first = await (await client.get("/v1/search?q=fridge&k=5")).json()
    assert (first["page"], first["has_more"]) == (1, True)
    second = await client.get(f"/v1/search?q=fridge&k=5&page=2&search_id={first['search_id']}")
    assert [one["position"] for one in (await second.json())["results"]] == [6, 7, 8, 9, 10]
    other = await client.get(f"/v1/search?q=tv&k=5&page=2&search_id={first['search_id']}")
    assert (other.status, (await other.json())["reason"], (await other.json())["field"]) == (
        400,
        "other_search",
        "search_id",
    )
