"""What an HTTP interface says about itself, made from its routes."""

from html.parser import HTMLParser
from typing import Annotated, Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from contracts.telemetry import Process
from service.api_docs import documentation, openapi
from service.health import Health
from service.http import Problem, Route, build_app


class Part(BaseModel):
    """A piece of a <wish>."""

    size: int | None = None


class WishParameters(BaseModel):
    """What somebody wants; `name` says it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "a fridge", "count": 2}]})

    name: str
    count: Annotated[int, Field(ge=1, description="How many & more.")] = 1
    urgent: bool = False


class Wish(WishParameters):
    """The same as a body."""

    parts: list[Part] = []


class Granted(BaseModel):
    """Whether it was granted."""

    granted: bool


async def handler(_request: web.Request) -> web.StreamResponse:
    """Answer nothing."""
    return web.Response()


ROUTES = [
    Route("POST", "/wish", handler, "Grants a wish.", takes=Wish, gives=Granted),
    Route("GET", "/wish", handler, "Grants a wish by `name`.", takes=WishParameters, gives=Granted),
    Route("OPTIONS", "/wish", handler),
]


def described(*, bearer: bool = False) -> dict[str, Any]:
    """Return the document of these routes."""
    return openapi(ROUTES, title="Wishes", description="Grants them.", bearer=bearer)


def pages(*, bearer: bool = False) -> web.Application:
    """Return an application that documents these routes."""
    routes = documentation(ROUTES, title="Wishes", description="Grants them.", bearer=bearer)
    return build_app(Health(Process.SEARCH), routes)


def resolve(document: dict[str, Any], schema: dict[str, str]) -> dict[str, Any]:
    """Return the schema that a reference names."""
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    assert isinstance(found, dict)
    return found


def references(value: Any) -> list[dict[str, str]]:
    """Return every reference inside a JSON value."""
    if isinstance(value, dict):
        own = [value] if "$ref" in value else []
        return own + [one for child in value.values() for one in references(child)]
    return [one for child in value for one in references(child)] if isinstance(value, list) else []


def test_only_what_gives_something_is_documented() -> None:
    """A preflight is nobody's interface; GET and POST of one path stand together."""
    document = described()
    assert document["openapi"] == "3.1.0"
    assert {path: set(operations) for path, operations in document["paths"].items()} == {"/wish": {"post", "get"}}


def test_bodies_answers_and_refusals_are_the_models() -> None:
    """Every reference leads to the schema of the model that the route uses."""
    document = described()
    for reference in references(document):
        assert resolve(document, reference)
    posted = document["paths"]["/wish"]["post"]
    body = resolve(document, posted["requestBody"]["content"]["application/json"]["schema"])
    assert set(body["properties"]) == set(Wish.model_fields)
    given = resolve(document, posted["responses"]["200"]["content"]["application/json"]["schema"])
    assert given["properties"] == Granted.model_json_schema()["properties"]
    refused = resolve(document, posted["responses"]["default"]["content"]["application/problem+json"]["schema"])
    assert set(refused["properties"]) == set(Problem.model_fields)


def test_parameters_are_the_fields_of_their_model() -> None:
    """Each says whether it is needed, its form, and its value in the example."""
    parameters = {one["name"]: one for one in described()["paths"]["/wish"]["get"]["parameters"]}
    assert set(parameters) == set(WishParameters.model_fields)
    assert (parameters["name"]["required"], parameters["count"]["required"]) == (True, False)
    assert parameters["count"]["schema"]["minimum"] == 1
    assert parameters["name"]["example"] == "a fridge"
    assert "example" not in parameters["urgent"]


def test_a_key_is_declared_if_one_is_needed() -> None:
    """Generated clients then know where it goes."""
    assert "security" not in described()
    document = described(bearer=True)
    (needed,) = document["security"]
    assert [document["components"]["securitySchemes"][name]["scheme"] for name in needed] == ["bearer"]


class Page(HTMLParser):
    """Reads what a browser would load, follow and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.shown = ""
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep tags, links and anchors."""
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]
        self.anchors += [value or "" for name, value in attrs if name == "id"]

    @override
    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.shown += data


async def test_the_page_for_people_needs_nothing_from_elsewhere() -> None:
    """One document without scripts; every link leads to a place on it or to the document for programs."""
    async with TestClient(TestServer(pages())) as client:
        answer = await client.get("/docs")
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        page = Page(await answer.text())
        assert await (await client.get("/openapi.json")).json() == described()
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert set(page.links) <= {"/openapi.json", *(f"#{name}" for name in page.anchors)}


async def test_the_page_for_people_shows_how_to_call_each_route() -> None:
    """Method, summary, a command line, and every field with its form and meaning, written as they are."""
    async with TestClient(TestServer(pages(bearer=True))) as client:
        shown = Page(await (await client.get("/docs")).text()).shown
    key = "-H 'Authorization: Bearer KEY'"
    body = """'{"count":2,"name":"a fridge"}'"""
    calls = (
        f"curl {key} -H 'Content-Type: application/json' http://HOST/wish -d {body}",
        f"curl {key} 'http://HOST/wish?name=a+fridge&count=2'",
    )
    for text in (*calls, "POST /wish", "Grants a wish by name.", "whole number, at least 1", "How many & more."):
        assert text in shown
    assert "A piece of a <wish>." in shown
