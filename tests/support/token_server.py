"""A token URL of a test: answers what it is told to, and keeps what it was asked."""

import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from typing_extensions import override


class TokenServer:
    """A running token server, a context manager; `%d` in its body becomes the number of the request."""

    def __init__(self) -> None:
        self.status = 200
        self.body = '{"access_token":"t-%d","token_type":"Bearer","expires_in":100}'
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Hands over to the server around it."""

            def do_POST(self) -> None:
                """Answer one request for a token."""
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                server.asked.append((self.headers["Authorization"], urllib.parse.parse_qs(form)))
                body = server.answer()
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            @override
            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/token"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self) -> str:
        """Return the body of the next answer."""
        return self.body % len(self.asked) if "%d" in self.body else self.body
