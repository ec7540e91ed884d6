"""Everything the page shows, as one JSON document per second; the commands print parts of the same."""

from collections.abc import Mapping
from typing import Any

from contracts.telemetry import FRESHNESS_PATHS
from millrace.watch.facts import KafkaFacts
from millrace.watch.freshness import freshness_report
from millrace.watch.lag import lag_report
from millrace.watch.ledger import ledger_report
from millrace.watch.scrape import ProcessView


def snapshot(
    facts: KafkaFacts,
    releases: Mapping[str, Any],
    processes: Mapping[str, ProcessView],
    *,
    at_ms: int,
    promise_s: float,
) -> dict[str, Any]:
    """Return the whole view of one moment.

    Args:
        facts: of Kafka.
        releases: as `releases_report` gives them.
        processes: what each process answered.
        at_ms: the moment, epoch ms.
        promise_s: within how many seconds a catalogue change should be searchable.
    """
    return {
        "at": at_ms,
        "lag": lag_report(facts),
        "ledger": ledger_report(facts),
        "freshness_s": freshness_report(view.metrics for view in processes.values()),
        "promise_s": {"product_to_search": promise_s},
        "releases": dict(releases),
        "processes": [
            {"name": name, "state": state_of(view), "reasons": list(view.reasons)} for name, view in processes.items()
        ],
    }


def state_of(view: ProcessView) -> str:
    """Return a process's state in one word: ready, waiting or silent."""
    if view.ready is None:
        return "silent"
    return "ready" if view.ready else "waiting"


def status_freshness(report: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Return only the quantiles of both ways, as `status` prints them."""
    return {path: {"p50": report[path]["p50"], "p99": report[path]["p99"]} for path in FRESHNESS_PATHS}
