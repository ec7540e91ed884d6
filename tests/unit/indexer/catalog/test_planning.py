"""What a batch of catalogue records changes, as tables."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.catalog import ProductDeleted
from contracts.progress import CatalogCounts
from contracts.topics import MOST_SENT_BYTES
from indexer.catalog.base_vectors import BaseProduct, BaseVectors, CatalogPlace
from indexer.catalog.planning import (
    CatalogRecord,
    PartitionProgress,
    Plan,
    advance,
    content_hash,
    in_any_order,
    payload_of,
    plan_batch,
)
from tests.support.indexer_fakes import TIME_MS, base_product, null, record
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
    assert [[change.message.product_id for change in batch] for batch in found.batches()] == [["P-2", "P-3"], ["P-1"]]


def test_a_product_listed_again_after_its_deletion_is_new() -> None:
    """A shopper cannot find it: it is as urgent as a launch."""
    found = plan(record(product("P-1", 3)), known=BaseProduct("P-1", 2, ENCODER.base_version))
    assert found.changes[0].is_urgent


def test_an_older_version_than_known_is_stale() -> None:
    """Nothing is written and the record is counted."""
    found = plan(record(product("P-1", 1)), known=base_product(ENCODER, "P-1", 2))
    assert (found.changes, found.stale_count) == ((), 1)


def test_the_known_version_is_a_repeat() -> None:
    """It is written again, because a crash may have come between its base vector and its point."""
    found = plan(record(product("P-1", 2)), known=base_product(ENCODER, "P-1", 2))
    assert found.changes[0].is_repeat


@pytest.mark.parametrize("title", ["quiet fridge", "other"])
def test_a_record_that_was_sent_again_is_made_anew(title: str) -> None:
    """Although its version is known, and also if the catalogue holds another content under it than was indexed."""
    again = replace(record(product("P-1", 2, title), 7), again=True)
    found = plan(again, known=base_product(ENCODER, "P-1", 2))
    assert [change.is_repeat for change in found.changes] == [False]
    assert (found.stale_count, found.same_version) == (0, ())
    behind = plan(record(product("P-1", 2, title), 6), again)
    assert [change.record.offset for change in behind.changes] == [7]
    assert behind.stale_count == 1
    assert plan(again, known=base_product(ENCODER, "P-1", 3)).changes == ()


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
        (b'{"type":"product","product_id":"P-1","version":1,"title":"x"}'.ljust(MOST_SENT_BYTES + 1), "too_large"),
    ],
)
def test_a_record_that_breaks_the_contract_is_refused_alone(value: bytes, reason: str) -> None:
    """The reason is stable, the bytes stay as they came, and the others of the batch go on."""
    found = plan(record(value, 0), record(product("P-2"), 1))
    assert [(refusal.reason, refusal.record.value) for refusal in found.refusals] == [(reason, value)]
    assert versions(found) == {"P-2": 1}


def test_a_record_under_another_key_counts_for_the_product_that_it_names_and_is_told() -> None:
    """No null under its key deletes that product, and compaction may leave another's record alone."""
    records = [replace(record(product("P-1"), offset), key=key) for offset, key in enumerate((b'"P-1"', b"P-1", None))]
    found = plan(*records, record(b"{", 3), null("P-9", 4))
    assert versions(found) == {"P-1": 1}
    assert [one.offset for one in found.other_keys] == [0, 2]


def known_at(offset: int, version: int = 1, *, deleted: bool = False) -> BaseProduct:
    """Return what is known of a product whose last record had this offset."""
    place = CatalogPlace(offset, TIME_MS + offset)
    if deleted:
        return BaseProduct("P-1", version, ENCODER.base_version, place=place)
    return replace(base_product(ENCODER, "P-1", version), place=place)


def test_a_null_deletes_what_is_known_under_its_own_version() -> None:
    """Change-data-capture sends no version with a deletion: that of the product is deleted, and everything older."""
    found = plan(null("P-1", 9), known=known_at(3, 5))
    (change,) = found.changes
    assert change.message == deleted("P-1", 5)
    assert change.is_urgent
    assert not change.is_repeat


