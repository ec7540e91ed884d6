"""A shop's own old log, catalogue and clicks, and what can be had of it by counting.

Exports differ in names and in how they write times: names are mapped, the form of times is found out and said. A line
that cannot be used is skipped and counted by its reason.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from contracts.catalog import Product
from contracts.errors import ContractError, UsageError
from contracts.outcomes import VALUE, Grade
from contracts.wire import validate
from millrace.feed import read_field
from millrace.tables import read_rows, text_of, time_of
from towers.features import words

NEEDED: Final[Mapping[str, Sequence[str]]] = {
    "catalogue": ("product_id", "title"),
    "clicks": ("time", "query", "product_id"),
}
OPTIONAL: Final = ("brand", "description", "category", "attributes")
"""What else a product may have."""
GRADES: Final = {"": Grade.CLICK, "click": Grade.CLICK, "cart": Grade.CART, "purchase": Grade.PURCHASE}
WINDOW_MS: Final = 600_000
"""How long after a click a cart or a purchase belongs to it, as the join has it if nothing else is set."""
_PRODUCT: Final = TypeAdapter(Product)

POPULARITY_DAYS: Final = 7.0
"""Half-life of a product's popularity."""
DAY_MS: Final = 86_400_000.0


@dataclass(frozen=True, slots=True)
class Click:
    """One choice; `query` is folded: two spellings that differ in case or marks are one query."""

    time_ms: float
    query: str
    typed: str
    product: int
    grade: Grade = Grade.CLICK
    search_id: str = ""
    """Of the list that it was made in, if the log says it."""

    @property
    def value(self) -> float:
        """What it is worth, as in the lists that the trainer learns from."""
        return VALUE[self.grade]


@dataclass
class ClickLog:
    """What was read.

    Args:
        products: in the order of their file.
        clicks: in order of time.
        skipped: lines that could not be used, by reason.
        times: how times were written.
    """

    products: list[Product]
    clicks: list[Click]
    skipped: Counter[str] = field(default_factory=Counter)
    times: str = ""


def read_log(catalogue: Path, clicks: Path, *, columns: Mapping[str, str]) -> ClickLog:
    """Read a catalogue and its clicks.

    Args:
        catalogue: columns product_id and title, others of the product message if there are any.
        clicks: columns time, query and product_id; grade, search_id and session_id if there are any.
        columns: our name -> the file's, for those that are called otherwise.

    Raises:
        UsageError: a file cannot be read, lacks a column, or no line of it can be used.
    """
    skipped: Counter[str] = Counter()
    products: dict[str, Product] = {}
    for row in _rows(catalogue, columns, "catalogue", skipped):
        product = _product(row, skipped)
        if product is None:
            skipped["catalogue: no product_id or title"] += 1
        elif products.setdefault(product.product_id, product) is not product:
            skipped["catalogue: product_id repeated"] += 1
    if not products:
        raise UsageError(f"{catalogue} holds no product", fix="it needs the columns product_id and title")
    numbers = {product_id: number for number, product_id in enumerate(products)}
    read: list[tuple[str, Click]] = []
    forms: Counter[str] = Counter()
    for row in _rows(clicks, columns, "clicks", skipped):
        time_ms, form = time_of(text_of(row, "time"))
        typed = text_of(row, "query")
        product_number = numbers.get(text_of(row, "product_id"))
        query, grade = " ".join(words(typed)), GRADES.get(text_of(row, "grade").casefold())
        if time_ms is None:
            skipped["clicks: time not understood"] += 1
        elif not query:
            skipped["clicks: no query"] += 1
        elif product_number is None:
            skipped["clicks: product not in the catalogue"] += 1
        elif grade is None:
            skipped["clicks: grade is not click, cart or purchase"] += 1
        else:
            forms[form] += 1
            search_id = text_of(row, "search_id")
            shopper = search_id or text_of(row, "session_id")
            read.append((shopper, Click(time_ms, query, typed, product_number, grade, search_id)))
    if not read:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UsageError(f"{clicks} holds no click that can be used ({reasons})", fix="look at --columns NAME=COLUMN")
    read.sort(key=lambda one: one[1].time_ms)
    return ClickLog(list(products.values()), _choices(read), skipped, ", ".join(forms))


def _choices(read: Sequence[tuple[str, Click]]) -> list[Click]:
    """Clicks with what became of them: of a shopper's rows for one query and product only the highest grade counts.

    Rows that name neither search nor session are choices of their own.
    """
    choices: list[Click] = []
    place_of: dict[tuple[str, str, int], int] = {}
    for shopper, click in read:
        key = shopper, click.query, click.product
        place = place_of.get(key) if shopper else None
        if place is not None and click.time_ms <= choices[place].time_ms + WINDOW_MS:
            choices[place] = replace(choices[place], grade=max(choices[place].grade, click.grade))
        else:
            place_of[key] = len(choices)
            choices.append(click)
    return choices


def _rows(path: Path, columns: Mapping[str, str], kind: str, skipped: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a file with our names; a row of a table that is too short or too long counts as far as it goes."""
    for row in read_rows(path, columns, needed=NEEDED[kind], errors="replace"):
        if row.fields:
            yield row.fields
        else:
            skipped[f"{kind}: no JSON object"] += 1


def _product(row: Mapping[str, Any], skipped: Counter[str]) -> Product | None:
    """The product of a line; wrong optional fields, of which old exports are full, are left out and counted."""
    product_id, title = text_of(row, "product_id"), text_of(row, "title")
    fields: dict[str, Any] = {
        "type": "product", "version": 1, "product_id": product_id, "title": title, "price": 0.0
    }  # fmt: skip
    try:
        product = validate(fields, _PRODUCT)
    except ContractError:
        return None
    for name in OPTIONAL:
        if not row.get(name):
            continue
        try:
            more = fields | {name: read_field(name, row[name])}
            product = validate(more, _PRODUCT)
        except ContractError:
            skipped[f"catalogue: {name} not understood, the product counts without it"] += 1
        else:
            fields = more
    return product


@dataclass
class Counts:
    """Popularity and the clicks of each query, as known with some delay."""

    products: int
    popularity: np.ndarray = field(init=False)
    by_query: defaultdict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    read: int = 0
    faded_ms: float = 0.0

    def __post_init__(self) -> None:
        self.popularity = np.zeros(self.products)

    def advance(self, clicks: Sequence[Click], queries: np.ndarray, until_ms: float, before: int) -> None:
        """Count the clicks up to a moment, at most those before a place in the log."""
        while self.read < before and clicks[self.read].time_ms <= until_ms:
            click = clicks[self.read]
            self.popularity *= 0.5 ** ((click.time_ms - self.faded_ms) / DAY_MS / POPULARITY_DAYS)
            self.faded_ms = click.time_ms
            self.popularity[click.product] += 1
            self.by_query[int(queries[self.read])][click.product] += 1
            self.read += 1

    def boost(self, query: int) -> np.ndarray:
        """What counting adds to a score, in nats, (P,)."""
        boost = np.log1p(self.popularity)
        for product, count in self.by_query[query].items():
            boost[product] += 2.0 + np.log(count)
        return np.asarray(boost)
