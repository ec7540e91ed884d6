"""Commands that ask: the search service, as any client does; and the running deployment how it is, changing nothing."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args

import typer
from rich.box import HORIZONTALS
from rich.table import Column, Table
from rich.text import Text

from contracts.errors import CheckFailed, DependencyDown, UsageError
from contracts.events import BY_RELEVANCE
from contracts.http import Sort
from contracts.telemetry import Process
from deploy.local.state import load_running_settings
from millrace.client import post
from millrace.output import Json, messages, out, print_json
from millrace.watch.scrape import freshness_report, look_at_processes, scrape_targets
from service.settings import Settings

if TYPE_CHECKING:
    from millrace.doctor import Check
    from millrace.watch.kafka_view import KafkaView
    from millrace.watch.observer import Observer

CATCH_UP_S: Final = 30.0
KAFKA_WAIT_S: Final = 3.0
"""How long a question waits for Kafka: most are asked when something is down."""
LONGEST_ON_ONE_LINE: Final = 28
_NUMBER: Final = r"-?\d+(?:\.\d+)?"
_BOUNDS: Final = re.compile(rf"(?P<gte>{_NUMBER})?\.\.(?P<lte>{_NUMBER})?")
COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}

T = TypeVar("T")


def search_url() -> str:
    """Find the search service of the running deployment."""
    url = scrape_targets(load_running_settings()).get(Process.SEARCH)
    if url is None:
        fix = "start everything with `millrace up`, or set MILLRACE_SCRAPE=search=http://host:port"
        raise DependencyDown("it is not known where search runs", fix=fix)
    return url


def search(  # noqa: PLR0913, PLR0917 # a command line
    query: Annotated[str, typer.Argument(help="What a shopper would type; leave it out to browse.")] = "",
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=100, help="Number of results.")] = 10,
    brand: Annotated[list[str] | None, typer.Option(help="Only this brand; may be given more than once.")] = None,
    seller: Annotated[list[str] | None, typer.Option(help="Only this seller; may be given more than once.")] = None,
    category: Annotated[str | None, typer.Option(help="Only this category, at whatever level.")] = None,
    category_path: Annotated[
        list[str] | None, typer.Option(help="Only below this path; once for each level, from the widest.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only with this value, of one name any; NAME=10..20 bounds a number."),
    ] = None,
    min_price: Annotated[float | None, typer.Option(min=0, help="Only products from this price on.")] = None,
    max_price: Annotated[float | None, typer.Option(min=0, help="Only products up to this price.")] = None,
    in_stock: Annotated[
        bool | None, typer.Option("--in-stock/--out-of-stock", help="Only what can be bought, or cannot.")
    ] = None,
    locale: Annotated[str | None, typer.Option(help="Only products of this locale.")] = None,
    launched_after: Annotated[datetime | None, typer.Option(help="Only products launched since, UTC.")] = None,
    launched_before: Annotated[datetime | None, typer.Option(help="Only products launched until then, UTC.")] = None,
    sort: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Sort))}.")] = BY_RELEVANCE,
    facet: Annotated[
        list[str] | None,
        typer.Option(help="Count values of brand, seller, category, price or attributes.NAME; once for each."),
    ] = None,
    json: Json = False,
) -> None:
    """Search the index as the shop's site would, without writing an impression.

    Without a query, browse what meets the filters.

    Example: millrace search "quiet fridge for a bachelor" -k 5

    Example: millrace search --category Fridges --attribute colour=red --sort price --facet brand
    """
    if category and category_path:
        raise UsageError("--category and --category-path are given", fix="give one of them")
    filters = {
        "brand": brand,
        "seller": seller,
        "category": category_path or category,
        "attributes": attribute_filters(attribute or []),
        "price": {"gte": min_price, "lte": max_price},
        "in_stock": in_stock,
        "locale": locale,
        "launched_at": {"gte": _epoch_ms(launched_after), "lte": _epoch_ms(launched_before)},
    }
    body = {"query": query, "k": k, "filters": _given(filters), "impression": "none"}
    if sort != BY_RELEVANCE:
        body["sort"] = sort
    answer = post(f"{search_url()}/v1/search", body | _given({"facets": facet}))
    if json:
        print_json(answer)
    else:
        out().print(results_table(answer))
        for table in facet_tables(answer):
            out().print(table)
    if answer["degraded"] is not None:
        messages().print(f"degraded answer: {answer['degraded']}")


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing."""
    inner = {name: _given(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in inner.items() if value not in (None, {}, [])}


def _epoch_ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.replace(tzinfo=UTC).timestamp() * 1000)


