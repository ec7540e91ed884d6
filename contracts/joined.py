"""A joined search: one list and, per slot, what the shopper saw and did within the window; and the headers beside it.

Times of stages and the closing number travel in headers, outside the message, so that replays give the same bytes.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from contracts.base import Count, DurationMs, Id, Label, Message, Part, Query, Time
from contracts.events import MAX_SLOTS, Ranking, Slot

CLOSED_AT_HEADER: Final = "millrace.closed_at_ms"
"""When the join wrote a closed search, by the wall clock."""
PAIRED_AT_HEADER: Final = "millrace.paired_at_ms"
"""When the pairs agent wrote a pair, by the wall clock."""
CLOSING_NUMBER_HEADER: Final = "millrace.turn"
MAX_CLOSING_NUMBER: Final = 2**53 - 1
_CLOSING_NUMBER: Final = re.compile(rb"(\d{1,10}-\d{1,19}(?:-\d{1,16})?):([1-9]\d{0,15})")


class ClosingNumber(NamedTuple):
    """The place of a closed search in the order in which one partition's join closes searches.

    A join that was killed between its output and its progress closes the same searches again, in the same order: what
    comes with a number already seen from that join is a repeat, however much was written in between.

    Args:
        join: the join's partition, the offset it began at, and when Kafka appended the record there.
        number: counts from 1.
    """

    join: str
    number: int

    def encode(self) -> bytes:
        """Return the value of the header.

        >>> ClosingNumber("2-0-1795196006756", 17).encode()
        b'2-0-1795196006756:17'
        """
        return f"{self.join}:{self.number}".encode()


def closing_number_of(headers: Iterable[tuple[str, bytes | None]]) -> ClosingNumber | None:
    """Return a record's closing number; None if the record has none that a join could have written.

    >>> closing_number_of([("millrace.turn", b"2-0:17")])
    ClosingNumber(join='2-0', number=17)
    """
    for name, value in headers:
        if name == CLOSING_NUMBER_HEADER:
            found = _CLOSING_NUMBER.fullmatch(value or b"")
            if found is None or int(found[2]) > MAX_CLOSING_NUMBER:
                return None
            return ClosingNumber(found[1].decode(), int(found[2]))
    return None


class Origin(Part):
    """Where a record stands in Kafka."""

    topic: Label
    partition: Count
    offset: Count


class JoinedSlot(Slot):
    """A served slot with its outcome."""

    visible_ms: DurationMs | None = None
    """Longest reported visibility; None where no view event named it."""
    clicked: bool = False
    click_time: Time | None = None
    """Event time of the first click."""
    dwell_ms: DurationMs | None = None
    """Longest reported stay after a click."""
    cart_quantity: Count = 0
    purchase_quantity: Count = 0


class JoinedSearch(Message):
    """What the join emits when a search closes. The same events give the same bytes, `origins` aside."""

    type: Literal["joined_search"] = "joined_search"
    search_id: Id
    search_time: Time
    closed_at: Time
    """The deadline in event time, not the moment of processing: a replay gives the same value."""
    session_id: Id | None = None
    client_id: Id | None = None
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    consent: Literal["granted", "denied", "unknown"] | None = None
    synthetic: bool = False
    query: Query
    layout: Label = "list"
    columns: Annotated[int, Field(ge=1, le=100)] = 1
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    total_results: Count | None = None
    ranking: Ranking = Ranking()
    slots: Annotated[tuple[JoinedSlot, ...], Field(strict=False, max_length=MAX_SLOTS)]
    unlisted: Count = 0
    """Events of this search that name a product which the list does not show."""
    origins: Annotated[tuple[Origin, ...], Field(strict=False, max_length=10_000)] = ()
