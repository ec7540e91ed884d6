"""The table of processes: names, ports, commands, the order of their needs, and how each is asked if it is ready."""

import http.server
import importlib.util
import itertools
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typing_extensions import override

from contracts.errors import UsageError
from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local.processes import (
    PROCESSES,
    TABLE,
    ProcessSpec,
    child_environ,
    http_problem,
    level,
    probe_host,
    resolve,
)

ANSWERS = {
    "/ready": (200, b'{"ready": true, "reasons": []}'),
    "/waiting": (503, b'{"ready": false, "reasons": ["kafka: no answer", "encoder: loading"]}'),
    "/odd": (500, b"<html>"),
    "/null": (503, b'{"ready": false, "reasons": null}'),
    "/cut-ready": (200, b'{"ready": true, "reasons": []}'),
    "/cut-waiting": (503, b"{}"),
}


def test_every_process_of_telemetry_stands_in_the_table() -> None:
    """What status, logs and metrics name is what is run, servers apart."""
    assert {spec.name for spec in PROCESSES} == {process.value for process in Process} - {"kafka", "redis"}


def test_commands_and_default_ports_are_those_of_the_fixed_interfaces() -> None:
    """Each command and port is the one that people and containers know."""
    found = {spec.name: (f"python -m {spec.module}", DEFAULT_PORTS[Process(spec.name)]) for spec in PROCESSES}
    assert found == {
        "collector": ("python -m streams.collector", 8080),
        "streams": ("python -m streams", 9101),
        "trainer": ("python -m trainer", 9102),
        "indexer": ("python -m indexer", 9103),
        "search": ("python -m indexer.search", 8081),
        "qdrant": ("python -m deploy.qdrant_edge", 6333),
        "page": ("python -m millrace.page", 8082),
    }


@pytest.mark.parametrize("spec", PROCESSES, ids=lambda spec: str(spec.name))
def test_every_command_names_what_can_be_run(spec: ProcessSpec) -> None:
    """No command of the table starts something that is not there, or that does nothing as a script."""
    found = importlib.util.find_spec(spec.module)
    assert found is not None
    if found.submodule_search_locations is not None:
        found = importlib.util.find_spec(f"{spec.module}.__main__")
    assert found is not None
    assert found.origin is not None
    assert 'if __name__ == "__main__":' in Path(found.origin).read_text(encoding="utf-8")


def test_everything_comes_after_what_it_needs() -> None:
    """In the order of `resolve`, no name stands before one of its needs."""
    order = resolve(None)
    for name in TABLE:
        assert all(order.index(need) < order.index(name) for need in TABLE[name].needs)


def test_a_subset_brings_what_it_needs_and_nothing_else() -> None:
    """Asking for the indexer starts Kafka and the vector store, but no Redis."""
    assert set(resolve(["indexer"])) == {"kafka", "qdrant", "indexer"}


def test_a_further_instance_has_the_needs_of_its_process() -> None:
    """`streams-2` is a stream worker of its own, beside or without the first."""
    assert set(resolve(["streams-2"])) == {"kafka", "redis", "streams-2"}
    assert level("streams-2") == level("streams") == 1


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """A misspelt process is a usage error, not an empty deployment."""
    with pytest.raises(UsageError, match="shearch") as raised:
        resolve(["shearch"])
    assert "search" in raised.value.fix


def test_default_ports_differ() -> None:
    """No two processes of one machine want the same port."""
    assert all(one != other for one, other in itertools.combinations(DEFAULT_PORTS.values(), 2))


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - nothing is bound
        ("::", "[::1]"),
        ("10.0.0.7", "10.0.0.7"),
    ],
)
def test_a_process_on_all_addresses_is_asked_on_loopback(host: str, reached: str) -> None:
    """An address to listen on is turned into one that can be spoken to."""
    assert probe_host(host) == reached


@pytest.fixture
def url() -> Iterator[str]:
    """Give the address of a process that answers as the table says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers from the table."""

        def do_GET(self) -> None:
            """Answer one question."""
            status, body = ANSWERS[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + (10 if "cut" in self.path else 0)))
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
    [
        ("/ready", None),
        ("/waiting", "kafka: no answer; encoder: loading"),
        ("/odd", "answers 500"),
        ("/null", "answers 503"),
        ("/cut-ready", "does not answer (IncompleteRead(30 bytes read, 10 more expected))"),
        ("/cut-waiting", "does not answer (IncompleteRead(2 bytes read, 10 more expected))"),
    ],
)
def test_an_answer_is_read_for_its_reasons(url: str, path: str, problem: str | None) -> None:
    """A process that is ready has nothing against it; one that is not says why."""
    assert http_problem(url + path) == problem


def test_a_process_that_is_not_there_does_not_answer() -> None:
    """A closed port is named as such, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert http_problem(f"http://127.0.0.1:{port}/ready") == "does not answer (Connection refused)"


@pytest.mark.parametrize("given", [{}, {"no_proxy": "a.example"}, {"NO_PROXY": "*"}, {"no_proxy": "localhost, ::1"}])
def test_what_is_started_here_asks_no_proxy_for_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """With the variables of `child_environ` every client reaches loopback, and what the shell exempts stays exempt."""
    for name, value in child_environ({"http_proxy": "http://127.0.0.1:1", **given}).items():
        monkeypatch.setenv(name, value)
    assert httpx.get(f"{url}/ready").status_code == 200
    with urllib.request.urlopen(f"{url}/ready") as answer:  # noqa: S310 - the address is the test's own
        assert answer.status == 200
    exempt = {host.strip() for value in given.values() for host in value.split(",")}
    assert exempt <= set(os.environ["NO_PROXY"].split(","))


def test_a_proxy_of_the_shell_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is a matter of this machine, whatever proxy the environment names."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert http_problem(f"{url}/ready") is None
