"""Names of processes, metrics and reasons. Boards, alerts, logs and code use these and no others."""

from enum import StrEnum
from typing import Final


class Process(StrEnum):
    """Processes as they are called in `status`, logs and metrics."""

    KAFKA = "kafka"
    REDIS = "redis"
    QDRANT = "qdrant"
    COLLECTOR = "collector"
    STREAMS = "streams"
    TRAINER = "trainer"
    INDEXER = "indexer"
    SEARCH = "search"
    PAGE = "page"


DEFAULT_PORTS: Final[dict[Process, int]] = {
    Process.COLLECTOR: 8080,
    Process.SEARCH: 8081,
    Process.PAGE: 8082,
    Process.STREAMS: 9101,
    Process.TRAINER: 9102,
    Process.INDEXER: 9103,
    Process.QDRANT: 6333,
    Process.KAFKA: 9092,
    Process.REDIS: 6379,
}


class Correction(StrEnum):
    """What the collector's record says otherwise than the event that was sent."""

    CLOCK = "clock"
    """Times were moved, because the sender's clock is wrong."""
    SEARCH_TIME = "search_time"
    """It is left out, because a wrong clock leaves open which time is meant; the join goes by `search_id`."""
    PERSONAL_FIELD = "personal_field"
    """A field beyond the form is left out, because it may hold an address of a person."""


class EventOutcome(StrEnum):
    """What became of one accepted event; the terms of the event ledger."""

    JOINED = "joined"
    LATE = "late"
    ORPHAN = "orphan"
    DUPLICATE = "duplicate"
    ATTRIBUTED = "attributed"
    CATALOGUE = "catalogue"
    DEAD_LETTERED = "dead_lettered"
    PENDING = "pending"


class AsideReason(StrEnum):
    """Why an event could not be joined although its form is right."""

    AFTER_DEADLINE = "after_deadline"
    """It happened after its search's window."""
    AFTER_CLOSE = "after_close"
    """It happened in time but arrived when its search was closed."""
    NO_IMPRESSION = "no_impression"
    """Its search never showed a list."""
    WRONG_PARTITION = "wrong_partition"
    """It lies in a partition that its search does not belong to: its producer places keys otherwise than Kafka's do."""
    NO_SEARCH = "no_search"
    """It names no search."""
    UNSPLIT_PURCHASE = "unsplit_purchase"
    """An order of several lines, which the collector would have split."""


class FilterReason(StrEnum):
    """Why a closed search was kept out of learning on purpose."""

    DUPLICATE = "duplicate"
    SYNTHETIC = "synthetic"
    CONSENT = "consent"
    BOT = "bot"
    RELOAD = "reload"
    """An earlier list of the same search made all of its pairs; a pair id stands for one content."""


class UnpairedReason(StrEnum):
    """Why a closed search gave no pair although it was not filtered."""

    NO_QUERY = "no_query"
    NO_CLICK = "no_click"
    NO_REJECTED = "no_rejected"
    BOUNCED = "bounced"


class PairDropReason(StrEnum):
    """Why the trainer did not train a pair that it read."""

    DUPLICATE = "duplicate"
    UNKNOWN_PRODUCT = "unknown_product"
    UNSUPPORTED_SOURCE = "unsupported_source"
    MALFORMED = "malformed"


M_REQUESTS: Final = "millrace_requests_total"
M_REQUEST_SECONDS: Final = "millrace_request_duration_seconds"
M_ACCEPTED: Final = "millrace_events_accepted_total"
M_REJECTED: Final = "millrace_events_rejected_total"
M_CORRECTIONS: Final = "millrace_intake_corrections_total"
M_DUPLICATE: Final = "millrace_events_duplicate_total"
M_OUTCOMES: Final = "millrace_event_outcomes_total"
M_DEAD_LETTERS: Final = "millrace_dead_letters_total"
M_STAGE_WATERMARK: Final = "millrace_stage_watermark_timestamp_seconds"
M_STAGE_PROGRESS: Final = "millrace_stage_last_progress_timestamp_seconds"
M_LAG_RECORDS: Final = "millrace_consumer_lag_records"
M_JOIN_OPEN: Final = "millrace_join_open_searches"
M_SEARCH_OUTCOMES: Final = "millrace_search_outcomes_total"
M_PAIRS_BUILT: Final = "millrace_pairs_built_total"
M_PAIRS_TRAINED: Final = "millrace_pairs_trained_total"
M_PAIRS_DROPPED: Final = "millrace_pairs_dropped_total"
M_TRAIN_STEPS: Final = "millrace_train_steps_total"
M_TRAIN_STEP_SECONDS: Final = "millrace_train_step_duration_seconds"
M_TRAIN_LOSS: Final = "millrace_train_loss"
M_GRADIENT_NORM: Final = "millrace_train_gradient_norm"
M_CHECKPOINT_TIME: Final = "millrace_checkpoint_last_success_timestamp_seconds"
M_RELEASES: Final = "millrace_releases_total"
M_RELEASE_INFO: Final = "millrace_release_in_force"
M_INDEX_WRITES: Final = "millrace_index_writes_total"
M_INDEX_WRITE_SECONDS: Final = "millrace_index_write_duration_seconds"
M_INDEX_POINTS: Final = "millrace_index_points"
M_ROLLOVER: Final = "millrace_rollover_progress_ratio"
M_FRESHNESS: Final = "millrace_freshness_seconds"
M_SEARCH_SECONDS: Final = "millrace_search_duration_seconds"
M_IMPRESSIONS: Final = "millrace_impressions_total"
M_DEGRADED: Final = "millrace_degraded_total"
M_DEPENDENCY_UP: Final = "millrace_dependency_up"
M_LEDGER_BALANCE: Final = "millrace_ledger_balance_records"
M_LEDGER: Final = "millrace_ledger_records"

FRESHNESS_PATHS: Final = ("click_to_search", "product_to_search")
FRESHNESS_BUCKETS_S: Final = (0.25, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 120, 300, 600, 900, 1800)
