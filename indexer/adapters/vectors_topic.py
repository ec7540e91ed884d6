"""`product-vectors` and `dead-letters`: what the catalogue lane keeps before its offset moves."""

from collections.abc import Sequence
from typing import Final

from kafka import KafkaProducer
from pydantic import TypeAdapter

from contracts import wire
from contracts.catalog import ProductVector
from contracts.errors import ContractError
from contracts.topics import CATALOG, DEAD_LETTERS, PRODUCT_VECTORS, set_aside_headers
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.planner import Refusal
from service.follow import TopicFollower
from service.kafka import OutgoingRecord, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

STAGE: Final = "indexer"
_CONTRACT: Final = TypeAdapter(ProductVector)


class VectorsTopic:
    """Writes acknowledged records.

    Args:
        settings: of the deployment.
        producer: idempotent, acknowledged by all copies.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        self._settings = settings
        self._producer = producer

    def publish(self, vectors: Sequence[ProductVector]) -> None:
        """Write base vectors under their product ids.

        Raises:
            DependencyDown: Kafka does not acknowledge.
        """
        topic = self._settings.topic(PRODUCT_VECTORS)
        self._produce([OutgoingRecord(topic, wire.encode(one), key=one.product_id.encode()) for one in vectors])

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Write refused records to `dead-letters`, bytes as they came, where they stood and why in the headers.

        Raises:
            DependencyDown: Kafka does not acknowledge.
        """
        topic = self._settings.topic(DEAD_LETTERS)
        self._produce([_dead_letter(topic, refusal) for refusal in refusals])

    def _produce(self, records: list[OutgoingRecord]) -> None:
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, records)


def _dead_letter(topic: str, refusal: Refusal) -> OutgoingRecord:
    record = refusal.record
    headers = set_aside_headers(
        CATALOG, record.partition, record.offset, stage=STAGE, reason=refusal.reason, error=refusal.error
    )
    return OutgoingRecord(topic, record.value, key=record.key, headers=headers)


def vectors_follower(settings: Settings, vectors: BaseVectors) -> TopicFollower:
    """Return a follower that keeps base vectors current, this indexer's and those of the others of its group."""

    def take(key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record; one that only somebody else can have written is said and passed over."""
        if value is None:
            return
        try:
            vectors.apply(BaseProduct.from_message(wire.decode(value, _CONTRACT)))
        except ContractError as error:
            get_logger().error("product_vector_unreadable", key=key.decode(errors="replace"), error=error.message)

    return TopicFollower(settings, PRODUCT_VECTORS, take)
