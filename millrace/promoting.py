"""Commands on releases beside showing them and going back: vouching for one, and what differs between two."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from kafka import KafkaProducer
from rich.table import Table

from contracts.decisions import Promotion
from contracts.errors import CheckFailed, DependencyDown, UsageError
from contracts.releases import Kind, ReleaseManifest, release_key, withdrawn
from deploy.local.state import load_running_settings
from millrace.asking import observe
from millrace.explaining import following_models
from millrace.output import Json, out, print_json, utc
from millrace.releasing import ANSWERED_WITHIN_S, later_than
from service.kafka import producer_config, translate_kafka_errors
from service.models import ModelsView, ModelsWriter

if TYPE_CHECKING:
    import numpy as np

    from millrace.watch.observer import Observer
    from towers.release_files import Release

COMPARED: Final = (
    "created_at",
    "lists_trained",
    "pairs_trained",
    "gain",
    "gain_error",
    "parent",
    "base_version",
    "text_nats",
)
"""What is told of both manifests."""


def releases_promote(
    query: Annotated[int, typer.Argument(min=0, help="Query release to vouch for; 0 is untrained: vouch for none.")],
    json: Json = False,
) -> None:
    """Vouch for a query release: where live is worse than the anchor, it steps back to this one.

    What is in force stays. A release that proves better than the anchor is promoted without being asked for.

    Example: millrace releases promote 41
    """
    report = observe(lambda observer: promote(observer, query))
    if json:
        print_json(report)
        return
    number = report["promoted"]
    told = f"query release {number}" if number else "the untrained release"
    out().print(f"{told} is what a step back goes to, until a later one is promoted")


def promote(observer: "Observer", query: int) -> dict[str, Any]:
    """Ask for a promotion, wait until it is answered, and report it.

    Raises:
        UsageError: there is no such release to promote.
        DependencyDown: no trainer answers; the request stands, and the next one takes it up.
    """
    settings, view = load_running_settings(), observer.known_models().look()
    check_promotable(view, query)
    answered = 0 if view.decisions is None else view.decisions.promotion_answered
    asked = 0 if view.promotion is None else view.promotion.requested_at
    request = Promotion(query_release=query, requested_at=later_than(answered, asked))
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        ModelsWriter(settings, producer).ask_to_promote(request)

    def is_answered(view: ModelsView) -> bool:
        return view.decisions is not None and view.decisions.promotion_answered >= request.requested_at

    if not observer.models.wait_until(is_answered, ANSWERED_WITHIN_S):
        raise DependencyDown(
            f"no trainer answers within {ANSWERED_WITHIN_S:g} s; the next one promotes query release {query}",
            fix="see `millrace status`: is a trainer running?",
        )
    decisions = observer.models.look().decisions
    if decisions is None or decisions.promoted != query:
        raise CheckFailed(
            f"the trainer did not promote query release {query}: it was taken back or retired meanwhile",
            fix="`millrace releases ls` lists those that are there",
        )
    return {"promoted": decisions.promoted, "in_force": 0 if view.serving is None else view.serving.query_release}


def check_promotable(view: ModelsView, query: int) -> None:
    """Refuse what is not there, newer than what is in force, or was taken back.

    Raises:
        UsageError: it cannot be promoted.
    """
    serving = view.serving
    if serving is None:
        raise UsageError("nothing is in force yet", fix="start the indexer: it puts the first release in force")
    gone = query in withdrawn(serving, view.manifests.values())
    if query > serving.query_release or gone or (query and release_key("query", query).decode() not in view.manifests):
        reason = "was taken back" if gone else "is not on the topic, or newer than the one in force"
        raise UsageError(
            f"query release {query} {reason}",
            fix="choose one that `millrace releases ls` lists, no newer than the one in force, or 0",
        )


def releases_diff(
    before: Annotated[int, typer.Argument(min=1, help="Number of a release.")],
    after: Annotated[int, typer.Argument(min=1, help="Number of another.")],
    product: Annotated[bool, typer.Option("--product", help="Product releases; else query releases.")] = False,
    json: Json = False,
) -> None:
    """Say what differs between two releases: what they knew, and by how much queries or products moved.

    Example: millrace releases diff 41 57
    """
    from towers.release_files import unpack

    kind: Kind = "product" if product else "query"
    found = []
    with following_models(load_running_settings()) as models:
        for number in (before, after):
            value = models.value(key := release_key(kind, number).decode())
            if value is None:
                raise UsageError(f"{key} is not on the topic", fix="`millrace releases ls` lists those that are")
            found.append(unpack(value))
    report = difference_report(*found)
    print_json(report) if json else out().print(difference_table(report))


def difference_report(before: "Release", after: "Release") -> dict[str, Any]:
    """Put the difference of two releases of one kind into stable JSON.

    Raises:
        UsageError: they are over different base models, so nothing of their weights can be compared.
    """
    one, two = before.manifest, after.manifest
    if one.base_version != two.base_version:
        raise UsageError(
            f"{one.base_version} and {two.base_version} are different base models",
            fix="`millrace releases show` shows each of them",
        )
    moved = _queries_moved(before, after) if one.kind == "query" else _products_moved(before, after)
    return {"kind": one.kind, "before": _told(one), "after": _told(two), "moved": moved}


def _told(manifest: ReleaseManifest) -> dict[str, Any]:
    values = manifest.model_dump(mode="json")
    named = {f"prior.{name}": value for name, value in manifest.prior.items()}
    rates = {f"mix.{kind}.{name}": value for kind, rate in manifest.mix.items() for name, value in rate.items()}
    return {"release": manifest.release, **{name: values[name] for name in COMPARED}, **named, **rates}


def _queries_moved(before: "Release", after: "Release") -> dict[str, Any]:
    """How far query vectors turned, told by the probe texts that travel with each release, and which are remembered."""
    import numpy as np

    from towers.release_files import PROBE_VECTORS

    one, two = (np.asarray(release.tensors[PROBE_VECTORS], dtype=np.float64) for release in (before, after))
    cosines = np.sum(one * two, axis=1) / np.maximum(
        np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1), np.finfo(np.float64).tiny
    )
    known, later = (set(release.query_tower().memory.queries.tolist()) for release in (before, after))
    return {
        "probe_cosine_mean": float(cosines.mean()),
        "probe_cosine_least": float(cosines.min()),
        "queries_remembered": len(later),
        "queries_newly_remembered": len(later - known),
        "queries_forgotten": len(known - later),
    }


def _products_moved(before: "Release", after: "Release") -> dict[str, Any]:
    """By how many nats products' own quality, and what features say of it, moved."""
    one, two = before.product_tower(), after.product_tower()
    own = _changes(one.products, one.own, two.products, two.own)
    words = _changes(one.features.keys, one.words, two.features.keys, two.words)
    return {
        f"{name}_{what}": value
        for name, changes in (("products", own), ("features", words))
        for what, value in (
            ("moved", int((abs(changes) > 0).sum())),
            ("mean_nats", float(abs(changes).mean()) if len(changes) else 0.0),
            ("most_nats", float(abs(changes).max(initial=0.0))),
        )
    }


def _changes(
    keys: "np.ndarray", values: "np.ndarray", later_keys: "np.ndarray", later_values: "np.ndarray"
) -> "np.ndarray":
    """By how much what stands under each key of either changed; what is missing counts as 0."""
    import numpy as np

    both = np.union1d(keys, later_keys)
    was, now = np.zeros(len(both)), np.zeros(len(both))
    was[np.searchsorted(both, keys)], now[np.searchsorted(both, later_keys)] = values, later_values
    return now - was


def difference_table(report: Mapping[str, Any]) -> Table:
    """The difference as a table: both manifests beside one another, then what moved."""
    before, after = report["before"], report["after"]
    kind = report["kind"]
    table = Table("", f"{kind} {before['release']}", f"{kind} {after['release']}", title="what differs")
    for name in dict.fromkeys((*before, *after)):
        values = [one.get(name) for one in (before, after)]
        if name != "release" and values[0] != values[1]:
            table.add_row(name, *map(utc if name == "created_at" else _shown, values))
    table.add_section()
    for name, value in report["moved"].items():
        table.add_row(name.replace("_", " "), "", _shown(value))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
