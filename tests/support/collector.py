"""What tests of the collector share: events as a site sends them, a log that can fail, a memory without Redis."""

from collections.abc import Sequence
from typing import Any, Final

from contracts.errors import TransientError
from streams.collector.intake import OutgoingRecord
from streams.collector.web import Recollection

NOW_MS: Final = 1_795_196_600_000
SEARCH_TIME_MS: Final = NOW_MS - 30_000


def click(event_id: str = "e1", **fields: Any) -> dict[str, Any]:
    """Return a click five seconds ago."""
    return {
        "type": "click",
        "event_id": event_id,
        "event_time": NOW_MS - 5_000,
        "session_id": "k3",
        "client_id": "c9",
        "search_id": "s1",
        "search_time": SEARCH_TIME_MS,
        "product_id": "P-1",
        "position": 1,
        **fields,
    }


def impression(event_id: str = "i1", **fields: Any) -> dict[str, Any]:
    """Return an impression of two products."""
    return {
        "type": "impression",
        "event_id": event_id,
        "event_time": SEARCH_TIME_MS,
        "session_id": "k3",
        "client_id": "c9",
        "search_id": "s1",
        "query": "quiet fridge for a bachelor",
        "slots": [{"product_id": "P-1", "position": 1}, {"product_id": "P-2", "position": 2}],
        **fields,
    }


def purchase(*search_ids: str | None, event_id: str = "b1", **fields: Any) -> dict[str, Any]:
    """Return an order with one line per search."""
    lines = [{"product_id": f"P-{number}", "quantity": 1} for number in range(len(search_ids))]
    for line, search_id in zip(lines, search_ids, strict=True):
        if search_id is not None:
            line |= {"search_id": search_id, "search_time": SEARCH_TIME_MS}
    return {
        "type": "purchase",
        "event_id": event_id,
        "event_time": NOW_MS - 1_000,
        "session_id": "k3",
        "client_id": "c9",
        "order_id": "O-7",
        "items": lines,
        **fields,
    }


def product(product_id: str = "P-1", **fields: Any) -> dict[str, Any]:
    """Return a product message."""
    return {"type": "product", "product_id": product_id, "version": 7, "title": "Quiet fridge", "price": 499, **fields}


class MemoryLog:
    """A record log in memory that can refuse to acknowledge."""

    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.acknowledges = True

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Keep the records, or fail."""
        if not self.acknowledges:
            raise TransientError("told to fail")
        self.records.extend(records)


class PlainMemory:
    """A memory that never forgets; `gone` makes it answer as when Redis is down."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.counts: dict[tuple[str, int], int] = {}
        self.gone = False

    async def recall(self, ids: Sequence[str], *, caller: str, item_count: int, window: int) -> Recollection:
        """Return what was seen and count the items."""
        if self.gone:
            return Recollection()
        self.counts[caller, window] = self.counts.get((caller, window), 0) + item_count
        return Recollection(frozenset(self.seen & set(ids)), self.counts[caller, window])

    async def remember(self, ids: Sequence[str]) -> None:
        """Mark ids."""
        if not self.gone:
            self.seen.update(ids)
