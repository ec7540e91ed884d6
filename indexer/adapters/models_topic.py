"""The topic `models` as the indexer sees it: every release by key, and `serving`, which it alone writes."""

import threading
from collections.abc import Callable
from typing import Final

from kafka import KafkaProducer

from contracts import wire
from contracts.errors import ContractError, TransientError
from contracts.releases import SERVING, SERVING_KEY, ReleaseManifest, Serving, manifest_of
from contracts.topics import MODELS
from indexer.ports import ReleaseView
from service.follow import TopicFollower
from service.kafka import OutgoingRecord, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

SHOWN_WITHIN_S: Final = 30.0


class ModelsTopic:
    """What stands on `models`, kept current by a follower.

    Args:
        settings: of the deployment.
        producer: writes `serving`.
        on_change: called in the follower's thread after each change.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._producer = producer
        self._on_change = on_change
        self._values: dict[bytes, bytes] = {}
        self._manifests: dict[bytes, ReleaseManifest] = {}
        self._serving: Serving | None = None
        self._switches = 0
        self._changed = threading.Condition()
        self.follower = TopicFollower(settings, MODELS, self.apply)

    def apply(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of the topic; one that cannot be read is said and passed over, the others go on."""
        try:
            with self._changed:
                self._take(key, value)
                self._changed.notify_all()
        except ContractError as error:
            get_logger().error("release_unreadable", key=key.decode(errors="replace"), error=error.message)
        self._on_change()

    def _take(self, key: bytes, value: bytes | None) -> None:
        if key == SERVING_KEY:
            self._take_serving(value)
        elif value is None:
            self._values.pop(key, None)
            self._manifests = {name: manifest for name, manifest in self._manifests.items() if name != key}
        else:
            self._manifests = {**self._manifests, key: manifest_of(value)}
            self._values[key] = value

    def _take_serving(self, value: bytes | None) -> None:
        """Keep the newest pair: a follower that begins again hands over what was in force long ago."""
        serving = wire.decode(value, SERVING) if value else None
        known = self._serving
        if serving is not None and (known is None or serving.published_at >= known.published_at):
            self._switches += known is None or known.collection != serving.collection
            self._serving = serving

    def view(self) -> ReleaseView:
        """Return what stands there now."""
        with self._changed:
            return ReleaseView(self._serving, self._manifests, self._switches)

    def value(self, key: bytes) -> bytes | None:
        """Return a release's bytes, None where it is not there any more."""
        with self._changed:
            return self._values.get(key)

    def publish(self, serving: Serving) -> None:
        """Put a pair in force and wait until the topic shows it, so that every decision goes by the topic alone.

        Raises:
            DependencyDown: Kafka does not acknowledge.
            TransientError: the topic does not show it in time.
        """
        record = OutgoingRecord(self._settings.topic(MODELS), wire.encode(serving), key=SERVING_KEY)
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, [record])
        with self._changed:
            if not self._changed.wait_for(lambda: self._shows(serving), SHOWN_WITHIN_S):
                raise TransientError(f"{MODELS} does not show the pair that was published")

    def _shows(self, serving: Serving) -> bool:
        return self._serving is not None and self._serving.published_at >= serving.published_at
