"""Everything that the indexer writes to Kafka, each write acknowledged before it returns."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from kafka import KafkaProducer

from contracts import wire
from contracts.dead_letters import set_aside_headers
from contracts.releases import SERVING_KEY, Serving
from contracts.topics import CATALOG, DEAD_LETTERS, MODELS, PRODUCT_VECTORS
from indexer.core.changes import Refused
from service import metrics
from service.kafka import OutgoingRecord, produce_all, producer_config, translate_kafka_errors
from service.settings import Settings

STAGE: Final = "indexer"


class Outbox:
    """Writes base vectors, dead letters and `serving`.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with translate_kafka_errors(settings):
            self._producer = KafkaProducer(**producer_config(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._producer.close(timeout=5)

    def publish(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Write (product_id, value) records to `product-vectors`."""
        topic = self._settings.topic(PRODUCT_VECTORS)
        self._send([OutgoingRecord(topic, value, key=name.encode()) for name, value in records])

    def set_aside(self, refused: Sequence[Refused]) -> None:
        """Write records that are no catalogue changes to the dead letters, untouched."""
        topic = self._settings.topic(DEAD_LETTERS)
        for one in refused:
            metrics.DEAD_LETTERS.labels(stage=STAGE, reason=one.reason).inc()
        self._send(
            [OutgoingRecord(topic, one.record.value, key=one.record.key, headers=_headers(one)) for one in refused]
        )

    def serve(self, serving: Serving) -> None:
        """Publish the pair in force."""
        self._send([OutgoingRecord(self._settings.topic(MODELS), wire.encode(serving), key=SERVING_KEY)])

    def _send(self, records: Sequence[OutgoingRecord]) -> None:
        if records:
            with translate_kafka_errors(self._settings):
                produce_all(self._producer, records)


def _headers(one: Refused) -> list[tuple[str, bytes]]:
    record = one.record
    return set_aside_headers(CATALOG, record.partition, record.offset, stage=STAGE, reason=one.reason, error=one.error)
