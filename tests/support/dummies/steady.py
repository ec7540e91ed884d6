"""A stand-in process for tests of the supervisor: ready at once, ends on SIGTERM, says what it was given."""

import http.server
import json
import os
import signal
import sys

from typing_extensions import override


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every question with this process's own settings."""

    def do_GET(self) -> None:
        """Answer with the MILLRACE_* variables."""
        body = json.dumps({name: value for name, value in os.environ.items() if name.startswith("MILLRACE_")})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    print("steady: started", flush=True)  # noqa: T201 - this is the log that a test reads
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["MILLRACE_PORT"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
