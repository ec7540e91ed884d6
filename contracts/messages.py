"""Every message in one table: its name, its model and where it stands. Schemas, examples and their tests follow it."""

from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import TypeAdapter

from contracts import topics
from contracts.base import Message
from contracts.catalog import CATALOG_CHANGE, Product, ProductDeleted, ProductVector
from contracts.decisions import DECISIONS, PROMOTION, Decisions, Promotion
from contracts.events import SEARCH_RECORD, ShopEvent, Tick
from contracts.golden import GoldenQuery
from contracts.joined import JoinedSearch, Watermark
from contracts.pairs import CURATED_PAIR, CuratedPair, PreferencePair
from contracts.progress import JoinProgress, PairsProgress
from contracts.propensities import CELL_PROPENSITIES, CellPropensities
from contracts.releases import MANIFEST, ROLLBACK, SERVING, ReleaseManifest, Rollback, Serving
from contracts.training import TrainingSearch

_SHOP_EVENTS: Final = (topics.SEARCH_EVENTS, topics.LATE_EVENTS, topics.ORPHAN_EVENTS)


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One message: the `type` it has, its form, what readers of its topics decode with, and these topics."""

    name: str
    model: type[Message]
    contract: TypeAdapter[Any]
    topics: tuple[str, ...]


def _alone(name: str, model: type[Message], *on: str) -> MessageSpec:
    return MessageSpec(name, model, TypeAdapter(model), on)


MESSAGES: Final[tuple[MessageSpec, ...]] = (
    *(MessageSpec(model.__name__.lower(), model, SEARCH_RECORD, _SHOP_EVENTS) for model in get_args(ShopEvent)),
    MessageSpec("tick", Tick, SEARCH_RECORD, (topics.SEARCH_EVENTS,)),
    MessageSpec("product", Product, CATALOG_CHANGE, (topics.CATALOG,)),
    MessageSpec("product_deleted", ProductDeleted, CATALOG_CHANGE, (topics.CATALOG,)),
    _alone("joined_search", JoinedSearch, topics.JOINED_SEARCHES, topics.HOLDOUT_SEARCHES),
    _alone("watermark", Watermark, topics.JOINED_SEARCHES),
    _alone("preference_pair", PreferencePair, topics.PREFERENCE_PAIRS),
    _alone("training_search", TrainingSearch, topics.TRAINING_SEARCHES),
    MessageSpec("curated_pair", CuratedPair, CURATED_PAIR, (topics.CURATED_PAIRS,)),
    _alone("golden_query", GoldenQuery, topics.GOLDEN_QUERIES),
    MessageSpec("propensities", CellPropensities, CELL_PROPENSITIES, (topics.PROPENSITIES,)),
    _alone("product_vector", ProductVector, topics.PRODUCT_VECTORS),
    MessageSpec("release_manifest", ReleaseManifest, MANIFEST, (topics.MODELS,)),
    MessageSpec("serving", Serving, SERVING, (topics.MODELS,)),
    MessageSpec("rollback", Rollback, ROLLBACK, (topics.MODELS,)),
    MessageSpec("decisions", Decisions, DECISIONS, (topics.MODELS,)),
    MessageSpec("promotion", Promotion, PROMOTION, (topics.MODELS,)),
    _alone("join_progress", JoinProgress, topics.JOIN_PROGRESS),
    _alone("pairs_progress", PairsProgress, topics.PAIRS_PROGRESS),
)

MESSAGE_BY_NAME: Final = {spec.name: spec for spec in MESSAGES}
