"""Names of processes and reasons. Boards, alerts, logs and code use these and no others."""

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
    SORTED = "sorted"
    """The shopper had it sorted: position is no sign of relevance, and what was passed over may only be dear."""
    RELOAD = "reload"
    """What was chosen had been chosen in an earlier list of the same search; a pair id stands for one content."""
    ROBOT = "robot"
    """The rate, the regularity or the clicks of its session are no person's."""
    REPEATED = "repeated"
    """The same shopper saw the same page of the same query less than half an hour before."""
    CAPPED = "capped"
    """The shopper has shown more lists within a day than one may count."""
    REFORMULATED = "reformulated"
    """The shopper clicked nothing and typed something else within seconds."""


class UnpairedReason(StrEnum):
    """Why a closed search gave no pair although it was not filtered."""

    NO_QUERY = "no_query"
    NO_CLICK = "no_click"
    NO_REJECTED = "no_rejected"
    BOUNCED = "bounced"
    NOT_NEW = "not_new"
    """What was clicked does not count: the same shopper's clicks on it have."""


class Filter(StrEnum):
    """What keeps lists or products of lists out of learning by the shopper's other lists; each can be switched off."""

    ROBOTS = "robots"
    REPEATS = "repeats"
    CAPS = "caps"
    VARIANTS = "variants"
    LATER_CLICKS = "later_clicks"
    REFORMULATIONS = "reformulations"


FILTERS_ON: Final = (Filter.ROBOTS, Filter.REPEATS, Filter.CAPS)
"""Unless a shop says otherwise: the others were not shown to make a difference (docs/experiments.md)."""


class OutOfTime(StrEnum):
    """How a list was decided otherwise than in the order of event time."""

    WITHOUT_SILENT = "without_silent"
    """Without a join that had fallen silent."""
    FOR_WANT_OF_ROOM = "for_want_of_room"
    """Because too many lists waited."""
    BEHIND_TIME = "behind_time"
    """It came when one had been decided that it could have changed: a later one, or one that looks ahead."""


class SlotReason(StrEnum):
    """Why a slot of a list that may be learned from counts neither for its product nor against it."""

    PLACED = "placed"
    """Sponsored or pinned: it did not stand there by its rank."""
    SOLD_OUT = "sold_out"
    BOUNCED = "bounced"
    """The shopper came straight back."""
    ENGAGED_ELSEWHERE = "engaged_elsewhere"
    """The shopper took the product in another slot of this list, which does not count."""
    UNSEEN = "unseen"
    """The page tells what was visible, and this was not."""
    VARIANT = "variant"
    """A variant of it was clicked."""
    REPEATED_CLICK = "repeated_click"
    """The same shopper's clicks on it have counted: once a day for a query, five times over all."""
    LATER_CLICKED = "later_clicked"
    """The shopper clicked it shortly afterwards for a like query."""


class UnmatchedReason(StrEnum):
    """Why a late cart or purchase raised no pair."""

    NO_PAIR = "no_pair"
    """Nothing is remembered of the search that it names, nor of a click on the product in its session."""
    EXPIRED = "expired"
    """The click was more than a day before."""
    NO_MEMORY = "no_memory"
    """Redis was away for so long that there was no room to wait."""


class LeftReason(StrEnum):
    """Why attribution has nothing to do with a record."""

    OTHER_TYPE = "other_type"
    """It is neither a cart nor a purchase."""
    REPEATED = "repeated"
    """The join was killed and wrote it once more."""
    DUPLICATE = "duplicate"
    """The event, or this line of the order, has come before."""
    SYNTHETIC = "synthetic"
    CONSENT = "consent"
    OTHER_SOURCE = "other_source"
    """A pair that no click made."""
    NO_SESSION = "no_session"
    NO_CLICK = "no_click"


class NoEvidenceReason(StrEnum):
    """Why a closed search says nothing of how positions are looked at."""

    DUPLICATE = "duplicate"
    FILTERED = "filtered"
    """It is synthetic, without consent, or sorted by the shopper."""
    NOT_EXPLORED = "not_explored"
    """Its products may stand where they do because of clicks: neither swapped, nor of a frozen ranking."""
    NO_PAIR = "no_pair"
    """It shows no two slots on its first page that stood there by rank, or none that were exchanged."""
    TOO_MANY_CELLS = "too_many_cells"
    """Its surface, device or layout is new, and there is no room for more."""


class PairDropReason(StrEnum):
    """Why a pair that the trainer read is no evidence."""

    DUPLICATE = "duplicate"
    NO_QUERY = "no_query"
    EXPIRED = "expired"
    """A pair of a rule that had ended when it was written; so has what was said of the same before."""
    TOO_MANY_RULES = "too_many_rules"
    MALFORMED = "malformed"


class ListOutcome(StrEnum):
    """What became of a training search that the trainer read."""

    LEARNED = "learned"
    DUPLICATE = "duplicate"
    NO_QUERY = "no_query"
    """Its query holds no letter and no digit."""
    MALFORMED = "malformed"


class AuditDifference(StrEnum):
    """What an audit finds different, of one product, between what the shop sent and what search answers from."""

    RECORD_UNREADABLE = "record_unreadable"
    """It is found, and of what the catalogue holds of it nothing can be read."""
    VECTOR_MISSING = "vector_missing"
    """Nothing of it is on `product-vectors`."""
    VECTOR_STALE = "vector_stale"
    """It is of an older version than the catalogue's."""
    VECTOR_EXTRA = "vector_extra"
    """Nobody sent the product."""
    VECTOR_CONTENT = "vector_content"
    """It was made of another content than the catalogue has under this version."""
    VECTOR_BASE = "vector_base"
    """It was encoded by another base than the one in force."""
    VECTOR_WRONG = "vector_wrong"
    """Encoded again, on a sample, it comes out otherwise."""
    POINT_MISSING = "point_missing"
    """The product is not in the index."""
    POINT_STALE = "point_stale"
    """It is of an older version than the catalogue's."""
    POINT_EXTRA = "point_extra"
    """It is found, and nobody sent it."""
    POINT_DELETED_FOUND = "point_deleted_found"
    """It is found, although the shop has deleted it."""
    POINT_NO_TOMBSTONE = "point_no_tombstone"
    """Nothing keeps an older write from bringing a deleted product back."""
    POINT_BASE = "point_base"
    """It is of another base than the one in force."""
    POINT_TEXT = "point_text"
    """It is of another text than its vector."""
    POINT_WRONG = "point_wrong"
    """It holds, on a sample, other numbers than its vector and its words."""
    QUALITY_WRONG = "quality_wrong"
    """It holds, on a sample, another quality than the product release in force says."""


M_FRESHNESS: Final = "millrace_freshness_seconds"

FRESHNESS_PATHS: Final = ("click_to_search", "product_to_search")
FRESHNESS_BUCKETS_S: Final = tuple(float(f"{6 * 10 ** (step / 13):.3g}") for step in range(-28, 38))
"""From 42 ms to 70 min. Quantiles are read from these, and no bound is more than a fifth above the one before it."""
