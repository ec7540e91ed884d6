"""What the log says, as evidence: training searches and pairs, each counted once.

A pair of source `click` is known through its list. A pair that a person made is a list of two of its own, counted once
however often it is sent; a `value` pair adds to the product that was chosen. Pairs of rules are kept apart from what
shoppers and people say. Nothing here depends on the order of records, but for what is forgotten first, or is not taken,
when a memory is full.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import orjson
from cachetools import FIFOCache

from contracts.outcomes import VALUE, Grade
from contracts.pairs import CuratedPair
from contracts.structs import PreferencePair, TrainingSearch, TrainingSlot
from contracts.telemetry import ListOutcome, PairDropReason
from towers.features import key_of
from towers.text import normalised
from trainer.preference.debiasing import FULL, Exchanges
from trainer.preference.evidence import Cells, EvidenceTable, Shown
from trainer.preference.memory import RECENT_SHARE
from trainer.preference.rules import RulePairs, Said

RULE_WEIGHT: Final = 0.5
CURATED_WEIGHT: Final = 2.0
"""Clicks that a pair of weight 1 counts as: a person who writes a pair means it, a rule guesses."""
MAX_PAIR_CLICKS: Final = 10.0
"""Clicks that one such pair counts as at most."""
DIGEST_BYTES: Final = 16
REMEMBERED: Final = 200_000
"""Lists, and as many pairs, whose repetition is noticed; hours of a busy shop."""
CLICK_TIMES: Final = 4096
"""Click times kept for the next release, which carries an even sample of them."""
TEXT: Final = "\0"
"""Begins the name of a product that is a text of a curated pair; no product id holds it."""
SPARE_NUMBERS: Final = 10_000
"""Numbers without evidence from which all are given out anew."""

Record = TrainingSearch | PreferencePair | CuratedPair


def under(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The part of a state whose names begin alike, without that beginning."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


class LogRecord(NamedTuple):
    """A record of a topic that the trainer reads; a malformed one has no content and is a dead letter already."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    """When it was written."""
    content: Record | None

    @property
    def place(self) -> str:
        """The partition, as offsets name it."""
        return f"{self.topic}/{self.partition}"

    @property
    def ends_a_rule(self) -> bool:
        """Whether it says of two products that nothing counts any more: that teaches nothing, so is never left out."""
        expires_at = self.content.expires_at if isinstance(self.content, CuratedPair) else None
        return expires_at is not None and expires_at <= self.time_ms


def shown_in(search: TrainingSearch, number: Callable[[str], int]) -> tuple[list[Shown], list[tuple[Shown, Shown]]]:
    """What a list says of each of its products, by their numbers, and its neighbours that chance put in their order."""
    cap = search.cap
    shown = [Shown(number(one.product_id), cap * one.showing, cap * one.value, cap) for one in search.slots]
    at = dict(zip((one.position for one in search.slots), shown, strict=True))
    return shown, [(at[one], at[one + 1]) for one in search.exchanged or () if one in at and one + 1 in at]


class Names:
    """Gives out numbers for texts, and keeps their keys."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = list(texts)
        self._number_of = {text: number for number, text in enumerate(self.texts)}
        self._keys = [key_of(text) for text in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def number(self, text: str) -> int:
        """The number of a text; a new one if it has none."""
        number = self._number_of.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
            self._keys.append(key_of(text))
        return number

    def keys(self) -> np.ndarray:
        """Under which releases name them, by number, (N,) uint64."""
        return np.array(self._keys, dtype=np.uint64)


def _renamed(queries: Sequence[str]) -> list[str]:
    """Names of queries in the form of now; one whose name another has keeps its own, is asked no more, and fades."""
    names, taken = list(queries), set(queries)
    for number, name in enumerate(names):
        if (renamed := normalised(name)) not in taken:
            names[number] = renamed
            taken.add(renamed)
    return names


class Seen:
    """Remembers the newest names by digest."""

    def __init__(self, digests: np.ndarray | None = None, *, capacity: int = REMEMBERED) -> None:
        self._digests: FIFOCache[bytes, None] = FIFOCache(capacity)
        for row in () if digests is None else digests:
            self._digests[row.tobytes()] = None

    def add(self, *name: str | int) -> bool:
        """Remember a name; return False if it was known.

        >>> seen = Seen(capacity=2)
        >>> seen.add("a", 1), seen.add("a", 1), seen.add("b"), seen.add("c"), seen.add("a", 1)
        (True, False, True, True, True)
        """
        digest = hashlib.blake2b(orjson.dumps(name), digest_size=DIGEST_BYTES).digest()
        if digest in self._digests:
            return False
        self._digests[digest] = None
        return True

    def to_array(self) -> np.ndarray:
        """The digests, oldest first, (N, DIGEST_BYTES) uint8."""
        return np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


class Evidence:
    """The table with the names behind its numbers, and what was counted already.

    Args:
        dim: width of base vectors.
        half_life_ms: by how much older a list weighs half as much.
    """

    def __init__(self, dim: int, *, half_life_ms: float) -> None:
        self.table = EvidenceTable(half_life_ms=half_life_ms)
        self.recent = EvidenceTable(half_life_ms=RECENT_SHARE * half_life_ms)
        """The same, of lately."""
        self.exchanges = Exchanges()
        self.rules = RulePairs(half_life_ms=half_life_ms)
        self.queries, self.products = Names(), Names()
        self.typed: list[str] = []
        """By query number what shoppers typed, as search reads it: of all spellings the least, whatever came first."""
        self.query_vectors = np.zeros((0, dim), dtype=np.float16)
        """Base vectors by query number; 0 of one that was not encoded yet."""
        self.click_times: list[int] = []
        """Of clicks that no release carries yet."""
        self._lists, self._pairs = Seen(), Seen()

    def take_list(self, search: TrainingSearch, *, time_ms: int) -> ListOutcome:
        """Count a training search.

        Args:
            search: the list.
            time_ms: when it was written; a list is never counted as younger than that.
        """
        if not self._lists.add(search.search_id, search.search_time):
            return ListOutcome.DUPLICATE
        if not normalised(search.query):
            return ListOutcome.NO_QUERY
        shown, exchanged = shown_in(search, self.products.number)
        query = self._number(search.query)
        self._count(query, shown, time_ms=min(search.closed_at, time_ms))
        for upper, lower in exchanged:
            self.exchanges.add(query, (upper.product, lower.product), (upper.click, lower.click))
        self._note_clicks(search.search_time, search.slots)
        return ListOutcome.LEARNED

    def take_pair(self, pair: PreferencePair, *, time_ms: int, offset: int = 0) -> PairDropReason | None:
        """Count a preference pair; return why it is not counted.

        Args:
            pair: the pair.
            time_ms: when it was written; like a list, it is never counted as younger than that.
            offset: of its record: of two that a rule made in the same millisecond the later one stands.
        """
        time_ms = min(pair.closed_at, time_ms)
        if not self._pairs.add(pair.pair_id):
            return PairDropReason.DUPLICATE
        if not normalised(pair.query):
            return PairDropReason.NO_QUERY
        chosen, rejected = pair.chosen.product_id, pair.rejected.product_id
        if pair.source == "value":
            value = pair.factors.cap * min(pair.factors.value, VALUE[Grade.PURCHASE])
            shown = [Shown(self.products.number(chosen), 0.0, value, 0.0)]
            self._count(self._number(pair.query), shown, time_ms=time_ms, is_list=False)
        elif pair.source == "rule":
            return self._take_rule(pair.query, chosen, rejected, pair.weight, time_ms=time_ms, offset=offset)
        elif pair.source == "curated":
            return self._take_preference(pair.query, chosen, rejected, pair.weight, time_ms=time_ms)
        return None

    def take_curated(self, pair: CuratedPair, *, time_ms: int, offset: int = 0) -> PairDropReason | None:
        """Count a pair that a person wrote, or take one of a rule; return why it is not counted.

        Args:
            pair: the pair.
            time_ms: when it was written.
            offset: of its record: of two that a rule made in the same millisecond the later one stands.
        """
        if not normalised(pair.query):
            return PairDropReason.NO_QUERY
        chosen = pair.chosen or f"{TEXT}{pair.chosen_text}"
        rejected = pair.rejected or f"{TEXT}{pair.rejected_text}"
        if pair.source == "rule":
            expires_ms = math.inf if pair.expires_at is None else pair.expires_at
            return self._take_rule(
                pair.query, chosen, rejected, pair.weight, time_ms=time_ms, offset=offset, expires_ms=expires_ms
            )
        return self._take_preference(pair.query, chosen, rejected, pair.weight, time_ms=time_ms)

    def encode_queries(self, encode: Callable[[str], np.ndarray]) -> None:
        """Make the base vectors of the queries that say something and have none, each of what was typed alone."""
        rows = np.zeros((len(self.queries) - len(self.query_vectors), self.query_vectors.shape[1]), dtype=np.float16)
        self.query_vectors = np.concatenate([self.query_vectors, rows])
        for number in np.union1d(self.table.clicked(), self.rules.used()[0]).tolist():
            if not self.query_vectors[number].any():
                self.query_vectors[number] = np.nan_to_num(encode(self.typed[number]))

    def cells(self, known_products: np.ndarray, *, debiasing: float = FULL, lately: bool = False) -> Cells:
        """The evidence of queries and products that have vectors.

        Args:
            known_products: whether each product has one, (all products,) of bool.
            debiasing: how strongly showings are weighed.
            lately: whether the evidence of lately, else all of it.
        """
        table = self.recent if lately else self.table
        return table.cells(np.asarray(self.query_vectors.any(axis=1)), known_products, debiasing=debiasing)

    def rule_cells(self, known_products: np.ndarray) -> Cells:
        """The pairs of rules that count now, of queries and products that have vectors.

        Args:
            known_products: whether each product has one, (all products,) of bool.
        """
        return self.rules.cells(np.asarray(self.query_vectors.any(axis=1)), known_products, now_ms=self.table.newest_ms)

    def renumber(self) -> bool:
        """Give all numbers out anew if many have lost their evidence; return whether that was done."""
        self.rules.drop_ended(self.table.newest_ms)
        queries, products = map(np.union1d, self.table.used(), self.rules.used())
        if len(self.queries) + len(self.products) < 2 * (len(queries) + len(products)) + SPARE_NUMBERS:
            return False
        places = [np.full(len(names), -1, dtype=np.int64) for names in (self.queries, self.products)]
        for place, used in zip(places, (queries, products), strict=True):
            place[used] = np.arange(len(used))
        self.table.renumber(*places)
        self.recent.renumber(*places)
        self.exchanges.renumber(*places)
        self.rules.renumber(*places)
        self.query_vectors = self.query_vectors[queries[queries < len(self.query_vectors)]]
        self.queries = Names([self.queries.texts[number] for number in queries.tolist()])
        self.typed = [self.typed[number] for number in queries.tolist()]
        self.products = Names([self.products.texts[number] for number in products.tolist()])
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was counted and is remembered."""
        texts = [self.queries.texts, self.typed, self.products.texts, self.click_times]
        return {
            **{f"table.{name}": array for name, array in self.table.state().items()},
            **{f"recent.{name}": array for name, array in self.recent.state().items()},
            "exchanges": self.exchanges.rows(),
            "rules": self.rules.rows(),
            "query_vectors": self.query_vectors,
            "names": np.frombuffer(orjson.dumps(texts), dtype=np.uint8),
            "lists": self._lists.to_array(),
            "pairs": self._pairs.to_array(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], *, half_life_ms: float) -> "Evidence":
        """Go on where another one was when it gave its state."""
        evidence = cls(state["query_vectors"].shape[1], half_life_ms=half_life_ms)
        evidence.table = EvidenceTable.from_state(under(state, "table."), half_life_ms=half_life_ms)
        if recent := under(state, "recent."):  # states of former versions have none
            evidence.recent = EvidenceTable.from_state(recent, half_life_ms=RECENT_SHARE * half_life_ms)
        evidence.exchanges = Exchanges(state.get("exchanges"))  # states of former versions have none
        # States of former versions had these among what shoppers said.
        evidence.rules = RulePairs(state.get("rules"), half_life_ms=half_life_ms)
        # The former form has a fifth part: how far joins had come, when lists were read as the join wrote them.
        queries, evidence.typed, products, evidence.click_times, *_ = orjson.loads(state["names"].tobytes())
        evidence.queries, evidence.products = Names(_renamed(queries)), Names(products)
        evidence.query_vectors = state["query_vectors"].copy()
        evidence._lists, evidence._pairs = Seen(state["lists"]), Seen(state["pairs"])
        return evidence

    def _count(self, query: int, shown: Sequence[Shown], *, time_ms: int, is_list: bool = True) -> None:
        for table in (self.table, self.recent):
            table.add(query, shown, time_ms=time_ms, is_list=is_list)

    def _take_rule(
        self,
        query: str,
        chosen: str,
        rejected: str,
        weight: float,
        *,
        time_ms: int,
        offset: int,
        expires_ms: float = math.inf,
    ) -> PairDropReason | None:
        said = Said(time_ms, offset, expires_ms, min(RULE_WEIGHT * weight, MAX_PAIR_CLICKS))
        numbers = self.products.number(chosen), self.products.number(rejected)
        if not self.rules.put(self._number(query), *numbers, said):
            return PairDropReason.TOO_MANY_RULES
        return PairDropReason.EXPIRED if expires_ms <= time_ms else None

    def _take_preference(
        self, query: str, chosen: str, rejected: str, weight: float, *, time_ms: int
    ) -> PairDropReason | None:
        if not self._pairs.add(normalised(query), chosen, rejected):
            return PairDropReason.DUPLICATE
        numbers = self.products.number(chosen), self.products.number(rejected)
        clicks = min(CURATED_WEIGHT * weight, MAX_PAIR_CLICKS)
        shown = [Shown(numbers[0], 1.0, clicks), Shown(numbers[1], 1.0, 0.0)]
        self._count(self._number(query), shown, time_ms=time_ms, is_list=False)
        return None

    def _number(self, query: str) -> int:
        """The number of a query; another spelling of it than before is encoded anew."""
        number, typed = self.queries.number(normalised(query)), " ".join(query.split())
        if number == len(self.typed):
            self.typed.append(typed)
        elif typed < self.typed[number]:
            self.typed[number] = typed
            self.query_vectors[number : number + 1] = 0
        return number

    def _note_clicks(self, search_time: int, slots: Sequence[TrainingSlot]) -> None:
        times = self.click_times
        for slot in slots:
            if slot.value:
                time_ms = search_time if slot.click_time is None else slot.click_time
                place = bisect_left(times, time_ms)
                if times[place : place + 1] != [time_ms]:
                    times.insert(place, time_ms)
        if len(times) > CLICK_TIMES:
            self.click_times = times[::2]
