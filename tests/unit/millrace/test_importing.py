"""What is sent of a file: what is new or has changed, under versions that win, and never what would do harm."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from contracts import wire
from contracts.catalog import Product, ProductDeleted
from contracts.errors import CheckFailed, UsageError
from indexer.catalog.planning import CatalogRecord
from indexer.catalog.sent import Sent, SentProducts
from millrace.feed import Fault, Form
from millrace.importing import CatalogFile, FileRead, Line, Outcome, plan_deletions, plan_line, refuse_unsafe
from tests.support.indexing import deleted, product

NOW_MS = 1_795_196_000_000


def catalogue(*changes: Product | ProductDeleted | str) -> Mapping[str, Sent]:
    """Return what the catalogue holds after some records; a text is the key of a null."""
    sent = SentProducts()
    for offset, change in enumerate(changes):
        is_null = isinstance(change, str)
        key = change if isinstance(change, str) else change.product_id
        value = None if isinstance(change, str) else wire.encode(change)
        sent.take(CatalogRecord(0, offset, NOW_MS, key.encode(), None if is_null else value))
    return sent.newest


def read_file(folder: Path, content: str) -> FileRead:
    """Return what a file holds."""
    path = folder / "products.csv"
    path.write_text(content, encoding="utf-8")
    return CatalogFile(path, {}, Form(NOW_MS)).read(lambda _done, _of: None)


def test_the_newest_state_stays_whatever_the_order() -> None:
    """The version decides, of one version the deletion, of two contents of one version the later record."""
    newest = catalogue(product("A", 2), product("A", 1), product("B", 1), deleted("B", 1), product("B", 1), "A", "X")
    assert {name: sent.order for name, sent in newest.items()} == {"A": (2, True), "B": (1, True)}
    again = catalogue(product("C", 1, "first"), product("C", 1, "second"))["C"]
    assert again.says(product("C", 9, "second"))
    assert not again.says(product("C", 1, "first"))


@pytest.mark.parametrize(
    ("change", "is_versioned", "known", "outcome", "version"),
    [
        (product("A", NOW_MS), False, (), Outcome.NEW, NOW_MS),
        (product("A", NOW_MS), False, (product("A", 5),), Outcome.UNCHANGED, None),
        (product("A", NOW_MS, "other"), False, (product("A", 5),), Outcome.CHANGED, NOW_MS),
        (product("A", NOW_MS, "other"), False, (product("A", NOW_MS + 9),), Outcome.CHANGED, NOW_MS + 10),
        (product("A", NOW_MS), False, (deleted("A", NOW_MS),), Outcome.CHANGED, NOW_MS + 1),
        (product("A", 6), True, (product("A", 5),), Outcome.CHANGED, 6),
        (product("A", 5), True, (product("A", 5),), Outcome.UNCHANGED, None),
        (product("A", 5, "other"), True, (product("A", 5),), Outcome.OUTDATED, None),
        (product("A", 4, "other"), True, (product("A", 5),), Outcome.OUTDATED, None),
        (deleted("A", 5), True, (product("A", 5),), Outcome.CHANGED, 5),
        (deleted("A", NOW_MS), False, (deleted("A", 5),), Outcome.UNCHANGED, None),
    ],
)
def test_a_line_is_sent_if_it_says_something_new(
    change: Product | ProductDeleted,
    is_versioned: bool,
    known: tuple[Product | ProductDeleted, ...],
    outcome: Outcome,
    version: int | None,
) -> None:
    """What is sent wins over what is there; what says the same, or could not win, is not sent."""
    found, planned = plan_line(Line(change, is_versioned), catalogue(*known).get("A"))
    assert found == outcome
    assert version is None or planned == change.model_copy(update={"version": version})


def test_products_that_a_full_file_does_not_name_are_deleted_at_their_own_version() -> None:
    """The deletion wins over what it deletes, and the shop's next version brings the product back."""
    known = catalogue(product("A", 3), product("B", 7), deleted("C", 2))
    assert plan_deletions(known, {"A"}) == [deleted("B", 7)]


def test_every_bad_line_is_told_with_its_number(tmp_path: Path) -> None:
    """All faults come at once, a repeated id is one; bad lines name their products if the columns are right."""
    read = read_file(tmp_path, "product_id,title,price\nA,a,1\nB,b,x\nA,a,2\n,c,3\nD,d\n")
    assert [(one.line, one.reason, one.field) for one in read.faults] == [
        (3, "wrong_type", "price"), (4, "repeated", "product_id"), (5, "missing", "product_id"), (6, "columns", None),
    ]  # fmt: skip
    assert (read.lines, read.used, read.product_ids) == (5, 1, {"A", "B"})


def test_a_stray_comma_deletes_nothing(tmp_path: Path) -> None:
    """Of a line whose columns have moved nobody knows whom it names, so a full file with one deletes nobody."""
    read = read_file(tmp_path, "title,product_id\na,A\nlarge, red,B\n")
    assert [one.product_id for one in read.faults] == [None]
    for yes in (False, True):
        with pytest.raises(CheckFailed, match="line 3"):
            refuse_unsafe(read, catalogue(product("A", NOW_MS), product("B", NOW_MS)), 0, yes=yes)