def test_a_null_deletes_the_product_that_came_before_it_in_the_batch() -> None:
    """Products, nulls and products again are worked off in the order of the log."""
    assert plan(record(product("P-1", 5), 1), null("P-1", 2)).changes[0].message == deleted("P-1", 5)
    again = plan(record(product("P-1", 5), 1), null("P-1", 2), record(product("P-1", 6), 3))
    assert versions(again) == {"P-1": 6}
    assert again.stale_count == 2


def test_a_null_that_is_read_again_does_not_delete_what_came_after_it() -> None:
    """A crash before the commit repeats the batch, and the product that was listed again is known by then."""
    found = plan(null("P-1", 2), known=known_at(3, 6))
    assert (found.changes, found.stale_count) == ((), 1)
    found = plan(record(product("P-1", 5), 1), null("P-1", 2), record(product("P-1", 6), 3), known=known_at(3, 6))
    assert [(change.message.version, change.is_repeat) for change in found.changes] == [(6, True)]


def test_a_null_that_is_read_again_is_written_again() -> None:
    """A crash may have come between its base vector and its point."""
    (change,) = plan(null("P-1", 2), known=known_at(2, 5, deleted=True)).changes
    assert change.is_repeat


def test_a_null_on_a_topic_that_was_made_anew_counts_although_its_offset_is_small() -> None:
    """Offsets begin again there, time does not."""
    later = CatalogRecord(0, 0, TIME_MS + 100_000, b"P-1", None)
    assert plan(later, known=known_at(70, 5)).changes[0].message == deleted("P-1", 5)


def test_a_null_of_a_product_that_nobody_knows_is_counted() -> None:
    """There is nothing to delete, and no version to delete it with."""
    found = plan(null("P-9"), CatalogRecord(0, 1, TIME_MS, None, None), CatalogRecord(0, 2, TIME_MS, b"\xff", None))
    assert (found.changes, found.unknown_nulls) == ((), 3)


def test_a_product_listed_again_with_the_version_that_a_null_deleted_stays_deleted() -> None:
    """Versions only grow; that it is not applied is counted by its own reason."""
    found = plan(record(product("P-1", 5), 9), known=known_at(8, 5, deleted=True))
    assert (found.changes, len(found.same_version), found.stale_count) == ((), 1, 0)
    replayed = plan(record(product("P-1", 5), 7), known=known_at(8, 5, deleted=True))
    assert (replayed.changes, len(replayed.same_version), replayed.stale_count) == ((), 0, 1)


def test_a_deletion_of_the_version_that_is_known_deletes_it() -> None:
    """Some sources delete with the version that the product had; of one version the deletion wins."""
    (change,) = plan(record(deleted("P-1", 5)), known=base_product(ENCODER, "P-1", 5)).changes
    assert not change.is_repeat
    assert versions(plan(record(deleted("P-1", 5)), record(product("P-1", 5), 1))) == {"P-1": 5}


OTHER_CONTENT: list[dict[str, Any]] = [
    {"title": "large fridge"}, {"price": 9.0}, {"attributes": {"capacity_l": 190}}, {"url": "https://a.shop/P-1"},
    {"image_url": "https://a.shop/P-1.jpg"}, {"currency": "INR"}, {"warranty": {"years": 2}},
    {"description": "quiet " * 1_000 + "and large"}, {"description": "quiet " * 1_000}, {"x": [[1]]},
]  # fmt: skip


@pytest.mark.parametrize("changed", OTHER_CONTENT)
def test_the_same_version_with_other_content_is_counted_and_not_applied(changed: dict[str, Any]) -> None:
    """The first content of a version stays and is written again like any repeat; the other is not dropped unseen."""
    first = product("P-1", 2, "quiet fridge", description="quiet " * 999)
    known = replace(base_product(ENCODER, "P-1", 2), content_hash=content_hash(first))
    other = record(first.model_copy(update=changed), 4)
    found = plan(other, known=known)
    assert found.same_version == (other,)
    assert [change.is_repeat for change in found.changes] == [True]
    assert found.stale_count == 0
    assert plan(record(first, 4), known=known).same_version == ()


