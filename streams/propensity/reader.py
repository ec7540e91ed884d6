"""The topic `propensities` as an agent reads it beside its own source: read to its end now and then.

A version holds from a minute after it was published, so whoever reads on every few seconds weighs each list by the same
version as any replay does. Before the first list, and after a restart, read to the end once.
"""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.topics import PROPENSITIES
from service.propensities import PropensityTable
from service.settings import Settings
from streams.agents.progress import log_reader, read_to_end


class PropensityReader(PropensityTable):
    """What the topic holds, as far as it was read; each agent that needs it has its own.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._next_offset = 0
        self._reading = asyncio.Lock()

    async def read_on(self) -> None:
        """Read what was written up to this moment; a topic that was made anew is read from its beginning.

        Raises:
            DependencyDown: Kafka does not answer, or does not know the topic.
        """
        async with self._reading, log_reader(self._settings) as consumer:
            await self._read_to_end(consumer, TopicPartition(self._settings.topic(PROPENSITIES), 0))

    async def _read_to_end(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        begins, ends = await consumer.beginning_offsets([partition]), await consumer.end_offsets([partition])
        if ends[partition] < self._next_offset:
            self.forget()
            self._next_offset = 0
        starts = {partition: max(self._next_offset, begins[partition])}
        async for _, record in read_to_end(consumer, starts, ends):
            self.apply(record.key or b"", record.value)
        self._next_offset = ends[partition]
