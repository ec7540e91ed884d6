"""Health: verdicts with reasons, and the server that gives them."""

import http.client
import json
import threading
from typing import Any

import pytest

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import Process
from service.health import AdminServer, Health, bind_socket


def body_of(health: Health, path: str) -> tuple[int, Any]:
    """Return the status and the parsed body of a path."""
    answer = health.render(path)
    assert answer is not None
    return answer[0], json.loads(answer[2])


def ask(server: AdminServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask a server over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_process_without_reasons_against_is_ready() -> None:
    """No check, or only content ones: 200."""
    health = Health(Process.TRAINER)
    health.add_check("kafka", lambda: None)
    assert body_of(health, "/ready") == (200, {"process": "trainer", "ready": True, "reasons": []})


def test_readiness_names_each_reason_against() -> None:
    """503 with every reason, each under the name of its check."""
    health = Health(Process.TRAINER)
    health.add_check("kafka", lambda: "no partition yet")
    health.add_check("model", lambda: "loading")
    health.add_check("disk", lambda: None)
    status, body = body_of(health, "/ready")
    assert status == 503
    assert body["ready"] is False
    assert body["reasons"] == ["kafka: no partition yet", "model: loading"]


def test_not_ready_is_still_alive() -> None:
    """A process that waits for Kafka must not be restarted for it."""
    health = Health(Process.TRAINER)
    health.add_check("kafka", lambda: "down")
    assert body_of(health, "/live")[0] == 200


def test_without_progress_neither_alive_nor_ready() -> None:
    """What only a restart helps gets no traffic either."""
    health = Health(Process.STREAMS)
    health.add_liveness_check("progress", lambda: "none for 300 s")
    assert body_of(health, "/live") == (
        503,
        {"process": "streams", "live": False, "reasons": ["progress: none for 300 s"]},
    )
    assert body_of(health, "/ready")[0] == 503


def test_a_check_that_fails_is_a_reason_against() -> None:
    """A broken check neither hides the others nor counts as content."""

    def broken() -> str | None:
        """Fail."""
        raise KeyError("offsets")

    def refused() -> str | None:
        """Fail as expected."""
        raise DependencyDown("Redis does not answer")

    health = Health(Process.STREAMS)
    health.add_check("lag", broken)
    health.add_check("redis", refused)
    assert body_of(health, "/ready")[1]["reasons"] == [
        "lag: check failed: KeyError('offsets')",
        "redis: Redis does not answer",
    ]


def test_other_paths_belong_to_others() -> None:
    """The three paths are answered, with or without a query; no other."""
    health = Health(Process.SEARCH)
    assert health.render("/v1/search") is None
    assert health.render("/live?verbose=1") is not None


def test_metrics_are_prometheus_text() -> None:
    """The scrape holds what this process feeds."""
    answer = Health(Process.INDEXER).render("/metrics")
    assert answer is not None
    status, content_type, body = answer
    assert status == 200
    assert content_type.startswith("text/plain")
    assert b'millrace_index_writes_total{kind="upsert"}' in body


def test_the_server_answers_while_the_main_thread_is_busy() -> None:
    """Health over HTTP needs no turn of the process's own loop."""
    with AdminServer(Health(Process.TRAINER), "127.0.0.1", 0) as server:
        assert ask(server, "/ready")[0] == 200
        assert ask(server, "/ready", "HEAD") == (200, b"")
        status, body = ask(server, "/nothing")
        assert (status, json.loads(body)["error"]) == (404, "not found")


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    """After the end the port can be taken again, at once."""
    server = AdminServer(Health(Process.TRAINER), "127.0.0.1", 0).start()
    ask(server, "/live")
    server.close()
    server.close()
    bind_socket("127.0.0.1", server.port).close()
    assert "admin" not in {thread.name for thread in threading.enumerate()}


def test_a_server_that_never_started_can_be_closed() -> None:
    """A failed start does not hang on its way out."""
    server = AdminServer(Health(Process.TRAINER), "127.0.0.1", 0)
    server.close()
    bind_socket("127.0.0.1", server.port).close()


def test_a_busy_port_is_one_clear_line() -> None:
    """The message names the port, the fix the setting; exit code 4."""
    with bind_socket("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(DependencyDown, match=f"port {port} is in use") as caught:
            AdminServer(Health(Process.TRAINER), "127.0.0.1", port)
    assert "MILLRACE_PORT" in caught.value.fix
    assert caught.value.exit_code == 4


def test_a_foreign_address_is_one_clear_line() -> None:
    """An address of another machine cannot be listened on."""
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        bind_socket("192.0.2.1", 0)
