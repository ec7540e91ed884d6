"""Files of rows: their form is found out, each row knows its line, and what cannot be read is said."""

import gzip
from pathlib import Path

import pytest

from contracts.errors import UsageError
from millrace.tables import Row, column_names, read_rows, time_of


def rows_of(folder: Path, content: bytes, **columns: str) -> list[Row]:
    """Return the rows of a file."""
    path = folder / "products"
    path.write_bytes(content)
    return list(read_rows(path, columns))


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_rows_of_a_table_know_their_lines(mark: str, tmp_path: Path) -> None:
    """A field with line ends, empty lines and a byte order mark do not move the numbers of the lines."""
    lines = ["\ufeffid{0}title", 'P-1{0}"two\nlines"', "", "P-2{0}oven", ""]
    rows = rows_of(tmp_path, "\n".join(lines).format(mark).encode())
    assert [(row.line, dict(row.fields)) for row in rows] == [
        (2, {"id": "P-1", "title": "two\nlines"}),
        (5, {"id": "P-2", "title": "oven"}),
    ]


def test_rows_that_are_too_short_or_too_long_are_told(tmp_path: Path) -> None:
    """A row with another number of fields than the header may have its values in the wrong columns."""
    rows = rows_of(tmp_path, b"id,title\nP-1,a,b\nP-2\nP-3,c\n")
    assert [row.error.reason if row.error else None for row in rows] == ["columns", "columns", None]
    assert rows[1].fields == {"id": "P-2"}


def test_each_bad_line_of_json_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    """No JSON, no object, no UTF-8: one row each, with its reason; blank lines count as lines."""
    rows = rows_of(tmp_path, b'{"id":1}\n\n{"id":\n[1]\n{"id":"\xff"}\n{"id":"\xc3\xa9"}')
    assert [(row.line, row.error and row.error.reason) for row in rows] == [
        (1, None), (3, "malformed_json"), (4, "wrong_type"), (5, "malformed_text"), (6, None),
    ]  # fmt: skip
    assert rows[-1].fields == {"id": "é"}


def test_a_named_column_is_found_under_our_name_beside_its_own(tmp_path: Path) -> None:
    """A column that was named wins over one that is called like ours."""
    (row,) = rows_of(tmp_path, b"sku,product_id\nA,B\n", product_id="sku")
    assert row.fields == {"sku": "A", "product_id": "A"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"id": 1}]', "array"),
        (b"<rss></rss>", "XML"),
        (b"PK\x03\x04\x14\0\x06\0xl/workbook.xml", "workbook"),
        (b'id,title\nP-1,"open', "quotation"),
        (gzip.compress(b"id,title\n" + b"P-1,fridge\n" * 50, mtime=0)[:-9], "not whole"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    """The message or the fix says what it is instead."""
    if told == "quotation":
        content += b" " * 10_000_001
    with pytest.raises(UsageError) as error:
        rows_of(tmp_path, content)
    assert told in f"{error.value} {error.value.fix}"


def test_rows_and_names_as_spreadsheets_write_them_are_read(tmp_path: Path) -> None:
    """A line that names the separator, blanks around names and before quotation marks, rows of separators alone."""
    rows = rows_of(tmp_path, b'sep=,\r\nid, "title\nde" ,,\r\nP-1, "oven, red",,\r\n,,,\r\n')
    assert [(row.line, row.fields, row.error) for row in rows] == [(4, {"id": "P-1", "title\nde": "oven, red"}, None)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("content", ["id\ttitle\nP-1\tKühlschrank\n", '{"id": "P-1", "title": "Kühlschrank"}\r\n'])
def test_utf_16_is_read_by_its_mark(encoding: str, content: str, tmp_path: Path) -> None:
    """Spreadsheets save it as Unicode text, and PowerShell writes it."""
    mark = "" if encoding == "utf-16" else "\ufeff"
    (row,) = rows_of(tmp_path, f"{mark}{content}".encode(encoding))
    assert row.fields == {"id": "P-1", "title": "Kühlschrank"}


def test_a_quotation_mark_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    """Everything after it would be one field; the line where it begins is told."""
    with pytest.raises(UsageError, match="line 3: a quotation mark is never closed"):
        rows_of(tmp_path, b'id,title\nP-1,oven\nP-2,"19 inch\nP-3,tv\nP-4,ac\n')


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Nobody knows which of them is meant; names that are empty mean nothing."""
    with pytest.raises(UsageError, match="two columns that are called id"):
        rows_of(tmp_path, b"id,title,id\n1,oven,2\n")
    (row,) = rows_of(tmp_path, b"id,,\n1,x,y\n")
    assert row.fields == {"id": "1"}


def test_one_column_may_have_two_of_our_names(tmp_path: Path) -> None:
    """A product that is its own parent, for one."""
    (row,) = rows_of(tmp_path, b"sku\nA\n", product_id="sku", parent_id="sku")
    assert row.fields == {"sku": "A", "product_id": "A", "parent_id": "A"}


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2024-01-31 12:00:00 UTC", 1_706_702_400_000),
        ("2024-01-31 12:00:00.5 UTC", 1_706_702_400_500),
        ("2024-01-31 12:00:00 -0500", 1_706_720_400_000),
        ("2024-01-31 12:00:00+00", 1_706_702_400_000),
        ("20240131120000", None),
        ("202401311200", None),
        ("20240131", None),
    ],
)
def test_times_as_databases_export_them_are_read_or_refused(text: str, time_ms: int | None) -> None:
    """A blank before the zone does no harm; digits of a date are no epoch of another century."""
    assert time_of(text)[0] == time_ms


def test_an_option_that_names_no_column_is_refused() -> None:
    """`--columns price` does not say which column that is."""
    assert column_names("title=name, brand=make") == {"title": "name", "brand": "make"}
    with pytest.raises(UsageError):
        column_names("title=name,price")
