"""A world as a folder that anyone can write: products.jsonl, queries.jsonl, judgments.jsonl.

Reading goes on after a fault, so that whoever wrote the files learns of all of them at once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter
from typing_extensions import override

from contracts.base import Part
from contracts.catalog import CATALOG_CHANGE, ProductDeleted
from contracts.errors import ContractError, UsageError
from contracts.wire import parse, validate
from service.machine import write_atomically
from simulator.shop.world import MAX_GRADE, Judgment, ProductMessage, Query, Split, World

PRODUCTS: Final = "products.jsonl"
QUERIES: Final = "queries.jsonl"
JUDGMENTS: Final = "judgments.jsonl"
MOST_SHOWN: Final = 50
"""Faults that are told one by one; the others are counted."""

Text = Annotated[str, Field(min_length=1, max_length=1000)]
"""At most what the search service takes as a query."""
M = TypeVar("M")


class QueryRow(Part):
    """A line of `queries.jsonl`."""

    query_id: Text
    query: Text
    query_class: Text = Field(default="plain", alias="class")
    split: Split
    locale: Text = "en-IN"
    popularity: Annotated[float, Field(ge=0, le=1e12)] = 1.0


class JudgmentRow(Part):
    """A line of `judgments.jsonl`."""

    query_id: Text
    product_id: Text
    grade: Annotated[float, Field(ge=0, le=MAX_GRADE, multiple_of=1)]
    """Whole, but written as 3.0 by some tools."""
    attraction: Annotated[float, Field(ge=0, le=1)] | None = None


_QUERY_ROW: Final = TypeAdapter(QueryRow)
_JUDGMENT_ROW: Final = TypeAdapter(JudgmentRow)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a file, and where."""

    file: str
    line: int | None
    field: str | None
    problem: str

    @override
    def __str__(self) -> str:
        line = None if self.line is None else f"line {self.line}"
        place = ", ".join(part for part in (self.file, line, self.field) if part)
        return f"{place}: {self.problem}"


class UnreadableWorld(UsageError):
    """The files of a folder are not a world. Operator action: correct the lines that the message names.

    Args:
        folder: the folder.
        faults: the first of them, file by file.
        counts: how many each file has.
    """

    def __init__(self, folder: Path, faults: Iterable[Fault], counts: Counter[str]) -> None:
        self.faults = tuple(faults)
        self.counts = counts
        found = ", ".join(f"{count} in {name}" for name, count in counts.items())
        rest = counts.total() - len(self.faults)
        lines = [f"{folder} is not a world (faults: {found})", *map(str, self.faults)]
        super().__init__(
            "\n  ".join([*lines, f"and {rest} more"] if rest else lines),
            fix=f"a world is a folder with {PRODUCTS}, {QUERIES} and {JUDGMENTS}; "
            "`millrace shop export FOLDER` writes an example",
        )


def export_world(world: World, folder: Path) -> None:
    """Write a world into a folder; the same world gives the same bytes.

    Raises:
        UsageError: the folder cannot be written.
    """
    files = {PRODUCTS: world.products, QUERIES: map(_query_row, world.queries), JUDGMENTS: _judgment_rows(world)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
            write_atomically(folder / name, "".join(lines).encode())
    except OSError as error:
        raise UsageError(f"cannot write the world to {folder}: {error}", fix="name a folder you may write") from error


def load_world(folder: Path) -> World:
    """Read a world from a folder.

    Raises:
        UnreadableWorld: files are missing or lines are wrong; it tells all of them.
    """
    reader = _WorldReader(folder)
    products, queries = reader.products(), reader.queries()
    judgments = reader.judgments()
    if reader.faults:
        raise UnreadableWorld(folder, reader.faults, reader.fault_counts)
    return World(tuple(products.values()), tuple(queries.values()), judgments, name=str(folder))


def _query_row(query: Query) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "query": query.query,
        "class": query.query_class,
        "split": query.split,
        "locale": query.locale,
        "popularity": query.popularity,
    }


def _judgment_rows(world: World) -> Iterator[dict[str, Any]]:
    for query_id, judged in world.judgments.items():
        for product_id, judgment in judged.items():
            row: dict[str, Any] = {"query_id": query_id, "product_id": product_id, "grade": judgment.grade}
            if judgment.attraction is not None:
                row["attraction"] = judgment.attraction
            yield row


