"""Kafka topics and consumer groups in one table, the partition of a key, and the headers of set-aside records."""

import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, Literal

Cleanup = Literal["delete", "compact"]

DAY_MS: Final = 86_400_000
MOST_SENT_BYTES: Final = 900_000
"""What a shop may send as one record, unpacked: `max.message.bytes` bounds packed ones, and ten times as much may be in
them. Room is left for Kafka's envelope and a base vector."""
LARGE_RECORD_BYTES: Final = 2 * 1024 * 1024
"""Room for the largest record that a shop may send plus what we add to it: outcomes per slot, or headers."""
MOST_ASIDE_BYTES: Final = LARGE_RECORD_BYTES - 64 * 1024
"""Of a record that is set aside, key and value together; the rest is for headers."""
MOST_ASIDE_KEY_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic; its name is without the deployment's prefix.

    Keys are raw UTF-8 bytes, partitioned by murmur2; `key` says what they are. A topic that is not `keyed` has a single
    partition. With `log_append_time` the broker stamps the records.
    """

    name: str
    key: str
    cleanup: Cleanup = "delete"
    keyed: bool = True
    retention_ms: int = 14 * DAY_MS
    log_append_time: bool = False
    max_message_bytes: int = 1_048_588

    def config(self) -> dict[str, str]:
        """Return the broker-side topic configuration."""
        config = {"cleanup.policy": self.cleanup, "max.message.bytes": str(self.max_message_bytes)}
        if self.cleanup == "delete":
            config["retention.ms"] = str(self.retention_ms)
        if self.log_append_time:
            config["message.timestamp.type"] = "LogAppendTime"
        return config


SEARCH_EVENTS: Final = "search-events"
JOINED_SEARCHES: Final = "joined-searches"
PREFERENCE_PAIRS: Final = "preference-pairs"
TRAINING_SEARCHES: Final = "training-searches"
HOLDOUT_SEARCHES: Final = "holdout-searches"
CURATED_PAIRS: Final = "curated-pairs"
GOLDEN_QUERIES: Final = "golden-queries"
PROPENSITIES: Final = "propensities"
CATALOG: Final = "catalog"
PRODUCT_VECTORS: Final = "product-vectors"
MODELS: Final = "models"
JOIN_PROGRESS: Final = "join-progress"
PAIRS_PROGRESS: Final = "pairs-progress"
PROPENSITY_PROGRESS: Final = "propensity-progress"
ATTRIBUTION_PROGRESS: Final = tuple(f"attribution{part}-progress" for part in ("", "-orphans", "-pairs", "-clicks"))
ARMS_PROGRESS: Final = "arms-progress"
LATE_EVENTS: Final = "late-events"
ORPHAN_EVENTS: Final = "orphan-events"
DEAD_LETTERS: Final = "dead-letters"

TOPICS: Final[tuple[TopicSpec, ...]] = (
    TopicSpec(SEARCH_EVENTS, key="search_id", log_append_time=True),
    TopicSpec(JOINED_SEARCHES, key="session_id, else search_id", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(PREFERENCE_PAIRS, key="search_id"),
    TopicSpec(TRAINING_SEARCHES, key="search_id"),
    TopicSpec(HOLDOUT_SEARCHES, key="search_id"),
    TopicSpec(CURATED_PAIRS, key="query"),
    TopicSpec(GOLDEN_QUERIES, key="normalised query", cleanup="compact", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(PROPENSITIES, key="cell + version", cleanup="compact", keyed=False),
    TopicSpec(CATALOG, key="product_id", cleanup="compact", log_append_time=True),
    TopicSpec(PRODUCT_VECTORS, key="product_id", cleanup="compact"),
    TopicSpec(
        MODELS,
        key="query-N, product-N, serving, rollback, decisions or promotion",
        cleanup="compact",
        keyed=False,
        log_append_time=True,
        max_message_bytes=16 * 1024 * 1024,
    ),
    TopicSpec(JOIN_PROGRESS, key="partition", cleanup="compact"),
    TopicSpec(PAIRS_PROGRESS, key="partition", cleanup="compact"),
    # Every process makes those of all agents: who watches must not wait for a worker that runs them.
    *(
        TopicSpec(name, key="partition", cleanup="compact")
        for name in (PROPENSITY_PROGRESS, *ATTRIBUTION_PROGRESS, ARMS_PROGRESS)
    ),
    TopicSpec(LATE_EVENTS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(ORPHAN_EVENTS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(DEAD_LETTERS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
)

TOPIC_BY_NAME: Final = {spec.name: spec for spec in TOPICS}

GROUP_PREFIX: Final = "millrace-"
GROUP_TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "trainer": (TRAINING_SEARCHES, PREFERENCE_PAIRS, CURATED_PAIRS),
    "indexer": (CATALOG,),
}
"""What each consumer group reads and commits, groups without `millrace-`; the agents' are in `streams/registry.py`."""


