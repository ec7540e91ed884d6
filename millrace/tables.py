"""Files of rows as shops export them: CSV, TSV or JSON lines, packed by gzip or not, read a row at a time.

What a file is, is found by its first bytes. Names of columns are mapped to ours; how times are written is found out.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from contracts import wire
from contracts.base import YEAR_2000_MS, YEAR_2100_MS
from contracts.errors import ContractError, UsageError

EPOCH_UNITS: Final = (("s", 1e3), ("ms", 1.0), ("us", 1e-3))
"""Unit, and milliseconds in it. A number is a time if that falls into this century: 20240131120000 is none."""
DATES_MS: Final = (1e11, 1e14)
"""What databases write for no date, such as the year 1, lies outside."""
LONGEST_FIELD: Final = 10_000_000
Stream = io.BufferedReader | gzip.GzipFile
_GZIP: Final = b"\x1f\x8b"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
"""As spreadsheets and PowerShell write."""
_HEAD_BYTES: Final = 4096
_BOM: Final = "\ufeff"
_END: Final = "\0 end of file"
_BEFORE_ZONE: Final = re.compile(r" (?:UTC$|(?=[+-]\d))")
"""`2024-01-31 12:00:00 UTC` and `2024-01-31 12:00:00 -0500`, which no ISO 8601 is, but many exports have."""


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
    alone: bool = False,
    errors: Literal["surrogateescape", "replace"] = "surrogateescape",
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> Iterator[Row]:
    """Read a file row by row, with our names beside the file's own.

    Args:
        path: the file.
        columns: our name -> the file's, for those that are called otherwise.
        needed: names that the first row must have.
        alone: whether the columns are named for this file alone; then a table must have each of them.
        errors: what becomes of bytes that are no UTF-8: halves of surrogate pairs, which no message may hold, or marks.
        tell: told how many bytes of how many are read.

    Raises:
        UsageError: it cannot be read, is not whole, or lacks a column.
    """
    with _opened(path) as (stream, position):
        size = path.stat().st_size
        is_first = True
        for row in _rows(path, stream, errors):
            tell(position(), size)
            ours = {name: row.fields[theirs] for name, theirs in columns.items() if theirs in row.fields}
            named = {**row.fields, **ours}
            if is_first and row.error is None:
                is_table = all(isinstance(value, str) for value in row.fields.values())
                _refuse_lacking(path, row.fields, named, [*needed, *columns] if alone and is_table else needed)
                is_first = False
            yield row._replace(fields=named)
        tell(size, size)


def refuse_pipe(path: Path) -> None:
    """Refuse what would be empty, or begin in the middle, when it is read once more.

    Raises:
        UsageError: it is no file.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", fix="write what it holds to a file, which is read several times")


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
    head = stream.peek(_HEAD_BYTES)
    encoding, errors = ("utf-16", "replace") if head[:2] in _UTF_16 else ("utf-8-sig", errors)
    begin = head.decode(encoding, "replace").lstrip()
    fix = "export it as CSV, TSV, or JSON with one object a line, in UTF-8"
    if begin[:1] in {"[", "<"}:
        raise UsageError(f"{path} is {'one JSON array' if begin[0] == '[' else 'XML'}", fix=fix)
    if "\0" in begin:
        raise UsageError(f"{path} is no text, but perhaps a workbook or an archive", fix=fix)
    is_json = begin[:1] == "{"
    with io.TextIOWrapper(stream, encoding, errors, newline="\n" if is_json else "") as text:
        if is_json:
            yield from _json_lines(text)
        else:
            yield from _table(path, text, delimiter=max("\t,;|", key=begin.partition("\n")[0].count))


def _table(path: Path, text: Iterable[str], *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader(chain(text, [_END]), delimiter=delimiter, skipinitialspace=True)
    names: list[str] = []
    while True:
        line = rows.line_num + 1
        try:
            values = next(rows)
        except csv.Error as error:
            raise UsageError(f"{path}, line {line}: {error}", fix="is a quotation mark never closed?") from error
        if values == [_END]:
            return
        if values and values[-1].endswith(_END):
            raise UsageError(f"{path}, line {line}: a quotation mark is never closed", fix="double it, or close it")
        if not any(map(str.strip, values)) or (not names and values[0] == "sep="):
            continue  # spreadsheets write rows of separators alone, and which separator it is
        if not names:
            names = _names(path, values)
            continue
        problem = None
        if len(values) != len(names):
            problem = ContractError("columns", f"{len(values)} fields, and the header has {len(names)}")
        yield Row(line, {name: value for name, value in zip(names, values, strict=False) if name}, problem)


def _names(path: Path, header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UsageError(f"{path} has two columns that are called {twice[0]}", fix="rename one, or leave it out")
    return names


def _json_lines(text: Iterable[str]) -> Iterator[Row]:
    for line, read in enumerate(text, start=1):
        content = read.removeprefix(_BOM).encode("utf-8", "surrogateescape")
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
            moment = datetime.fromisoformat(_BEFORE_ZONE.sub("", text))
        except ValueError:
            return None, ""
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        time_ms = moment.timestamp() * 1000
        return (time_ms, "ISO 8601") if DATES_MS[0] <= time_ms < DATES_MS[1] else (None, "")
    for unit, factor in EPOCH_UNITS:
        if YEAR_2000_MS <= number * factor < YEAR_2100_MS:
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