def attribute_filters(given: Sequence[str]) -> dict[str, Any]:
    """Read filters of attributes: values, or the bounds of a number.

    >>> attribute_filters(["colour=red", "colour=blue", "capacity_l=100..", "width=-1..2.5"])
    {'colour': ['red', 'blue'], 'capacity_l': {'gte': 100.0, 'lte': None}, 'width': {'gte': -1.0, 'lte': 2.5}}
    """
    filters: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--attribute {one} has no value", fix="write --attribute NAME=VALUE")
        bounds = _BOUNDS.fullmatch(value)
        if name in filters and (bounds or isinstance(filters[name], dict)):
            raise UsageError(f"--attribute {one}: {name} is given before", fix="bound a number once, without values")
        if bounds:
            filters[name] = {way: float(bound) if bound else None for way, bound in bounds.groupdict().items()}
        else:
            filters.setdefault(name, []).append(value)
    return filters


def facet_tables(answer: Mapping[str, Any]) -> Iterator[Table]:
    """The facets of an answer, a table each."""
    for name, values in (answer.get("facets") or {}).items():
        table = Table(Column(Text(name), overflow="fold"), *numbers("products"))
        for value in values:
            table.add_row(Text(_shown(value["value"])), f"{value['count']:,}")
        yield table


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        bounds = [("from", value.get("gte")), ("below", value.get("lt"))]
        return " ".join(f"{word} {bound:,g}" for word, bound in bounds if bound is not None)
    return " > ".join(value) if isinstance(value, list) else str(value)


def results_table(answer: Mapping[str, Any]) -> Table:
    """The results of a search; the shop's texts are shown as they are, never as markup."""
    title = f"query release {answer['query_release']}, product release {answer['product_release']}"
    table = Table("#", "score", *texts("product"), "title", "price", title=title)
    for result in answer["results"]:
        price = "" if result.get("price") is None else f"{result['price']:,.2f} {result.get('currency') or ''}".strip()
        names = (Text(result["product_id"]), Text(result["title"]))
        table.add_row(str(result["position"]), f"{result['score']:.3f}", *names, Text(price))
    return table


def encode(
    texts: Annotated[list[str], typer.Argument(help="Queries to encode.")],
    json: Json = False,
) -> None:
    """Encode queries with the query tower in force, for asking Qdrant yourself.

    Example: millrace encode "quiet fridge" --json
    """
    answer = post(f"{search_url()}/v1/encode", {"texts": texts})
    if json:
        print_json(answer)
        return
    for text, vector in zip(texts, answer["vectors"], strict=True):
        head = ", ".join(f"{value:+.4f}" for value in vector[:6])
        out().print(f"{text!r}: {len(vector)} dimensions, [{head}, …]")


def running_settings() -> Settings:
    """Find the settings of the running deployment, which must name a Kafka, for a question: it does not wait long."""
    settings = load_running_settings()
    settings.require("kafka_bootstrap")
    return settings.model_copy(update={"dependency_wait_s": KAFKA_WAIT_S})


def observe(question: Callable[["Observer"], T]) -> T:
    """Ask an observer of the running deployment."""
    from millrace.watch.observer import Observer

    with Observer(running_settings()) as observer:
        observer.wait_caught_up(CATCH_UP_S)
        return question(observer)


def tell_unknown(seen: "KafkaView", parts: Sequence[str] = ()) -> None:
    """Say what is not known and why, of these parts or of all, and raise the first reason.

    Raises:
        MillraceError: a part is not known, so what was printed is not the whole.
    """
    told = {part: error for part, error in seen.unknown.items() if not parts or part in parts}
    for part, error in told.items():
        messages().print(f"{part} not known: {error.message}")
    for error in told.values():
        raise error


def lag(json: Json = False) -> None:
    """Show how far each consumer group is behind, per partition, measured from outside.

    Example: millrace lag --json
    """
    from millrace.watch.ledger import lag_report, unknown_report

    seen = observe(lambda observer: observer.look())
    report = lag_report(seen)
    print_json({**report, "unknown": unknown_report(seen)}) if json else out().print(lag_table(report))
    tell_unknown(seen)


