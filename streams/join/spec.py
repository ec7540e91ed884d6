"""The join, declared."""

from typing import Final

from contracts.joined import CLOSED_AT_HEADER
from contracts.progress import JoinProgress
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES, LATE_EVENTS, ORPHAN_EVENTS, SEARCH_EVENTS
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec
from streams.join.partition_join import PartitionJoin


def _new_state(partition: int, progress: JoinProgress | None, settings: Settings) -> PartitionJoin:
    key = settings.person_key
    return PartitionJoin(
        partition,
        window_ms=settings.join_window_ms,
        lateness_ms=settings.lateness_ms,
        partitions=settings.partitions,
        progress=progress,
        person_key=None if key is None else key.get_secret_value().encode(),
    )


JOIN: Final = AgentSpec(
    name="join",
    source=SEARCH_EVENTS,
    outputs=(JOINED_SEARCHES, LATE_EVENTS, ORPHAN_EVENTS, DEAD_LETTERS, SEARCH_EVENTS),
    progress=JoinProgress,
    new_state=_new_state,
    outcomes={"joined": (), "late": (), "orphan": (), "duplicate": (), "dead_lettered": ()},
    ledger=("events", "accepted"),
    uncounted=("ticks",),
    counter=metrics.EVENT_OUTCOMES,
    event_time="watermark_ms",
    written_at=CLOSED_AT_HEADER,
    agent="streams.join.agent:JoinAgent",
)