@pytest.mark.parametrize("changed", OTHER_CONTENT)
def test_the_same_version_with_other_content_in_one_batch_is_counted(changed: dict[str, Any]) -> None:
    """The first is applied; an exact repeat is no contradiction."""
    content = product("P-1", 2, "quiet fridge", description="quiet " * 999)
    first, other = record(content, 1), record(content.model_copy(update=changed), 3)
    found = plan(first, record(content, 2), other)
    assert (found.same_version, found.stale_count) == ((other,), 1)
    assert [change.record for change in found.changes] == [first]


@pytest.mark.parametrize("written", [
    b'{"x":{"b":1,"a":2},"version":2,"title":"t","product_id":"P-1","type":"product","price":4,"y":null}',
    b'{"type":"product","product_id":"P-1","version":2,"title":"t","in_stock":true,"price":4.0,"x":{"a":2,"b":1}}',
])  # fmt: skip
def test_the_same_content_written_otherwise_is_a_repeat(written: bytes) -> None:
    """Neither order nor blanks nor nulls nor defaults say anything."""
    first = product("P-1", 2, "t", price=4.0).model_copy(update={"x": {"a": 2, "b": 1}})
    assert plan(record(first, 1), record(written, 2)).same_version == ()
    known = replace(base_product(ENCODER, "P-1", 2, "t"), content_hash=content_hash(first))
    assert plan(record(written, 2), known=known).same_version == ()


def test_content_of_any_depth_is_compared() -> None:
    """Whoever writes to the topic directly may nest an unknown field without end: no reader breaks."""
    deep = b"[" * 900 + b"%d" + b"]" * 900
    first, other = (
        b'{"type":"product","product_id":"P-1","version":2,"title":"t","x":%s}' % (deep % n) for n in (1, 2)
    )
    found = plan(record(first, 1), record(first, 2), record(other, 3))
    assert ([one.value for one in found.same_version], found.stale_count) == ([other], 1)


def test_what_an_earlier_version_kept_is_compared_by_what_the_index_holds() -> None:
    """It kept no hash of the whole: what the index does not hold is not compared, another title or address is."""
    known = base_product(ENCODER, "P-1", 2)
    assert plan(record(product("P-1", 2, warranty="2 years")), known=known).same_version == ()
    assert plan(record(product("P-1", 2, url="https://a.shop/P-1")), known=known).same_version
    assert plan(record(product("P-1", 2, "large fridge")), known=known).same_version


RECORDS = st.lists(st.integers(1, 4) | st.none(), min_size=1, max_size=8)


@given(values=RECORDS, cut=st.integers(0, 8), crashes=st.integers(0, 8))
def test_wherever_batches_end_and_crashes_come_a_product_ends_alike(
    values: list[int | None], cut: int, crashes: int
) -> None:
    """Versions and nulls of one product, replayed from anywhere behind, end as they do when worked off one by one."""
    records = records_of(values)
    one_by_one = fold([[one] for one in records])
    replayed = fold([records[:cut], records[min(crashes, cut) :]])
    assert state_of(replayed) == state_of(one_by_one)


@settings(max_examples=500)
@example(values=[1, None, 1], looks=[(2, 3)]).via("a null between two of one version")
@example(values=[1, 1], looks=[(1, 2)]).via("one version with two contents")
@given(values=RECORDS, looks=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=3))
def test_what_is_read_ahead_of_its_turn_ends_as_if_it_had_waited(
    values: list[int | None], looks: list[tuple[int, int]]
) -> None:
    """Whichever of a product's records are applied early and early again, version and content end as in their order."""
    records = records_of(values)
    ahead = [in_any_order(records[begin:end]) for begin, end in looks]
    assert state_of(fold([*ahead, *([one] for one in records)])) == state_of(fold([[one] for one in records]))
    assert state_of(fold([*ahead, records])) == state_of(fold([records]))


