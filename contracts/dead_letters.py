"""Headers of a record that was set aside: on `dead-letters`, `late-events` and `orphan-events` alike.

The value and the key stay as they came; where they stood and why they were set aside stands in the headers. The id is
made of the origin alone, so that a record set aside twice (after a crash) is recognised as one.
"""

from typing import Final

ID: Final = "millrace.id"
ORIGIN_TOPIC: Final = "millrace.origin.topic"
ORIGIN_PARTITION: Final = "millrace.origin.partition"
ORIGIN_OFFSET: Final = "millrace.origin.offset"
STAGE: Final = "millrace.stage"
REASON: Final = "millrace.reason"
ERROR: Final = "millrace.error"
MAX_ERROR_CHARS: Final = 1000

Headers = list[tuple[str, bytes]]


def set_aside_headers(topic: str, partition: int, offset: int, *, stage: str, reason: str, error: str = "") -> Headers:
    """Return the headers of a record that was set aside.

    Args:
        topic: where it stood, without the deployment's prefix.
        partition: likewise.
        offset: likewise.
        stage: who set it aside: `join`, `pairs`, `trainer`, `indexer`.
        reason: stable word for counters.
        error: sentence for people; cut at 1,000 characters.

    >>> dict(set_aside_headers("catalog", 2, 7, stage="indexer", reason="missing"))["millrace.id"]
    b'indexer:catalog:2:7'
    """
    return [
        (ID, f"{stage}:{topic}:{partition}:{offset}".encode()),
        (ORIGIN_TOPIC, topic.encode()),
        (ORIGIN_PARTITION, b"%d" % partition),
        (ORIGIN_OFFSET, b"%d" % offset),
        (STAGE, stage.encode()),
        (REASON, reason.encode()),
        (ERROR, error[:MAX_ERROR_CHARS].encode(errors="replace")),
    ]
