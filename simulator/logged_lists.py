"""Lists as an old log shows them, judged by what each says itself, and learned as the trainer learns them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from contracts.catalog import Product, point_id
from contracts.errors import ContractError, UsageError
from contracts.outcomes import Grade, filter_reason
from contracts.structs import JOINED_SEARCH, TrainingSearch
from millrace.tables import Row, read_rows, text_of, time_of
from simulator.choices import HALF_LIFE_DAYS
from simulator.click_log import WINDOW_MS, Click, ClickLog, Skipped, nothing_of
from simulator.words import Words
from streams.pairs.training import training_search
from towers.features import FeatureSpace, key_of, keys_of, product_features
from towers.lexical import NO_WORDS, Sparse
from towers.model import Mix, product_vectors
from towers.word_index import WordIndex
from trainer.learner import Learner, Looked, Towers
from trainer.preference.model import Catalogue
from trainer.preference.priors import Learned

NEEDED: Final = ("search_id", "time", "query", "product_id", "position")
"""Of a row for each product of a list; a line that holds `slots` is a whole list in the form of `joined-searches`."""


@dataclass
class _Rows:
    """The rows of one list."""

    time_ms: float
    query: str
    products: dict[int, str] = field(default_factory=dict)
    """By position."""

    def message(self, search_id: str, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The list in the form of `joined-searches`."""
        slots = [
            {"product_id": product, "position": position, **outcomes.get(product, {})}
            for position, product in sorted(self.products.items())
        ]
        shown = {"search_time": int(self.time_ms), "closed_at": int(self.time_ms + WINDOW_MS), "query": self.query}
        return {"type": "joined_search", "search_id": search_id, **shown, "slots": slots}


def read_lists(path: Path, log: ClickLog, *, columns: Mapping[str, str]) -> list[TrainingSearch]:
    """Read what was shown, with what was chosen of it; return what may be learned, in the order in which lists close.

    Args:
        path: a row for each product of a list, with the columns search_id, time, query, product_id and position; or
            JSON lines as `joined-searches` holds them, which name their outcomes themselves.
        log: its clicks tell what was chosen of the lists that come as rows; what is not used is counted in `skipped`.
        columns: our name -> the file's, for those that are called otherwise.

    Raises:
        UsageError: the file cannot be read, lacks a column, or holds no list that can be used.
    """
    skipped = log.skipped
    rows: dict[str, _Rows] = {}
    messages: list[Mapping[str, Any]] = []
    for row in read_rows(path, columns, errors="replace"):
        log.unseen.difference_update(row.fields)
        if row.error is not None:
            skipped.add("lists: a line that cannot be read", row.line, str(row.error))
        elif "slots" in row.fields:
            messages.append(row.fields)
        elif missing := [name for name in NEEDED if name not in row.fields]:
            raise UsageError(
                f"{path}, line {row.line}: no {', '.join(missing)}; it has {', '.join(row.fields)}",
                fix=f"say what they are called: --columns {missing[0]}=COLUMN",
            )
        else:
            _take_row(row, rows, skipped)
    names = [product.product_id for product in log.products]
    clicks = _by_list(log, rows, names) if rows else {}
    messages += [shown.message(one, _outcomes(clicks.get(one, ()), names)) for one, shown in rows.items()]
    judged = [search for message in messages if (search := _judged(message, skipped)) is not None]
    once = {(search.search_id, search.search_time): search for search in reversed(judged)}
    found = list(once.values())
    if len(found) < len(judged):
        skipped["lists: shown twice"] = len(judged) - len(found)
    known = set(names)
    if unknown := sum(slot.product_id not in known for search in found for slot in search.slots):
        skipped["lists: slots of products that are not in the catalogue"] = unknown
    if not found:
        raise nothing_of(path, "list", skipped)
    return sorted(found, key=lambda search: (search.closed_at, search.search_id))


def _take_row(row: Row, rows: dict[str, _Rows], skipped: Skipped) -> None:
    said = {name: text_of(row.fields, name) for name in NEEDED}
    search_id, position, product_id = said["search_id"], said["position"], said["product_id"]
    time_ms, _ = time_of(said["time"])
    if not search_id:
        skipped.add("lists: no search_id", row.line, search_id)
    elif time_ms is None:
        skipped.add("lists: time not understood", row.line, said["time"])
    elif not position.isdecimal():
        skipped.add("lists: position is no number", row.line, position)
    else:
        shown = rows.setdefault(search_id, _Rows(time_ms, said["query"]))
        if shown.products.setdefault(int(position), product_id) != product_id:
            skipped.add("lists: another product at the same position", row.line, product_id)


def _by_list(log: ClickLog, rows: Mapping[str, _Rows], names: Sequence[str]) -> dict[str, list[Click]]:
    """The clicks that lists are learned with, by search_id; of the others nothing is learned, and they are counted."""
    found: defaultdict[str, list[Click]] = defaultdict(list)
    for click in log.clicks:
        shown = rows.get(click.search_id)
        if shown is None:
            log.skipped["clicks: in no list, so that nothing is learned from them"] += 1
        elif not 0 <= click.time_ms - shown.time_ms <= WINDOW_MS:
            log.skipped["clicks: not within ten minutes after their list, so that nothing is learned from them"] += 1
        elif names[click.product] not in shown.products.values():
            log.skipped["clicks: on what their list does not show, so that nothing is learned from them"] += 1
        else:
            found[click.search_id].append(click)
    return found


