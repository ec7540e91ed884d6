"""Files of rows as shops export them: CSV, TSV or JSON lines, packed by gzip or not, read a row at a time.

What a file is, is found by its first bytes. Names of columns are mapped to ours; how times are written is found out.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from contracts import wire
from contracts.errors import ContractError, UsageError

EPOCH_UNITS: Final = (("s", 1e3, 1e8, 1e11), ("ms", 1.0, 1e11, 1e14), ("us", 1e-3, 1e14, 1e17))
"""Unit, milliseconds in it, and the range of numbers that are dates of our time in it."""
DATES_MS: Final = (1e11, 1e14)
"""The same range; what databases write for no date, such as the year 1, lies outside."""
LONGEST_FIELD: Final = 10_000_000
Stream = io.BufferedReader | gzip.GzipFile
_GZIP: Final = b"\x1f\x8b"
_HEAD_BYTES: Final = 4096
_BOM: Final = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One row with our names.

    Args:
        line: where it begins in the file, from 1.
        fields: name -> value; of a table all are texts.
        error: why it cannot be read; then there are no fields, or not all.
    """

    line: int
    fields: Mapping[str, Any]
    error: ContractError | None = None


def read_rows(
    path: Path,
    columns: Mapping[str, str],
    *,
    needed: Sequence[str] = (),
    errors: Literal["surrogateescape", "replace"] = "surrogateescape",
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> Iterator[Row]:
    """Read a file row by row, with our names beside the file's own.

    Args:
        path: the file.
        columns: our name -> the file's, for those that are called otherwise.
        needed: names that the first row must have.
        errors: what becomes of bytes that are no UTF-8: halves of surrogate pairs, which no message may hold, or marks.
        tell: told how many bytes of how many are read.

    Raises:
        UsageError: it cannot be read, is not whole, or lacks a column.
    """
    ours = {theirs: name for name, theirs in columns.items()}
    with _opened(path) as (stream, position):
        size = path.stat().st_size
        is_first = True
        for row in _rows(path, stream, errors):
            tell(position(), size)
            named = {**row.fields, **{ours[name]: value for name, value in row.fields.items() if name in ours}}
            if is_first and row.error is None:
                _refuse_lacking(path, row.fields, named, needed)
                is_first = False
            yield row._replace(fields=named)
        tell(size, size)


def _refuse_lacking(path: Path, fields: Mapping[str, Any], named: Mapping[str, Any], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in named]:
        raise UsageError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(fields)}",
            fix=f"say what they are called: --columns {missing[0]}=COLUMN",
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Stream, Callable[[], int]]]:
    """Open a file, unpacked, with a function that tells how many of its bytes are read."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(len(_GZIP)).startswith(_GZIP)
            yield gzip.GzipFile(fileobj=raw) if packed else raw, raw.tell
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not whole: {error}", fix="pack it again") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", fix="name a CSV, TSV or JSONL file") from error


def _rows(path: Path, stream: Stream, errors: str) -> Iterator[Row]:
    head = stream.peek(_HEAD_BYTES).removeprefix(_BOM).lstrip()[:1]
    if head == b"{":
        return _json_lines(stream, errors)
    if head in {b"[", b"<"}:
        form = "one JSON array" if head == b"[" else "XML"
        raise UsageError(f"{path} is {form}", fix="export it as CSV, TSV, or JSON with one object a line")
    return _table(path, stream, errors)


def _table(path: Path, stream: Stream, errors: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with io.TextIOWrapper(stream, "utf-8-sig", errors, newline="") as text:
        header = text.readline()
        delimiter = max("\t,;|", key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        rows = csv.reader(text, delimiter=delimiter)
        while True:
            line = rows.line_num + 2
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise UsageError(f"{path}, line {line}: {error}", fix="is a quotation mark never closed?") from error
            problem = None
            if len(values) != len(names):
                problem = ContractError("columns", f"{len(values)} fields, and the header has {len(names)}")
            if values:
                yield Row(line, dict(zip(names, values, strict=False)), problem)


def _json_lines(stream: Stream, errors: str) -> Iterator[Row]:
    for line, read in enumerate(stream, start=1):
        content = read.removeprefix(_BOM).decode("utf-8", errors).encode("utf-8", "surrogateescape")
        if not content.strip():
            continue
        try:
            fields = wire.parse(content)
        except ContractError as error:
            yield Row(line, {}, error)
            continue
        if isinstance(fields, dict):
            yield Row(line, fields)
        else:
            yield Row(line, {}, ContractError("wrong_type", "no JSON object"))


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field as text; missing and null are empty, a number is what it says."""
    value = row.get(name)
    return "" if value is None else str(value).strip()


def time_of(text: str) -> tuple[float | None, str]:
    """A time in epoch milliseconds, and how it was written; None if it is no time, or none of ours.

    >>> time_of("1704067200"), time_of("2024-01-01T00:00:00Z"), time_of("soon"), time_of("0001-01-01")
    ((1704067200000.0, 'epoch in s'), (1704067200000.0, 'ISO 8601'), (None, ''), (None, ''))
    """
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None, ""
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        time_ms = moment.timestamp() * 1000
        return (time_ms, "ISO 8601") if DATES_MS[0] <= time_ms < DATES_MS[1] else (None, "")
    for unit, factor, low, high in EPOCH_UNITS:
        if low <= number < high:
            return number * factor, f"epoch in {unit}"
    return None, ""


def column_names(given: str, *, option: str = "--columns") -> dict[str, str]:
    """Read an option NAME=VALUE,...: our name -> the file's.

    Raises:
        UsageError: a part of it is no NAME=COLUMN.
    """
    parts = [part for part in given.split(",") if part]
    if wrong := [part for part in parts if "=" not in part]:
        raise UsageError(f"{option}: {wrong[0]!r} is not NAME=VALUE", fix=f"for example {option} title=name,brand=make")
    return {name.strip(): column.strip() for name, column in (part.split("=", 1) for part in parts)}
