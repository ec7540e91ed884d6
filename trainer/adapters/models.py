"""`models`: what has been released and what is in force, and the writing of releases."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from kafka import KafkaProducer

from contracts import wire
from contracts.errors import ContractError
from contracts.releases import SERVING, SERVING_KEY, Serving, manifest_of
from contracts.topics import MODELS
from service.kafka import OutgoingRecord, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

KINDS: Final = ("query", "product")


class ModelsTable:
    """The newest value of every key of `models`; fed by a follower's thread, read by the loop's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, bytes] = {}
        self._seen: set[str] = set()
        self._first_queries: dict[int, int] = {}
        self._serving: Serving | None = None

    def on_record(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record; one that breaks its contract is named in the log and changes nothing."""
        try:
            if key == SERVING_KEY:
                self._set_serving(value)
            else:
                self._set_release(key.decode(), value)
        except (ContractError, ValueError) as error:
            get_logger().warning("record on models refused", key=repr(key), error=str(error))

    def serving(self) -> Serving | None:
        """Return the pair in force, None where the topic names none."""
        return self._serving

    def value(self, key: str) -> bytes | None:
        """Return a release's bytes, None where it is unknown or retired."""
        return self._values.get(key)

    def seen(self, key: str) -> bool:
        """Return whether a release ever stood there, retired ones included."""
        return key in self._seen

    def keys(self) -> Sequence[str]:
        """Return the releases that stand there."""
        with self._lock:
            return sorted(self._values)

    def first_queries(self) -> Mapping[int, int]:
        """Return, for each product release that stands there, its first query release."""
        with self._lock:
            return dict(self._first_queries)

    def highest(self, kind: str) -> int:
        """Return the highest number that a kind of release ever had there, 0 where none."""
        with self._lock:
            return max((_number(key) for key in self._seen if key.startswith(f"{kind}-")), default=0)

    def _set_serving(self, value: bytes | None) -> None:
        """Keep the newest pair: a follower that begins again hands over what was in force long ago.

        An old pair taken for the one in force would make the trainer begin again from it and forget what it learned.
        """
        serving, known = None if value is None else wire.decode(value, SERVING), self._serving
        if serving is not None and (known is None or serving.published_at >= known.published_at):
            self._serving = serving

    def _set_release(self, key: str, value: bytes | None) -> None:
        """Take a release or its retirement."""
        if key.partition("-")[0] not in KINDS:
            raise ValueError("neither a release nor `serving`")
        number = _number(key)
        manifest = None if value is None else manifest_of(value)
        with self._lock:
            self._seen.add(key)
            if value is None or manifest is None:
                self._values.pop(key, None)
                if key.startswith("product-"):
                    self._first_queries.pop(number, None)
                return
            self._values[key] = value
            if manifest.kind == "product":
                self._first_queries[number] = manifest.query_release


class KafkaReleases:
    """Writes releases and tombstones.

    Args:
        settings: of the deployment.
        producer: acknowledged by all in-sync copies.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        self._settings = settings
        self._topic = settings.topic(MODELS)
        self._producer = producer

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases in the order given and wait for the acknowledgement."""
        self._write([OutgoingRecord(self._topic, value, key=key.encode()) for key, value in values.items()])
        get_logger().info("releases published", releases=list(values))

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones and wait for the acknowledgement."""
        self._write([OutgoingRecord(self._topic, None, key=key.encode()) for key in keys])

    def _write(self, records: Sequence[OutgoingRecord]) -> None:
        """Produce and wait."""
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, records)


def _number(key: str) -> int:
    """Return a release's number."""
    return int(key.partition("-")[2])
