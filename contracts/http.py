"""What goes over HTTP: requests and answers of the collector and of the search service.

A batch is the form of a collector's request for the documentation: the collector decides about each item by itself.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from contracts.base import Finite, Id, Label, Money, NullIsAbsent, ProductId, Query, Ratio, Release, Time, Whole
from contracts.catalog import AttributeName, AttributeValue, CatalogChange, CategoryPath
from contracts.events import Exploration, ShopEvent
from contracts.pairs import CuratedPair

MOST_PAGES: Final = 1_000
Status = Literal["accepted", "duplicate", "rejected"]


class IntakeReason(StrEnum):
    """Why an item that reads well is still refused at intake."""

    BOT = "bot"
    """The sender's user agent is on the bot list."""
    TOO_FAR_AHEAD = "too_far_ahead"
    """A time lies more than five minutes after the collector's clock."""
    TOO_DEEP = "too_deep"
    """Objects and lists are nested deeper than any of our messages."""


def _with_example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class EventBatch(BaseModel):
    """Shop events."""

    model_config = _with_example(
        events=[
            {
                "type": "click",
                "event_id": "e-1",
                "event_time": 1795196006756,
                "session_id": "k3",
                "search_id": "s-1",
                "search_time": 1795196001200,
                "product_id": "P-1",
                "position": 1,
            }
        ]
    )

    events: list[Annotated[ShopEvent, Field(discriminator="type")]]


class ProductBatch(BaseModel):
    """Catalogue changes."""

    model_config = _with_example(
        products=[{"type": "product", "product_id": "P-1", "version": 1, "title": "Quiet fridge", "price": 499.0}]
    )

    products: list[Annotated[CatalogChange, Field(discriminator="type")]]


class PairBatch(BaseModel):
    """Curated pairs."""

    model_config = _with_example(pairs=[{"query": "fridge", "chosen": "P-1", "rejected": "P-2"}])

    pairs: list[CuratedPair]


class ItemResult(BaseModel):
    """What became of one item of a request, in the order of the request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    event_id: str | None
    """`event_id` of an event, `product_id` of a product, `pair_id` of a curated pair; None where it had none."""
    status: Status
    reason: str | None = None
    field: str | None = None
    message: str | None = None


class IntakeAnswer(BaseModel):
    """A collector's answer: `accepted` counts what Kafka acknowledged."""

    accepted: int
    rejected: int
    duplicate: int = 0
    results: list[ItemResult]


class _Body(NullIsAbsent):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PriceRange(_Body):
    """Bounds of the price; `lt` alone is not included."""

    gte: Money | None = None
    lt: Money | None = None
    lte: Money | None = None


class NumberRange(_Body):
    """Bounds of a number, both included; exact to seven digits."""

    gte: Finite | None = None
    lte: Finite | None = None


class TimeRange(_Body):
    """Bounds of a time, both included."""

    gte: Time | None = None
    lte: Time | None = None


MOST_CHOICES: Final = 100
"""Of one filter."""
Choices = Annotated[tuple[Label, ...], Field(max_length=MOST_CHOICES)]
AttributeChoices = Annotated[tuple[bool | Whole | Finite | Label, ...], Field(max_length=MOST_CHOICES)]
AttributeFilter = Annotated[
    Annotated[AttributeChoices, Tag("values")] | Annotated[NumberRange, Tag("bounds")],
    Discriminator(lambda given: "bounds" if isinstance(given, dict | NumberRange) else "values"),
]


class Filters(_Body):
    """Conditions that every result meets; texts are compared without case, accents and width."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    brand: Choices | None = None
    """Any of these."""
    seller: Choices | None = None
    """The `seller_id` of any of these."""
    category: Label | CategoryPath | None = None
    """A label at any level, or a list: the beginning of the path, level by level."""
    attributes: Annotated[dict[AttributeName, AttributeFilter], Field(max_length=32)] | None = None
    """By name a list of values, any of which it has, or bounds of a number."""
    price: PriceRange | None = None
    in_stock: bool | None = None
    locale: Label | None = None
    launched_at: TimeRange | None = None

    @field_validator("attributes", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Leave out the attributes of which nothing is asked."""
        return {name: wanted for name, wanted in given.items() if wanted is not None} if type(given) is dict else given


Sort = Literal["relevance", "price", "-price", "newest", "rating"]
"""How a list is sorted: best first, cheapest first, dearest first, newest first, or best rated first."""
FacetName = Annotated[str, Field(pattern=r"^(brand|seller|category|price|attributes\..{1,256})$")]


