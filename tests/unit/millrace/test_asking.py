"""Search and encode ask as any client does, and say in one line what is wrong with an answer."""

import json
import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.errors import DependencyDown, UsageError
from contracts.http import SearchRequest
from millrace.asking import attribute_filters, encode, search
from millrace.client import post

ANSWER = {
    "search_id": "s", "query_release": 7, "product_release": 2, "degraded": None,
    "results": [
        {"position": 1, "score": 0.71, "product_id": "P-1", "title": "Fridge [bold]quiet", "price": 12_499.0},
        {"position": 2, "score": 0.5, "product_id": "P-2", "title": "Fridge", "price": None},
    ],
}  # fmt: skip

Answer = Callable[[httpx.Request], httpx.Response]
Serve = Callable[[Answer], list[httpx.Request]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serve:
    """Give a function that lets a search service answer so; it returns the requests that come in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLRACE_SCRAPE", "search=http://search:8081")

    def start(answer: Answer) -> list[httpx.Request]:
        """Answer every request and keep it."""
        seen: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            """Keep the request."""
            seen.append(request)
            return answer(request)

        client = httpx.Client(transport=httpx.MockTransport(handle))
        monkeypatch.setattr(httpx, "post", client.post)
        return seen

    return start


def sent(request: httpx.Request) -> Any:
    """Return the body of a request."""
    return json.loads(request.content)


def test_a_search_from_the_command_line_leaves_no_impression(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is learned from trying it out; filters are sent only where given."""
    seen = serve(lambda _request: httpx.Response(200, json=ANSWER))
    search("quiet fridge", k=5)
    assert str(seen[0].url) == "http://search:8081/v1/search"
    assert sent(seen[0]) == {"query": "quiet fridge", "k": 5, "filters": {}, "impression": "none"}
    printed = capsys.readouterr().out
    assert "query release 7, product release 2" in printed
    assert "Fridge [bold]quiet" in printed
    assert "12,499.00" in printed


def test_filters_are_passed_on(serve: Serve) -> None:
    """Brands and the highest price reach the service in its own form."""
    seen = serve(lambda _request: httpx.Response(200, json=ANSWER))
    search("fridge", brand=["Polar", "Arc"], max_price=0.0)
    assert sent(seen[0])["filters"] == {"brand": ["Polar", "Arc"], "price": {"lte": 0.0}}


def test_every_filter_sort_and_facet_is_passed_on(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a query too; what is counted is shown in tables of its own."""
    values = [
        {"value": ["Kitchen", "Fridges"], "count": 1_200},
        {"value": {"gte": 300.0, "lt": 500.0, "lte": None}, "count": 3},
        {"value": True, "count": 2},
    ]
    seen = serve(lambda _request: httpx.Response(200, json={**ANSWER, "facets": {"[b]category": values}}))
    search(
        seller=["S-1"],
        category_path=["Kitchen", "Fridges"],
        attribute=["colour=red", "capacity_l=100..200", "colour=off white"],
        min_price=1.0,
        in_stock=False,
        locale="de-DE",
        launched_after=datetime(2026, 11, 1),  # noqa: DTZ001 - as typer reads it
        sort="price",
        facet=["category"],
    )
    asked = sent(seen[0])
    assert asked == {
        "query": "",
        "k": 10,
        "filters": {
            "seller": ["S-1"],
            "category": ["Kitchen", "Fridges"],
            "attributes": {"colour": ["red", "off white"], "capacity_l": {"gte": 100.0, "lte": 200.0}},
            "price": {"gte": 1.0},
            "in_stock": False,
            "locale": "de-DE",
            "launched_at": {"gte": 1_793_491_200_000},
        },
        "sort": "price",
        "facets": ["category"],
        "impression": "none",
    }
    SearchRequest.model_validate(asked)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[b]category", "Kitchen > Fridges", "1,200", "from 300 below 500"))


@pytest.mark.parametrize("given", ["colour", "colour=", "=red"])
def test_an_attribute_without_name_or_value_is_a_mistake(given: str) -> None:
    """Said before anything is asked."""
    with pytest.raises(UsageError, match=f"--attribute {given} has no value"):
        attribute_filters([given])
    with pytest.raises(UsageError, match="l is given before"):
        attribute_filters(["l=3", "l=1..2"])


def test_a_category_is_a_label_or_a_path(serve: Serve) -> None:
    """Of two that were given none is left out in silence."""
    seen = serve(lambda _request: httpx.Response(200, json=ANSWER))
    with pytest.raises(UsageError, match="--category and --category-path"):
        search(category="Kettles", category_path=["Kitchen", "Fridges"])
    assert seen == []


@pytest.mark.parametrize("asked", [{"query": "fridge \udcff"}, {"min_price": math.nan}, {"max_price": math.inf}])
def test_what_json_cannot_hold_is_wrong_usage(serve: Serve, asked: dict[str, Any]) -> None:
    """A byte that is no UTF-8, or no number: the mistake is the caller's, and nothing is asked."""
    seen = serve(lambda _request: httpx.Response(200, json=ANSWER))
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        search(**asked)
    assert seen == []


def test_json_is_the_answer_itself(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` stdout holds what the service said, and a degraded answer is mentioned beside it."""
    serve(lambda _request: httpx.Response(200, json={**ANSWER, "degraded": "cached"}))
    search("fridge", json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["degraded"] == "cached"
    assert "cached" in printed.err


def test_vectors_are_shown_shortened(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, a vector is its dimension and its first numbers."""
    answer = {"query_release": 1, "product_release": 1, "vectors": [[0.25] * 384]}
    serve(lambda _request: httpx.Response(200, json=answer))
    encode(["quiet fridge"])
    assert "384 dimensions, [+0.2500" in capsys.readouterr().out


def test_vectors_as_json_are_whole(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` nothing is left out."""
    serve(lambda _request: httpx.Response(200, json={"vectors": [[0.25] * 384]}))
    encode(["quiet fridge"], json=True)
    assert len(json.loads(capsys.readouterr().out)["vectors"][0]) == 384


def test_a_refused_request_is_wrong_usage(serve: Serve) -> None:
    """A 4xx repeats what the service complains about."""
    serve(lambda _request: httpx.Response(422, json={"error": "query is empty"}))
    with pytest.raises(UsageError, match=r"422.*query is empty"):
        search("")


def test_a_service_that_cannot_is_down(serve: Serve) -> None:
    """A 5xx is a dependency that is down, not a mistake of the caller."""
    serve(lambda _request: httpx.Response(503, text="no release yet"))
    with pytest.raises(DependencyDown, match="no release yet"):
        search("fridge")


def test_a_silent_service_is_down(serve: Serve) -> None:
    """Where nothing listens, the address is named."""

    def refuse(request: httpx.Request) -> httpx.Response:
        """Stand for a closed port."""
        raise httpx.ConnectError("refused", request=request)

    serve(refuse)
    with pytest.raises(DependencyDown, match="http://search:8081/v1/search"):
        search("fridge")


def test_something_else_on_the_port_is_no_search_service(serve: Serve) -> None:
    """An answer that is no JSON is one clear line, not a traceback."""
    serve(lambda _request: httpx.Response(200, text="<html>"))
    with pytest.raises(DependencyDown):
        post("http://search:8081/v1/search", {})


def test_where_search_runs_must_be_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a deployment the fix is how to start or name one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DependencyDown) as raised:
        search("fridge")
    assert "MILLRACE_SCRAPE=search=" in raised.value.fix
