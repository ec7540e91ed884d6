"""Commands about releases: which there are, what one was made of, the way back, and the way to another base model."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from kafka import KafkaProducer
from rich.table import Table

from contracts.errors import CheckFailed, DependencyDown, UsageError
from contracts.releases import Kind, Rollback, release_key, was_taken_back, withdrawn
from deploy.local.state import load_running_settings
from millrace.asking import numbers, observe, tell_unknown
from millrace.output import Json, messages, out, print_json, utc
from service.kafka import producer_config, translate_kafka_errors
from service.machine import epoch_ms
from service.models import ModelsView, ModelsWriter

if TYPE_CHECKING:
    from millrace.watch.observer import Observer

ANSWERED_WITHIN_S: Final = 30.0
REWRITTEN_WITHIN_S: Final = 60.0
DECISIONS_SHOWN: Final = 5
DECIDED: Final = {
    "promoted": "release {} is promoted",
    "stepped_back": "live steps back to release {}",
    "undecided": "nothing moves",
    "too_little": "nothing moves",
}
"""Verdict -> what was done."""
BOOTSTRAPPING: Final = (
    "bootstrapping: releases serve because they are safe, not because they proved better; not tested:"
)

releases_app = typer.Typer(help="Releases of both towers.", no_args_is_help=True)


@releases_app.command("ls")
def releases_ls(json: Json = False) -> None:
    """List the releases on the `models` topic, newest first, and which are in force.

    Example: millrace releases ls
    """
    from contracts.topics import MODELS
    from millrace.watch.observer import releases_report

    seen, report = observe(lambda observer: (observer.look(), releases_report(observer.models.look())))
    if json:
        print_json(report)
    else:
        out().print(releases_table(report))
        for line in (*decision_lines(report["decisions"]), *untested_lines(report["decisions"])):
            out().print(line, highlight=False)
    tell_unknown(seen, [MODELS])


def releases_table(report: Mapping[str, Any]) -> Table:
    """The releases as a table, with the releases in force above it."""
    serving = report["serving"]
    title = "nothing is in force yet"
    if serving is not None:
        title = f"in force: query release {serving['query_release']}, product release {serving['product_release']}"
    table = Table("release", "in force", *numbers("pairs trained", "overlap@10", "checks passed"), title=title)
    for row in report["releases"]:
        passed = f"{sum(check['passed'] for check in row['checks'])}/{len(row['checks'])}"
        is_promoted = row["kind"] == "query" and row["release"] == report["promoted"]
        force = "yes" if row["in_force"] else "promoted" if is_promoted else ""
        overlap = "-" if row["overlap_at_10"] is None else f"{row['overlap_at_10']:.3f}"
        figures = (f"{row['pairs_trained']:,}", overlap, passed)
        table.add_row(f"{row['kind']} {row['release']}", force, *figures)
    return table


def decision_lines(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last decisions as sentences, newest first."""
    return [
        f"{utc(one['decided_at'])[:16]} query release {one['query_release']}: "
        f"{DECIDED[one['verdict']].format(one['subject'])}; {one['reason']}"
        for one in decisions[:DECISIONS_SHOWN]
    ]


