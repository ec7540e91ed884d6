"""Asks the other processes over HTTP for their metrics and whether they are ready."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx
import orjson

from contracts.errors import UsageError
from service.settings import Settings

TIMEOUT_S: Final = 0.8


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
    entries = filter(None, (part.strip() for part in settings.scrape.split(",")))
    return dict(_target(entry) for entry in entries)


def _target(entry: str) -> tuple[str, str]:
    name, _, url = (part.strip() for part in entry.partition("="))
    if not name or not url.startswith(("http://", "https://")) or not _is_url(url):
        raise UsageError(f"MILLRACE_SCRAPE: {entry!r} is not name=url", fix="write it as search=http://host:8081")
    return name, url.rstrip("/")


def _is_url(text: str) -> bool:
    try:
        return bool(httpx.URL(text).host)
    except httpx.InvalidURL:
        return False


class Scraper:
    """Asks all processes side by side over kept connections: one that hangs costs its own time only.

    Args:
        targets: process name -> base URL.
        timeout_s: how long one may take to answer.
        transport: for tests; real connections where None.
    """

    def __init__(
        self, targets: Mapping[str, str], *, timeout_s: float = TIMEOUT_S, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._targets = dict(targets)
        self._client = httpx.Client(timeout=timeout_s, transport=transport, trust_env=False)
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(targets)), thread_name_prefix="scrape")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def look(self) -> dict[str, ProcessView]:
        """Return what each process answers now."""
        return dict(zip(self._targets, self._pool.map(self._ask, self._targets.values()), strict=True))

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown()
        self._client.close()

    def _ask(self, url: str) -> ProcessView:
        try:
            ready = self._client.get(f"{url}/ready")
            metrics = self._client.get(f"{url}/metrics")
        except httpx.HTTPError as exc:
            return ProcessView(ready=None, reasons=(f"does not answer: {type(exc).__name__}",))
        return ProcessView(ready.is_success, _reasons(ready.content), metrics.text if metrics.is_success else "")


def look_at_processes(targets: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> dict[str, ProcessView]:
    """Return what each process answers now, asked once."""
    if not targets:
        return {}
    with Scraper(targets, timeout_s=timeout_s) as scraper:
        return scraper.look()


def _reasons(body: bytes) -> tuple[str, ...]:
    """Return the reasons of a readiness answer; whatever else a server may say has none."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    reasons = said.get("reasons") if isinstance(said, dict) else None
    return tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else ()
