"""How far the indexers are behind what a command has sent to `catalog`, and how much more it may send.

The catalogue is worked off in order: whoever sends much at once holds up the product that a shop sends next. So a
command sends as much as is worked off in `AHEAD_S`, and waits.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from kafka import KafkaAdminClient

from contracts.topics import CATALOG
from service.kafka import committed_offsets
from service.settings import Settings

AHEAD_S: Final = 2.0
"""How much later than without it a product comes that is sent during an import."""
LEAST: Final = 256
"""Records that indexers read at once; with less before them they would stand still between two looks."""
POLL_S: Final = 0.1


def allowed(worked_off: int, seconds: float) -> int:
    """How many records may wait, by how many were worked off in some time.

    >>> allowed(0, 0.0), allowed(1_000, 10.0), allowed(20_000, 10.0)
    (256, 256, 4000)
    """
    return max(LEAST, round(AHEAD_S * worked_off / seconds)) if seconds > 0 else LEAST


class Backlog:
    """What stands on `catalog` up to the last record of ours, and was not worked off yet.

    Args:
        settings: of the deployment.
        client: asks for what the indexers have committed.
        clock: monotonic, in seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        client: KafkaAdminClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._sleep = sleep
        self._behind: dict[int, int] = {}
        self._began: float | None = None
        self._worked_off = 0
        self._left = 0

    def add(self, places: Iterable[tuple[int, int]]) -> None:
        """Note the (partition, offset) of records that were sent."""
        before, sent = self._left, list(places)
        for partition, offset in sent:
            self._behind[partition] = max(self._behind.get(partition, 0), offset + 1)
        self._left = self._count()
        self._worked_off += max(before + len(sent) - self._left, 0)
        if before == 0:  # the indexers had nothing to do: how fast they are is not known
            self._began, self._worked_off = self._clock(), 0

    def wait(self, most: int | None, *, patience_s: float, tell: Callable[[int], None] = lambda _left: None) -> bool:
        """Wait until at most so many are left; return False if nothing was worked off for a while.

        Args:
            most: how many; None for what is worked off in `AHEAD_S`.
            patience_s: how long nothing may move.
            tell: told how many are left.
        """
        moved_at = self._clock()
        while self._left > (self._allowed() if most is None else most):
            if self._clock() - moved_at > patience_s:
                return False
            self._sleep(POLL_S)
            left = self._count()
            if left < self._left:
                moved_at = self._clock()
                self._worked_off += self._left - left
                self._left = left
                tell(left)
        return True

    def _allowed(self) -> int:
        return allowed(self._worked_off, 0.0 if self._began is None else self._clock() - self._began)

    def _count(self) -> int:
        from indexer.catalog.topics import GROUP

        committed = committed_offsets(self._client, self._settings, GROUP)
        done = {number: one.offset for (topic, number), one in committed.items() if topic == CATALOG}
        return sum(max(offset - done.get(number, 0), 0) for number, offset in self._behind.items())
