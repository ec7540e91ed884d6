"""Asking a process whether it is ready: its reasons in one line, and a clear cause where it does not answer."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from typing_extensions import override

from deploy.local.probes import http_problem

ANSWERS = {
    "/ready": (200, b'{"ready": true, "reasons": []}'),
    "/waiting": (503, b'{"ready": false, "reasons": ["kafka: no answer", "encoder: loading"]}'),
    "/odd": (500, b"<html>"),
}


@pytest.fixture
def url() -> Iterator[str]:
    """Give the address of a process that answers as the table says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers from the table."""

        def do_GET(self) -> None:
            """Answer one question."""
            status, body = ANSWERS[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/ready", None), ("/waiting", "kafka: no answer; encoder: loading"), ("/odd", "answers 500")],
)
def test_an_answer_is_read_for_its_reasons(url: str, path: str, problem: str | None) -> None:
    """A process that is ready has nothing against it; one that is not says why."""
    assert http_problem(url + path) == problem


def test_a_process_that_is_not_there_does_not_answer() -> None:
    """A closed port is named as such, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert http_problem(f"http://127.0.0.1:{port}/ready") == "does not answer (Connection refused)"


def test_a_proxy_of_the_shell_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is a matter of this machine, whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert http_problem(f"{url}/ready") is None
