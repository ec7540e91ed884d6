"""What whoever speaks REST to Qdrant relies on must be alike: the embedded Qdrant, and a Qdrant server."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import Backend

pytestmark = [
    pytest.mark.qdrant,
    pytest.mark.parametrize("backend", ["embedded", "server"], indirect=True, scope="module"),
]

SHOP = "/collections/conformance-shop"
POINTS = f"{SHOP}/points"
NEAR = [1.0, 0.0]
PREFETCH = {"query": NEAR, "using": "product", "limit": 1}

PAYLOADS: dict[int, dict[str, Any]] = {
    1: {"brand": "Acme", "price": 100.0, "tags": ["a", "b"]},
    2: {"brand": "Bolt", "price": 200.0, "tags": ["b"]},
    3: {"brand": "Acme", "price": 300.0, "parts": [{"kind": "x", "n": 1}, {"kind": "y"}]},
    4: {"brand": "Core", "title": "quiet fridge", "tags": ["a", 2.5]},
}


@pytest.fixture(scope="module")
def http(backend: Backend) -> Iterator[httpx.Client]:
    """A plain HTTP client of the store."""
    with httpx.Client(base_url=backend.url or "", timeout=20, params={"wait": "true"}) as client:
        yield client


@pytest.fixture(scope="module")
def shop(http: httpx.Client) -> Iterator[httpx.Client]:
    """The client, with a collection of four points, further from (1, 0) the larger their id; tests only read it."""
    http.delete(SHOP)
    http.put(SHOP, json={"vectors": {"product": {"size": 2, "distance": "Cosine"}}}).raise_for_status()
    for field, kind in (("brand", "keyword"), ("price", "float")):
        http.put(f"{SHOP}/index", json={"field_name": field, "field_schema": kind}).raise_for_status()
    http.put(POINTS, json={"points": [point(number) for number in PAYLOADS]}).raise_for_status()
    http.post("/collections/aliases", json={"actions": [alias("conformance-now")]}).raise_for_status()
    yield http
    http.delete(SHOP)


def point(number: int) -> dict[str, Any]:
    """Return a point as REST takes it."""
    angle = number / 10
    return {"id": number, "vector": {"product": [math.cos(angle), math.sin(angle)]}, "payload": PAYLOADS[number]}


def alias(name: str, *, of: str = "conformance-shop") -> dict[str, Any]:
    """Return the action that lets a name mean a collection."""
    return {"create_alias": {"alias_name": name, "collection_name": of}}


def result(answer: httpx.Response) -> Any:
    """Return what an answer holds."""
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/collections/a%2Fb", {"vectors": {"size": 2, "distance": "Dot"}}, 422),
        ("PUT", SHOP, {"vectors": {"size": 2, "distance": "Dot"}}, 409),
        ("PUT", "/collections/conformance-now", {"vectors": {"size": 2, "distance": "Dot"}}, 400),
        ("PUT", "/collections/conformance-new", {"vectors": {"size": 65_537, "distance": "Dot"}}, 422),
        ("PUT", "/collections/conformance-new", {"vectors": {"size": 2, "distance": "Angle"}}, 400),
        ("GET", "/collections/absent", None, 404),
        ("PATCH", "/collections/absent", {"metadata": {"a": 1}}, 404),
        ("POST", "/collections/aliases", {"actions": [alias("x", of="absent")]}, 404),
        ("POST", "/collections/aliases", {"actions": [{"swap_alias": {}}]}, 400),
        ("POST", "/collections/aliases", {"actions": [alias("conformance-shop")]}, 409),
        ("PUT", f"{SHOP}/index", {"field_name": "x", "field_schema": "colour"}, 400),
        ("PUT", POINTS, {"points": []}, 400),
        ("PUT", POINTS, {"points": [{"id": "SKU-1", "vector": {}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {"product": [None, 0.0]}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": -1, "vector": {}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {"product": [1.0]}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {"other": NEAR}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {"product": {"indices": [1], "values": [1.0]}}}]}, 400),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {}}], "update_mode": "replace"}, 400),
        ("PUT", POINTS, {"batch": {"ids": [8, 9], "vectors": {"product": [NEAR]}}}, 422),
        ("POST", f"{POINTS}/delete", {"points": []}, 400),
        ("POST", f"{POINTS}/delete", {}, 400),
        ("POST", f"{POINTS}/payload", {"points": [], "payload": {"x": 1}}, 400),
        ("POST", f"{POINTS}/payload", {"points": [99], "payload": {"x": 1}}, 404),
        ("PUT", f"{POINTS}/vectors", {"points": []}, 422),
        ("PUT", f"{POINTS}/vectors", {"points": [{"id": 99, "vector": {"product": NEAR}}]}, 404),
        ("POST", f"{POINTS}/vectors/delete", {"points": [1], "vector": []}, 422),
        ("POST", f"{POINTS}/vectors/delete", {"points": [1], "vector": ["other"]}, 400),
        ("POST", f"{POINTS}/batch", {"operations": [{"delete": {"points": []}}]}, 400),
        ("POST", f"{POINTS}/batch", {"operations": [{"fly": {"points": [1]}}]}, 400),
        ("GET", f"{POINTS}/99", None, 404),
        ("GET", f"{POINTS}/SKU-1", None, 400),
        ("POST", f"{POINTS}/scroll", {"limit": 0}, 422),
        ("POST", f"{POINTS}/scroll", {"order_by": "title"}, 400),
        ("POST", f"{POINTS}/count", {"exact": "yes"}, 400),
        ("POST", f"{SHOP}/facet", {"key": "title"}, 400),
        ("POST", f"{POINTS}/query", {"query": NEAR}, 400),
        ("POST", f"{POINTS}/query", {"query": [1.0], "using": "product"}, 400),
        ("POST", f"{POINTS}/query", {"query": NEAR, "using": "other"}, 400),
        ("POST", f"{POINTS}/query", {"query": {"indices": [1], "values": [1.0]}, "using": "product"}, 400),
        ("POST", f"{POINTS}/query", {"query": NEAR, "using": "product", "limit": 0}, 422),
        ("POST", f"{POINTS}/query", {"query": NEAR, "using": "product", "limit": -1}, 400),
        ("POST", f"{POINTS}/query", {"query": NEAR, "using": "product", "params": {"hnsw_ef": 0}}, 422),
        ("POST", f"{POINTS}/query", {"query": NEAR, "using": "product", "with_payload": ["a["]}, 400),
        ("POST", f"{POINTS}/query", {"query": {"nearest": NEAR, "mmr": {"diversity": 3}}, "using": "product"}, 422),
        ("POST", f"{POINTS}/query", {"query": 99, "using": "product"}, 404),
        ("POST", f"{POINTS}/query", {"prefetch": PREFETCH}, 400),
        ("POST", f"{POINTS}/query", {"prefetch": PREFETCH, "query": {"fusion": "rrf"}, "using": "product"}, 400),
        ("POST", f"{POINTS}/query", {"prefetch": PREFETCH, "query": {"rrf": {"k": 0}}}, 422),
        ("POST", f"{POINTS}/query", {"prefetch": PREFETCH, "query": {"formula": "title"}}, 400),
        ("POST", f"{POINTS}/query", {"score_threshold": 0.5}, 400),
        ("POST", f"{POINTS}/query", {"query": {"order_by": "price"}, "score_threshold": 0.5}, 400),
        ("POST", f"{POINTS}/query", {"filter": {"must": [{"key": "brand"}]}}, 422),
        ("POST", f"{POINTS}/query", {"filter": {"must": [{"key": "brand", "match": {"any": ["a", 1]}}]}}, 400),
        ("POST", f"{POINTS}/query", {"filter": {"min_should": {"conditions": [], "min_count": 0}}}, 422),
        ("POST", f"{POINTS}/query/groups", {"query": NEAR, "using": "product"}, 400),
        ("POST", f"{POINTS}/query/groups", {"query": NEAR, "using": "product", "group_by": "brand", "limit": 0}, 422),
        ("POST", f"{POINTS}/query/groups", {"query": NEAR, "using": "product", "group_by": "a["}, 400),
        ("POST", f"{POINTS}/query/groups", {"query": NEAR, "using": ["product"], "group_by": "brand"}, 400),
        ("POST", f"{POINTS}/query/groups", {"query": NEAR, "using": "product", "group_by": "brand", "filter": 0}, 400),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_alike(
    shop: httpx.Client, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    """The status says what is wrong, the body has Qdrant's form, and nothing was changed."""
    answer = shop.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"]["error"]
    assert result(shop.post(f"{POINTS}/count", json={})) == {"count": len(PAYLOADS)}


