"""What the collector needs from the world: a log that acknowledges, and a memory that may forget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from streams.collector.decisions import OutgoingRecord


class NotAcknowledged(Exception):
    """The log did not acknowledge every record; some may stand in it nevertheless."""


class RecordLog(Protocol):
    """Where accepted records go."""

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Return once every record is acknowledged by all in-sync copies.

        Raises:
            NotAcknowledged: at least one was not, within the time that a caller is kept waiting.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recollection:
    """What the memory knows of a request.

    Args:
        seen: ids that were acknowledged before.
        items_in_window: what the caller sent in the present window; None where the memory is gone.
    """

    seen: frozenset[str] = frozenset()
    items_in_window: int | None = None


class Memory(Protocol):
    """Best effort: whatever it forgets, the join finds again."""

    async def recall(self, ids: Sequence[str], *, caller: str, item_count: int, window: int) -> Recollection:
        """Return which ids were seen, and count the caller's items in the numbered window; never fails."""
        ...

    async def remember(self, ids: Sequence[str]) -> None:
        """Mark ids as acknowledged; never fails."""
        ...
