"""Files of rows: their form is found out, each row knows its line, and what cannot be read is said."""

import gzip
from pathlib import Path

import pytest

from contracts.errors import UsageError
from millrace.tables import Row, column_names, read_rows


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


def test_an_option_that_names_no_column_is_refused() -> None:
    """`--columns price` does not say which column that is."""
    assert column_names("title=name, brand=make") == {"title": "name", "brand": "make"}
    with pytest.raises(UsageError):
        column_names("title=name,price")
