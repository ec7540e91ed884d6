"""Follows the trail of clicks through the chain: where their pairs stand, and which releases learned from them."""

import threading
import time

from kafka import KafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts import wire
from contracts.pairs import PreferencePair
from contracts.releases import ReleaseManifest
from contracts.topics import PREFERENCE_PAIRS
from millrace.demo.freshness import FirstAnswers, PairPlace, click_to_search_s
from service.kafka import consumer_config
from service.settings import Settings

_PAIR = TypeAdapter(PreferencePair)


class ClickTrail:
    """Reads `preference-pairs` beside the trainer and keeps the first pair of every click.

    Read `pairs_seen` and `places` at any time; start and stop it once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="click-trail", daemon=True)
        self._places: dict[tuple[str, str], PairPlace] = {}
        self.pairs_seen = 0
        self.answers = FirstAnswers()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stop.set()
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
        with KafkaConsumer(**consumer_config(self._settings)) as consumer:
            name = self._settings.topic(PREFERENCE_PAIRS)
            consumer.assign([TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name))])
            while not self._stop.is_set():
                for partition, records in consumer.poll(timeout_ms=250).items():
                    for record in records:
                        self._note_pair(record.value, partition.partition, record.offset)

    def _note_pair(self, value: bytes, partition: int, offset: int) -> None:
        pair = wire.decode(value, _PAIR)
        self.pairs_seen += 1
        place = PairPlace(partition, offset, pair.event_time)
        self._places.setdefault((pair.search_id, pair.chosen.product_id), place)