def records_of(values: list[int | None]) -> list[CatalogRecord]:
    """Return records of one product, of each version with other content every time."""
    return [
        null("P-1", offset) if version is None else record(product("P-1", version, f"fridge {offset}"), offset)
        for offset, version in enumerate(values)
    ]


def fold(batches: list[list[CatalogRecord]]) -> BaseProduct | None:
    """Return what is known of the product after these batches."""
    vectors = BaseVectors()
    for batch in batches:
        for change in plan_batch(batch, vectors.get).changes:
            known = BaseProduct("P-1", change.message.version, "b", place=change.record.place)
            if not isinstance(change.message, ProductDeleted):
                known = replace(known, vector=np.ones(1), payload=payload_of(change.message))
            vectors.apply(known if change.known is None or not change.is_repeat else change.known)
    return vectors.get("P-1")


def state_of(known: BaseProduct | None) -> tuple[int, bool, str] | None:
    """Return version, deletion and title of what is known."""
    return None if known is None else (*known.order, known.payload.title if known.payload else "")


def test_the_youngest_are_the_urgent_ones_that_came_last_and_what_needs_no_encoding_beside_them() -> None:
    """Behind a bulk load of new products one more is first; deletions and changes of price do not wait for texts."""
    known = base_product(ENCODER, "P-1")
    bulk = [record(product(f"N-{number}"), number) for number in range(5)]
    launched = record(product("P-9"), 7)
    priced, retold = record(product("P-1", 2, price=9.0), 5), record(product("P-1", 2, "large fridge"), 5)

    def first(*records: CatalogRecord) -> list[list[str]]:
        """Return the products that go first where two may be encoded."""
        batches = plan(*bulk, *records, known=known).youngest(2, to_encode=2)
        return [[change.message.product_id for change in changes] for changes in batches]

    assert first(priced, record(deleted("P-3"), 6), launched) == [["P-3", "P-1"], ["P-9", "N-4"]]
    assert first(retold) == [["N-4", "N-3"]]
    assert plan(record(product("P-1")), known=known).youngest(9, to_encode=9) == []


def test_freshness_counts_from_the_version_that_is_applied() -> None:
    """Each change carries the time at which Kafka took in that very version."""
    old = CatalogRecord(0, 0, TIME_MS - 9_000, b"P-1", record(product("P-1", 1)).value)
    (change,) = plan(old, record(product("P-1", 2), 1)).changes
    assert change.record.timestamp_ms == TIME_MS + 1


def test_payload_says_what_the_index_is_filtered_by() -> None:
    """Stock is a number, as the index stores it."""
    said: dict[str, Any] = {
        "price": 3.5,
        "in_stock": False,
        "category": ("A", "B"),
        "locale": "en-IN",
        "attributes": {"doors": 2},
    }
    payload = payload_of(product(brand="Kelto", **said))
    assert payload.model_dump(exclude_none=True) == {
        "title": "quiet fridge",
        "category": ("A", "B"),
        "brand": "Kelto",
        "price": 3.5,
        "in_stock": 0,
        "priority": 0.0,
        "locale": "en-IN",
        "attributes": {"doors": 2},
    }


def test_progress_counts_every_offset_once() -> None:
    """Read, refused and compacted-away offsets sum to the way covered; a record read again adds nothing."""
    start = PartitionProgress(10, CatalogCounts(start_offset=10))
    read = [record(product("P-1"), 12), record(b"{", 13), null("P-2", 14)]
    after = advance(start, read, frozenset({13}))
    assert after == PartitionProgress(15, CatalogCounts(catalogue=4, dead_lettered=1, start_offset=10))
    assert advance(after, read, frozenset({13})) == after
