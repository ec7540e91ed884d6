"""Commands that say why: the quality of a product and what it is made of, and each term of a query's score for one.

They read the releases in force from `models`, the product from the vector store, and the pairs from Kafka; the reports
are pure functions of these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from contracts import wire
from contracts.catalog import PointPayload, point_id
from contracts.errors import ContractError, DependencyDown, UsageError
from contracts.pairs import PreferencePair
from contracts.topics import MODELS, PREFERENCE_PAIRS
from deploy.local.state import load_running_settings
from millrace.asking import CATCH_UP_S, KAFKA_WAIT_S
from millrace.output import Json, messages, out, print_json
from service.machine import epoch_ms
from towers.text import normalised

if TYPE_CHECKING:
    import numpy as np

    from contracts.releases import Kind, Serving
    from service.models import ModelsTable
    from service.settings import Settings
    from towers.model import Mix, ProductTower, QueryTower

PAIRS_READ: Final = 50_000
"""Newest pairs of each partition that are looked through."""
PAIRS_TIMEOUT_S: Final = 30.0
PAIRS_SHOWN: Final = 5
PARTS_SHOWN: Final = 12
NEGLIGIBLE_NATS: Final = 5e-4

product_app = typer.Typer(help="What is known of a product.", no_args_is_help=True)


class Indexed(NamedTuple):
    """A product as the index holds it.

    Args:
        product_id: the shop's own id.
        payload: of its point.
        vector: base vector with the quality behind it, (D + 1,).
    """

    product_id: str
    payload: Mapping[str, Any]
    vector: "np.ndarray"

    @property
    def features(self) -> frozenset[str]:
        """The names of its features."""
        from towers.features import product_features

        known = {name: self.payload[name] for name in PointPayload.model_fields if name in self.payload}
        return product_features(PointPayload.model_validate(known))


@product_app.command("show")
def product_show(
    product_id: Annotated[str, typer.Argument(help="The shop's id of the product.")], json: Json = False
) -> None:
    """Show a product's learned quality, what it is made of, how sure it is and what changed last.

    Example: millrace product show P-1
    """
    settings = load_running_settings()
    models, serving = _in_force(settings)
    product = _indexed(settings, serving, product_id)
    tower = product_tower(models, serving.product_release)
    before = max((n for n in _numbers(models, "product") if n < serving.product_release), default=None)
    report = product_report(product, tower, None if before is None else product_tower(models, before))
    report |= {"product_release": serving.product_release, "compared_with": before}
    print_json(report) if json else out().print(product_table(report))


def product_report(product: Indexed, tower: "ProductTower", before: "ProductTower | None") -> dict[str, Any]:
    """Put a product's quality into stable JSON, all in nats.

    Args:
        product: as the index holds it.
        tower: the product release in force.
        before: the one before it, None if there is none.
    """
    from towers.features import keys_of
    from towers.model import NATS_PER_COSINE

    names = product.features
    parts = tower.parts(product.product_id, names)
    old = {} if before is None else before.parts(product.product_id, names)
    changes = {name: value - old.get(name, 0.0) for name, value in parts.items()}
    return {
        "product_id": product.product_id,
        "title": product.payload.get("title", ""),
        "quality": float(tower.quality([product.product_id], [keys_of(names)])[0]),
        "cap": tower.cap,
        "width": float(tower.width([product.product_id])[0]),
        "stored_quality": float(product.vector[-1]) * NATS_PER_COSINE,
        "stored_product_release": product.payload.get("product_release"),
        "parts": _largest_first(parts),
        "changes": _largest_first(changes) if before is not None else {},
    }


def product_table(report: Mapping[str, Any]) -> Table:
    """A product's quality as a table."""
    title = f"{report['product_id']}: quality {report['quality']:+.3f} nats, ± {report['width']:.3f}"
    table = Table("part", "nats", "since the release before", title=Text(title), caption=Text(str(report["title"])))
    for name, value in list(report["parts"].items())[:PARTS_SHOWN]:
        changed = report["changes"].get(name)
        table.add_row(Text(name), f"{value:+.3f}", "" if changed is None else f"{changed:+.3f}")
    return table


