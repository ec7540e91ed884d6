"""Which deployment a command speaks to: the settings given, completed by those of a running `millrace up`."""

from collections.abc import Mapping
from typing import Any

from contracts.errors import DependencyDown
from deploy.local.state import load_running_settings
from millrace.watch.scrape import scrape_targets
from service.settings import Settings


def running_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings in force; what a running `up` wrote fills in whatever is left open.

    Raises:
        UsageError: a setting is wrong.
    """
    return load_running_settings(overrides)


def service_url(settings: Settings, process: str) -> str:
    """Return the base URL of one of our HTTP services.

    Raises:
        DependencyDown: it is not known where the service runs.
    """
    url = scrape_targets(settings).get(process)
    if url is None:
        raise DependencyDown(
            f"it is not known where {process} runs",
            fix=f"start everything with `millrace up`, or set MILLRACE_SCRAPE={process}=http://host:port",
        )
    return url
