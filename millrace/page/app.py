"""The page's HTTP side: one HTML file, one JSON document, and the usual health paths."""

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
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
ASSETS: Final = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def build_app(health: Health, sampler: Sampler) -> web.Application:
    """Return the application: `/`, its two assets, `/api/snapshot` and the health paths."""
    app = web.Application()

    async def asset(request: web.Request) -> web.Response:
        name = ASSETS[request.path]
        text = files("millrace.page").joinpath("static", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=CONTENT_TYPES[name.rsplit(".", 1)[1]], headers=SECURITY_HEADERS)

    async def latest(_request: web.Request) -> web.Response:
        if sampler.latest is None:
            body = orjson.dumps({"error": sampler.not_ready()})
            return web.Response(status=503, body=body, content_type="application/json", headers=SECURITY_HEADERS)
        body = orjson.dumps({**sampler.latest, "trouble": sampler.not_ready()})
        return web.Response(body=body, content_type="application/json", headers=SECURITY_HEADERS)

    async def health_path(request: web.Request) -> web.Response:
        rendered = health.render(request.path)
        if rendered is None:
            raise web.HTTPNotFound
        status, content_type, body = rendered
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    for path in ASSETS:
        app.router.add_get(path, asset)
    app.router.add_get("/api/snapshot", latest)
    for path in ("/live", "/ready", "/metrics"):
        app.router.add_get(path, health_path)
    return app


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Serve the page until asked to stop."""
    settings.require("kafka_bootstrap")
    health = Health(Process.PAGE)
    sampler = Sampler(settings)
    health.add_check("view", sampler.not_ready)
    health.add_liveness_check("sampler", sampler.not_live)
    runner = web.AppRunner(build_app(health, sampler), access_log=None)
    await runner.setup()
    socket = bind_socket(settings.host, settings.listen_port(Process.PAGE))
    await web.SockSite(runner, socket).start()
    sampler.start()
    get_logger().info("page_started", url=f"http://{settings.host}:{socket.getsockname()[1]}/")
    try:
        await shutdown.wait_async()
    finally:
        await runner.cleanup()
        sampler.stop()
