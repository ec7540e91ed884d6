"""Every example in the documentation is one that the code takes: JSON, curl bodies, Python, files of a world."""

import csv
import io
import json
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import qdrant_client
from pydantic import BaseModel, TypeAdapter
from qdrant_client import models

from contracts.catalog import CATALOG_CHANGE, Product, ProductVector, point_id
from contracts.events import SEARCH_RECORD
from contracts.golden import GOLDEN_QUERY
from contracts.http import EncodeAnswer, EncodeRequest, IntakeAnswer, NumberRange, SearchAnswer, SearchRequest
from contracts.joined import JoinedSearch
from contracts.pairs import CURATED_PAIR, Factors, PairSide, PreferencePair
from contracts.progress import JoinProgress
from contracts.releases import MANIFEST, SERVING, SafetyCheck
from contracts.training import TrainingSearch
from millrace.feed import Form
from millrace.importing import CatalogFile, Line
from millrace.tables import column_names
from service.http import Problem
from service.settings import load_settings
from simulator.shop.world import load_world
from streams.collector.intake import Accepted, Arrival, decide_event, decide_pair, decide_product
from tests.support.markdown import ROOT, Fence, documents, fences
from trainer.state import Progress

NOW_MS = 1_795_196_100_000
ARRIVAL = Arrival(received_at=NOW_MS, person_key=b"key")
SHELL_VALUES = {"$SEARCH_ID": "01J", "$SEARCH_TIME": str(NOW_MS - 9_000), "$(date +%s)000": str(NOW_MS - 2_000)}
WHOLE: tuple[tuple[str, TypeAdapter[Any]], ...] = (
    ("decided_records", TypeAdapter(Progress)),
    ("accepted", TypeAdapter(IntakeAnswer)),
    ("took_ms", TypeAdapter(SearchAnswer)),
    ("vectors", TypeAdapter(EncodeAnswer)),
    ("texts", TypeAdapter(EncodeRequest)),
    ("published_at", SERVING),
    ("weights_sha256", MANIFEST),
    ("factors", TypeAdapter(PreferencePair)),
    ("next_offset", TypeAdapter(JoinProgress)),
    ("chosen", CURATED_PAIR),
    ("judgments", GOLDEN_QUERY),
    ("ratio", TypeAdapter(Factors)),
    ("grade", TypeAdapter(PairSide)),
    ("passed", TypeAdapter(SafetyCheck)),
    ("query", TypeAdapter(SearchRequest)),
)
"""A field that tells one form from all others -> that form; the first that fits is meant."""
BATCHES = {"events": decide_event, "products": decide_product, "pairs": decide_pair}
TYPED: Mapping[str, TypeAdapter[Any]] = {
    "joined_search": TypeAdapter(JoinedSearch),
    "training_search": TypeAdapter(TrainingSearch),
    "product_vector": TypeAdapter(ProductVector),
    "product": CATALOG_CHANGE,
    "product_deleted": CATALOG_CHANGE,
}


def all_fences(*languages: str) -> list[Fence]:
    """Return the fenced blocks of every document."""
    return [fence for path in documents() for fence in fences(path, *languages)]


def check(value: dict[str, Any]) -> None:
    """Check one JSON example against the form that it is of; one that is of none fails."""
    for name, decide in BATCHES.items():
        if name in value:
            outcomes = [decide(item, ARRIVAL) for item in value[name]]
            assert all(isinstance(outcome, Accepted) for outcome in outcomes), outcomes
            return
    if "payload" in value:
        assert value["id"] == point_id(value["payload"]["product_id"])
        return
    if "detail" in value:
        Problem.model_validate(value, strict=True, extra="forbid")
        return
    contract = TYPED.get(value["type"], SEARCH_RECORD) if "type" in value else form_of(value)
    read = contract.validate_python(value, strict=False)
    assert isinstance(read, BaseModel)
    assert set(value) <= set(type(read).model_fields), "an example shows a field that we do not have"


def form_of(value: dict[str, Any]) -> TypeAdapter[Any]:
    """Return the form of a message that has no type."""
    return next(contract for field, contract in WHOLE if field in value)


@pytest.mark.parametrize("fence", all_fences("json"), ids=lambda fence: fence.where)
def test_json_is_valid(fence: Fence) -> None:
    """A JSON block is a message, a request or an answer of ours, and the contract takes it."""
    check(json.loads(fence.text))


