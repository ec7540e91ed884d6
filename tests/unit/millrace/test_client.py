"""The Python client, against the search service over HTTP."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import httpx
import pytest
from aiohttp.test_utils import TestServer

from contracts.errors import DependencyDown, Expired, MillraceError, Overloaded, UsageError
from contracts.http import Filters, SearchRequest
from indexer.search.web import build
from millrace.client import SearchClient, post
from service.health import Health
from tests.support.ports import free_port
from tests.support.search_fakes import DEPTH, DIM, LISTS_KEPT_S, Search

T = TypeVar("T")


@pytest.fixture
def search() -> Search:
    """A search service over stand-ins."""
    return Search()


@pytest.fixture
async def client(search: Search) -> AsyncIterator[SearchClient]:
    """A client of the service."""
    async with TestServer(build(lambda: search.service, Health("search"))) as server:
        with SearchClient(str(server.make_url("/"))) as one:
            yield one


async def call(asked: Callable[[], T]) -> T:
    """Call from another thread, for the service answers in this one."""
    return await asyncio.to_thread(asked)


async def test_a_client_searches_and_turns_pages(client: SearchClient, search: Search) -> None:
    """A text is enough; a request says everything; the pages of a list are one search."""
    assert (await call(lambda: client.search("quiet fridge"))).results[0].product_id == "P-1"
    request = SearchRequest(query="quiet fridge", k=5, filters=Filters(brand=("Kelto",)), session_id="k3")
    pages = await call(lambda: list(client.pages(request)))
    assert [one.product_id for page in pages for one in page.results] == [f"P-{n}" for n in range(1, DEPTH + 1)]
    assert len({page.search_id for page in pages}) == 1
    assert search.store.asked[-1][3] == request.filters


async def test_a_page_whose_list_is_gone_is_ranked_anew(client: SearchClient, search: Search) -> None:
    """The shopper sees the page, under a search of its own."""
    request = SearchRequest(query="quiet fridge", k=5)
    first = await call(lambda: client.search(request))
    search.clock.now_s += LISTS_KEPT_S + 1
    asked = request.model_copy(update={"search_id": first.search_id, "page": 2})
    with pytest.raises(Expired, match="410"):
        await call(lambda: client.search(asked))
    second = await call(lambda: client.next_page(request, first))
    assert second is not None
    assert (second.page, second.results[0].position, second.search_id != first.search_id) == (2, 6, True)


async def test_a_client_encodes(client: SearchClient) -> None:
    """One vector a text, with the number for quality."""
    answer = await call(lambda: client.encode(["fridge", "tv"]))
    assert [len(one) for one in answer.vectors] == [DIM + 1, DIM + 1]


def test_a_call_takes_as_long_as_the_client_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop's own deadline is mostly shorter than ours."""
    allowed: list[dict[str, float]] = []

    def handle(_transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        """Keep how long the request may take."""
        allowed.append(request.extensions["timeout"])
        return httpx.Response(503)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    with SearchClient("http://search", timeout_s=2.5) as one, pytest.raises(DependencyDown):
        one.search("tv")
    assert [set(one.values()) for one in allowed] == [{2.5}]


async def test_what_is_against_it_is_said(client: SearchClient, search: Search) -> None:
    """A wrong request, in the service's sentence; too much load with its time to come back; a store that is down."""
    with pytest.raises(UsageError) as wrong:
        await call(lambda: client.search(" "))
    assert wrong.value.message == (
        "/v1/search answers 422: query: the query is empty; to browse, send filters, sort or facets [empty_query]"
    )
    search.store.sheds = True
    with pytest.raises(Overloaded) as busy:
        await call(lambda: client.search("tv"))
    assert busy.value.retry_after_s == 2
    search.store.sheds, search.store.down = False, True
    with pytest.raises(DependencyDown, match="vector store does not answer"):
        await call(lambda: client.search("tv"))


def test_a_service_that_is_not_there_is_a_dependency() -> None:
    """In one line, with where to look."""
    with (
        SearchClient(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(DependencyDown, match=r"http://127.0.0.1:\d+/v1/search does not answer"),
    ):
        client.search("tv")


@pytest.mark.parametrize("url", ["127.0.0.1:8081", "ftp://search", "http://", "http://[::1", ""])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    """It is the caller's mistake, not a service that is down."""
    with pytest.raises(UsageError, match="is no address") as wrong:
        SearchClient(url)
    assert wrong.value.fix


@pytest.mark.parametrize("body", ["[]", "null", '{"results":[]}', '{"vectors":"none"}'])
def test_an_answer_of_another_form_is_an_error_of_ours(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another service, or another version: who catches our errors catches this one too, and reads who answered."""
    answers = httpx.MockTransport(
        lambda _: httpx.Response(200, text=body, headers={"Content-Type": "application/json"})
    )
    with SearchClient("http://search:8081") as client:
        monkeypatch.setattr(client, "_http", httpx.Client(base_url="http://search:8081", transport=answers))
        for call, path in ((lambda: client.search("tv"), "search"), (lambda: client.encode(["tv"]), "encode")):
            with pytest.raises(
                DependencyDown, match=rf"http://search:8081/v1/{path} gives no answer that is known"
            ) as e:
                call()
            assert e.value.fix


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "said"),
    [
        (429, {}, '{"title":"Too many requests","status":429}', Overloaded, "429: Too many requests"),
        (503, {}, '{"reason":"busy"}', Overloaded, '503: {"reason":"busy"} [busy]'),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, '{"reason":"busy"}', Overloaded, "[busy]"),
        (502, {}, "<html>bad gateway</html>", DependencyDown, "502: <html>bad gateway</html>"),
        (502, {}, '["bad gateway"]', DependencyDown, '502: ["bad gateway"]'),
        (400, {}, "{}", UsageError, "400: {}"),
        (400, {}, '{"detail":"k is no number","reason":"k"}', UsageError, "400: k is no number [k]"),
    ],
)
@pytest.mark.parametrize("parameter", ["", "; charset=utf-8"])
def test_problem_details_of_any_form_are_an_error_of_ours(
    status: int, headers: dict[str, str], body: str, kind: type[MillraceError], said: str, parameter: str
) -> None:
    """RFC 9457 requires no member, and a load balancer has its own problems: what is there is said, else the text."""
    headers = {"Content-Type": f"application/problem+json{parameter}", **headers}
    answer = httpx.Response(status, headers=headers, text=body)
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: answer)) as client,
        pytest.raises(kind, match=re.escape(said)) as failed,
    ):
        post("http://search/v1/search", {}, client=client)
    if isinstance(failed.value, Overloaded):
        assert failed.value.retry_after_s == 1
