"""Releases as they are shown: in whatever way they came and went on `models`."""

import struct
from typing import Any

import pytest

from millrace.watch.observer import releases_report
from service.models import ModelsTable
from tests.support.deployment import NOW_MS, models_table, release_value, serving_value

FOREIGN = struct.pack("<Q", 31) + b'{"__metadata__":{"manifest":7}}'
"""A safetensors header of somebody else."""


def report_of(table: ModelsTable) -> dict[str, Any]:
    """Return what is shown of a table."""
    return releases_report(table.look())


def test_the_newest_release_comes_first() -> None:
    """The order is that of making; each row says what it was trained on."""
    rows = report_of(models_table())["releases"]
    assert [(row["kind"], row["release"]) for row in rows] == [
        ("query", 3), ("query", 2), ("query", 1), ("product", 1),
    ]  # fmt: skip
    assert rows[0]["pairs_trained"] == 3_000


def test_only_the_pair_in_force_is_marked() -> None:
    """One query release and one product release, those that `serving` names."""
    rows = report_of(models_table())["releases"]
    assert {(row["kind"], row["release"]) for row in rows if row["in_force"]} == {("query", 2), ("product", 1)}


def test_a_failed_check_is_kept_with_its_numbers() -> None:
    """The report says which check failed, by how much."""
    (check,) = report_of(models_table())["releases"][0]["checks"]
    assert (check["passed"], check["value"], check["limit"]) == (False, 0.62, 0.7)


def test_nothing_is_in_force_before_serving_is_published() -> None:
    """A release alone serves nobody."""
    table = ModelsTable()
    table.apply(b"query-1", release_value("query", 1))
    report = report_of(table)
    assert report["serving"] is None
    assert [row["in_force"] for row in report["releases"]] == [False]


def test_a_tombstone_removes_its_release_only() -> None:
    """Old releases go; the others and what is in force stay."""
    table = models_table()
    table.apply(b"query-1", None)
    report = report_of(table)
    assert [row["release"] for row in report["releases"] if row["kind"] == "query"] == [3, 2]
    assert report["serving"] is not None


def test_reading_again_changes_nothing() -> None:
    """A follower may hand over everything twice, and the pairs of long ago with it."""
    table = models_table()
    before = report_of(table)
    table.apply(b"query-1", release_value("query", 1))
    table.apply(b"serving", serving_value(1, 0, published_at=NOW_MS - 1))
    table.apply(b"serving", serving_value(2, 1))
    assert report_of(table) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"query-9", b"no release"), (b"serving", b"{}"), (b"\xff", b"no release"), (b"query-9", FOREIGN)],
)
def test_what_is_no_release_is_named_until_a_release_replaces_it(key: bytes, value: bytes) -> None:
    """A record that cannot be read hides no other, and is known by its key while it stands."""
    table = models_table()
    before = report_of(table)
    table.apply(key, value)
    assert set(table.unreadable()) == {key}
    assert report_of(table) == before
    table.apply(b"query-9", release_value("query", 9))
    assert set(table.unreadable()) == {key} - {b"query-9"}
