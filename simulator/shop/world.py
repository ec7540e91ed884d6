"""What a world is: products, queries, how well each product answers each query; and a folder that holds one.

A world is facts only. The shoppers click by its judgments and the evaluation scores by them; no service may read
them. Queries of the split `train` are typed by shoppers, those of `test` never. Anyone can write products.jsonl,
queries.jsonl and judgments.jsonl; reading goes on after a fault, so that they learn of all of them at once.
"""

import json
import math
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter
from typing_extensions import override

from contracts.base import Part
from contracts.catalog import CATALOG_CHANGE, ProductDeleted
from contracts.errors import ContractError, UsageError
from contracts.wire import parse, validate
from service.machine import write_atomically

Split = Literal["train", "test"]
SPLITS: Final[Mapping[str, Split]] = {"seen": "train", "unseen": "test"}
"""What reports call them: only `train` queries are typed by shoppers."""
MAX_GRADE: Final = 4
WORLD_EPOCH_MS: Final = 1_795_132_800_000
"""The built-in world's present: 20 November 2026, 00:00 UTC. Launch dates and versions count from here."""

PRODUCTS: Final = "products.jsonl"
QUERIES: Final = "queries.jsonl"
JUDGMENTS: Final = "judgments.jsonl"
MOST_SHOWN: Final = 50
"""Faults that are told one by one; the others are counted."""

Text = Annotated[str, Field(min_length=1, max_length=1000)]
"""At most what the search service takes as a query."""
M = TypeVar("M")

ProductMessage = Mapping[str, Any]
"""A product message (docs/events.md), as parsed JSON."""


@dataclass(frozen=True, slots=True)
class Query:
    """One way to ask the shop for something."""

    query_id: str
    query: str
    query_class: str
    split: Split
    locale: str = "en-IN"
    popularity: float = 1.0


@dataclass(frozen=True, slots=True)
class Judgment:
    """How well one product answers one query: what a careful buyer says, and how often a glance becomes a click."""

    grade: int
    """0 (useless) to 4 (exactly right)."""
    attraction: float | None = None
    """P(click | the shopper looked at it), in [0, 1]; None if the world's author gave only a grade."""

    def click_probability(self) -> float:
        """The attraction that was given, or else the one that the grade implies.

        >>> Judgment(grade=4, attraction=0.5).click_probability()
        0.5
        >>> Judgment(grade=2).click_probability()
        0.14
        """
        return attraction_of(float(self.grade)) if self.attraction is None else self.attraction


NOTHING: Final = Judgment(grade=0, attraction=0.0)


def attraction_of(grade: float) -> float:
    """P(click | looked at) for a grade, which need not be whole: proportional to the grade's gain.

    >>> attraction_of(0.0), attraction_of(4.0)
    (0.0, 0.7)
    """
    gain = max(0.0, math.pow(2.0, grade) - 1) / (2**MAX_GRADE - 1)
    return round(min(0.9, 0.7 * gain), 4)


def popularity_of(rank: int) -> float:
    """How often the query of a rank (0 first) is typed beside the first: a head as shops have it, and a long tail.

    >>> popularity_of(0), popularity_of(30)
    (1.0, 0.1155)
    """
    return round(math.pow(1 + rank / 3, -0.9), 4)


@dataclass(frozen=True)
class World:
    """A shop with its catalogue, the queries people type there and the judgments that decide their clicks."""

    products: tuple[ProductMessage, ...]
    queries: tuple[Query, ...]
    judgments: Mapping[str, Mapping[str, Judgment]]
    """By query_id, then product_id; what is absent has grade 0."""
    name: str = field(default="built-in", compare=False)

    def of_split(self, split: Split) -> tuple[Query, ...]:
        """The queries of one split, in the world's order."""
        return tuple(query for query in self.queries if query.split == split)

    def judgment(self, query_id: str, product_id: str) -> Judgment:
        """What is known of one product for one query; grade 0 if nothing is."""
        return self.judgments.get(query_id, {}).get(product_id, NOTHING)

    def grades(self, query_id: str) -> dict[str, int]:
        """The grades of all products judged for a query."""
        return {product_id: judged.grade for product_id, judged in self.judgments.get(query_id, {}).items()}

    @cached_property
    def by_product_id(self) -> dict[str, ProductMessage]:
        """The products by their id."""
        return {str(product["product_id"]): product for product in self.products}


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
    """The files of a folder are not a world. Operator action: correct the lines that the message names."""

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
        UsageError: the folder cannot be written, or holds another world, which somebody may have edited.
    """
    files = {PRODUCTS: world.products, QUERIES: map(_query_row, world.queries), JUDGMENTS: _judgment_rows(world)}
    written = {folder / name: b"".join(map(_line, rows)) for name, rows in files.items()}
    try:
        for path, content in written.items():
            if path.exists() and path.read_bytes() != content:
                raise UsageError(f"{path} is of another world", fix="name a new folder, or an empty one")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in written.items():
            write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"cannot write the world to {folder}: {error}", fix="name a folder you may write") from error


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


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
        if not judgments and not self.fault_counts:
            self._fault(JUDGMENTS, None, None, "holds no judgment; shoppers would click nothing")
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
                        fields = parse(line.removeprefix(BOM_UTF8))
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
