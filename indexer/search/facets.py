"""Facets: how many of the products found have which brand, category, price or attribute.

Each is counted over what meets all filters but its own, so that a shopper who chose a brand still sees the others.
Without a query the store counts all products. With one, meaning finds everything: then what matches is counted, of the
best `MATCHING` products those within `MATCHING_NATS` of the best.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cachetools import TTLCache

from contracts.catalog import PointPayload
from contracts.events import BY_RELEVANCE
from contracts.http import FacetValue, Filters, Sort
from indexer.filters import attribute_prefix, keys_of_product, prices_of, text_key
from indexer.search.encoding import digest
from indexer.search.retrieval import Hit, Question, Retrieval, sorted_by
from towers.model import NATS_PER_COSINE

MATCHING: Final = 200
"""Most products that match a query; whoever sorts or counts more of them sees what the query does not mean."""
MATCHING_NATS: Final = 1.5
"""What scores lower than the best by so much does not match: three quarters of what is relevant do, and every second
of the others of the best 200 does not (docs/experiments.md)."""
MOST_VALUES: Final = 20
"""Of a facet, the most frequent ones."""
MOST_RANGES: Final = 8
"""Of prices."""
MOST_KEYS: Final = 1_000
"""Keys that the store counts for one facet. All attributes are one field: what is rarer than so many is not told."""
COUNTED_FOR_S: Final = 10.0
"""How long a count is good enough, as that of all products that are found."""
CACHED_KEYS: Final = 200_000
"""Of all counts together, some 40 MB; each set of filters has counts of its own."""
SPELLED_FOR_S: Final = 600.0
CACHED_SPELLINGS: Final = 100_000
ATTRIBUTE: Final = "attributes."
PRICE: Final = "price"

Key = str | int


def matching(hits: Sequence[Hit]) -> list[Hit]:
    """What of the best hits, best first, matches the query: what is named, and what is not much worse than the best.

    What shoppers of this query chose matches too, however far it stands before the others.

    >>> [hit.score for hit in matching([Hit(0.2, {}, pin=1.0), Hit(0.9, {}), Hit(0.8, {}), Hit(0.7, {})])]
    [0.2, 0.9, 0.8]
    >>> [hit.score for hit in matching([Hit(1.2, {}, memory=9.0), Hit(0.9, {}), Hit(0.8, {}, memory=-1.0)])]
    [1.2, 0.9, 0.8]
    """
    scores = [hit.score - hit.memory / NATS_PER_COSINE for hit in hits]
    least = max(scores, default=0.0) - MATCHING_NATS / NATS_PER_COSINE
    best = zip(hits[:MATCHING], scores, strict=False)
    return [hit for hit, score in best if hit.pin or hit.memory > 0 or score >= least]


async def listed(
    retrieval: Retrieval,
    collection: str,
    question: Question | None,
    *,
    sort: Sort,
    k: int,
    filters: Filters,
    with_vectors: bool = False,
) -> list[Hit]:
    """Return what was found, the first k products at least where there are as many.

    For a question these are the best, or what matches it sorted otherwise; without one all products.

    Raises:
        MillraceError: the vector store does not answer.
    """
    if question is None:
        return await retrieval.browse(collection, sort, k=k, filters=filters)
    most = k if sort == BY_RELEVANCE else MATCHING
    hits = await retrieval.best(collection, question, k=most, filters=filters, with_vectors=with_vectors)
    return hits if sort == BY_RELEVANCE else sorted_by(sort, matching(hits))


class Facet(NamedTuple):
    """What is counted: keys of a field that begin alike, and the filter that is left out."""

    name: str
    field: str
    prefix: str = ""

    @classmethod
    def named(cls, name: str) -> "Facet":
        """The facet of a name.

        >>> Facet.named("category")[1:], Facet.named("attributes.Colour")[1:]
        (('path', ''), ('attributes', '["colour",'))
        """
        if name.startswith(ATTRIBUTE):
            return cls(name, "attributes", attribute_prefix(name.removeprefix(ATTRIBUTE)))
        return cls(name, "path" if name == "category" else name)

    def others(self, filters: Filters) -> Filters:
        """The filters but its own.

        >>> kept = Facet.named("attributes.Colour").others(Filters(brand=("K",), attributes={"colour": ("red",)}))
        >>> kept == Filters(brand=("K",), attributes={}), Facet.named("brand").others(kept) == Filters(attributes={})
        (True, True)
        """
        if self.field != "attributes":
            return filters.model_copy(update={self.name: None})
        own, given = text_key(self.name.removeprefix(ATTRIBUTE)), filters.attributes or {}
        left = {name: wanted for name, wanted in given.items() if text_key(name) != own}
        return filters if len(left) == len(given) else filters.model_copy(update={"attributes": left})

    def holds(self, key: Key) -> bool:
        """Whether a key of its field is counted."""
        return not self.prefix or str(key).startswith(self.prefix)


class Counts(NamedTuple):
    """How many products have each key, and how a key is written."""

    products: dict[Key, int]
    spelled: dict[Key, Any]


def counts_of(facet: Facet, payloads: Iterable[Mapping[str, Any]]) -> Counts:
    """How many products have each key of a facet, and how most of them write it."""
    written: defaultdict[Key, Counter[Any]] = defaultdict(Counter)
    for payload in payloads:
        for key, shown in {key: shown for key, shown in _keys(facet.field, payload) if facet.holds(key)}.items():
            written[key][shown] += 1
    return Counts(
        {key: shown.total() for key, shown in written.items()},
        {key: shown.most_common(1)[0][0] for key, shown in written.items()},
    )


def _keys(field: str, payload: Mapping[str, Any]) -> list[tuple[Key, Any]]:
    product = PointPayload.model_construct(**{name: value for name, value in payload.items() if value is not None})
    return [(one.key, one.shown) for one in keys_of_product(product) if one.field == field]


def most_frequent(counts: Mapping[Key, int]) -> list[Key]:
    """The keys of a facet that are shown, the most frequent first."""
    # Of as many, a path comes before what is below it.
    return sorted(counts, key=lambda key: (-counts[key], str(key).removesuffix("]")))[:MOST_VALUES]


def price_ranges(bands: Mapping[int, int]) -> tuple[FacetValue, ...]:
    """Ranges of prices with how many products each holds: of neighbours, those with the fewest are made one.

    Args:
        bands: products by `price_band`.

    >>> [(one.value.gte, one.value.lt, one.count) for one in price_ranges({13: 2, 14: 3})]
    [(1.0, 1.5, 2), (1.5, 2.0, 3)]
    >>> [one.count for one in price_ranges(dict.fromkeys(range(16), 5))]
    [10, 10, 10, 10, 10, 10, 10, 10]
    """
    ranges = [(band, band, bands[band]) for band in sorted(bands)]
    while len(ranges) > MOST_RANGES:
        place = min(range(len(ranges) - 1), key=lambda at: ranges[at][2] + ranges[at + 1][2])
        (first, _, fewer), (_, last, more) = ranges[place : place + 2]
        ranges[place : place + 2] = [(first, last, fewer + more)]
    return tuple(FacetValue(value=prices_of(first, last), count=count) for first, last, count in ranges)


class Facets:
    """Counts facets.

    Args:
        retrieval: the vector store.
        monotonic_s: clock that ends what is kept.
    """

    def __init__(self, retrieval: Retrieval, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._retrieval = retrieval
        self._counted: TTLCache[bytes, dict[Key, int]] = TTLCache(
            CACHED_KEYS, COUNTED_FOR_S, timer=monotonic_s, getsizeof=lambda counts: 1 + len(counts)
        )
        self._spelled: TTLCache[tuple[str, str, Key], Any] = TTLCache(
            CACHED_SPELLINGS, SPELLED_FOR_S, timer=monotonic_s
        )

    async def counted(
        self, collection: str, question: Question | None, names: Sequence[str], filters: Filters
    ) -> dict[str, tuple[FacetValue, ...]]:
        """Count facets of what a question finds, or of all products if nothing is asked.

        Raises:
            MillraceError: the vector store does not answer.
        """
        facets = [Facet.named(name) for name in dict.fromkeys(names)]
        if question is None:
            counts = [await self._of_all(collection, facet, facet.others(filters)) for facet in facets]
        else:
            found: dict[str, list[Hit]] = {}
            for facet in facets:
                others = facet.others(filters)
                if (key := others.model_dump_json()) not in found:
                    hits = await self._retrieval.best(collection, question, k=MATCHING, filters=others)
                    found[key] = matching(hits)
            counts = [
                counts_of(facet, (hit.payload for hit in found[facet.others(filters).model_dump_json()]))
                for facet in facets
            ]
        return {facet.name: values_of(facet, one) for facet, one in zip(facets, counts, strict=True)}

    async def _of_all(self, collection: str, facet: Facet, filters: Filters) -> Counts:
        key = digest(f"{collection} {facet.field} {filters.model_dump_json()}")
        counts = self._counted.get(key)
        if counts is None:
            counts = await self._retrieval.facet(collection, facet.field, most=MOST_KEYS, filters=filters)
            self._counted[key] = counts
        counts = {key: count for key, count in counts.items() if facet.holds(key)}
        if facet.name == PRICE:
            return Counts(counts, {})
        shown = most_frequent(counts)
        await self._spell(collection, facet.field, shown)
        spelled = {key: self._spelled[at] for key in shown if (at := (collection, facet.field, key)) in self._spelled}
        return Counts({key: counts[key] for key in spelled}, spelled)

    async def _spell(self, collection: str, field: str, keys: Sequence[Key]) -> None:
        """Look up how keys are written, each in a product that has it."""
        unknown = [key for key in keys if (collection, field, key) not in self._spelled]
        for payload in await self._retrieval.having(collection, field, unknown):
            for key, shown in _keys(field, payload):
                self._spelled.setdefault((collection, field, key), shown)


def values_of(facet: Facet, counts: Counts) -> tuple[FacetValue, ...]:
    """A facet as it is answered."""
    if facet.name == PRICE:
        return price_ranges({int(band): count for band, count in counts.products.items()})
    return tuple(
        FacetValue(value=counts.spelled[key], count=counts.products[key]) for key in most_frequent(counts.products)
    )