class SearchRequest(_Body):
    """A search."""

    model_config = ConfigDict(use_attribute_docstrings=True) | _with_example(
        query="quiet fridge",
        k=5,
        filters={"price": {"lte": 500}, "attributes": {"colour": ["red", "white"]}, "in_stock": True},
        facets=["brand", "price"],
    )

    query: Query
    """Empty for browsing: products that meet the filters, those of the best quality first."""
    k: Annotated[int, Field(ge=1, le=100)] = 10
    filters: Filters = Filters()
    sort: Sort = "relevance"
    """Sorted otherwise, a query finds the same products, cut where they match worse, and nothing is learned of them."""
    facets: Annotated[tuple[FacetName, ...], Field(max_length=20)] = ()
    """What to count values of: `brand`, `seller`, `category`, `price`, `attributes.NAME`."""
    session_id: Id | None = None
    client_id: Id | None = None
    explain: bool = False
    explore: bool = True
    impression: Literal["server", "client", "none"] = "server"
    """Who writes the impression: this service, the site, or nobody (evaluation)."""
    search_id: Id | None = None
    """Of an earlier answer, to see another page of its list; the rest of the request says what it said then."""
    page: Annotated[int, Field(ge=1, le=MOST_PAGES)] = 1
    group_variants: bool = False
    """Whether of products with one `parent_id` only the best is shown, with the ids of the others."""
    per_seller: Annotated[int, Field(ge=1, le=100)] | None = None
    """Most products of one seller on a page; those beyond wait for the next, and fill it where no other is left."""
    diversity: Ratio = 0.0
    """How much unlike those above it a result should be, from 0, not at all, to 1, whatever its score. It moves a
    query's best 200 by relevance; other lists stay as they are, and one that is so arranged is not explored."""


class SearchResult(BaseModel):
    """One product of the answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    product_id: ProductId
    position: int
    score: Finite
    title: str
    price: Money | None = None
    currency: str | None = None
    brand: str | None = None
    category: tuple[str, ...] = ()
    in_stock: bool = True
    url: str | None = None
    image_url: str | None = None
    rating: float | None = None
    launched_at: int | None = None
    seller_id: str | None = None
    parent_id: str | None = None
    attributes: dict[str, AttributeValue] = Field(default_factory=dict)
    product_release: Release
    team: Label | None = None
    """In an interleaved list the arm whose turn it was here; whoever writes the impression copies it to the slot."""
    explanation: dict[str, float] | None = None
    variants: tuple[ProductId, ...] = ()
    """The other products of its variant group that were found, best first, where variants are grouped."""


class FacetValue(BaseModel):
    """One value of a facet, in the form in which its filter takes it, and how many products have it."""

    value: bool | int | float | str | tuple[str, ...] | PriceRange
    count: int


class SearchAnswer(BaseModel):
    """The answer to a search; `search_id` and `search_time` go back on every event of it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    search_id: Id
    search_time: Time
    query_release: Release
    product_release: Release
    arm: Label
    exploration: Exploration
    degraded: str | None
    """`lexical`: found by words alone, because the query could not be encoded in time; `remembered`: results of an
    earlier search for the same, because the vector store did not answer."""
    age_s: Annotated[float, Field(ge=0)] | None = None
    """How old results are that were not asked of the vector store anew; products and prices may have changed since."""
    took_ms: Annotated[float, Field(ge=0)]
    total: int
    """Products that meet the filters; 0, and no values of facets, if nothing is shown because nothing matches well."""
    total_relation: Literal["eq", "gte"] = "eq"
    """`eq`: `total` was counted a few seconds before the results at most; `gte`: it is a lower bound."""
    no_good_match: bool = False
    """Whether the best product matches no better than products match texts that mean nothing."""
    page: int = 1
    has_more: bool = False
    """Whether the list goes on: ask for the next `page` with this `search_id` and an otherwise equal request."""
    results: tuple[SearchResult, ...]
    """A product that is gone since its list was ranked leaves a gap: positions go on, nothing moves up."""
    sort: Sort = "relevance"
    facets: dict[str, tuple[FacetValue, ...]] | None = None
    """By name the most frequent values, prices by rising price; None if none were asked for or not counted in time."""


class EncodeRequest(_Body):
    """Texts to encode as queries."""

    model_config = _with_example(texts=["quiet fridge"])

    texts: Annotated[tuple[Query, ...], Field(min_length=1, max_length=256)]


class EncodeAnswer(BaseModel):
    """Query vectors for people who ask Qdrant themselves, with the releases they belong to."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    query_release: Release
    product_release: Release
    collection: str
    """The one that they may be compared with."""
    vectors: tuple[tuple[float, ...], ...]
    remembered: tuple[dict[str, float], ...] = ()
    """Of each text what its own shoppers chose: what to add to the dot product, by the id of the point."""