def untested_lines(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be tested by the newest decision, and whether nothing has proved better yet."""
    if not decisions or not (missed := decisions[0]["untested"]):
        return []
    newest = decisions[0]
    is_proven = any(one["verdict"] == "promoted" and one["by"] == "comparison" for one in decisions)
    is_judged = newest["held_out"] is not None and newest["held_out"]["better_by"]
    bootstrapping = newest["verdict"] == "too_little" and not is_proven and not is_judged
    return [BOOTSTRAPPING if bootstrapping else "not tested yet:", *(f"  {one}" for one in missed)]


@releases_app.command("show")
def releases_show(
    release: Annotated[int, typer.Argument(min=1, help="Number of the release.")],
    product: Annotated[bool, typer.Option("--product", help="A product release; else a query release.")] = False,
    json: Json = False,
) -> None:
    """Show what a release was made of and why it was let out.

    Example: millrace releases show 7
    """
    kind: Kind = "product" if product else "query"
    key = release_key(kind, release).decode()
    manifest = observe(lambda observer: observer.known_models().look().manifests.get(key))
    if manifest is None:
        raise UsageError(f"{key} is not on the topic", fix="`millrace releases ls` lists those that are")
    shown = manifest.model_dump(mode="json")
    if json:
        print_json(shown)
        return
    table = Table("field", "value", title=f"{kind} release {release}")
    times = manifest.click_times
    shown |= {
        "created_at": f"{utc(manifest.created_at)} UTC",
        "click_times": f"{len(times)}, {utc(min(times))} to {utc(max(times))} UTC" if times else "",
        "checks": "\n".join(map(_check, shown["checks"])),
    }
    for name, value in shown.items():
        table.add_row(name, str(value))
    out().print(table)


def _check(check: Mapping[str, Any]) -> str:
    return f"{check['name']} {check['value']:.4g} (limit {check['limit']:g}) {'' if check['passed'] else 'FAILED'}"


@releases_app.command("rollback")
def releases_rollback(
    query: Annotated[
        int | None, typer.Option(min=0, help="Query release to go back to; by default the one before, 0 is untrained.")
    ] = None,
    json: Json = False,
) -> None:
    """Go back to an older query release and the quality of products that belongs to it.

    What is taken back never returns by itself; the trainer goes on from what it knew then, with what comes from now on.

    Example: millrace releases rollback --query 41
    """
    report = observe(lambda observer: roll_back(observer, query))
    if json:
        print_json(report)
        return
    out().print(
        f"query release {report['query_release']} is in force after {report['query_s']:.1f} s, product release "
        f"{report['product_release']} after {report['product_s']:.1f} s; up to {report['withdrawn']} none returns"
    )
    if report["was_taken_back"]:
        messages().print("an earlier rollback had taken it back; now it is learned again what was left out for that")


def roll_back(observer: "Observer", query: int | None) -> dict[str, Any]:
    """Ask for a rollback, wait until it is carried out, and report it.

    Raises:
        UsageError: there is no such release to go back to.
        DependencyDown: no indexer answers; the request stands, and the next one that leads carries it out.
    """
    settings, view = load_running_settings(), observer.known_models().look()
    answered = 0 if view.serving is None else view.serving.rollback_answered
    asked = 0 if view.rollback is None else view.rollback.requested_at
    request = Rollback(query_release=rollback_target(view, query), requested_at=later_than(answered, asked))
    began = time.monotonic()
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        ModelsWriter(settings, producer).ask_for(request)
    if not observer.models.wait_until(lambda view: _answered(view, request), ANSWERED_WITHIN_S):
        raise DependencyDown(
            f"no indexer answers within {ANSWERED_WITHIN_S:g} s; the next one that leads goes back to query release "
            f"{request.query_release}",
            fix="see `millrace status`: is an indexer running?",
        )
    query_s = time.monotonic() - began
    serving = observer.models.look().serving
    if serving is None or serving.query_release != request.query_release:
        raise CheckFailed(
            f"the indexer refused to go back to query release {request.query_release}",
            fix="its log says why (`release_refused`); go back to another one",
        )
    if not observer.models.wait_until(_quality_is_back, REWRITTEN_WITHIN_S):
        messages().print("the quality of products is still being written; see `millrace releases ls`")
    in_force = observer.models.serving() or serving
    return {
        "query_release": serving.query_release,
        "was_taken_back": comes_back(view, request.query_release),
        "product_release": in_force.product_release,
        "withdrawn": serving.withdrawn,
        "query_s": query_s,
        "product_s": time.monotonic() - began,
    }


def rollback_target(view: ModelsView, query: int | None) -> int:
    """The query release to go back to: the one that is asked for, else the one that training went on from.

    Raises:
        UsageError: it cannot be gone back to.
    """
    serving = view.serving
    if serving is None or serving.query_release == 0:
        raise UsageError("no trained query release is in force", fix="there is nothing to go back from")
    if query is None:
        manifest = view.manifests.get(release_key("query", serving.query_release).decode())
        query = None if manifest is None else manifest.parent
    if query in withdrawn(serving, view.manifests.values()):
        raise UsageError(
            f"query release {query} was taken back by the last rollback, or trained from what was",
            fix="choose another one that `millrace releases ls` lists, or 0, with --query",
        )
    if query is None or query >= serving.query_release or (query and f"query-{query}" not in view.manifests):
        raise UsageError(
            f"query release {'before this one' if query is None else query} is no release to go back to from "
            f"{serving.query_release}",
            fix="choose an older one that `millrace releases ls` lists, or 0, with --query",
        )
    return query


def comes_back(view: ModelsView, query: int) -> bool:
    """Whether an earlier rollback than the last took a release back, as far as the one in force tells."""
    in_force = 0 if view.serving is None else view.serving.query_release
    asked, serves = (view.manifests.get(release_key("query", number).decode()) for number in (query, in_force))
    return asked is not None and serves is not None and was_taken_back(asked, serves)


def later_than(*earlier: int) -> int:
    """The moment of a request, in epoch ms: now, but later than those before, by which it is told from them."""
    return max(epoch_ms(), *(one + 1 for one in earlier))


def _answered(view: ModelsView, request: Rollback) -> bool:
    return view.serving is not None and view.serving.rollback_answered >= request.requested_at


def _quality_is_back(view: ModelsView) -> bool:
    """Whether the newest product release is in force: the indexer makes one, and nobody else for some seconds."""
    newest = max((one.release for one in view.manifests.values() if one.kind == "product"), default=0)
    return view.serving is not None and view.serving.product_release >= newest


base_app = typer.Typer(help="The base model of both towers.", no_args_is_help=True)


@base_app.command("prepare")
def base_prepare(
    model: Annotated[str, typer.Argument(help="Name or folder of the new base model.")], json: Json = False
) -> None:
    """Encode the catalogue with another base model while everything goes on, and say how to change to it.

    Example: millrace base prepare all-MiniLM-L6-v2
    """
    from indexer.app import prepare_base
    from service.logging import configure

    settings = load_running_settings()
    settings.require("kafka_bootstrap")
    configure("base", settings)
    base_version = prepare_base(settings, model, pause=threading.Event().wait)
    steps = [
        f"stop all indexers, start them with MILLRACE_BASE_MODEL={model}, and wait until one is ready",
        "restart every search and the trainer with the same setting",
    ]
    if json:
        print_json({"base_version": base_version, "next": steps})
        return
    out().print(f"the catalogue is encoded by {base_version}")
    for number, step in enumerate(steps, start=1):
        out().print(f"{number}. {step}")
