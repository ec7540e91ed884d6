"""What a process says about itself: `/live`, `/ready` and `/metrics`, as values; `service.http` answers with them.

A process is ready when none of its checks gives a reason against; it is alive while its liveness checks give none.
"""

from collections.abc import Callable
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from contracts.errors import MillraceError
from contracts.telemetry import Process
from service import metrics

HEALTH_PATHS: Final = ("/live", "/ready", "/metrics")
_JSON: Final = "application/json"

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
        self._shown: dict[str, Callable[[], str]] = {}
        metrics.initialise(self.process)

    def add_check(self, name: str, check: Check) -> None:
        """Add a condition of readiness: may traffic be sent here?"""
        self._ready[name] = check

    def add_liveness_check(self, name: str, check: Check) -> None:
        """Add a condition of life: a reason against means that only a restart helps."""
        self._live[name] = check

    def show(self, name: str, read: Callable[[], str]) -> None:
        """Show a value in `/ready` beside the verdict, which does not depend on it."""
        self._shown[name] = read

    def live(self) -> tuple[bool, list[str]]:
        """Return whether the process is alive, with the reasons against."""
        reasons = _reasons(self._live)
        return not reasons, reasons

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether the process is ready, with the reasons against; the dead are never ready."""
        reasons = _reasons(self._live) + _reasons(self._ready)
        return not reasons, reasons

    def render(self, path: str) -> tuple[int, str, bytes] | None:
        """Answer a path with (status, content type, body), or None if it is not one of the three."""
        match path:
            case "/live":
                return self._verdict("live", *self.live(), shown={})
            case "/ready":
                return self._verdict("ready", *self.ready(), shown={name: read() for name, read in self._shown.items()})
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest()
            case _:
                return None

    def _verdict(self, word: str, holds: bool, reasons: list[str], *, shown: dict[str, str]) -> tuple[int, str, bytes]:
        body = {"process": self.process, word: holds, "reasons": reasons, **shown}
        return (200 if holds else 503), _JSON, orjson.dumps(body)


def _reasons(checks: dict[str, Check]) -> list[str]:
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