def curl_bodies() -> Iterator[Any]:
    """Yield (path, the whole call, body) of every curl call in the documentation that sends something."""
    for fence in all_fences("bash"):
        for call in re.split(r"^(?=curl )", fence.text, flags=re.MULTILINE):
            body = re.search(r"-d '([^']*)'", call) or re.search(r"<<END\n(.*)\nEND", call, re.DOTALL)
            if body is not None:
                path = re.search(r"https?://[^/\s]+(/[^\s'\"?]*)", call)
                assert path is not None, call
                yield pytest.param(path[1], call, body[1], id=f"{fence.where}-{path[1]}")


@pytest.mark.parametrize(("path", "call", "body"), list(curl_bodies()))
def test_curl_bodies_are_accepted(path: str, call: str, body: str) -> None:
    """What a curl command sends is accepted by the route it is sent to, with the key that the route takes."""
    for name, value in SHELL_VALUES.items():
        body = body.replace(name, value)
    assert "$" not in body
    value = json.loads(body)
    if path in ("/v1/search", "/v1/encode"):
        contract: type[BaseModel] = SearchRequest if path == "/v1/search" else EncodeRequest
        contract.model_validate_json(body)
        return
    assert list(value) == [path.rsplit("/", 1)[1]]
    check(value)
    key = "MILLRACE_WRITE_KEY" if path == "/v1/events" else "MILLRACE_SECRET_KEY"
    assert f"Authorization: Bearer ${key}" in call


def test_curl_calls_are_found() -> None:
    """The search for curl calls finds one for events, products and search, so that the test above can fail."""
    assert {"/v1/events", "/v1/products", "/v1/search"} <= {parameter.values[0] for parameter in curl_bodies()}


@pytest.mark.parametrize("fence", all_fences("python"), ids=lambda fence: fence.where)
def test_python_compiles(fence: Fence) -> None:
    """A Python block is Python."""
    compile(fence.text, fence.where, "exec")


@pytest.mark.parametrize("fence", all_fences("toml"), ids=lambda fence: fence.where)
def test_settings_files_are_taken(fence: Fence, tmp_path: Path) -> None:
    """A TOML block is a settings file that the processes read."""
    (tmp_path / "millrace.toml").write_text(fence.text, encoding="utf-8")
    load_settings(environ={}, directory=tmp_path)


def test_the_world_of_the_quickstart_loads(tmp_path: Path) -> None:
    """The three files that the quickstart shows are a world that the demo reads."""
    for fence in fences(ROOT / "docs/quickstart.md", "jsonl"):
        (tmp_path / fence.name).write_text(fence.text, encoding="utf-8")
    world = load_world(tmp_path)
    assert len(world.products) >= 2
    assert {query.split for query in world.queries} == {"train", "test"}


