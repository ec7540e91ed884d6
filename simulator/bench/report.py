"""What every bench reports: the machine, and rows of one form, each beside its peer."""

import os
import platform
from collections.abc import Callable
from typing import Any

Tell = Callable[[str], None]
"""Takes a line of progress."""


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
    }


def figure(
    name: str,
    unit: str,
    *,
    ours: float,
    peer: str,
    peer_value: float,
    least: float | None = None,
    most: float | None = None,
    absolute: bool = False,
) -> dict[str, Any]:
    """Return one figure beside its peer's; `goal` and `met` are None where nothing was promised.

    Args:
        name: what was measured.
        unit: of both figures.
        ours: Millrace's.
        peer: what it is compared with.
        peer_value: the peer's.
        least: goal, the ratio is at least this.
        most: goal, the ratio is at most this.
        absolute: the goal is for our own figure, not for the ratio.

    >>> made = figure("events", "events/s", ours=10, peer="bare loop", peer_value=10, least=0.95)
    >>> made["ratio"], made["goal"], made["met"]
    (1.0, '>= 0.95', True)
    """
    ratio = ours / peer_value
    judged = ours if absolute else ratio
    goal, met = None, None
    if least is not None:
        goal, met = f">= {least:g}", judged >= least
    elif most is not None:
        goal, met = f"<= {most:g}", judged <= most
    figures = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_value": peer_value}
    return {**figures, "ratio": ratio, "goal": f"{goal} {unit}" if goal and absolute else goal, "met": met}
