"""The page's HTTP side: one HTML file, one JSON document, and the usual health paths."""

import asyncio
from importlib.resources import files
from typing import Final

import orjson
from aiohttp import web

from contracts.telemetry import Process
from millrace.page.sampler import Sampler
from service.health import Health
from service.http import JSON, Route, bind_socket, build_app, come_again, serving
from service.process import Shutdown
from service.settings import Settings

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ASSETS: Final = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
FINISH_S: Final = 2.0
"""How long a stop waits for answers in progress; none takes longer."""


def build(health: Health, sampler: Sampler) -> web.Application:
    """Return the application: `/`, its two assets, `/api/snapshot` and the health paths."""

    async def answer_snapshot(_request: web.Request) -> web.StreamResponse:
        """Answer with the last snapshot and what is against it."""
        trouble, latest = sampler.not_ready(), sampler.latest
        if latest is None:
            raise come_again(503, "no_view", trouble or "no look taken yet")
        return web.Response(body=orjson.dumps({**latest, "trouble": trouble}), content_type=JSON)

    async def add_security(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(SECURITY_HEADERS)

    routes = [*(Route("GET", path, _answer_asset) for path in ASSETS), Route("GET", "/api/snapshot", answer_snapshot)]
    app = build_app(health, routes)
    app.on_response_prepare.append(add_security)
    return app


async def _answer_asset(request: web.Request) -> web.StreamResponse:
    name = ASSETS[request.path]
    text = files("millrace.page").joinpath("static", name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=CONTENT_TYPES[name.rsplit(".", 1)[1]])


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Serve the page until asked to stop."""
    settings.require("kafka_bootstrap")
    health = Health(Process.PAGE)
    sampler = Sampler(settings)
    health.add_check("view", sampler.not_ready)
    health.add_liveness_check("sampler", sampler.not_live)
    listener = bind_socket(settings.host, settings.listen_port(Process.PAGE))
    try:
        async with serving(build(health, sampler), listener, finish_s=FINISH_S):
            sampler.start()
            await shutdown.wait_async()
    finally:
        await asyncio.to_thread(sampler.stop)
