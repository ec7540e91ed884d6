"""A shop's own old log, catalogue and clicks, and what can be had of it by counting.

Exports differ in names and in how they write times: names are mapped, the form of times is found out and said. A line
that cannot be used is skipped and counted by its reason.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from contracts.catalog import Product
from contracts.errors import ContractError, UsageError
from contracts.outcomes import VALUE, Grade
from contracts.wire import validate
from millrace.feed import read_field
from millrace.output import Tell, utc
from millrace.tables import Row, read_rows, text_of, time_of
from towers.features import words

NEEDED: Final[Mapping[str, Sequence[str]]] = {
    "catalogue": ("product_id", "title"),
    "clicks": ("time", "query", "product_id"),
}
OPTIONAL: Final = ("brand", "description", "category", "attributes")
"""What else a product may have."""
OF_CLICKS: Final = ("grade", "search_id", "session_id")
OF_LISTS: Final = ("position",)
GRADES: Final = {"": Grade.CLICK, "click": Grade.CLICK, "cart": Grade.CART, "purchase": Grade.PURCHASE}
WINDOW_MS: Final = 600_000
"""How long after a click a cart or a purchase belongs to it, as the join has it if nothing else is set."""
_PRODUCT: Final = TypeAdapter(Product)
MOST_SHOWN: Final = 80
"""Characters of what cannot be used."""
UNREADABLE: Final = "\ufffd"
"""What stands for bytes that are no UTF-8."""

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


class Skipped(Counter[str]):
    """How many lines could not be used, by reason, and where the first of each stands."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: object, value: str) -> None:
        """Count what cannot be used: where it stands, by its line if it is one, and what it is."""
        self[reason] += 1
        shown = value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}..."
        self._first.setdefault(reason, f"; first in {'line ' if isinstance(where, int) else ''}{where}: {shown!r}")

    def told(self) -> list[str]:
        """Say each reason, the most frequent first."""
        return [f"{count:,}: {reason}{self._first.get(reason, '')}" for reason, count in self.most_common()]


@dataclass
class ClickLog:
    """What was read.

    Args:
        products: in the order of their file.
        clicks: in order of time.
        skipped: lines that could not be used, by reason.
        times: how times were written.
        unseen: columns that were named and that no file has, so far.
    """

    products: list[Product]
    clicks: list[Click]
    skipped: Skipped = field(default_factory=Skipped)
    times: str = ""
    unseen: set[str] = field(default_factory=set)


def read_log(
    catalogue: Path, clicks: Path, *, columns: Mapping[str, str], tell: Tell = lambda _what, _done, _of: None
) -> ClickLog:
    """Read a catalogue and its clicks.

    Args:
        catalogue: columns product_id and title, others of the product message if there are any.
        clicks: columns time, query and product_id; grade, search_id and session_id if there are any.
        columns: our name -> the file's, for those that are called otherwise.
        tell: told how far reading has come.

    Raises:
        UsageError: a file cannot be read, lacks a column, or no line of it can be used; or `columns` has a name that
            nothing here has.
    """
    known = dict.fromkeys(chain(*NEEDED.values(), OPTIONAL, OF_CLICKS, OF_LISTS))
    if unknown := [name for name in columns if name not in known]:
        raise UsageError(f"--columns: there is no {', '.join(unknown)}", fix=f"one of: {', '.join(known)}")
    skipped, unseen = Skipped(), set(columns.values())
    products: dict[str, Product] = {}
    for row in _rows(catalogue, columns, "catalogue", skipped, tell):
        unseen.difference_update(row.fields)
        product = _product(row, skipped)
        if product is not None and products.setdefault(product.product_id, product) is not product:
            skipped.add("catalogue: product_id repeated", row.line, product.product_id)
    if not products:
        raise nothing_of(catalogue, "product", skipped)
    numbers = {product_id: number for number, product_id in enumerate(products)}
    read: list[tuple[str, Click]] = []
    forms: Counter[str] = Counter()
    for row in _rows(clicks, columns, "clicks", skipped, tell):
        unseen.difference_update(row.fields)
        said = {name: text_of(row.fields, name) for name in ("time", "query", "product_id", "grade", "search_id")}
        time_ms, form = time_of(said["time"])
        product_number = numbers.get(said["product_id"])
        query, grade = " ".join(words(said["query"])), GRADES.get(said["grade"].casefold())
        if time_ms is None:
            skipped.add("clicks: time not understood", row.line, said["time"])
        elif not query:
            skipped.add("clicks: no query", row.line, said["query"])
        elif product_number is None:
            skipped.add("clicks: product not in the catalogue", row.line, said["product_id"])
        elif grade is None:
            skipped.add("clicks: grade is not click, cart or purchase", row.line, said["grade"])
        else:
            forms[form] += 1
            shopper = said["search_id"] or text_of(row.fields, "session_id")
            click = Click(time_ms, query, said["query"], product_number, grade, said["search_id"])
            read.append((shopper, click))
    if not read:
        raise nothing_of(clicks, "click", skipped)
    read.sort(key=lambda one: one[1].time_ms)
    return ClickLog(list(products.values()), _choices(read, skipped), skipped, ", ".join(forms), unseen)


