"""What the audit finds different: each way in which an index can be untrue, and nothing that is on its way."""

from collections.abc import Mapping
from typing import Any

import pytest

from contracts.telemetry import AuditDifference as Kind
from indexer.audit import Difference, Encoded, Facts, Indexed, differences, newest_encoded, plan_repairs
from indexer.catalog.planning import CatalogRecord
from indexer.catalog.sent import Sent, SentProducts

BASE = "base/1"
SENT = Sent(5, deleted=False, content_hash="c5")
GONE = Sent(5, deleted=True, content_hash="")
VECTOR = Encoded(5, deleted=False, base_version=BASE, text_hash="t5", content_hash="c5")
VECTOR_GONE = Encoded(5, deleted=True, base_version=BASE, text_hash="", content_hash="")
POINT = Indexed(5, deleted=False, base_version=BASE, text_hash="t5")
POINT_GONE = Indexed(5, deleted=True, base_version="", text_hash="")


def found(
    due: Sent | None,
    vector: Encoded | None,
    point: Indexed | None,
    *,
    is_sent: bool = True,
    unreadable: frozenset[str] = frozenset(),
) -> list[tuple[Kind, int]]:
    """Return the differences of one product."""

    def of(fact: Any) -> Mapping[str, Any]:
        """Return a fact under the product's id, nothing if there is none."""
        return {} if fact is None else {"P-1": fact}

    sent = frozenset({"P-1"}) if is_sent else frozenset()
    facts = Facts(of(due), sent, unreadable, of(vector), of(point), BASE)
    return [(one.kind, one.version) for one in differences(facts)]


@pytest.mark.parametrize(
    ("due", "vector", "point"),
    [
        (SENT, VECTOR, POINT),
        (GONE, VECTOR_GONE, POINT_GONE),
        (SENT, VECTOR._replace(version=6, content_hash="c6"), POINT),
        (SENT, VECTOR._replace(version=6, text_hash="t6"), POINT._replace(version=6, text_hash="t6")),
        (SENT, VECTOR, POINT._replace(version=6, text_hash="t6")),
        (SENT, VECTOR_GONE, POINT),
        (SENT, VECTOR_GONE, POINT_GONE),
        (SENT, VECTOR._replace(content_hash=""), POINT),
        (None, None, None),
        (None, VECTOR, None),
        (None, VECTOR, POINT),
        (GONE, VECTOR_GONE._replace(base_version="base/0"), POINT_GONE),
    ],
)
def test_what_is_there_or_newer_is_no_difference(
    due: Sent | None, vector: Encoded | None, point: Indexed | None
) -> None:
    """Everything is in place, or a newer change has come through in part; what is not due need not be there."""
    assert found(due, vector, point) == []


def test_a_deletion_that_only_its_vector_remembers_is_no_difference() -> None:
    """Compaction takes a null away after a while; the deletion stays on `product-vectors`."""
    assert found(None, VECTOR_GONE, POINT_GONE, is_sent=False) == []
    assert found(None, VECTOR_GONE, None, is_sent=False) == []


@pytest.mark.parametrize(
    ("due", "vector", "point", "expected"),
    [
        (SENT, None, POINT, [(Kind.VECTOR_MISSING, 5)]),
        (SENT, VECTOR._replace(version=4), POINT, [(Kind.VECTOR_STALE, 4)]),
        (GONE, VECTOR, POINT_GONE, [(Kind.VECTOR_STALE, 5)]),
        (SENT, VECTOR._replace(content_hash="other"), POINT, [(Kind.VECTOR_CONTENT, 5)]),
        (SENT, VECTOR._replace(base_version="base/0"), POINT, [(Kind.VECTOR_BASE, 5)]),
        (SENT, VECTOR, None, [(Kind.POINT_MISSING, 5)]),
        (SENT, VECTOR, POINT._replace(version=4), [(Kind.POINT_STALE, 4)]),
        (SENT, VECTOR, POINT_GONE._replace(version=4), [(Kind.POINT_STALE, 4)]),
        (GONE, VECTOR_GONE, POINT, [(Kind.POINT_DELETED_FOUND, 5)]),
        (GONE, VECTOR_GONE, None, [(Kind.POINT_NO_TOMBSTONE, 5)]),
        (SENT, VECTOR, POINT._replace(base_version="base/0"), [(Kind.POINT_BASE, 5)]),
        (SENT, VECTOR, POINT._replace(text_hash="t4"), [(Kind.POINT_TEXT, 5)]),
        (SENT, None, None, [(Kind.VECTOR_MISSING, 5), (Kind.POINT_MISSING, 5)]),
    ],
)
def test_each_difference_is_named_with_the_version_that_is_found(
    due: Sent, vector: Encoded | None, point: Indexed | None, expected: list[tuple[Kind, int]]
) -> None:
    """One of the vector and one of the point at most."""
    assert found(due, vector, point) == expected