def _outcomes(clicks: Sequence[Click], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What became of the products of one list, by id, as slots say it."""
    outcomes: dict[str, dict[str, Any]] = defaultdict(dict)
    for click in clicks:
        outcome = outcomes[names[click.product]]
        outcome["clicked"] = True
        outcome["click_time"] = int(min(outcome.get("click_time", click.time_ms), click.time_ms))
        if click.grade >= Grade.CART:
            outcome["purchase_quantity" if click.grade == Grade.PURCHASE else "cart_quantity"] = 1
    return outcomes


def _judged(message: Mapping[str, Any], skipped: Skipped) -> TrainingSearch | None:
    """What may be learned from a list."""
    try:
        search = JOINED_SEARCH.decode(orjson.dumps(message))
    except ContractError as error:
        skipped.add(f"lists: {error.reason}", f"list {message.get('search_id')}", str(error))
        return None
    if reason := filter_reason(search):
        skipped[f"lists: {reason.value}"] += 1
        return None
    judged = training_search(search)
    if judged is None:
        skipped["lists: no query, or no product that counts"] += 1
    return judged


class _Products:
    """A catalogue as the trainer knows it."""

    def __init__(self, products: Sequence[Product], vectors: np.ndarray, words: Sequence[Sparse]) -> None:
        self._row_of = {product.product_id: row for row, product in enumerate(products)}
        self._vectors, self._words = vectors, words
        self.features = [keys_of(product_features(product)) for product in products]
        self._digests = np.array([key_of(product.product_id) for product in products], dtype=np.uint64)

    def digests(self) -> np.ndarray:
        return self._digests

    def feature_space(self) -> FeatureSpace:
        return FeatureSpace.of(self.features)

    def word_index(self) -> WordIndex:
        return WordIndex(self._words)

    def look(self, product_ids: Sequence[str]) -> Looked:
        rows = [self._row_of.get(one) for one in product_ids]
        known = np.array([row is not None for row in rows], dtype=bool)
        vectors = np.zeros((len(rows), self._vectors.shape[1]), dtype=np.float32)
        vectors[known] = self._vectors[[row for row in rows if row is not None]]
        features = [np.zeros(0, np.uint64) if row is None else self.features[row] for row in rows]
        words = [NO_WORDS if row is None else self._words[row] for row in rows]
        return Looked(known, vectors, features, words)


@dataclass(frozen=True)
class Release:
    """Towers as `Weights` are asked: over the rows of a catalogue."""

    towers: Towers
    features: Sequence[np.ndarray]
    product_ids: Sequence[str]
    typed: Sequence[str]
    row_of_point: Mapping[str, int]

    def product_vectors(self, catalogue: Catalogue) -> np.ndarray:
        """The vectors that are searched, (P, D + 1)."""
        return product_vectors(catalogue.vectors, self.towers.product.quality(self.product_ids, self.features))

    def query_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors that are searched with, (Q, D + 1)."""
        return self.towers.query.vectors(vectors)

    @property
    def mix(self) -> Mix:
        """What words count."""
        return self.towers.query.mix

    def remembered(self, query: int, scores: np.ndarray) -> np.ndarray:
        """Scores of the whole catalogue, in nats, (P,), with what is remembered of a query."""
        found = scores.copy()
        for point, nats in self.towers.query.memory.nats_of(self.typed[query]).items():
            if point in self.row_of_point:
                found[self.row_of_point[point]] += nats
        return found


class ListLearner:
    """The trainer's learner over an old log.

    Args:
        lists: in the order in which they close.
        log: products and clicks.
        typed: queries by number.
        catalogue: base vectors of the products.
        words: of the products.
        encode: gives the base vector (D,) of a query.
    """

    def __init__(
        self,
        lists: Sequence[TrainingSearch],
        log: ClickLog,
        typed: Sequence[str],
        catalogue: Catalogue,
        words: Words,
        encode: Callable[[str], np.ndarray],
    ) -> None:
        dim = catalogue.vectors.shape[1]
        self._lists, self._read, self._clicks = lists, 0, log.clicks
        self._products = _Products(log.products, catalogue.vectors, words.of_products)
        self._learner = Learner(dim, products=self._products, encode=encode, half_life_days=HALF_LIFE_DAYS)
        self._ids, self._typed = [product.product_id for product in log.products], typed
        self._row_of_point = {point_id(product_id): row for row, product_id in enumerate(self._ids)}
        self.released = self._release(Towers.untrained(dim))

    @property
    def learned(self) -> Learned | None:
        """The prior in force."""
        return self._learner.preference.learned

    def solve(self, clicks: int) -> None:
        """Learn the lists that are closed when the last of the first clicks is made."""
        until_ms = self._clicks[clicks - 1].time_ms
        while self._read < len(self._lists) and self._lists[self._read].closed_at <= until_ms:
            search = self._lists[self._read]
            self._learner.evidence.take_list(search, time_ms=search.closed_at)
            self._read += 1
            if self._learner.prior_due:
                self._learner.learn_prior()
        self.released = self._release(self._learner.solve(self.released.towers).towers)

    def _release(self, towers: Towers) -> Release:
        return Release(towers, self._products.features, self._ids, self._typed, self._row_of_point)
