"""Until when a list waits for a decision: event time over all partitions of the join.

The lists of a session come from several partitions of `search-events`, whose joins have come to different moments. A
list is decided once the least of their watermarks has passed its deadline: nothing that belongs before it can come any
more. A partition that told that it holds nothing open holds nobody up; nor does, after a while, one that has fallen
silent. Time is that of the log's records: a restart decides as before.
"""

import math
from collections.abc import Iterable
from typing import Final

from contracts.joined import ClosedWatermark
from contracts.progress import JoinWatermark

NOT_HEARD: Final = -1
"""The watermark of a join that has not been heard of."""


class JoinWatermarks:
    """How far the joins have come, as far as one partition of `joined-searches` tells.

    Args:
        joins: how many partitions the join has; 0 if nothing is waited for.
        silence_ms: for how long a join that says nothing is waited for.
        known: what the last process knew.
        newest_ms: when the newest record was written that it had seen; -1 if it had seen none.

    >>> joins = JoinWatermarks(2, 60_000)
    >>> joins.note_time(5_000)
    >>> joins.note(ClosedWatermark(0, 900), 5_000)
    >>> joins.least(), joins.least_heard()
    (-1, -1)
    >>> joins.note(ClosedWatermark(1, 700, idle=True), 5_000)
    >>> joins.least()
    900
    """

    def __init__(
        self, joins: int, silence_ms: int, known: Iterable[JoinWatermark] = (), *, newest_ms: int = -1
    ) -> None:
        self.newest_ms = newest_ms
        self._joins, self._silence_ms = joins, silence_ms
        self._of = {one.partition: one for one in known if one.partition < joins}

    def known(self) -> tuple[JoinWatermark, ...]:
        """Return what a restart has to know."""
        return tuple(self._of[number] for number in sorted(self._of))

    def note_time(self, written_ms: int) -> None:
        """Take note of when a record was written; the silence of joins counts from the first one."""
        self.newest_ms = max(self.newest_ms, written_ms)
        if len(self._of) < self._joins:
            for number in range(self._joins):
                silent = JoinWatermark(partition=number, watermark_ms=NOT_HEARD, heard_ms=written_ms)
                self._of.setdefault(number, silent)

    def note(self, told: ClosedWatermark, written_ms: int) -> None:
        """Take note of a watermark; it never runs backwards, and what nobody waits for is passed over."""
        known = self._of.get(told.join)
        if known is not None:
            self._of[told.join] = JoinWatermark(
                partition=told.join,
                watermark_ms=max(known.watermark_ms, told.watermark_ms),
                heard_ms=max(known.heard_ms, written_ms),
                idle=bool(told.idle),
            )

    def least(self) -> float:
        """Return the moment up to which all joins are done that hold anything open."""
        return min((one.watermark_ms for one in self._of.values() if not one.idle), default=math.inf)

    def least_heard(self) -> float:
        """Return the same of those that have been heard of within the time for which silence is borne."""
        since_ms = self.newest_ms - self._silence_ms
        heard = (one for one in self._of.values() if not one.idle and one.heard_ms >= since_ms)
        return min((one.watermark_ms for one in heard), default=math.inf)