def lag_table(report: Mapping[str, Any]) -> Table:
    """The lag as a table, a line under each group."""
    names = ("position", "end", "lag", "held")
    # fits into 80 columns
    table = Table(*texts("group", "partition"), *numbers(*names), box=HORIZONTALS, padding=0)
    rows = report["partitions"]
    for row, following in zip(rows, [*rows[1:], {"group": None}], strict=True):
        figures, place = (f"{row[name]:,}" for name in names), f"{row['topic']}-{row['partition']}"
        table.add_row(row["group"], place, *figures, end_section=row["group"] != following["group"])
    return table


def texts(*names: str) -> list[Column]:
    """Columns of ids and other texts that are never cut: what is too long goes on in the next line."""
    return [Column(name, overflow="fold") for name in names]


def ids(name: str, shown: Iterable[str]) -> Column:
    """A column of ids that people copy, on one line if they are not too long for that. Put them in by `an_id`."""
    return Column(name, overflow="fold", no_wrap=max(map(len, shown), default=0) <= LONGEST_ON_ONE_LINE)


def an_id(text: str) -> Text:
    """An id in such a column: in a terminal that is too narrow it goes on in the next line."""
    return Text(text, no_wrap=False, overflow="fold")


def numbers(*names: str) -> list[Column]:
    """Columns of numbers, likewise."""
    return [Column(name, justify="right", overflow="fold") for name in names]


def ledger(json: Json = False) -> None:
    """Show the ledgers; every accepted event and closed search is accounted for. Exit code 3 if one is not.

    Example: millrace ledger
    """
    from millrace.watch.ledger import ledger_report, unknown_report

    seen = observe(lambda observer: observer.look())
    report = ledger_report(seen)
    print_json({**report, "unknown": unknown_report(seen)}) if json else out().print(ledger_table(report))
    unbalanced = [name for name, terms in report.items() if terms["balance"]]
    if unbalanced:
        raise CheckFailed(
            f"the ledger of {' and '.join(unbalanced)} does not balance",
            fix="compare the terms with the logs of `streams` and `indexer`; report it with both",
        )
    tell_unknown(seen)


def ledger_table(report: Mapping[str, Any]) -> Table:
    """The ledgers as one table."""
    table = Table("ledger", "term", *numbers("records"))
    for name, terms in report.items():
        for term, value in terms.items():
            reasons = value if isinstance(value, Mapping) else {}
            total = sum(reasons.values()) if isinstance(value, Mapping) else value
            figure = "not known" if total is None else f"{total:,}"
            table.add_row(name, term.replace("_", " "), figure, end_section=term == "balance")
            for reason, count in reasons.items():
                table.add_row(name, f"  {reason.replace('_', ' ')}", f"{count:,}")
    return table


def freshness(json: Json = False) -> None:
    """Show how long clicks and product changes took to become visible in search.

    Example: millrace freshness --json
    """
    views = look_at_processes(scrape_targets(load_running_settings()))
    if not views:
        raise DependencyDown(
            "it is not known where the processes run",
            fix="start everything with `millrace up`, or set MILLRACE_SCRAPE=search=http://host:port,...",
        )
    for name, view in views.items():
        if view.problem:
            messages().print(f"{name} {view.problem}; what it measured is missing")
    report = freshness_report(views.values())
    print_json(report) if json else out().print(freshness_table(report))


def freshness_table(report: Mapping[str, Mapping[str, float | None]]) -> Table:
    """The freshness of both ways as a table."""
    table = Table("way", *numbers("p50", "p99", "measured"))
    for path, row in report.items():
        quantiles = ("-" if row[name] is None else f"{row[name]:.2f} s" for name in ("p50", "p99"))
        table.add_row(path.replace("_", " "), *quantiles, f"{row['count']:,.0f}")
    return table


def doctor(json: Json = False) -> None:
    """Find what is wrong and say how to mend it, in under 10 s. Exit code 3 if a check fails.

    Example: millrace doctor
    """
    from millrace.doctor import examine

    checks = examine(load_running_settings())
    print_json({"checks": [asdict(check) for check in checks]}) if json else out().print(checks_table(checks))
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise CheckFailed(f"failed: {', '.join(failed)}", fix="each check above says how to mend it")


def checks_table(checks: "Sequence[Check]") -> Table:
    """The doctor's checks as a table; what servers said is shown as it is, never as markup."""
    table = Table("check", "", Column("what was seen", overflow="fold"), Column("fix", overflow="fold"))
    for check in checks:
        status = Text(check.status, style=COLOURS[check.status])
        table.add_row(check.name, status, Text(check.cause), Text(check.fix))
    return table