@lru_cache(maxsize=16_384)
def partition_for(key: bytes, partitions: int) -> int:
    """Give a key's partition as Kafka's Java clients and all of ours choose it: by murmur2 (Appleby, 32 bits).

    Most keys come several times: those of a session or a search.

    >>> partition_for(b"k1", 4)
    1
    """
    mix, mask = 0x5BD1E995, 0xFFFFFFFF
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        mixed = word * mix & mask
        hashed = hashed * mix & mask ^ (mixed ^ mixed >> 24) * mix & mask
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * mix & mask
    hashed = (hashed ^ hashed >> 13) * mix & mask
    return (hashed ^ hashed >> 15) % 0x80000000 % partitions


def belongs(key: bytes | None, partition: int, partitions: int) -> bool:
    """Tell whether a record lies where others with its key lie; one without a key belongs nowhere.

    librdkafka's default partitioner (CRC-32) puts most keys elsewhere, and the join then never sees them together.

    >>> belongs(b"k1", 1, 4), belongs(b"k1", 2, 4), belongs(None, 1, 4)
    (True, False, False)
    """
    return key is not None and partition_for(key, partitions) == partition


MAX_ERROR_CHARS: Final = 1000


class AsideHeader(StrEnum):
    """Headers of a record on `dead-letters`, `late-events` or `orphan-events`; value and key as `kept_aside`."""

    ID = "millrace.id"
    """Made of the origin alone: a record that is set aside twice, after a crash, is recognised as one."""
    ORIGIN_TOPIC = "millrace.origin.topic"
    ORIGIN_PARTITION = "millrace.origin.partition"
    ORIGIN_OFFSET = "millrace.origin.offset"
    STAGE = "millrace.stage"
    REASON = "millrace.reason"
    ERROR = "millrace.error"


AGAIN_HEADER: Final = "millrace.again"
"""Of a record on `catalog` that was sent again: vector and point are made anew, although this version is known."""


def kept_aside(key: bytes | None, value: bytes | None) -> tuple[bytes | None, bytes]:
    """What stays of a record that is set aside: all, its key alone, or nothing, as far as its topic takes it.

    A value is not kept without its key: sent again, it would be another record, or one that a compacted topic refuses.
    """
    if len(key or b"") + len(value or b"") <= MOST_ASIDE_BYTES:
        return key, value or b""
    return (None if len(key or b"") > MOST_ASIDE_KEY_BYTES else key), b""


def set_aside_headers(
    topic: str, partition: int, offset: int, *, stage: str, reason: str, error: str = ""
) -> list[tuple[str, bytes]]:
    """Say in headers where a record stood and why it was set aside.

    `stage` set it aside (`join`, `pairs`, `trainer`, `indexer`), for a `reason` that is a stable word for counters;
    `error` is a sentence for people, cut at 1,000 characters.

    >>> dict(set_aside_headers("catalog", 2, 7, stage="indexer", reason="missing"))["millrace.id"]
    b'indexer:catalog:2:7'
    """
    headers = {
        AsideHeader.ID: f"{stage}:{topic}:{partition}:{offset}",
        AsideHeader.ORIGIN_TOPIC: topic,
        AsideHeader.ORIGIN_PARTITION: str(partition),
        AsideHeader.ORIGIN_OFFSET: str(offset),
        AsideHeader.STAGE: stage,
        AsideHeader.REASON: reason,
        AsideHeader.ERROR: error[:MAX_ERROR_CHARS],
    }
    # aiokafka takes names that are of the type str itself, no subclass.
    return [(header.value, text.encode(errors="replace")) for header, text in headers.items()]
