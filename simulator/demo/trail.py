"""Follows the trail of clicks through the chain: where their pairs stand, and which releases learned from them."""

import threading
import time
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import DependencyDown, MillraceError
from contracts.pairs import PreferencePair
from contracts.releases import ReleaseManifest
from contracts.topics import PREFERENCE_PAIRS
from service.kafka import consumer_config, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from simulator.demo.freshness import FirstAnswers, PairPlace, click_to_search_s

POLL_MS: Final = 250
_PAIR: Final = TypeAdapter(PreferencePair)


class ClickTrail:
    """Reads `preference-pairs` beside the trainer and keeps the first pair of every click.

    Ask it at any time; start and stop it once. What ended it by itself is kept in `failure`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="click-trail", daemon=True)
        self._places: dict[tuple[str, str], PairPlace] = {}
        self.pairs_seen = 0
        self.answers = FirstAnswers()
        self.failure: MillraceError | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; harmless when it was never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def note_answer(self, query_release: int) -> None:
        """Note that search has just answered with this release."""
        self.answers.note(query_release, int(time.time() * 1000))

    def clicks_with_pairs(self) -> int:
        """Return how many clicks gave at least one pair."""
        return len(self._places)

    def click_to_search_s(self, manifests: dict[int, ReleaseManifest]) -> list[float]:
        """Return seconds from click to the first answer that had learned from it, for the clicks covered so far."""
        return click_to_search_s(list(self._places.values()), dict(self.answers.seen), manifests)

    def _run(self) -> None:
        try:
            with translate_kafka_errors(self._settings), KafkaConsumer(**consumer_config(self._settings)) as consumer:
                self._read(consumer)
        except MillraceError as exc:
            get_logger().error("click trail lost", error=exc.message, fix=exc.fix)
            self.failure = exc

    def _read(self, consumer: KafkaConsumer) -> None:
        name = self._settings.topic(PREFERENCE_PAIRS)
        numbers = consumer.partitions_for_topic(name)
        if not numbers:
            raise DependencyDown(f"Kafka does not know the topic {name}", fix="a restart of any service creates it")
        consumer.assign([TopicPartition(name, number) for number in sorted(numbers)])
        while not self._stop.is_set():
            for partition, records in consumer.poll(timeout_ms=POLL_MS).items():
                for record in records:
                    self.note_pair(record.value, partition.partition, record.offset)

    def note_pair(self, value: bytes, partition: int, offset: int) -> None:
        """Take one record of `preference-pairs`; of a click only its first pair is kept.

        Raises:
            MalformedMessage: it is no pair.
        """
        pair = wire.decode(value, _PAIR)
        self.pairs_seen += 1
        place = PairPlace(partition, offset, pair.event_time)
        self._places.setdefault((pair.search_id, pair.chosen.product_id), place)