@pytest.mark.parametrize(
    ("vector", "point", "expected"),
    [
        (VECTOR, None, [(Kind.VECTOR_EXTRA, 5)]),
        (None, POINT, [(Kind.POINT_EXTRA, 5)]),
        (VECTOR, POINT, [(Kind.VECTOR_EXTRA, 5), (Kind.POINT_EXTRA, 5)]),
        (VECTOR_GONE, POINT, [(Kind.POINT_DELETED_FOUND, 5)]),
    ],
)
def test_what_nobody_sent_is_extra(
    vector: Encoded | None, point: Indexed | None, expected: list[tuple[Kind, int]]
) -> None:
    """Only if `catalog` holds nothing of it, to its very end."""
    assert found(None, vector, point, is_sent=False) == expected
    assert found(None, vector, point, is_sent=True) == []


@pytest.mark.parametrize(
    ("vector", "point", "expected"),
    [
        (VECTOR, POINT, [(Kind.RECORD_UNREADABLE, 5)]),
        (None, POINT._replace(version=4), [(Kind.RECORD_UNREADABLE, 4)]),
        (VECTOR_GONE, POINT_GONE, []),
        (None, None, []),
    ],
)
def test_a_product_whose_records_cannot_be_read_is_told_and_left(
    vector: Encoded | None, point: Indexed | None, expected: list[tuple[Kind, int]]
) -> None:
    """Compaction leaves the dead letter alone; the shop did send the product, so no repair deletes it."""
    named = frozenset({"P-1"})
    assert found(None, vector, point, unreadable=named) == expected
    repairs = plan_repairs([Difference(kind, "P-1", version) for kind, version in expected], named)
    assert (repairs.again, repairs.delete) == (frozenset(), {})


def test_what_cannot_be_read_counts_until_the_product_is_known_or_deleted() -> None:
    """A record before or after it tells more, and a null ends it."""
    good, bad, null = b'{"type":"product_deleted","product_id":"P-1","version":1,"schema_version":1}', b"{", None
    cases: list[tuple[list[bytes | None], set[str]]] = [
        ([bad], {"P-1"}), ([good, bad], set()), ([bad, good], set()), ([bad, null], set()), ([null, bad], {"P-1"}),
    ]  # fmt: skip
    for values, expected in cases:
        sent = SentProducts()
        for offset, value in enumerate(values):
            sent.take(CatalogRecord(0, offset, 0, b"P-1", value))
        assert sent.unreadable() == expected


def test_of_two_bases_the_one_in_force_stays() -> None:
    """`base prepare` writes the same versions for another base; a newer version stays whatever its base."""
    other = VECTOR._replace(base_version="base/2")
    for records in ([VECTOR, other], [other, VECTOR]):
        assert newest_encoded((("P-1", one) for one in records), BASE) == {"P-1": VECTOR}
    newer = other._replace(version=6)
    assert newest_encoded([("P-1", newer), ("P-1", VECTOR)], BASE) == {"P-1": newer}
    last = VECTOR._replace(text_hash="mended")
    assert newest_encoded([("P-1", VECTOR), ("P-1", last)], BASE) == {"P-1": last}


def test_a_null_forgets_a_deletion_and_nothing_else() -> None:
    """Until compaction the deletion stands before it: an audit that still knew it would have it sent once more."""
    gone = VECTOR._replace(deleted=True)
    assert newest_encoded([("P-1", gone), ("P-1", None), ("P-2", None)], BASE) == {}
    assert newest_encoded([("P-1", VECTOR), ("P-1", None)], BASE) == {"P-1": VECTOR}


def test_repairs_send_again_what_was_sent_and_delete_what_nobody_sent() -> None:
    """Each product once; a deletion has the highest version that is there, over which it wins."""
    repairs = plan_repairs(
        [
            Difference(Kind.VECTOR_STALE, "A", 4), Difference(Kind.POINT_STALE, "A", 3),
            Difference(Kind.POINT_DELETED_FOUND, "B", 2),
            Difference(Kind.VECTOR_EXTRA, "X", 7), Difference(Kind.POINT_EXTRA, "X", 5),
        ],
        frozenset({"A", "B", "C"}),
    )  # fmt: skip
    assert repairs.again == {"A", "B"}
    assert repairs.delete == {"X": 7}
