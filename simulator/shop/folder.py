"""A world as a folder that anyone can write: products.jsonl, queries.jsonl, judgments.jsonl."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from contracts.catalog import CATALOG_CHANGE, Product
from contracts.errors import ContractError, UsageError
from contracts.wire import parse, validate
from simulator.shop.world import MAX_GRADE, SPLITS, Judgment, ProductMessage, Query, World

PRODUCTS: Final = "products.jsonl"
QUERIES: Final = "queries.jsonl"
JUDGMENTS: Final = "judgments.jsonl"
MAX_TEXT_CHARS: Final = 1000
"""The longest query that the search service takes."""
_FIX: Final = "correct that line, or write an example world with `millrace shop export FOLDER`"


def export_world(world: World, folder: Path) -> None:
    """Write a world into a folder; the same world gives the same bytes.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / PRODUCTS, world.products)
        _write(folder / QUERIES, map(_query_row, world.queries))
        _write(folder / JUDGMENTS, _judgment_rows(world))
    except OSError as exc:
        raise UsageError(f"cannot write the world to {folder}: {exc}", fix="name a folder you may write") from exc


def load_world(folder: Path) -> World:
    """Read a world from a folder.

    Raises:
        UsageError: a file is missing, or a row is wrong; the message names file and line.
    """
    products = _products(folder / PRODUCTS)
    queries = _queries(folder / QUERIES)
    judgments = _judgments(folder / JUDGMENTS, {query.query_id for query in queries.values()}, set(products))
    return World(tuple(products.values()), tuple(queries.values()), judgments, name=str(folder))


def _write(path: Path, rows: Iterator[Mapping[str, Any]] | tuple[ProductMessage, ...]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


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


class _Row:
    """One line of a file, which can say what is wrong with it and where."""

    def __init__(self, path: Path, number: int, line: str) -> None:
        self._where = f"{path}, line {number}"
        try:
            fields = parse(line.encode())
        except ContractError as exc:
            self.refuse(str(exc))
        if not isinstance(fields, dict):
            self.refuse("not a JSON object")
        self.fields: dict[str, Any] = fields

    def refuse(self, what: str) -> NoReturn:
        """Raise the error that names this line."""
        raise UsageError(f"{self._where}: {what}", fix=_FIX)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a non-empty string."""
        value = self.fields.get(name, default)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARS:
            self.refuse(f"`{name}` must be a string of 1 to {MAX_TEXT_CHARS} characters, found {value!r}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """Return a number within bounds."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(f"`{name}` must be a number from {low:g} to {high:g}, found {value!r}")
        return value


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _Row(path, number, line)
    except FileNotFoundError as exc:
        raise UsageError(
            f"{path} is missing",
            fix=f"a world is a folder with {PRODUCTS}, {QUERIES} and {JUDGMENTS}; `millrace shop export` writes one",
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {exc}", fix="the file must be readable UTF-8 text") from exc


def _products(path: Path) -> dict[str, ProductMessage]:
    products: dict[str, ProductMessage] = {}
    for row in _rows(path):
        try:
            product = validate(row.fields, CATALOG_CHANGE)
        except ContractError as exc:
            row.refuse(str(exc))
        if not isinstance(product, Product):
            row.refuse("only products may stand here, not deletions")
        if product.product_id in products:
            row.refuse(f"product_id {product.product_id!r} stands twice")
        products[product.product_id] = row.fields
    if not products:
        raise UsageError(f"{path} holds no product", fix=_FIX)
    return products


def _queries(path: Path) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    splits: dict[str, str] = {}
    for row in _rows(path):
        query = _query(row)
        if query.query_id in queries:
            row.refuse(f"query_id {query.query_id!r} stands twice")
        if splits.setdefault(query.query, query.split) != query.split:
            row.refuse(f"the query {query.query!r} stands in both splits; test queries must never be typed")
        queries[query.query_id] = query
    if "train" not in splits.values():
        raise UsageError(f"{path} holds no query of the split train", fix="shoppers type only train queries; add some")
    return queries


def _query(row: _Row) -> Query:
    split = row.text("split")
    if split not in SPLITS:
        row.refuse(f"`split` must be train or test, found {split!r}")
    return Query(
        query_id=row.text("query_id"),
        query=row.text("query"),
        query_class=row.text("class", "plain"),
        split="train" if split == "train" else "test",
        locale=row.text("locale", "en-IN"),
        popularity=row.number("popularity", 0, 1e12, 1.0),
    )


def _judgments(path: Path, query_ids: set[str], product_ids: set[str]) -> dict[str, dict[str, Judgment]]:
    judgments: dict[str, dict[str, Judgment]] = {}
    for row in _rows(path):
        query_id, product_id = row.text("query_id"), row.text("product_id")
        if query_id not in query_ids:
            row.refuse(f"query_id {query_id!r} is not in {QUERIES}")
        if product_id not in product_ids:
            row.refuse(f"product_id {product_id!r} is not in {PRODUCTS}")
        grade = row.number("grade", 0, MAX_GRADE)
        if grade != int(grade):
            row.refuse(f"`grade` must be a whole number from 0 to {MAX_GRADE}, found {grade!r}")
        attraction = row.number("attraction", 0, 1) if "attraction" in row.fields else None
        judged = judgments.setdefault(query_id, {})
        if product_id in judged:
            row.refuse(f"{query_id!r} and {product_id!r} are judged twice")
        judged[product_id] = Judgment(int(grade), attraction)
    return judgments
