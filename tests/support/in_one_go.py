"""What an agent's rules make of a log when nothing is killed, beside what its processes have written."""

from typing import TypeVar

from contracts.progress import PartitionProgress
from service.kafka import records_of
from service.settings import Settings
from streams.agents.progress import read_progress
from streams.agents.spec import AgentSpec
from tests.support.search_events import Record

P = TypeVar("P", bound=PartitionProgress)


async def written_and_in_one_go(settings: Settings, spec: AgentSpec[P]) -> tuple[dict[int, P], dict[int, P]]:
    """Return an agent's progress by partition, and what it would be had one process read as far in one go."""
    written = dict(await read_progress(settings, spec))
    rules = {number: spec.new_state(number, None, settings) for number in written}
    for record in records_of(settings, spec.source):
        if record.partition in written and record.offset < written[record.partition].next_offset:
            kept = Record(record.offset, record.timestamp, record.value, record.key, record.headers)
            rules[record.partition].take(kept, [])
    return written, {number: one.progress() for number, one in rules.items()}