class _WorldReader:
    """Reads the three files in the order of their references and gathers what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[Fault] = []
        self.fault_counts: Counter[str] = Counter()
        self._lines_by_id: dict[str, dict[str, int]] = {PRODUCTS: {}, QUERIES: {}}
        """The line of each id, faulty lines included: what refers to them is not wrong as well."""
        self._with_unknown_ids: set[str] = set()
        """Files with lines so broken that their id is not known."""

    def products(self) -> dict[str, ProductMessage]:
        products: dict[str, ProductMessage] = {}
        for number, fields, product in self._rows(PRODUCTS, CATALOG_CHANGE, id_field="product_id"):
            if isinstance(product, ProductDeleted):
                self._fault(PRODUCTS, number, "type", "only products may be here, not deletions")
            else:
                products[product.product_id] = fields
        if not products and not self.fault_counts[PRODUCTS]:
            self._fault(PRODUCTS, None, None, "holds no product")
        return products

    def queries(self) -> dict[str, Query]:
        queries: dict[str, Query] = {}
        splits: dict[str, Split] = {}
        for number, _, row in self._rows(QUERIES, _QUERY_ROW, id_field="query_id"):
            if splits.setdefault(row.query, row.split) != row.split:
                self._fault(
                    QUERIES, number, "split", f"the query {row.query!r} is in both; test queries are never typed"
                )
            queries[row.query_id] = Query(
                row.query_id, row.query, row.query_class, row.split, locale=row.locale, popularity=row.popularity
            )
        if "train" not in splits.values() and not self.fault_counts[QUERIES]:
            self._fault(QUERIES, None, None, "holds no query of the split train; shoppers type no others")
        return queries

    def judgments(self) -> dict[str, dict[str, Judgment]]:
        judgments: dict[str, dict[str, Judgment]] = {}
        for number, _, row in self._rows(JUDGMENTS, _JUDGMENT_ROW):
            self._check_reference(number, "query_id", row.query_id, QUERIES)
            self._check_reference(number, "product_id", row.product_id, PRODUCTS)
            judged = judgments.setdefault(row.query_id, {})
            if row.product_id in judged:
                self._fault(JUDGMENTS, number, None, f"{row.query_id!r} and {row.product_id!r} are judged twice")
            judged[row.product_id] = Judgment(int(row.grade), row.attraction)
        return judgments

    def _rows(
        self, name: str, contract: TypeAdapter[M], *, id_field: str | None = None
    ) -> Iterator[tuple[int, dict[str, Any], M]]:
        """Yield line number, fields and row of each line that keeps the contract and whose id is new."""
        try:
            with (self._folder / name).open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    fields: Any = None
                    try:
                        fields = parse(line)
                        row = validate(fields, contract)
                    except ContractError as error:
                        problem = str(error).removeprefix(f"{error.field}: ")
                        self._fault(name, number, error.field, problem)
                        row = None
                    if self._id_is_new(name, number, id_field, fields) and row is not None:
                        yield number, fields, row
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            self._fault(name, None, None, "is missing" if missing else f"cannot be read: {error.strerror}")
            self._with_unknown_ids.add(name)

    def _id_is_new(self, name: str, number: int, id_field: str | None, fields: Any) -> bool:
        """Remember a line's id; say so if an earlier line has the same."""
        if id_field is None:
            return True
        own_id = fields.get(id_field) if isinstance(fields, Mapping) else None
        if not isinstance(own_id, str):
            self._with_unknown_ids.add(name)
            return False
        first = self._lines_by_id[name].setdefault(own_id, number)
        if first != number:
            self._fault(name, number, id_field, f"{own_id!r} is in line {first} already")
        return first == number

    def _check_reference(self, number: int, field: str, value: str, name: str) -> None:
        if value not in self._lines_by_id[name] and name not in self._with_unknown_ids:
            self._fault(JUDGMENTS, number, field, f"{value!r} is not in {name}")

    def _fault(self, file: str, line: int | None, field: str | None, problem: str) -> None:
        self.fault_counts[file] += 1
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(Fault(file, line, field, problem))
