"""The topic `propensities` as an agent reads it beside its own source: read to its end now and then.

A version holds from a minute after it was published, so whoever reads on every few seconds weighs each list by the same
version as any replay does. Before the first list, and after a restart, read to the end once.
"""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.errors import ContractError
from contracts.outcomes import Cell
from contracts.propensities import CELL_PROPENSITIES, CellPropensities, Propensities, VersionName
from contracts.topics import PROPENSITIES
from contracts.wire import decode
from service.logging import get_logger
from service.settings import Settings
from streams.agents.progress import log_reader, read_to_end


class PropensityReader:
    """What the topic holds, as far as it was read; each agent that needs it has its own.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self.versions: dict[bytes, VersionName] = {}
        """Key -> version, of all that the topic holds: half a month of them."""
        self.lookup = Propensities()
        """The same, to be asked for what holds when."""
        self._newest: dict[Cell, CellPropensities] = {}
        self._settings = settings
        self._log = get_logger(topic=PROPENSITIES)
        self._next_offset = 0
        self._reading = asyncio.Lock()

    async def read_on(self) -> None:
        """Read what was written up to this moment; a topic that was made anew is read from its beginning.

        Raises:
            DependencyDown: Kafka does not answer, or does not know the topic.
        """
        async with self._reading, log_reader(self._settings) as consumer:
            await self._read_to_end(consumer, TopicPartition(self._settings.topic(PROPENSITIES), 0))

    def newest(self) -> dict[Cell, CellPropensities]:
        """Return the last version of each cell."""
        return dict(self._newest)

    async def _read_to_end(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        begins, ends = await consumer.beginning_offsets([partition]), await consumer.end_offsets([partition])
        if ends[partition] < self._next_offset:
            self.versions.clear()
            self._newest.clear()
            self.lookup, self._next_offset = Propensities(), 0
        starts = {partition: max(self._next_offset, begins[partition])}
        async for _, record in read_to_end(consumer, starts, ends):
            self._take(record.key or b"", record.value)
        self._next_offset = ends[partition]

    def _take(self, key: bytes, value: bytes | None) -> None:
        """Take one record; what cannot be read is said and left out, for one bad version must not stop learning."""
        old = self.versions.pop(key, None)
        if old is not None:
            self.lookup.drop(old.cell, old.version)
        if value is None:
            return
        try:
            version = decode(value, CELL_PROPENSITIES)
        except ContractError as error:
            self._log.error("propensities_unreadable", key=key.decode(errors="replace"), error=error.message)
            return
        self.versions[key] = version.name
        last = self._newest.get(version.cell)
        if last is None or last.version <= version.version:
            self._newest[version.cell] = version
        self.lookup.add(version)