def explain(
    query: Annotated[str, typer.Argument(help="What a shopper would type.")],
    product_id: Annotated[str, typer.Argument(help="The shop's id of the product.")],
    json: Json = False,
) -> None:
    """Say why a product stands where it stands for a query: each term of its score in nats, and the pairs behind it.

    Loads the base encoder, which takes some seconds.

    Example: millrace explain "quiet fridge" P-1
    """
    settings = load_running_settings()
    models, serving = _in_force(settings)
    product = _indexed(settings, serving, product_id)
    from indexer.search.arrangement import Boosts
    from towers.encoder import load_encoder

    vector = load_encoder(settings.base_model).encode([query])[0]
    tower = _query_tower(models, serving.query_release, dim=len(vector))
    boosts = Boosts(settings.launch_boost_nats, settings.launch_days, settings.priority_boost_nats)
    report = explain_report(
        query, vector, product,
        words=words_nats(settings, serving.collection, query, product_id, mix=tower.mix),
        boosts=boosts.of(product.payload, epoch_ms()),
        query_tower=tower,
        product_tower=product_tower(models, serving.product_release),
        pairs=_pairs(settings),
    )  # fmt: skip
    report |= {"query_release": serving.query_release, "product_release": serving.product_release}
    print_json(report) if json else out().print(explain_table(report))


def explain_report(
    query: str,
    vector: "np.ndarray",
    product: Indexed,
    *,
    words: float,
    boosts: Mapping[str, float],
    query_tower: "QueryTower",
    product_tower: "ProductTower",
    pairs: Sequence[PreferencePair],
) -> dict[str, Any]:
    """Put the terms of a score into stable JSON, all in nats, with the pairs that weigh most.

    Args:
        query: as it was typed.
        vector: its base vector, (D,).
        product: as the index holds it.
        words: what the match of words adds.
        boosts: what the shop adds, in nats, by the name of the term.
        query_tower: the query release in force.
        product_tower: the product release in force.
        pairs: those that are still on the topic; only those of this query and product are used.
    """
    from towers.model import NATS_PER_COSINE

    about = [pair for pair in pairs if normalised(pair.query) == normalised(query)]
    about = [pair for pair in about if product.product_id in {pair.chosen.product_id, pair.rejected.product_id}]
    memory = float(query_tower.memory.nats_of_products([query], [product.product_id]).item())
    terms = query_tower.terms(vector, product.vector, {"memory": memory, "words": words, **boosts})
    return {
        "query": query,
        "product_id": product.product_id,
        "title": product.payload.get("title", ""),
        "terms": terms,
        "score": sum(terms.values()) / NATS_PER_COSINE,
        "quality_parts": _largest_first(product_tower.parts(product.product_id, product.features)),
        "pairs": {
            "found": len(about),
            "heaviest": [_pair(pair) for pair in sorted(about, key=lambda pair: -pair.weight)[:PAIRS_SHOWN]],
            "by_products": _by_products(about)[:PAIRS_SHOWN],
        },
    }


def explain_table(report: Mapping[str, Any]) -> Table:
    """The terms of a score as a table."""
    title = f"{report['query']!r} and {report['product_id']}: score {report['score']:.4f}"
    caption = f"{report['title']}\n{report['pairs']['found']} pairs of this query and product are on the topic"
    table = Table("term", "nats", title=Text(title), caption=Text(caption))
    for name, value in report["terms"].items():
        table.add_row(name, f"{value:+.3f}")
    for name, value in list(report["quality_parts"].items())[:PARTS_SHOWN]:
        table.add_row(Text(f"  of quality: {name}"), f"{value:+.3f}")
    for row in report["pairs"]["by_products"]:
        times = f" in {row['pairs']:,} pairs" if row["pairs"] > 1 else ""
        table.add_row(Text(f"  pair: {row['chosen']} over {row['rejected']}"), f"weight {row['weight']:.3f}{times}")
    return table


def _pair(pair: PreferencePair) -> dict[str, Any]:
    return {
        "pair_id": pair.pair_id,
        "search_id": pair.search_id,
        "source": pair.source,
        "chosen": pair.chosen.product_id,
        "rejected": pair.rejected.product_id,
        "weight": pair.weight,
    }


def _by_products(pairs: Iterable[PreferencePair]) -> list[dict[str, Any]]:
    """Sum the weights of pairs of the same two products; the heaviest sum first."""
    weights: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        weights.setdefault((pair.chosen.product_id, pair.rejected.product_id), []).append(pair.weight)
    rows = [
        {"chosen": chosen, "rejected": rejected, "pairs": len(of), "weight": sum(of)}
        for (chosen, rejected), of in weights.items()
    ]
    return sorted(rows, key=lambda row: -row["weight"])


def _largest_first(parts: Mapping[str, float]) -> dict[str, float]:
    kept = {name: value for name, value in parts.items() if name == "own" or abs(value) >= NEGLIGIBLE_NATS}
    return dict(sorted(kept.items(), key=lambda part: -abs(part[1])))


