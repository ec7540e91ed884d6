"""What a demo is asked to do, and the fixed choices that make it show everything in two minutes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RATE_PER_S: Final = 14.0
"""Visits begun per second: what two cores carry beside the servers; a visit is one search or more."""
LAUNCHES: Final = 12
"""Products launched while shoppers shop, each searched for until it is found."""
SAMPLE: Final = 48
"""Unseen queries asked now and then for the live view; the closing figures ask all of them."""

COMPRESSED: Final[dict[str, Any]] = {
    "join_window_s": 3.0,
    "lateness_s": 1.0,
    "product_release_interval_s": 45.0,
}
"""Shoppers report within 2 s in the demo, so a search may close after 3 s; product releases come within the minute."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The arguments of `millrace demo`.

    Args:
        world: folder of another world; None for the built-in one.
        seed: of the world and its shoppers.
        seconds: how long shoppers shop.
        keep: serve on without a terminal as well.
        json_file: where the closing figures go.
    """

    world: Path | None = None
    seed: int = 1
    seconds: int = 120
    keep: bool = False
    json_file: Path | None = None
