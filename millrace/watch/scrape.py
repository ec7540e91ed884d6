"""Asks the other processes over HTTP for their metrics and whether they are ready."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from contracts.errors import UsageError
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What one process answered.

    Args:
        ready: True, False, or None where it did not answer.
        reasons: what it waits for, in its own words.
        metrics: its metrics as Prometheus text; empty where it did not answer.
    """

    ready: bool | None
    reasons: tuple[str, ...] = ()
    metrics: str = ""


def scrape_targets(settings: Settings) -> dict[str, str]:
    """Return process name -> base URL from `MILLRACE_SCRAPE`.

    Raises:
        UsageError: an entry is not name=url.
    """
    targets = {}
    for entry in filter(None, (part.strip() for part in settings.scrape.split(","))):
        name, separator, url = entry.partition("=")
        if not separator or not url.startswith(("http://", "https://")):
            raise UsageError(f"MILLRACE_SCRAPE: {entry!r} is not name=url", fix="write it as search=http://host:8081")
        targets[name.strip()] = url.strip().rstrip("/")
    return targets


def look_at_processes(targets: Mapping[str, str], *, timeout_s: float = 0.8) -> dict[str, ProcessView]:
    """Return what each process answers now."""
    with httpx.Client(timeout=timeout_s) as client:
        return {name: _look(client, url) for name, url in targets.items()}


def _look(client: httpx.Client, url: str) -> ProcessView:
    try:
        ready = client.get(f"{url}/ready")
        metrics = client.get(f"{url}/metrics")
    except httpx.HTTPError as exc:
        return ProcessView(ready=None, reasons=(f"does not answer: {type(exc).__name__}",))
    return ProcessView(ready.status_code == httpx.codes.OK, _reasons(ready), metrics.text if metrics.is_success else "")


def _reasons(answer: httpx.Response) -> tuple[str, ...]:
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return ()
    body = answer.json()
    return tuple(body.get("reasons", ())) if isinstance(body, dict) else ()