class Sent:
    """Stands for the network: keeps what the snippets send and answers as our services do."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Mapping[str, str], Any]] = []

    def urlopen(self, request: urllib.request.Request) -> io.BytesIO:
        """Take a request of urllib."""
        assert isinstance(request.data, bytes)
        self.requests.append((request.full_url, dict(request.header_items()), json.loads(request.data)))
        (items,) = self.requests[-1][2].values()
        results = [{"event_id": item.get("event_id"), "status": "accepted"} for item in items]
        return io.BytesIO(json.dumps({"accepted": len(items), "rejected": 0, "results": results}).encode())


def snippet(document: str, name: str) -> str:
    """Return the Python block of a document that has a name."""
    return next(fence.text for fence in fences(ROOT / document, "python") if fence.name == name)


def test_csv_snippet_sends_a_valid_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart's script turns its example CSV into products that the collector accepts."""
    sent = Sent()
    (table,) = fences(ROOT / "docs/quickstart.md", "csv")
    (tmp_path / table.name).write_text(table.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLRACE_SECRET_KEY", "secret")
    monkeypatch.setattr(urllib.request, "urlopen", sent.urlopen)
    exec(compile(snippet("docs/quickstart.md", "send_catalogue.py"), "send_catalogue.py", "exec"), {})  # noqa: S102 - our own page
    ((url, headers, body),) = sent.requests
    assert url.endswith("/v1/products")
    assert headers["Authorization"] == "Bearer secret"
    check(body)
    assert len(body["products"]) == len(list(csv.reader(io.StringIO(table.text)))) - 1


def test_the_filter_of_the_quickstart_finds_what_its_import_sends(tmp_path: Path) -> None:
    """The command over the example CSV gives products that the example of filters and facets asks for."""
    page = ROOT / "docs/quickstart.md"
    (table,) = fences(page, "csv")
    (tmp_path / table.name).write_text(table.text, encoding="utf-8")
    (command,) = [fence.text for fence in fences(page, "bash") if fence.text.startswith("millrace catalog import")]
    words = shlex.split(command)
    columns, attributes, default = (words[words.index(name) + 1] for name in ("--columns", "--attributes", "--default"))
    form = Form(NOW_MS, attributes.split(","), column_names(default))
    file = CatalogFile(tmp_path / words[3], column_names(columns), form)
    assert file.unused_columns() == []
    lines = list(file.lines(lambda _done, _of: None))
    (asked,) = [
        SearchRequest.model_validate_json(one.values[2]) for one in curl_bodies() if '"facets"' in one.values[2]
    ]
    assert asked.filters.attributes is not None
    ((name, bounds),) = asked.filters.attributes.items()
    assert isinstance(bounds, NumberRange)
    assert bounds.gte is not None
    for line in lines:
        assert isinstance(line, Line)
        assert isinstance(line.change, Product)
        assert line.change.category == asked.filters.category
        found = line.change.attributes[name]
        assert isinstance(found, int | float)
        assert found >= bounds.gte
        assert {facet.partition(".")[2] for facet in asked.facets if "." in facet} <= set(line.change.attributes)


def test_the_ids_of_an_answer_are_read_by_one_line_of_shell(tmp_path: Path) -> None:
    """The quickstart's line sets both variables from the answer that it shows."""
    page = ROOT / "docs/quickstart.md"
    (answer,) = [fence.text for fence in fences(page, "json") if '"took_ms"' in fence.text]
    (tmp_path / "answer.json").write_text(answer, encoding="utf-8")
    (line,) = [line for fence in fences(page, "bash") for line in fence.text.splitlines() if line.startswith("eval ")]
    shell = subprocess.run(
        ["sh", "-ec", f'{line}\necho "$SEARCH_ID $SEARCH_TIME"'],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout.split() == ["01a1fa0e9b043c7f5d2e8a6b9c01", "1795196091000"]


def test_server_snippet_sends_valid_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart's server-side function sends an order that the collector accepts."""
    sent = Sent()
    monkeypatch.setenv("MILLRACE_SECRET_KEY", "secret")
    monkeypatch.setattr(urllib.request, "urlopen", sent.urlopen)
    monkeypatch.setattr("time.time", lambda: NOW_MS / 1000)
    exec(compile(snippet("docs/quickstart.md", "send_events.py"), "send_events.py", "exec"), {})  # noqa: S102 - our own page
    ((url, _, body),) = sent.requests
    assert url.endswith("/v1/events")
    check(body)


def test_query_snippet_finds_products_that_can_be_bought(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart asks for a vector, queries the alias, and shows neither deleted nor unavailable products."""
    store = qdrant_client.QdrantClient(":memory:")
    store.create_collection(
        "products-r3", vectors_config={"product": models.VectorParams(size=3, distance=models.Distance.DOT)}
    )
    rows: dict[str, dict[str, Any]] = {
        "P-1": {"title": "Quiet fridge", "in_stock": 1, "deleted": 0},
        "P-2": {"title": "Sold out fridge", "in_stock": 0, "deleted": 0},
        "P-3": {"title": "Gone fridge", "in_stock": 1, "deleted": 1},
    }
    points = [
        models.PointStruct(
            id=point_id(product_id),
            vector={"product": [0.6, 0.8, 0.05]},
            payload={"product_id": product_id, "product_release": 3, **payload},
        )
        for product_id, payload in rows.items()
    ]
    store.upsert("products-r3", points)
    alias = models.CreateAlias(collection_name="products-r3", alias_name="products")
    store.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    answer = {"query_release": 17, "product_release": 3, "vectors": [[0.6, 0.8, 1.0]]}

    def post(url: str, *, json: Any) -> httpx.Response:
        """Answer as the search service does."""
        EncodeRequest.model_validate(json)
        assert url.endswith("/v1/encode")
        return httpx.Response(200, json=answer, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda url: store)
    exec(compile(snippet("docs/quickstart.md", "ask_qdrant.py"), "ask_qdrant.py", "exec"), {})  # noqa: S102 - our own page
    printed = capsys.readouterr().out
    assert "Quiet fridge" in printed
    assert "Sold out" not in printed
    assert "Gone" not in printed
