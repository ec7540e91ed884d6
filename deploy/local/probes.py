"""Questions over HTTP that tell whether a process is ready: real round trips, never a look at a port alone."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Final

TIMEOUT_S: Final = 2.0
LONGEST: Final = 300


def http_problem(url: str, headers: Mapping[str, str] | None = None) -> str | None:
    """Ask a process whether it is ready; return what it has against it, or None.

    Args:
        url: its readiness address, of this machine or one that the settings name.
        headers: what it asks for, such as a key.
    """
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own http:// addresses
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return _reasons(error.read()) or f"answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return f"does not answer ({_cause(error)})"
    return None


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that never goes through a proxy: these are servers of this machine or of the settings."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _reasons(body: bytes) -> str:
    """Return the reasons that a readiness answer gives, in one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    reasons = answer.get("reasons", []) if isinstance(answer, dict) else []
    return "; ".join(str(reason) for reason in reasons)[:LONGEST]


def _cause(error: Exception) -> str:
    """Return the cause of a failed request in a few words."""
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
