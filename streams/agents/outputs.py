"""What a core decides about the records it was given: plans that an agent carries out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from contracts.telemetry import EventOutcome

TURN_HEADER: Final = "millrace.turn"
"""Which closed search of its join a record of `joined-searches` is."""

Headers = Sequence[tuple[str, bytes]]


class Turn(NamedTuple):
    """Where a closed search stands in the order in which one partition's join closes searches.

    A join that was killed between its output and its progress closes the same searches again, in the same order: what
    comes with a number already seen from that join is a repeat, however much was written in between.

    Args:
        join: the join's partition and the offset it began at; a join that begins anew is another one.
        number: counts from 1.
    """

    join: str
    number: int

    def encode(self) -> bytes:
        """Return the value of the header.

        >>> Turn("2-0", 17).encode()
        b'2-0:17'
        """
        return f"{self.join}:{self.number}".encode()


def turn_of(headers: Iterable[tuple[str, bytes]]) -> Turn | None:
    """Return a record's turn, or None where somebody else wrote it.

    >>> turn_of([("millrace.turn", b"2-0:17")])
    Turn(join='2-0', number=17)
    """
    for name, value in headers:
        if name == TURN_HEADER:
            join, _, number = value.decode("ascii", "replace").rpartition(":")
            return Turn(join, int(number)) if join and number.isdecimal() else None
    return None


class LogRecord(Protocol):
    """A record as Kafka keeps it; the clients' own record types fit."""

    @property
    def offset(self) -> int:
        """Where it stands in its partition."""

    @property
    def timestamp(self) -> int:
        """When Kafka appended it, epoch milliseconds."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its value."""

    @property
    def headers(self) -> Headers:
        """Its headers."""


class AsideReason(StrEnum):
    """Why an event could not be joined although its form is right."""

    AFTER_DEADLINE = "after_deadline"
    """It happened after its search's window."""
    AFTER_CLOSE = "after_close"
    """It happened in time but arrived when its search was closed."""
    NO_IMPRESSION = "no_impression"
    """Its search never showed a list."""
    WRONG_PARTITION = "wrong_partition"
    """It lies in a partition that its search does not belong to: its producer places keys otherwise than Kafka's do."""
    NO_SEARCH = "no_search"
    """It names no search."""
    UNSPLIT_PURCHASE = "unsplit_purchase"
    """An order of several lines, which the collector would have split."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """Put a record on the topic of its outcome, unchanged, with the reason."""

    outcome: EventOutcome
    reason: str
    record: LogRecord
    error: str = ""


@dataclass(frozen=True, slots=True)
class Emit:
    """Write a message to the core's output topic."""

    key: bytes
    value: bytes
    record: LogRecord | None = None
    """The record that it was made from, where it was made from one."""
    turn: Turn | None = None
    """Of a closed search, its place in the order of its join."""


Plan = list[SetAside | Emit]