def _choices(read: Sequence[tuple[str, Click]], skipped: Skipped) -> list[Click]:
    """Clicks with what became of them: of a shopper's rows for one query and product only the highest grade counts.

    Rows that name neither search nor session are choices of their own, unless they say the same of one moment: joins of
    tables, and clicks that are sent twice, repeat rows, and to predict the second after the first is no merit.
    """
    choices: list[Click] = []
    place_of: dict[tuple[str, str, int], int] = {}
    now_ms, said = 0.0, set[Click]()
    for shopper, click in read:
        if not shopper and click.time_ms % DAY_MS:  # times that are dates alone say nothing
            if click.time_ms != now_ms:
                now_ms, said = click.time_ms, set()
            if click in said:
                at = f"the click of {utc(click.time_ms)}"
                skipped.add("clicks: the same time, query and product as another", at, click.typed)
                continue
            said.add(click)
        key = shopper, click.query, click.product
        place = place_of.get(key) if shopper else None
        if place is not None and click.time_ms <= choices[place].time_ms + WINDOW_MS:
            choices[place] = replace(choices[place], grade=max(choices[place].grade, click.grade))
        else:
            place_of[key] = len(choices)
            choices.append(click)
    return choices


def nothing_of(path: Path, kind: str, skipped: Skipped) -> UsageError:
    """Say why nothing of a file can be used."""
    return UsageError(
        "\n  ".join([f"{path} holds no {kind} that can be used", *skipped.told()]),
        fix="correct the lines, or say what columns are called: --columns NAME=COLUMN",
    )


def _rows(path: Path, columns: Mapping[str, str], kind: str, skipped: Skipped, tell: Tell) -> Iterator[Row]:
    """The rows of a file with our names; what moves their columns or changes their letters is counted."""
    for row in read_rows(
        path, columns, needed=NEEDED[kind], errors="replace",
        tell=lambda done, of: tell(f"reading {kind}", done, of),
    ):  # fmt: skip
        if not row.fields:
            skipped.add(f"{kind}: no JSON object", row.line, str(row.error))
            continue
        if row.error is not None:
            skipped.add(f"{kind}: fields and columns differ, it counts as far as it goes", row.line, str(row.error))
        if strange := [value for value in row.fields.values() if isinstance(value, str) and UNREADABLE in value]:
            skipped.add(f"{kind}: letters are no UTF-8, it counts without them", row.line, strange[0])
        yield row


def _product(row: Row, skipped: Skipped) -> Product | None:
    """The product of a line; wrong optional fields, of which old exports are full, are left out and counted."""
    product_id, title = text_of(row.fields, "product_id"), text_of(row.fields, "title")
    fields: dict[str, Any] = {
        "type": "product", "version": 1, "product_id": product_id, "title": title, "price": 0.0
    }  # fmt: skip
    try:
        product = validate(fields, _PRODUCT)
    except ContractError as error:
        skipped.add("catalogue: no product_id or title", row.line, str(error))
        return None
    for name in OPTIONAL:
        if not (value := row.fields.get(name)):
            continue
        try:
            more = fields | {name: read_field(name, value)}
            product = validate(more, _PRODUCT)
        except ContractError:
            reason = f"catalogue: {name} not understood, the product counts without it"
            skipped.add(reason, row.line, str(value))
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
