"""What a bench says: our figure beside its peer's, measured in the same run on the same machine."""

import os
import platform
from collections.abc import Sequence
from statistics import median
from typing import Any


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
    }


def result(
    name: str, unit: str, *, ours: Sequence[float], peer: str, peers: Sequence[float], goal: float
) -> dict[str, Any]:
    """Return one row: medians over the rounds, and whether our share of the peer's reaches the goal.

    >>> row = result("events", "events/s", ours=[9, 10, 30], peer="bare loop", peers=[10, 10, 11], goal=0.95)
    >>> row["ours"], row["ratio"], row["met"]
    (10.0, 1.0, True)
    """
    our_median, peer_median = float(median(ours)), float(median(peers))
    ratio = our_median / peer_median
    return {
        "name": name,
        "unit": unit,
        "ours": our_median,
        "peer": peer,
        "peer_value": peer_median,
        "ratio": ratio,
        "goal": goal,
        "met": ratio >= goal,
        "rounds": {"ours": list(ours), "peer": list(peers)},
    }
