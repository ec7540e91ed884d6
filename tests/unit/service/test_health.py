"""Health: verdicts with reasons."""

import json
from typing import Any

from contracts.errors import DependencyDown
from contracts.telemetry import Process
from service.health import Health


def body_of(health: Health, path: str) -> tuple[int, Any]:
    """Return the status and the parsed body of a path."""
    answer = health.render(path)
    assert answer is not None
    return answer[0], json.loads(answer[2])


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
    """The three paths are answered, no other."""
    assert Health(Process.SEARCH).render("/v1/search") is None


def test_what_is_shown_beside_the_verdict_does_not_change_it() -> None:
    """A server that one can do without is named in `/ready`, whatever its state."""
    health = Health(Process.COLLECTOR)
    health.show("redis", lambda: "down")
    assert body_of(health, "/ready") == (
        200,
        {"process": "collector", "ready": True, "reasons": [], "redis": "down"},
    )
    assert "redis" not in body_of(health, "/live")[1]


def test_metrics_are_prometheus_text() -> None:
    """The scrape holds what this process feeds."""
    answer = Health(Process.INDEXER).render("/metrics")
    assert answer is not None
    status, content_type, body = answer
    assert status == 200
    assert content_type.startswith("text/plain")
    assert b'millrace_index_writes_total{kind="upsert"}' in body
