"""What an HTTP interface says about itself: `/openapi.json` (OpenAPI 3.1) and `/docs`, made from its routes.

`/docs` is one page without scripts or anything from elsewhere, so that it works on a machine without the internet.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http import JSON, PROBLEM, Problem, Route

_SCHEMAS: Final = "#/components/schemas/"
_PAGE_HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;text-align:left;padding:.2rem .6rem}"
    "pre{background:#f4f4f4;padding:.6rem;overflow:auto}h2,h3{margin-top:2rem}"
)


def documentation(routes: Sequence[Route], *, title: str, description: str, bearer: bool = False) -> list[Route]:
    """Give the routes `/openapi.json` and `/docs` of an interface.

    Routes that say what they give are documented; the form of what they take has one example. With `bearer`, callers
    send a key as a bearer token.
    """
    document = openapi(routes, title=title, description=description, bearer=bearer)
    page = "".join(_page(document))

    async def answer_document(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=orjson.dumps(document), content_type=JSON)

    async def answer_page(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=page, content_type="text/html", headers=_PAGE_HEADERS)

    return [Route("GET", "/openapi.json", answer_document), Route("GET", "/docs", answer_page)]


def openapi(routes: Sequence[Route], *, title: str, description: str, bearer: bool = False) -> dict[str, Any]:
    """Make the OpenAPI document of an interface; the arguments are those of `documentation`."""
    documented = [route for route in routes if route.gives is not None]
    models: list[type[BaseModel]] = [Problem]
    models += [model for route in documented for model in (_body_of(route), route.gives) if model is not None]
    references, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template=f"{_SCHEMAS}{{model}}"
    )
    schemas = {model: schema for (model, _mode), schema in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in documented:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": description},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }
    if bearer:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _body_of(route: Route) -> type[BaseModel] | None:
    return None if route.method == "GET" else route.takes


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done.", "content": {JSON: {"schema": schemas[route.gives]}}},
            "default": {"description": "Refused.", "content": {PROBLEM: {"schema": schemas[Problem]}}},
        },
    }
    if _body_of(route) is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[route.takes]}}}
    elif route.takes is not None:
        schema = route.takes.model_json_schema()
        needed, (example,) = schema.get("required", ()), schema["examples"]
        operation["parameters"] = [
            {"name": name, "in": "query", "required": name in needed, "schema": part}
            | ({"example": example[name]} if name in example else {})
            for name, part in schema["properties"].items()
        ]
    return operation


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield HTML: the operations, then every schema once."""
    title, schemas = escape(document["info"]["title"]), document["components"]["schemas"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1><p>{_prose(document['info']['description'])}</p>"
    yield '<p>For programs: <a href="/openapi.json">/openapi.json</a></p>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<h2>{method.upper()} {escape(path)}</h2><p>{_prose(operation['summary'])}</p>"
            yield f"<pre>{escape(_call(path, operation, document))}</pre>"
            if "parameters" in operation:
                rows = {one["name"]: one["schema"] for one in operation["parameters"]}
                yield from _table(rows, [one["name"] for one in operation["parameters"] if one["required"]])
            if "requestBody" in operation:
                yield f"<p>Takes {_link(operation['requestBody'])}</p>"
            answers = operation["responses"]
            yield f"<p>Answers {_link(answers['200'])}, or {_link(answers['default'])} if it is refused</p>"
    for name, schema in schemas.items():
        yield f"<h3 id={name}>{name}</h3><p>{_prose(schema.get('description', ''))}</p>"
        yield from _table(schema.get("properties", {}), schema.get("required", ()))


def _call(path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Make the example's command line; HOST is wherever the process listens."""
    key = " -H 'Authorization: Bearer KEY'" if "security" in document else ""
    if "requestBody" in operation:
        (example,) = document["components"]["schemas"][_schema_of(operation["requestBody"])]["examples"]
        return f"curl{key} -H 'Content-Type: {JSON}' http://HOST{path} -d '{orjson.dumps(example).decode()}'"
    given = {one["name"]: one["example"] for one in operation["parameters"] if "example" in one}
    return f"curl{key} 'http://HOST{path}?{urlencode(given)}'"


def _schema_of(described: Mapping[str, Any]) -> str:
    (content,) = described["content"].values()
    return str(content["schema"]["$ref"]).removeprefix(_SCHEMAS)


def _link(described: Mapping[str, Any]) -> str:
    name = _schema_of(described)
    return f"<a href=#{name}>{name}</a>"


def _table(fields: Mapping[str, Any], needed: Collection[str]) -> Iterator[str]:
    yield "<table><tr><th>field<th>form<th>default<th>meaning"
    for name, part in fields.items():
        value = part.get("default")
        default = "needed" if name in needed else "" if value is None else orjson.dumps(value).decode()
        cells = (f"<code>{name}</code>", _prose(form_of(part)), escape(default), _prose(part.get("description", "")))
        yield f"<tr><td>{'<td>'.join(cells)}"
    yield "</table>"


def _prose(text: str) -> str:
    """Turn text into HTML, what stands between backticks into code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def form_of(part: Mapping[str, Any]) -> str:
    """Say a field's form in words.

    >>> form_of({"type": "string", "minLength": 1, "maxLength": 100}), form_of({"const": "click"})
    ('text, 1 to 100 characters', '`click`')
    """
    choices = part.get("anyOf") or part.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(form_of(one) for one in choices if one != {"type": "null"}))
    if "$ref" in part:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(part["$ref"].rsplit("/", 1)[-1])).lower()
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    words: dict[str, Any] = {"string": _text, "integer": _number, "number": _number, "array": _list}
    kind = part.get("type", "object")
    return str(words[kind](part)) if kind in words else {"boolean": "true or false"}.get(kind, "object")


def _text(part: Mapping[str, Any]) -> str:
    most = part.get("maxLength")
    return "text" if most is None else f"text, {'1 to ' if part.get('minLength') else 'up to '}{most} characters"


def _number(part: Mapping[str, Any]) -> str:
    if "Epoch milliseconds" in part.get("description", ""):
        return "epoch milliseconds"
    kind = "whole number" if part["type"] == "integer" else "number"
    least, most = part.get("minimum"), part.get("maximum")
    above = part.get("exclusiveMinimum")
    if above is not None:
        return f"{kind} above {above:g}, at most {most:g}"
    if least is None:
        return kind
    if most is None or most >= 2**53 - 1:
        return f"{kind}, at least {least:g}"
    return f"{kind}, {least:g} to {most:,g}" if most < 1e6 else f"{kind}, {least:g} to {most:g}"


def _list(part: Mapping[str, Any]) -> str:
    inner = form_of(part["items"])
    bound = f" up to {part['maxItems']}" if "maxItems" in part else ""
    return f"list of{bound} ({inner})"
