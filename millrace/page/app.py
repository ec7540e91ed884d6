"""The page's HTTP side: one HTML file, one JSON document, and the usual health paths."""

import asyncio
from importlib.resources import files
from typing import Final

import orjson
from aiohttp import web

from contracts.telemetry import Process
from millrace.page.sampler import Sampler
from service.health import Health, bind_socket
from service.logging import get_logger
from service.process import Shutdown
from service.settings import Settings

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ASSETS: Final = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


STOP_TIMEOUT_S: Final = 2.0
"""How long a stop waits for answers in progress; none takes longer."""


def build_app(health: Health, sampler: Sampler) -> web.Application:
    """Return the application: `/`, its two assets, `/api/snapshot` and the health paths."""
    app = web.Application()

    async def latest(_request: web.Request) -> web.Response:
        return _snapshot_answer(sampler)

    async def health_path(request: web.Request) -> web.Response:
        rendered = health.render(request.path)
        if rendered is None:
            raise web.HTTPNotFound
        status, content_type, body = rendered
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    for path in ASSETS:
        app.router.add_get(path, _asset)
    app.router.add_get("/api/snapshot", latest)
    for path in ("/live", "/ready", "/metrics"):
        app.router.add_get(path, health_path)
    return app


async def _asset(request: web.Request) -> web.Response:
    name = ASSETS[request.path]
    text = files("millrace.page").joinpath("static", name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=CONTENT_TYPES[name.rsplit(".", 1)[1]], headers=SECURITY_HEADERS)


def _snapshot_answer(sampler: Sampler) -> web.Response:
    """Return the last snapshot with what is against it, or 503 where there is none yet."""
    trouble, latest = sampler.not_ready(), sampler.latest
    body = {"error": trouble} if latest is None else {**latest, "trouble": trouble}
    return web.Response(
        status=503 if latest is None else 200,
        body=orjson.dumps(body),
        content_type="application/json",
        headers=SECURITY_HEADERS,
    )


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Serve the page until asked to stop."""
    settings.require("kafka_bootstrap")
    health = Health(Process.PAGE)
    sampler = Sampler(settings)
    health.add_check("view", sampler.not_ready)
    health.add_liveness_check("sampler", sampler.not_live)
    runner = web.AppRunner(build_app(health, sampler), access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
    await runner.setup()
    try:
        socket = bind_socket(settings.host, settings.listen_port(Process.PAGE))
        await web.SockSite(runner, socket).start()
        sampler.start()
        get_logger().info("page started", url=f"http://{settings.host}:{socket.getsockname()[1]}/")
        await shutdown.wait_async()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(sampler.stop)