def test_one_product_may_come_under_two_versions(tmp_path: Path) -> None:
    """An export of a history is no error."""
    read = read_file(tmp_path, "product_id,title,version\nA,a,1\nA,b,2\nA,c,2\n")
    assert [(one.line, one.reason) for one in read.faults] == [(4, "repeated")]
    assert read.versioned == 2


def test_a_file_without_products_is_refused(tmp_path: Path) -> None:
    """An empty file is a mistake, not an empty shop."""
    with pytest.raises(UsageError):
        read_file(tmp_path, "product_id,title\n")


@pytest.mark.parametrize(
    ("content", "columns", "attributes", "told"),
    [
        ("sku,title\nA,a\n", {}, [], "product_id"),
        ("sku,title\nA,a\n", {"product_id": "sku", "price": "cost"}, [], "cost"),
        ("id,title\nA,a\n", {}, ["litres"], "litres"),
    ],
)
def test_a_column_that_is_missing_is_named_before_anything_is_read(
    content: str, columns: dict[str, str], attributes: list[str], told: str, tmp_path: Path
) -> None:
    """A misspelt option must not look like a thousand bad lines, or like products without a price."""
    path = tmp_path / "products.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=f"no column {told}"):
        CatalogFile(path, columns, Form(NOW_MS, attributes)).unused_columns()


@pytest.mark.parametrize(("name", "told"), [("produkt_id", "; did you mean product_id?"), ("zzz", "")])
def test_a_field_that_no_product_has_is_refused(name: str, told: str, tmp_path: Path) -> None:
    """It would be left out of every product; the nearest field is told, if any is near."""
    path = tmp_path / "products.csv"
    path.write_text("sku,title\nA,a\n", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        CatalogFile(path, {name: "sku"}, Form(NOW_MS)).unused_columns()
    assert refused.value.message == f"--columns: no field {name}{told}"
    assert f"--attributes {name}" in refused.value.fix


def test_a_default_for_a_field_that_no_product_has_is_refused(tmp_path: Path) -> None:
    """Misspelt, it would be sent with every product and mean nothing."""
    path = tmp_path / "products.csv"
    path.write_text("id,title\nA,a\n", encoding="utf-8")
    with pytest.raises(UsageError, match="--default: no field currncy; did you mean currency"):
        CatalogFile(path, {}, Form(NOW_MS, defaults={"currncy": "EUR"})).unused_columns()


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    """A pipe would be empty, or begin in the middle, when the file is checked, and again when it is sent."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is no file"):
        CatalogFile(pipe, {}, Form(NOW_MS)).unused_columns()


def test_a_column_may_be_named_as_an_attribute(tmp_path: Path) -> None:
    """What `--attributes` names may have another name in the file."""
    path = tmp_path / "products.csv"
    path.write_text("id,title,farbe\nA,a,rot\n", encoding="utf-8")
    file = CatalogFile(path, {"colour": "farbe"}, Form(NOW_MS, ["colour"]))
    assert file.unused_columns() == []
    (line,) = file.lines(lambda _done, _of: None)
    assert isinstance(line, Line)
    assert isinstance(line.change, Product)
    assert line.change.attributes == {"colour": "rot"}


def test_the_file_s_own_columns_are_listed(tmp_path: Path) -> None:
    """Not those that they are mapped to, which the caller knows."""
    path = tmp_path / "products.csv"
    path.write_text("sku,name\nA,a\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no column label; it has sku, name$"):
        CatalogFile(path, {"product_id": "sku", "title": "label"}, Form(NOW_MS)).unused_columns()


def test_fields_of_json_may_be_missing_from_the_first_line(tmp_path: Path) -> None:
    """Each line of JSON names its own; what nothing comes of is told."""
    path = tmp_path / "products.jsonl"
    path.write_text('{"id": 1, "title": "a", "cost": 2}\n{"id": 2, "title": "b", "litres": 3}\n', encoding="utf-8")
    assert CatalogFile(path, {"brand": "make"}, Form(NOW_MS, ["litres"])).unused_columns() == ["cost"]


def checked(*, faults: int = 0, versioned: int = 0) -> FileRead:
    """Return a file of ten lines, some of them without a readable id."""
    found = [Fault(line, "missing", "product_id", "product_id: Field required", None) for line in range(faults)]
    return FileRead(10, found, {"A"}, versioned)


def test_a_file_that_seems_cut_deletes_nothing() -> None:
    """Above a fifth of the shop, or if a bad line may name any product, nothing is deleted."""
    known = catalogue(*(product(f"P-{number}", NOW_MS) for number in range(10)))
    refuse_unsafe(checked(), known, 2, yes=False)
    with pytest.raises(CheckFailed):
        refuse_unsafe(checked(), known, 3, yes=False)
    with pytest.raises(CheckFailed):
        refuse_unsafe(checked(faults=1), known, 0, yes=False)
    refuse_unsafe(checked(faults=1), known, None, yes=False)


def test_times_do_not_take_the_place_of_the_shop_s_own_numbers() -> None:
    """A time would be above every number that the shop counts to, and all its later changes would be old."""
    known = catalogue(product("A", 17))
    with pytest.raises(UsageError):
        refuse_unsafe(checked(), known, None, yes=False)
    refuse_unsafe(checked(versioned=10), known, None, yes=False)
    refuse_unsafe(checked(), catalogue(deleted("A", 17)), None, yes=False)
