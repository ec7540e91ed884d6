"""What a batch of catalogue records changes, as tables."""

import pytest

from contracts.progress import CatalogCounts
from indexer.core.base_vectors import BaseProduct
from indexer.core.planner import CatalogRecord, Lane, PartitionProgress, Plan, advance, payload_of, plan_batch
from tests.support.indexer_fakes import TIME_MS, base_product, record
from tests.support.indexing import deleted, product
from tests.support.tiny_encoder import TinyEncoder

ENCODER = TinyEncoder()


def plan(*records: CatalogRecord, known: BaseProduct | None = None) -> Plan:
    """Return the plan of a batch, knowing one product at most."""
    return plan_batch(records, lambda product_id: known if known and known.product_id == product_id else None)


def versions(found: Plan) -> dict[str, int]:
    """Return which version of each product is applied."""
    return {change.message.product_id: change.message.version for change in found.changes}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_only_the_newest_of_a_product_is_applied_whatever_the_order(order: tuple[int, ...]) -> None:
    """Three versions in one batch make one change; the other two are counted as stale."""
    found = plan(*(record(product("P-1", version), offset) for offset, version in enumerate(order)))
    assert versions(found) == {"P-1": 3}
    assert found.stale_count == 2


def test_new_products_and_deletions_go_ahead_of_refreshes() -> None:
    """What shoppers cannot find yet, or must not find any more, does not wait behind newer texts."""
    known = base_product(ENCODER, "P-1")
    found = plan(record(product("P-1", 2)), record(product("P-2")), record(deleted("P-3")), known=known)
    assert [[change.message.product_id for change in lane] for lane in found.lanes()] == [["P-2", "P-3"], ["P-1"]]
    assert [lane[0].lane for lane in found.lanes()] == [Lane.URGENT, Lane.REFRESH]


def test_a_product_listed_again_after_its_deletion_is_new() -> None:
    """A shopper cannot find it: it is as urgent as a launch."""
    found = plan(record(product("P-1", 3)), known=BaseProduct("P-1", 2, ENCODER.base_version))
    assert found.changes[0].lane == Lane.URGENT


def test_an_older_version_than_known_is_stale() -> None:
    """Nothing is written and the record is counted."""
    found = plan(record(product("P-1", 1)), known=base_product(ENCODER, "P-1", 2))
    assert (found.changes, found.stale_count) == ((), 1)


def test_the_known_version_is_a_repeat() -> None:
    """It is written again, because a crash may have come between its base vector and its point."""
    found = plan(record(product("P-1", 2)), known=base_product(ENCODER, "P-1", 2))
    assert found.changes[0].is_repeat


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "malformed_json"),
        (b'{"type":"product","product_id":"P-1","version":1}', "missing"),
        (b'{"type":"product","product_id":"P-1","version":-1,"title":"x"}', "out_of_range"),
        (b'{"type":"product","product_id":"P-1","version":9007199254740992,"title":"x"}', "out_of_range"),
        (b'{"type":"product","product_id":"P-1","version":1,"title":"x","price":"9"}', "wrong_type"),
        (b'{"type":"offer","product_id":"P-1","version":1,"title":"x"}', "unknown_type"),
        (b'{"type":"product","product_id":"P-1","version":1,"title":"x","schema_version":9}', "unsupported_schema"),
    ],
)
def test_a_record_that_breaks_the_contract_is_refused_alone(value: bytes, reason: str) -> None:
    """The reason is stable, the bytes stay as they came, and the others of the batch go on."""
    found = plan(record(value, 0), record(product("P-2"), 1))
    assert [(refusal.reason, refusal.record.value) for refusal in found.refusals] == [(reason, value)]
    assert versions(found) == {"P-2": 1}


def test_records_without_a_value_change_nothing() -> None:
    """They clean the topic; the product stays until a deletion with a version comes."""
    found = plan(record(None), known=base_product(ENCODER, "P-1"))
    assert (found.changes, len(found.nulls)) == ((), 1)


def test_freshness_counts_from_the_version_that_is_applied() -> None:
    """Each change carries the time at which Kafka took in that very version."""
    old = CatalogRecord(0, 0, TIME_MS - 9_000, b"P-1", record(product("P-1", 1)).value)
    assert plan(old, record(product("P-1", 2), 1)).timestamps_ms == {"P-1": TIME_MS}


def test_payload_says_what_the_index_is_filtered_by() -> None:
    """Stock is a number, as the index stores it."""
    payload = payload_of(product(brand="Kelto", price=3.5, in_stock=False, category=("A", "B"), locale="en-IN"))
    assert payload.model_dump(exclude_none=True) == {
        "title": "quiet fridge",
        "category": ("A", "B"),
        "brand": "Kelto",
        "price": 3.5,
        "in_stock": 0,
        "priority": 0.0,
        "locale": "en-IN",
    }


def test_progress_counts_every_offset_once() -> None:
    """Read, refused and compacted-away offsets sum to the way covered; a record read again adds nothing."""
    start = PartitionProgress(10, CatalogCounts(start_offset=10))
    read = [record(product("P-1"), 12), record(b"{", 13), record(None, 14)]
    after = advance(start, read, frozenset({13}))
    assert after == PartitionProgress(15, CatalogCounts(catalogue=4, dead_lettered=1, start_offset=10))
    assert advance(after, read, frozenset({13})) == after
