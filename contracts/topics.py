"""Every Kafka topic and consumer group of Millrace, in one table."""

from dataclasses import dataclass
from typing import Final, Literal

Cleanup = Literal["delete", "compact"]

DAY_MS: Final = 86_400_000
LARGE_RECORD_BYTES: Final = 2 * 1024 * 1024
"""Room for the largest record that a shop may send plus what we add to it: outcomes per slot, or headers."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic.

    Args:
        name: without the deployment's prefix.
        key: what the record key is, in words; keys are raw UTF-8 bytes, partitioned by murmur2.
        cleanup: Kafka's cleanup policy.
        keyed: True where the partition count is the deployment's `partitions`, False for a single partition.
        retention_ms: how long records are kept where cleanup is `delete`.
        log_append_time: True where the broker stamps the records.
        max_message_bytes: largest record.
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
HOLDOUT_SEARCHES: Final = "holdout-searches"
CURATED_PAIRS: Final = "curated-pairs"
PROPENSITIES: Final = "propensities"
CATALOG: Final = "catalog"
PRODUCT_VECTORS: Final = "product-vectors"
MODELS: Final = "models"
JOIN_PROGRESS: Final = "join-progress"
PAIRS_PROGRESS: Final = "pairs-progress"
LATE_EVENTS: Final = "late-events"
ORPHAN_EVENTS: Final = "orphan-events"
DEAD_LETTERS: Final = "dead-letters"

TOPICS: Final[tuple[TopicSpec, ...]] = (
    TopicSpec(SEARCH_EVENTS, key="search_id", log_append_time=True),
    TopicSpec(JOINED_SEARCHES, key="session_id, else search_id", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(PREFERENCE_PAIRS, key="search_id"),
    TopicSpec(HOLDOUT_SEARCHES, key="search_id"),
    TopicSpec(CURATED_PAIRS, key="query"),
    TopicSpec(PROPENSITIES, key="cell + version", cleanup="compact", keyed=False),
    TopicSpec(CATALOG, key="product_id", cleanup="compact", log_append_time=True),
    TopicSpec(PRODUCT_VECTORS, key="product_id", cleanup="compact"),
    TopicSpec(
        MODELS,
        key="query-N, product-N or serving",
        cleanup="compact",
        keyed=False,
        log_append_time=True,
        max_message_bytes=16 * 1024 * 1024,
    ),
    TopicSpec(JOIN_PROGRESS, key="partition", cleanup="compact"),
    TopicSpec(PAIRS_PROGRESS, key="partition", cleanup="compact"),
    TopicSpec(LATE_EVENTS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(ORPHAN_EVENTS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
    TopicSpec(DEAD_LETTERS, key="as the source record", max_message_bytes=LARGE_RECORD_BYTES),
)

TOPIC_BY_NAME: Final = {spec.name: spec for spec in TOPICS}

GROUP_PREFIX: Final = "millrace-"
GROUP_TOPICS: Final[dict[str, tuple[str, ...]]] = {"trainer": (PREFERENCE_PAIRS,), "indexer": (CATALOG,)}
"""What each consumer group reads and commits, groups without `millrace-`; the agents' are in `streams/registry.py`."""
