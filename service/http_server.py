"""How an application of `service.http` is served: its socket, its clean end, and the small server for health alone."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.health import Health
from service.http import build_app
from service.logging import get_logger
from service.process import Shutdown, listen_error

ADMIN_FINISH_S: Final = 1.0


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        DependencyDown: the port is held by another process.
        UsageError: the address is not one of this machine's, or the port is not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise listen_error(error, host=host, port=port) from error


@asynccontextmanager
async def serving(app: web.Application, listener: socket.socket, *, finish_s: float) -> AsyncIterator[None]:
    """Answer inside the block; then take nothing more, finish what is under way, and close the socket.

    Args:
        app: what answers.
        listener: from `bind_socket`.
        finish_s: how long requests under way may take at the end.
    """
    logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=finish_s)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        host, port = listener.getsockname()[:2]
        get_logger().info("listening", host=host, port=port)
        yield
    finally:
        await runner.cleanup()
        listener.close()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave out what is no HTTP: whoever scans the port would fill the log with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


class AdminServer:
    """Answers health and metrics of a process that has no other server, from a daemon thread.

    The thread has an event loop of its own: a process busy with a training step still answers its supervisor.

    Args:
        health: what is answered.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        self._health = health
        self._listener = bind_socket(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._stop = Shutdown()
        self._closed = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._answer()), name="admin", daemon=True)

    async def _answer(self) -> None:
        async with serving(build_app(self._health), self._listener, finish_s=ADMIN_FINISH_S):
            await self._stop.wait_async()

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering and free the port; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self._stop.request()
            self._thread.join()
        self._stop.close()
        self._listener.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
