"""Releases are folded from the records of `models`, in whatever way they came and went."""

import struct

import pytest

from contracts.errors import MalformedMessage
from millrace.watch.releases import ReleaseBook
from tests.support.deployment import release_book, release_value, serving_value

FOREIGN = struct.pack("<Q", 31) + b'{"__metadata__":{"manifest":7}}'
"""A safetensors header of somebody else."""


def test_the_newest_release_stands_first() -> None:
    """The order is that of making; each row says what it was trained on."""
    rows = release_book().report()["releases"]
    assert [(row["kind"], row["release"]) for row in rows] == [
        ("query", 3), ("query", 2), ("query", 1), ("product", 1),
    ]  # fmt: skip
    assert rows[0]["pairs_trained"] == 3_000


def test_only_the_pair_in_force_is_marked() -> None:
    """One query release and one product release, those that `serving` names."""
    rows = release_book().report()["releases"]
    assert {(row["kind"], row["release"]) for row in rows if row["in_force"]} == {("query", 2), ("product", 1)}


def test_a_failed_check_is_kept_with_its_numbers() -> None:
    """The report says which check failed, by how much."""
    (check,) = release_book().report()["releases"][0]["checks"]
    assert (check["passed"], check["value"], check["limit"]) == (False, 0.62, 0.7)


def test_nothing_is_in_force_before_serving_is_published() -> None:
    """A release alone serves nobody."""
    book = ReleaseBook()
    book.apply(b"query-1", release_value("query", 1))
    report = book.report()
    assert report["serving"] is None
    assert [row["in_force"] for row in report["releases"]] == [False]


def test_a_tombstone_removes_its_release_only() -> None:
    """Old releases go; the others and what is in force stay."""
    book = release_book()
    book.apply(b"query-1", None)
    assert [row["release"] for row in book.report()["releases"] if row["kind"] == "query"] == [3, 2]
    assert book.serving is not None


def test_reading_again_changes_nothing() -> None:
    """A follower that begins anew hands over everything twice."""
    book = release_book()
    before = book.report()
    book.apply(b"query-1", release_value("query", 1))
    book.apply(b"serving", serving_value(2, 1))
    assert book.report() == before


def test_serving_may_be_taken_back() -> None:
    """Without `serving`, nothing is in force."""
    book = release_book()
    book.apply(b"serving", None)
    assert not any(row["in_force"] for row in book.report()["releases"])


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"query-9", b"no release"), (b"serving", b"{}"), (b"\xff", b"no release"), (b"query-9", FOREIGN)],
)
def test_what_is_no_release_is_named(key: bytes, value: bytes) -> None:
    """Only Millrace writes here; what it cannot read it does not skip."""
    with pytest.raises(MalformedMessage):
        ReleaseBook().apply(key, value)
