"""How far an agent has come in one partition, and what became of every record below that offset.

Written before the held offset moves; after a crash the counts and the position return together.
"""

from typing import Annotated, Self

from pydantic import Field

from contracts.base import Count, Label, Message, Part


class PartitionProgress(Message):
    """State of an agent in one partition of its source; what else its state needs, its own message adds."""

    partition: Count
    start_offset: Count = 0
    """First offset this group ever read here; the counts begin with it."""
    next_offset: Count
    hold_offset: Count
    """Oldest record that a restart has to read again."""
    source_id: Label | None = None
    """Kafka's id of the source topic; a topic of the same name that was made anew has another."""

    def supersedes(self, known: Self | None) -> bool:
        """Whether this, written later, holds instead of what is known: unless that came further in the same log.

        A worker that was stopped for longer than its session writes once more what the next one has passed.
        """
        return known is None or self.source_id != known.source_id or self.next_offset >= known.next_offset


class AgentProgress(PartitionProgress):
    """Progress of an agent whose state is its position and its counts."""

    counts: dict[str, Count] = Field(default_factory=dict)
    """Outcomes of the records below `next_offset`: `outcome`, or `outcome/reason`."""


class EventCounts(Part):
    """Outcomes of the records of `search-events` below `next_offset`; with `ticks` they sum to that many records."""

    joined: Count = 0
    late: Count = 0
    orphan: Count = 0
    duplicate: Count = 0
    dead_lettered: Count = 0
    pending: Count = 0
    """In searches that are still open, or waiting for an impression."""
    ticks: Count = 0


class EarlierWindows(Part):
    """Windows that held before the settings were changed."""

    until_ms: Count
    """What was shown before this moment has this window."""
    until_offset: Count
    """Records below this offset were read with this lateness."""
    window_ms: Count
    lateness_ms: Count


class JoinProgress(PartitionProgress):
    """State of the join in one partition of `search-events`."""

    first_append_ms: Count | None = None
    """When Kafka appended the record at `start_offset`; tells this log from one of the same name before it."""
    begun_in: Label | None = None
    """Kafka's id of the progress topic when this join began; one that begins after that was deleted has another."""
    watermark_ms: int
    """Closed watermark: searches with an earlier deadline are closed for good. -1 before the first record."""
    hold_watermark_ms: int = -1
    """The watermark just before the record at `hold_offset`: where a restart begins to repeat what was decided."""
    hold_append_ms: int | None = None
    """When Kafka appended the record that had moved the watermark there; None if that is `newest_append_ms`."""
    newest_append_ms: int = -1
    """When Kafka appended the record that carried the newest event time; ticks count on from it."""
    window_ms: Count | None = None
    lateness_ms: Count | None = None
    """The windows in force, so that a restart with other settings repeats the past with the old ones."""
    earlier_windows: Annotated[tuple[EarlierWindows, ...], Field(strict=False)] | None = None
    """Those before them, oldest first, while something of their time could be open."""
    counts: EventCounts = EventCounts()
    searches_closed: Count = 0
    open_searches: Count = 0


class SearchCounts(Part):
    """Outcomes of the records of `joined-searches` below `next_offset`."""

    paired: Count = 0
    held_out: Count = 0
    filtered: dict[str, Count] = Field(default_factory=dict)
    unpaired: dict[str, Count] = Field(default_factory=dict)
    dead_lettered: Count = 0
    """Records that are no joined search; only somebody else can have written them."""
    pending: Count = 0
    """Lists that wait until every join has come as far in event time."""
    watermarks: Count = 0
    """Watermark records, which are no lists."""


class JoinWatermark(Part):
    """How far the join of one partition of `search-events` has come, as one partition of `joined-searches` tells."""

    partition: Count
    watermark_ms: int
    """-1 if it was not heard of."""
    heard_ms: int
    """When the last record that told of it was written; if there is none, when the first record here was."""
    idle: bool = False


class PairsProgress(PartitionProgress):
    """State of the pairs agent in one partition of `joined-searches`."""

    counts: SearchCounts = SearchCounts()
    pairs: Count = 0
    turns: dict[str, Count] = Field(default_factory=dict)
    """Join -> the last closed search that was seen of it; one with the same number or a smaller one is a repeat."""
    newest_closed_ms: int = -1
    """Newest deadline of a list that was decided; lists are remembered for a day of event time behind it."""
    joins: Annotated[tuple[JoinWatermark, ...], Field(strict=False)] = ()
    newest_written_ms: int = -1
    """When the newest record that was read had been written; the silence of a join is measured by it."""
    waiting: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Offsets of the lists that wait, rising; a restart reads them again."""
    without_silent: Count = 0
    """Lists decided without a join that had fallen silent."""
    for_want_of_room: Count = 0
    """Lists decided because too many waited."""
    behind_time: Count = 0
    """Lists that came when one had been decided that they could have changed: a later one, or one that looks ahead."""


class CatalogCounts(Part):
    """Outcomes of the records of one `catalog` partition below the committed offset; kept as its commit metadata."""

    catalogue: Count = 0
    dead_lettered: Count = 0
    start_offset: Count = 0
