"""`/live`, `/ready` and `/metrics` of a process, and the small server that answers them where no other does.

A process is ready when none of its checks gives a reason against; it is alive while its liveness checks give none. The
server runs in a daemon thread, so that a loop busy with a training step still answers its supervisor.
"""

import errno
import http.server
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.telemetry import Process
from service import metrics

JSON: Final = "application/json"

Check = Callable[[], str | None]
"""Returns the reason against, in words for people, or None."""


class Health:
    """What a process says about itself. Checks run on each request: they must be quick and not block.

    Args:
        process: whose health this is; its metrics exist at zero from here on.
    """

    def __init__(self, process: Process | str) -> None:
        self.process = Process(process)
        self._ready: dict[str, Check] = {}
        self._live: dict[str, Check] = {}
        metrics.initialise(self.process)

    def add_check(self, name: str, check: Check) -> None:
        """Add a condition of readiness: may traffic be sent here?"""
        self._ready[name] = check

    def add_liveness_check(self, name: str, check: Check) -> None:
        """Add a condition of life: a reason against means that only a restart helps."""
        self._live[name] = check

    def live(self) -> tuple[bool, list[str]]:
        """Return whether the process is alive, with the reasons against."""
        reasons = _reasons(self._live)
        return not reasons, reasons

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether the process is ready, with the reasons against; the dead are never ready."""
        reasons = _reasons(self._live) + _reasons(self._ready)
        return not reasons, reasons

    def render(self, path: str) -> tuple[int, str, bytes] | None:
        """Answer a path with (status, content type, body), or None where the path is not one of the three."""
        match urlsplit(path).path:
            case "/live":
                return self._verdict("live", *self.live())
            case "/ready":
                return self._verdict("ready", *self.ready())
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest()
            case _:
                return None

    def _verdict(self, word: str, holds: bool, reasons: list[str]) -> tuple[int, str, bytes]:
        """Return one verdict as an HTTP answer."""
        body = {"process": self.process, word: holds, "reasons": reasons}
        return (200 if holds else 503), JSON, orjson.dumps(body)


def _reasons(checks: dict[str, Check]) -> list[str]:
    """Return each reason against, with the name of its check."""
    answers = ((name, _ask(check)) for name, check in list(checks.items()))
    return [f"{name}: {reason}" for name, reason in answers if reason is not None]


def _ask(check: Check) -> str | None:
    """Run one check; one that fails is itself a reason against."""
    try:
        return check()
    except MillraceError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - a broken check must not take the answer about the others with it
        return f"check failed: {error!r}"


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket, for our own server or for the one of a web framework.

    Raises:
        DependencyDown: the port is held by another process.
        UsageError: the address is not one of this machine's, or the port is not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise listen_error(error, host=host, port=port) from error


def listen_error(error: OSError, *, host: str, port: int) -> MillraceError:
    """Return what a refused listening socket means to an operator."""
    if error.errno == errno.EADDRINUSE:
        return DependencyDown(
            f"port {port} is in use", fix="set MILLRACE_PORT to a free one or stop the process that holds it"
        )
    return UsageError(
        f"cannot listen on {host}:{port}: {error.strerror}", fix="correct MILLRACE_HOST and MILLRACE_PORT"
    )


class AdminServer:
    """Answers a process's health and metrics over HTTP from a daemon thread.

    Args:
        health: what is answered.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        self._socket = bind_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = http.server.ThreadingHTTPServer((host, port), _handler(health), bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self._socket
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="admin", daemon=True)

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering and free the port; harmless when repeated."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _handler(health: Health) -> type[http.server.BaseHTTPRequestHandler]:
    """Return a request handler bound to one process's health."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers GET and HEAD; keeps no access log, because a supervisor asks every second."""

        timeout = 5  # a peer that connects and says nothing must not hold its thread

        def do_GET(self) -> None:
            """Answer with the body."""
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            """Answer without the body."""
            self._answer(with_body=False)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _answer(self, *, with_body: bool) -> None:
            """Write one answer."""
            nothing = (404, JSON, orjson.dumps({"error": "not found", "paths": ["/live", "/ready", "/metrics"]}))
            status, content_type, body = health.render(self.path) or nothing
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    return Handler