def test_points_come_without_what_was_not_asked_for(shop: httpx.Client) -> None:
    """Payload and vector are there only where the request says so; scroll alone gives payloads unasked."""
    assert result(shop.post(POINTS, json={"ids": [2, 99]})) == [{"id": 2}]
    (asked,) = result(shop.post(POINTS, json={"ids": [2], "with_payload": ["brand"], "with_vector": True}))
    assert asked["payload"] == {"brand": "Bolt"}
    assert asked["vector"]["product"] == pytest.approx([math.cos(0.2), math.sin(0.2)], abs=1e-6)
    (hit,) = result(shop.post(f"{POINTS}/query", json={"query": NEAR, "using": "product", "limit": 1}))["points"]
    assert hit.keys() & {"payload", "vector"} == set()
    scrolled = result(shop.post(f"{POINTS}/scroll", json={"limit": 1}))
    assert scrolled == {"points": [{"id": 1, "payload": PAYLOADS[1]}], "next_page_offset": 2}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"query": NEAR, "using": "product", "group_by": "brand", "limit": 2}, [("Acme", [1, 3]), ("Bolt", [2])]),
        ({"query": NEAR, "using": "product", "group_by": "brand", "group_size": 1, "limit": 5},
         [("Acme", [1]), ("Bolt", [2]), ("Core", [4])]),
        ({"query": NEAR, "using": "product", "group_by": "parts[].n"}, [(1, [3])]),
        ({"query": NEAR, "using": "product", "group_by": "tags", "filter": {"must": [{"has_id": [2, 4]}]}},
         [("b", [2])]),
        ({"query": NEAR, "using": "product", "group_by": "price"}, []),
        ({"query": NEAR, "using": "product", "group_by": "absent"}, []),
        ({"prefetch": PREFETCH, "query": {"formula": {"neg": "price"}, "defaults": {"price": 0}}, "group_by": "brand",
          "group_size": 1}, [("Core", [4]), ("Acme", [1]), ("Bolt", [2])]),
    ],
)  # fmt: skip
def test_groups_are_formed_alike(
    shop: httpx.Client, request_: dict[str, Any], expected: list[tuple[str | int, list[int]]]
) -> None:
    """Groups come best first and as full as they can be, also beyond what a prefetch gave at first."""
    groups = result(shop.post(f"{POINTS}/query/groups", json=request_))["groups"]
    assert [(group["id"], [hit["id"] for hit in group["hits"]]) for group in groups] == expected


def test_aliases_are_listed_by_the_collections_own_name(shop: httpx.Client) -> None:
    """Under an alias, or of nothing, there are none; queries take either name."""
    listed = [{"alias_name": "conformance-now", "collection_name": "conformance-shop"}]
    assert result(shop.get(f"{SHOP}/aliases")) == {"aliases": listed}
    assert result(shop.get("/collections/conformance-now/aliases")) == {"aliases": []}
    assert result(shop.get("/collections/absent/aliases")) == {"aliases": []}
    assert result(shop.post("/collections/conformance-now/points/count", json={})) == {"count": 4}


def test_health_is_told_without_words_of_its_own(http: httpx.Client) -> None:
    """Whoever watches a server by its health pages can watch the embedded one."""
    pages = {path: http.get(path) for path in ("/readyz", "/livez", "/healthz")}
    assert {path: page.status_code for path, page in pages.items()} == dict.fromkeys(pages, 200)
    assert pages["/readyz"].text == "all shards are ready"
    assert pages["/livez"].text == pages["/healthz"].text == "healthz check passed"
