"""Lists go through the pairs stage of the live chain, and what it lets through is evidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from contracts.joined import WATERMARK_HEADER, ClosedWatermark
from contracts.structs import TRAINING_SEARCH
from contracts.telemetry import EventOutcome, Filter
from contracts.topics import TRAINING_SEARCHES
from simulator.click_log import WINDOW_MS
from simulator.shown_lists import Listed
from streams.agents.spec import WATERMARKS, Emit, Plan
from streams.pairs.partition_pairs import PairsOptions, PartitionPairs
from trainer.preference.evidence import Shown
from trainer.records import shown_in

NOTHING_LEFT_MS: Final = 10**14


class LoopRecord(NamedTuple):
    """A record of `joined-searches`, as the pairs stage reads it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class JudgedList(NamedTuple):
    """A list that may be learned from, what it says of each of its products, and its exchanged neighbours."""

    listed: Listed
    shown: list[Shown]
    exchanged: list[tuple[Shown, Shown]]


class JudgedLists:
    """The pairs stage between the lists of a closed loop and what is learned from.

    Args:
        filters: those that are on.
        look_ahead_s: how much later the lists close that a decision may look at.
        queries: texts by their numbers.
        row_of: rows of the products by their ids.
    """

    def __init__(
        self, filters: Iterable[Filter], look_ahead_s: float, *, queries: Sequence[str], row_of: Mapping[str, int]
    ) -> None:
        options = PairsOptions(joins=1, filters=frozenset(filters), look_ahead_ms=round(1000 * look_ahead_s))
        self._stage = PartitionPairs(0, options=options)
        self._queries, self._row_of = queries, row_of
        self._waiting: dict[str, Listed] = {}

    def take(self, listed: Listed) -> list[JudgedList]:
        """Hand over the next list in event time; return what may be learned now."""
        search_id = f"l{max(self._stage.next_offset, 0)}"
        self._waiting[search_id] = listed
        swapped = None if listed.swap_seed is None else {"policy": "swap", "seed": listed.swap_seed}
        joined = {
            "search_id": search_id, "search_time": listed.at_ms, "closed_at": listed.at_ms + WINDOW_MS,
            "session_id": listed.session, "client_id": listed.client, "query": self._queries[listed.number],
            "slots": listed.slots, "ranking": {"exploration": swapped} if swapped else {},
        }  # fmt: skip
        return self._read(orjson.dumps(joined), ClosedWatermark(0, listed.at_ms + WINDOW_MS + 1))

    def finish(self) -> list[JudgedList]:
        """Return what may be learned of lists that waited for others, of which no more come."""
        return self._read(b"", ClosedWatermark(0, NOTHING_LEFT_MS, idle=False))

    def outcomes(self) -> dict[str, int]:
        """How many lists came to what, by the names of the ledger."""
        return {name: n for name, n in sorted(self._stage.counts.items()) if n and name != WATERMARKS}

    def _read(self, value: bytes, told: ClosedWatermark) -> list[JudgedList]:
        offset = max(self._stage.next_offset, 0)
        plan: Plan = []
        self._stage.take(LoopRecord(offset, told.watermark_ms, None, value, ((WATERMARK_HEADER, told.encode()),)), plan)
        training = [one.value for one in plan if isinstance(one, Emit) and one.topic == TRAINING_SEARCHES]
        judged = [self._judged(value) for value in training]
        if not self._stage.counts[EventOutcome.PENDING]:
            self._waiting.clear()  # the stage has kept them out
        return judged

    def _judged(self, value: bytes) -> JudgedList:
        search: Any = TRAINING_SEARCH.decode(value)
        return JudgedList(self._waiting.pop(search.search_id), *shown_in(search, self._row_of.__getitem__))
