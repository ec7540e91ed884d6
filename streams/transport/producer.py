"""Faust's producer on our settings, without the two holes through which it loses records.

Agents write through `Output`, which shares this producer's connection. What Faust itself would write (table changelogs,
`topic.send`) is covered too: a flush waits for everything, and a record that Kafka refused ends the process.
"""

import asyncio
import os
from typing import Any, Final

import aiokafka
import faust
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import FutureMessage
from typing_extensions import override

EXIT_OUTPUT_LOST: Final = 70
FLUSH_POLL_S: Final = 0.005


class PatientBuffer(ProducerBuffer):
    """A buffer whose flush waits until it is empty; stock gives up after 0.1 s and lets the commit go ahead."""

    busy = False

    @override
    async def _send_pending(self, fut: FutureMessage) -> None:
        """Send one record, marked as under way."""
        try:
            self.busy = True
            await super()._send_pending(fut)
        finally:
            self.busy = False

    @override
    async def flush(self) -> None:
        """Wait until nothing is buffered or under way."""
        while self.size or self.busy:
            if self.state != "running":
                raise RuntimeError("cannot flush: the producer's buffer does not run")
            await asyncio.sleep(FLUSH_POLL_S)


class BatchProducer(driver.Producer):
    """The producer of a `BatchApp`."""

    app: Any  # a BatchApp, which would be a circular import

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop | None = None, **options: Any) -> None:
        super().__init__(transport, loop=loop, **options)
        self.buffer = PatientBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    @override
    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        """Return a producer on our settings: idempotent, acknowledged by all in-sync copies."""
        return aiokafka.AIOKafkaProducer(**self.app.producer_config)

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        """The started client, for `Output`."""
        return self._ensure_producer()


class EndOnLostOutput(faust.Sensor):
    """Ends the process where a record of Faust's own producer was refused: its input must not be committed."""

    @override
    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        """End at once; any later moment could be after a commit."""
        os._exit(EXIT_OUTPUT_LOST)
