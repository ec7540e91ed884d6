"""`millrace catalog` and `millrace audit` on a real Kafka and a vector store in a process of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from contracts import wire
from contracts.catalog import CATALOG_CHANGE
from contracts.errors import CheckFailed
from contracts.topics import CATALOG
from indexer.store import ProductStore
from millrace.feed import Form
from millrace.importing import CatalogFile, run_import
from service.kafka import OutgoingRecord, ensure_topics, produce_all, producer_config
from service.settings import Settings
from tests.support.indexing import ServiceThread, product
from tests.support.poll import eventually
from tests.support.topics import read_topic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NOW_MS = 1_795_196_000_000


def written(path: Path, numbers: Sequence[int], *, price: int = 5) -> Path:
    """Write a CSV of products."""
    lines = [f"P-{number},Fridge {number},{price}.00 INR" for number in numbers]
    path.write_text("\n".join(["id,title,price", *lines]), encoding="utf-8")
    return path


def produced(settings: Settings, *records: tuple[bytes, bytes]) -> None:
    """Write records to `catalog`, as the shop does past every command."""
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, [OutgoingRecord(settings.topic(CATALOG), value, key) for key, value in records])


def imported(settings: Settings, path: Path, *, now_ms: int = NOW_MS, **options: Any) -> dict[str, Any]:
    """Import a file; return the report."""
    given = {"dry_run": False, "skip_bad": False, "full": False, "yes": False, "patience_s": 0.0, **options}
    tell = given.pop("tell", lambda _what, _done, _of: None)
    return run_import(settings, CatalogFile(path, {}, Form(now_ms)), tell, **given)


def outcomes(report: dict[str, Any]) -> tuple[int, ...]:
    """Return new, changed, unchanged, deleted and sent."""
    return tuple(report[name] for name in ("new", "changed", "unchanged", "deleted", "sent"))


def sent(settings: Settings) -> list[tuple[str, str, int]]:
    """Return key, type and version of every record on `catalog`."""
    records = [record for own in read_topic(settings, CATALOG).values() for record in own]
    changes = [CATALOG_CHANGE.validate_json(record.value) for record in records]
    assert [record.key for record in records] == [change.product_id.encode() for change in changes]
    return [(change.product_id, change.type, change.version) for change in changes]


def test_a_file_is_sent_once_and_then_what_changes(two_partitions: Settings, tmp_path: Path) -> None:
    """The second run of a file sends nothing, a change sends what changed, and a dry run sends nothing at all."""
    ensure_topics(two_partitions)
    path = written(tmp_path / "products.csv", range(1200))
    assert outcomes(imported(two_partitions, path, dry_run=True)) == (1200, 0, 0, 0, 0)
    assert outcomes(imported(two_partitions, path)) == (1200, 0, 0, 0, 1200)
    assert outcomes(imported(two_partitions, path, now_ms=NOW_MS + 1)) == (0, 0, 1200, 0, 0)
    path.write_text(path.read_text(encoding="utf-8").replace("P-7,Fridge 7,5", "P-7,Fridge 7,6"), encoding="utf-8")
    assert outcomes(imported(two_partitions, path, now_ms=NOW_MS + 2)) == (0, 1, 1199, 0, 1)
    records = sent(two_partitions)
    assert len(records) == 1201
    assert [version for product_id, _, version in records if product_id == "P-7"] == [NOW_MS, NOW_MS + 2]


def test_an_import_that_ended_in_the_middle_goes_on(two_partitions: Settings, tmp_path: Path) -> None:
    """What was acknowledged before the end is not sent again, and nothing is left out."""
    ensure_topics(two_partitions)
    path = written(tmp_path / "products.csv", range(3000))

    def end_in_the_middle(what: str, done: int, of: int) -> None:
        """Interrupt it like Ctrl-C."""
        if what == "sending" and done > of / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(two_partitions, path, tell=end_in_the_middle)
    before = len(sent(two_partitions))
    assert 0 < before < 3000
    report = imported(two_partitions, path, now_ms=NOW_MS + 1)
    assert outcomes(report) == (3000 - before, 0, before, 0, 3000 - before)
    assert sorted(product_id for product_id, _, _ in sent(two_partitions)) == sorted(f"P-{n}" for n in range(3000))


def test_what_the_shop_changes_meanwhile_stays_the_last_record(two_partitions: Settings, tmp_path: Path) -> None:
    """Compaction keeps the last record of a key alone: neither an import nor a deletion may be it if it is older."""
    ensure_topics(two_partitions)
    path = written(tmp_path / "products.csv", range(800))
    imported(two_partitions, written(tmp_path / "before.csv", range(900)))
    newer = [product("P-7", NOW_MS + 50), product("P-790", NOW_MS + 50), product("P-850", NOW_MS + 50)]
    told: list[str] = []

    def change_meanwhile(what: str, _done: int, _of: int) -> None:
        """Send what the shop changes, once: when the file has been planned against the catalogue in part."""
        if what == "sending" and not told:
            produced(two_partitions, *((one.product_id.encode(), wire.encode(one)) for one in newer))
            told.append(what)

    path.write_text(path.read_text(encoding="utf-8").replace(",5.00", ",6.00"), encoding="utf-8")
    report = imported(two_partitions, path, now_ms=NOW_MS + 9, full=True, tell=change_meanwhile)
    assert outcomes(report) == (0, 800, 0, 100, 898)
    assert report["overtaken"] == 2
    last = {product_id: version for product_id, _, version in sent(two_partitions)}
    assert {one.product_id: last[one.product_id] for one in newer} == {
        "P-7": NOW_MS + 50, "P-790": NOW_MS + 51, "P-850": NOW_MS + 50,
    }  # fmt: skip


def test_of_two_versions_in_a_file_the_older_is_never_sent_last(two_partitions: Settings, tmp_path: Path) -> None:
    """Whichever comes first in the file."""
    ensure_topics(two_partitions)
    path = tmp_path / "history.csv"
    path.write_text("product_id,title,version\nA,a,5\nA,b,3\nB,a,3\nB,b,5\n", encoding="utf-8")
    report = imported(two_partitions, path)
    assert (report["sent"], report["overtaken"]) == (2, 2)
    assert sorted((product_id, version) for product_id, _, version in sent(two_partitions)) == [("A", 5), ("B", 5)]


def test_a_full_file_deletes_what_is_missing_unless_it_seems_cut(two_partitions: Settings, tmp_path: Path) -> None:
    """A few missing products are deleted; a file of which half is missing deletes nothing, and sends nothing."""
    ensure_topics(two_partitions)
    path = tmp_path / "products.csv"
    imported(two_partitions, written(path, range(20)))
    assert outcomes(imported(two_partitions, written(path, range(2, 21)), full=True)) == (1, 0, 18, 2, 3)
    with pytest.raises(CheckFailed):
        imported(two_partitions, written(path, range(5, 10), price=9), full=True)
    records = sent(two_partitions)
    assert len(records) == 23
    assert [one for one in records if one[1] == "product_deleted"] == [
        (f"P-{number}", "product_deleted", NOW_MS) for number in (0, 1)
    ]


def test_bad_lines_keep_the_others_from_being_sent_unless_they_are_skipped(
    two_partitions: Settings, tmp_path: Path
) -> None:
    """Nothing is sent of a file with a fault; told to skip it, the other lines are."""
    ensure_topics(two_partitions)
    path = written(tmp_path / "products.csv", range(3))
    path.write_text(path.read_text(encoding="utf-8") + "\nP-9,Oven,cheap", encoding="utf-8")
    report = imported(two_partitions, path)
    assert [(fault.line, fault.field) for fault in report["bad"]] == [(5, "price")]
    assert (outcomes(report), sent(two_partitions)) == ((0, 0, 0, 0, 0), [])
    assert outcomes(imported(two_partitions, path, skip_bad=True)) == (3, 0, 0, 0, 3)


@pytest.mark.qdrant
def test_an_import_waits_for_the_indexer(
    own: Settings, store: ProductStore, indexer: ServiceThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it ends, indexing is on its way, for it never takes the indexer for dead; then all is there."""
    path = written(tmp_path / "products.csv", range(2000))
    assert outcomes(imported(own, path, patience_s=60.0)) == (2000, 0, 0, 0, 2000)
    assert store.counts(own.collection(0)).live > 0
    assert "no indexer" not in capsys.readouterr().err
    eventually(lambda: store.counts(own.collection(0)).live == 2000, timeout_s=60, what="all of it is searchable")
