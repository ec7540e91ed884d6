"""What a core decides about the records it was given: plans that an agent carries out."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from contracts.telemetry import EventOutcome


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


class AsideReason(StrEnum):
    """Why an event could not be joined although its form is right."""

    AFTER_DEADLINE = "after_deadline"
    """It happened after its search's window."""
    AFTER_CLOSE = "after_close"
    """It happened in time but arrived when its search was closed."""
    NO_IMPRESSION = "no_impression"
    """Its search never showed a list."""
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


Plan = list[SetAside | Emit]