@contextmanager
def following_models(settings: "Settings") -> "Iterator[ModelsTable]":
    """Give what `models` holds, read to its end and kept current.

    Raises:
        DependencyDown: Kafka does not answer, or has no such topic.
    """
    from service.follow import TopicFollower
    from service.kafka import admin, beginning_and_end_offsets
    from service.models import ModelsTable

    quick = settings.model_copy(update={"dependency_wait_s": KAFKA_WAIT_S})
    with admin(quick) as client:  # says at once what a follower would wait for
        beginning_and_end_offsets(client, quick, [MODELS])
    models = ModelsTable()
    follower = TopicFollower(quick, MODELS, models.apply)
    follower.start()
    try:
        if not follower.caught_up.wait(CATCH_UP_S):
            raise follower.failure or DependencyDown(
                f"{MODELS} could not be read within {CATCH_UP_S:.0f} s", fix="see `millrace doctor`"
            )
        yield models
    finally:
        follower.stop()


def in_force(models: "ModelsTable") -> "Serving":
    """What is in force.

    Raises:
        DependencyDown: nothing is yet.
    """
    serving = models.serving()
    if serving is None:
        raise DependencyDown("nothing is in force yet", fix="start the indexer: it puts the first release in force")
    return serving


def _in_force(settings: "Settings") -> "tuple[ModelsTable, Serving]":
    with following_models(settings) as models:
        return models, in_force(models)


def _indexed(settings: "Settings", serving: "Serving", product_id: str) -> Indexed:
    import numpy as np

    from indexer.qdrant import connect
    from indexer.store import ProductStore

    store = ProductStore(connect(settings))
    try:
        point = store.retrieve(serving.collection, [product_id]).get(product_id)
    finally:
        store.close()
    if point is None or point.vector is None:
        what = "is not in the index" if point is None else "was deleted"
        raise UsageError(f"product {product_id} {what}", fix="`millrace search` shows ids of products")
    payload = {**point.payload, "product_release": point.product_release}
    return Indexed(product_id, payload, np.array(point.vector, dtype=np.float32))


def words_nats(settings: "Settings", collection: str, query: str, product_id: str, *, mix: "Mix") -> float:
    """Ask the store how well a product and the best one match, as search does; return what that adds, in nats."""
    from qdrant_client import models

    from indexer.qdrant import connect, qdrant_errors, to_sparse
    from indexer.search.retrieval import CANDIDATES
    from towers.lexical import Sparse, read_query

    words, point = read_query(query), point_id(product_id)
    its_own = models.Filter(must=[models.HasIdCondition(has_id=[point])])
    client = connect(settings)

    def matches(arms: dict[str, Sparse]) -> dict[str, float]:
        asked = {name: to_sparse(arm) for name, arm in arms.items()}
        finding = [
            models.Prefetch(query=arm, using=name, filter=chosen, limit=CANDIDATES)
            for name, arm in asked.items()
            for chosen in (None, its_own)
        ]
        requests = [
            models.QueryRequest(prefetch=finding, query=arm, using=name, limit=CANDIDATES * len(finding))
            for name, arm in asked.items()
        ]
        with qdrant_errors(f"search {collection}"):
            answers = client.query_batch_points(collection, requests) if requests else []
        found: dict[str, float] = {}
        for hit in (hit for answer in answers for hit in answer.points):
            found[str(hit.id)] = found.get(str(hit.id), 0.0) + hit.score
        return found

    try:
        found = matches(words.arms()) or matches(words.arms(mistyped=True))
    finally:
        client.close()
    return mix.nats(words.kind, [*found.values(), found.get(point, 0.0)])[-1]


def _numbers(models: "ModelsTable", kind: "Kind") -> list[int]:
    return [manifest.release for manifest in models.look().manifests.values() if manifest.kind == kind]


def _query_tower(models: "ModelsTable", number: int, *, dim: int) -> "QueryTower":
    from towers.model import QueryTower
    from towers.release_files import unpack

    value = models.file_of("query", number)
    return QueryTower.untrained(dim) if value is None else unpack(value).query_tower()


def product_tower(models: "ModelsTable", number: int) -> "ProductTower":
    """The product tower of a release."""
    from towers.model import ProductTower
    from towers.release_files import unpack

    value = models.file_of("product", number)
    return ProductTower.untrained() if value is None else unpack(value).product_tower()


def _pairs(settings: "Settings") -> list[PreferencePair]:
    """Read the newest pairs; what cannot be read as one is left to `millrace doctor`."""
    from millrace.pairs import PREFERENCE_PAIR
    from service.kafka import newest_records, translate_kafka_errors

    messages().print(f"reading {PREFERENCE_PAIRS} …")
    with translate_kafka_errors(settings):
        _, records = newest_records(settings, PREFERENCE_PAIRS, PAIRS_READ, timeout_s=PAIRS_TIMEOUT_S)
    found = []
    for record in records:
        try:
            found.append(wire.decode(record.value or b"", PREFERENCE_PAIR))
        except ContractError as error:
            messages().print(f"a pair at {record.partition}/{record.offset} cannot be read: {error.reason}")
    return found
