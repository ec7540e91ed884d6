"""A busy deployment as it is seen from outside: a view of Kafka that balances, releases on `models`, a snapshot."""

import struct
from typing import Any

import orjson

from contracts.arms import ANCHOR, LIVE, ArmCounts, ArmsProgress, PersonGroup
from contracts.comparison import GROUPS
from contracts.progress import CatalogCounts, EventCounts, JoinProgress, PairsProgress, SearchCounts
from contracts.releases import ReleaseManifest, SafetyCheck, Serving
from contracts.topics import CATALOG, JOINED_SEARCHES, PREFERENCE_PAIRS, SEARCH_EVENTS, TRAINING_SEARCHES
from contracts.wire import encode
from millrace.watch.kafka_view import KafkaView, Tail
from millrace.watch.observer import snapshot
from millrace.watch.scrape import ProcessView
from service.kafka import Committed, OffsetRange
from service.models import ModelsTable

NOW_MS = 1_795_196_006_756
PARTITIONS = range(4)


def manifest(kind: str, release: int, **changes: Any) -> ReleaseManifest:
    """Return the manifest of a release that passed its checks."""
    values: dict[str, Any] = {
        "kind": kind, "release": release, "product_release": 1, "query_release": release, "base_version": "tiny/t1",
        "dim": 4, "created_at": NOW_MS + release, "pairs_trained": 1_000 * release, "lists_trained": 300 * release,
        "offsets": {"0": 10 * release}, "weights_sha256": "0" * 64,
        "checks": (SafetyCheck(name="finite", value=1.0, limit=1.0, passed=True),), **changes,
    }  # fmt: skip
    return ReleaseManifest(**values)


def release_value(kind: str, release: int, **changes: Any) -> bytes:
    """Return a release as its record's value: a safetensors file without tensors."""
    header = orjson.dumps({"__metadata__": {"manifest": encode(manifest(kind, release, **changes)).decode()}})
    return struct.pack("<Q", len(header)) + header


def serving_value(query_release: int, product_release: int, *, published_at: int = NOW_MS) -> bytes:
    """Return the value of `serving`."""
    collection = f"products-r{product_release}"
    serving = Serving(
        query_release=query_release, product_release=product_release, collection=collection, published_at=published_at
    )
    return encode(serving)


def models_table() -> ModelsTable:
    """Return what three query releases and one product release left on `models`, one of them refused by a check."""
    table = ModelsTable()
    refused = SafetyCheck(name="overlap@10", value=0.62, limit=0.7, passed=False)
    table.apply(b"product-1", release_value("product", 1, created_at=NOW_MS))
    for number in (1, 2):
        table.apply(b"query-%d" % number, release_value("query", number))
    table.apply(b"query-3", release_value("query", 3, checks=(refused,)))
    table.apply(b"serving", serving_value(2, 1))
    return table


def join_progress(partition: int, **changes: Any) -> JoinProgress:
    """Return the progress of a join that read 1,000 records: 960 events and 40 ticks."""
    counts = EventCounts(joined=900, late=10, orphan=8, duplicate=20, dead_lettered=2, pending=20, ticks=40)
    values = {"next_offset": 1_000, "hold_offset": 970, "watermark_ms": NOW_MS, "counts": counts, **changes}
    return JoinProgress(partition=partition, **values)


def pairs_progress(partition: int, **changes: Any) -> PairsProgress:
    """Return the progress of a pairs agent that read 200 closed searches."""
    counts = SearchCounts(
        paired=120, held_out=9, filtered={"duplicate": 4, "synthetic": 7}, unpaired={"no_click": 50, "bounced": 10}
    )
    return PairsProgress(
        **{"partition": partition, "next_offset": 200, "hold_offset": 200, "counts": counts, **changes}
    )


def arms_progress(partition: int, *, lists: int = 200, lift: int = 1, **changes: Any) -> ArmsProgress:
    """Return the progress of an arms agent that counted 200 closed searches, half of them live, half the anchor's.

    Of each group of persons so many more lists were clicked on the live arm.
    """
    each = lists // 2 // GROUPS
    clicked = {arm: [each // 2 + n % 2 + (arm == LIVE) * lift for n in range(GROUPS)] for arm in (LIVE, ANCHOR)}
    counts = {arm: ArmCounts(searches=lists // 2, clicked=sum(of), value=2.0 * sum(of)) for arm, of in clicked.items()}
    groups = {
        arm: tuple(PersonGroup(searches=each, clicked=one, value=2.0 * one) for one in of)
        for arm, of in clicked.items()
    }
    values = {"next_offset": lists, "hold_offset": lists, "counts": {"counted": lists}, "groups": groups}
    arms = {arm: {"search": of} for arm, of in counts.items()}
    return ArmsProgress(**{"partition": partition, "arms": arms, **values, **changes})


def busy_kafka() -> KafkaView:
    """Return the view of four partitions in which every event and search is accounted for."""
    ends = {
        **{(SEARCH_EVENTS, number): OffsetRange(0, 1_000 + 20 * number) for number in PARTITIONS},
        **{(JOINED_SEARCHES, number): OffsetRange(0, 200 + number) for number in PARTITIONS},
        **{(PREFERENCE_PAIRS, number): OffsetRange(0, 400) for number in PARTITIONS},
        **{(TRAINING_SEARCHES, number): OffsetRange(0, 200 + number) for number in PARTITIONS},
        **{(CATALOG, number): OffsetRange(0, 1_300) for number in PARTITIONS},
    }
    counts = CatalogCounts(catalogue=1_290).model_dump_json()
    committed = {
        "trainer": {
            **{(PREFERENCE_PAIRS, number): Committed(390, "") for number in PARTITIONS},
            **{(TRAINING_SEARCHES, number): Committed(200 + number, "") for number in PARTITIONS},
        },
        "indexer": {(CATALOG, number): Committed(1_290, counts) for number in PARTITIONS},
    }
    return KafkaView(
        ends=ends,
        committed=committed,
        progress={
            "join": {number: join_progress(number) for number in PARTITIONS},
            "pairs": {number: pairs_progress(number) for number in PARTITIONS},
            "arms": {number: arms_progress(number) for number in PARTITIONS},
        },
        tails={number: Tail(events=19 * number, ticks=number) for number in PARTITIONS},
    )


def process_views() -> dict[str, ProcessView]:
    """Return what the processes answered: two are ready, one waits, one is silent."""
    return {
        "collector": ProcessView(ready=True),
        "streams": ProcessView(ready=True),
        "search": ProcessView(ready=False, reasons=("releases: models has not been read to its end yet",)),
        "indexer": ProcessView(
            ready=None, reasons=("does not answer: ConnectError",), problem="does not answer: ConnectError"
        ),
    }


def busy_snapshot() -> dict[str, Any]:
    """Return the snapshot of that deployment."""
    return snapshot(busy_kafka(), models_table().look(), process_views(), at_ms=NOW_MS, promise_s=60)
