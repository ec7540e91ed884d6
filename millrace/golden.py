"""`millrace golden`: the queries that a shop judged itself, in and out of `golden-queries`."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from pydantic import Field, TypeAdapter
from rich.table import Table

from contracts import wire
from contracts.base import VisibleText
from contracts.errors import CheckFailed, ContractError, UsageError
from contracts.golden import GOLDEN_QUERY, MAX_GOLDEN_QUERIES, MAX_JUDGMENTS, GoldenQuery, Judgment
from contracts.topics import GOLDEN_QUERIES
from deploy.local.state import load_running_settings
from millrace.asking import numbers, running_settings
from millrace.curating import BadLine, LineForm, send, show_import
from millrace.output import Json, Tell, counted, messages, out, print_json, progress_bars
from millrace.tables import column_names, read_rows
from service.kafka import records_of
from service.settings import Settings
from towers.text import normalised

golden_app = typer.Typer(
    help="Queries that you judged yourselves: every release is measured by them.", no_args_is_help=True
)

Known = Mapping[bytes, GoldenQuery | None]
"""What the topic holds, by key; None is a record that cannot be read."""


class JudgedLine(Judgment):
    """A line of a file: one judgment, and the query that it is of."""

    query: Annotated[VisibleText, Field(max_length=1000)]


def grade_of(text: str) -> int | str:
    """The grade that a text says, or the text.

    >>> grade_of("3"), grade_of("3.0"), grade_of("good")
    (3, 3, 'good')
    """
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else text


LINE: Final = LineForm(TypeAdapter(JudgedLine), list(JudgedLine.model_fields), {"grade": grade_of})


class GoldenFile(NamedTuple):
    """What a file holds: golden queries by key, how many judgments that are, and the lines that cannot be used."""

    queries: dict[bytes, GoldenQuery]
    judgments: int
    bad: list[BadLine]


def read_file(
    path: Path, columns: Mapping[str, str], defaults: Mapping[str, str], tell: Callable[[int, int], None]
) -> GoldenFile:
    """Read a file whole, the judgments of each query together, by product; each may come once.

    Raises:
        UsageError: it cannot be read, lacks a column, or holds nothing.
    """
    texts: dict[bytes, str] = {}
    judged: dict[bytes, dict[str, tuple[int, Judgment]]] = {}
    bad: list[BadLine] = []
    LINE.refuse_unknown(columns)
    for row in read_rows(path, columns, needed=["query", "product_id", "grade"], alone=True, tell=tell):
        read = LINE.read(row, defaults)
        if isinstance(read, BadLine):
            bad.append(read)
            continue
        key = normalised(read.query).encode()
        known = judged.get(key, {})
        if not key:
            bad.append(BadLine(row.line, "blank", "query", "query: holds no letter and no digit"))
        elif read.product_id in known:
            before, _ = known[read.product_id]
            bad.append(BadLine(row.line, "repeated", "product_id", f"product_id: line {before} judges it already"))
        elif len(known) == MAX_JUDGMENTS:
            bad.append(BadLine(row.line, "too_many", "query", f"query: has {MAX_JUDGMENTS} products already"))
        else:
            fields = read.model_dump(include=set(Judgment.model_fields))
            judged.setdefault(key, {})[read.product_id] = row.line, Judgment(**fields)
            texts.setdefault(key, read.query)
    if not judged and not bad:
        raise UsageError(f"{path} holds no judgment", fix="name a file with a line for each judged product of a query")
    queries = {
        key: GoldenQuery(query=texts[key], judgments=tuple(one for _, (_, one) in sorted(found.items())))
        for key, found in judged.items()
    }
    return GoldenFile(queries, sum(map(len, judged.values())), bad)


def read_golden(settings: Settings, tell: Tell) -> dict[bytes, GoldenQuery | None]:
    """Read what the topic holds, by key and in its order."""
    newest: dict[bytes, bytes | None] = {}
    for record in records_of(settings, GOLDEN_QUERIES, tell=lambda done, of: tell("reading golden queries", done, of)):
        newest[record.key or b""] = record.value
    return {key: _decoded(value) for key, value in sorted(newest.items()) if value is not None}


def _decoded(value: bytes) -> GoldenQuery | None:
    try:
        return wire.decode(value, GOLDEN_QUERY)
    except ContractError:
        return None


class Plan(NamedTuple):
    """What an import sends.

    Args:
        values: key -> value; None removes it.
        queries: how many are `new`, `changed`, `unchanged`, `removed`.
        judgments_removed: those on the topic that are gone afterwards.
    """

    values: dict[bytes, bytes | None]
    queries: dict[str, int]
    judgments_removed: int


def plan_import(known: Known, wanted: Mapping[bytes, GoldenQuery], *, replace: bool) -> Plan:
    """Decide what is sent: each query of the file gets the judgments that the file has of it, and no others.

    Args:
        known: what the topic holds.
        wanted: what the file holds.
        replace: the file is the whole golden set: other queries are removed.

    Raises:
        CheckFailed: it would be more than a trainer takes.
    """
    held = _by_query(known)
    removed = held.keys() - wanted.keys() if replace else set()
    total = len(held.keys() | wanted.keys()) - len(removed)
    if total > MAX_GOLDEN_QUERIES:
        raise CheckFailed(
            f"{total:,} golden queries are more than the {MAX_GOLDEN_QUERIES:,} that a trainer takes; nothing was sent",
            fix="leave some out of the file, or take some away: millrace golden remove QUERY",
        )
    outcomes = {key: _outcome(known, held, key, query) for key, query in wanted.items()}
    counts = Counter(outcomes.values())
    changed = {key: wire.encode(query) for key, query in wanted.items() if outcomes[key] != "unchanged"}
    replaced = [key for key in sorted(known) if (name := _name_of(key)) in removed or (name in wanted and name != key)]
    gone = sum(len(_products(held.get(key)) - _products(wanted.get(key))) for key in [*changed, *removed])
    queries = {outcome: counts[outcome] for outcome in ("new", "changed", "unchanged")}
    return Plan({**dict.fromkeys(replaced), **changed}, {**queries, "removed": len(removed)}, gone)


def _outcome(known: Known, held: Known, key: bytes, query: GoldenQuery) -> str:
    return "new" if key not in held else "unchanged" if known.get(key) == query else "changed"


def _name_of(key: bytes) -> bytes:
    """The normalised query of a key: keys of before told accents apart by how they are encoded."""
    return normalised(key.decode(errors="replace")).encode() or key


def _by_query(known: Known) -> dict[bytes, GoldenQuery | None]:
    """What is known of each query; what is kept under its normalised form holds before other forms."""
    return {_name_of(key): known[key] for key in sorted(known, key=lambda one: (one == _name_of(one), one))}


def keys_of(known: Known, query: str) -> set[bytes]:
    """Under which keys a query is kept, however it is spelled."""
    return {key for key in known if key == query.encode() or _name_of(key) == normalised(query).encode()}


def _products(query: GoldenQuery | None) -> set[str]:
    return set() if query is None else {one.product_id for one in query.judgments}


def has_one_grade(query: GoldenQuery) -> bool:
    """Whether all judged products have the same grade: then every order is as good, and nothing can be measured."""
    return len({one.grade for one in query.judgments}) == 1


@golden_app.command("import")
def golden_import(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines, packed by gzip or not.")],
    columns: Annotated[str, typer.Option(help="Your names for ours: query=search,product_id=sku,grade=rating.")] = "",
    author: Annotated[str, typer.Option(help="Who judged, where the file names nobody.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Send the other lines if some are bad.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="The file is the whole golden set: remove queries that it does not name.")
    ] = False,
    json: Json = False,
) -> None:
    """Send a file of judgments: query, product_id and grade (0 wrong to 4 perfect), and if you like author and note.

    A query that the file names gets its judgments from the file alone. Exit code 3 if a line is bad; then none is sent.
    Sending a file again changes nothing.

    Example: millrace golden import judgments.csv --columns query=search,product_id=sku --dry-run
    """
    settings = load_running_settings()
    with progress_bars() as tell:
        report = run_import(
            settings, file, column_names(columns), tell,
            author=author, dry_run=dry_run, skip_bad=skip_bad, replace=replace,
        )  # fmt: skip
    if report["one_grade"]:
        messages().print(
            f"{report['one_grade']:,} queries have one grade only, so that every order is as good: judge worse "
            "products as well"
        )
    show_import(report, import_words(report), json=json, skip_bad=skip_bad)


def run_import(
    settings: Settings,
    file: Path,
    columns: Mapping[str, str],
    tell: Tell,
    *,
    author: str = "",
    dry_run: bool = False,
    skip_bad: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Check a file, send what is new or has changed, and report; a bad line holds all back unless those are skipped.

    A dry run without Kafka checks the file alone.
    """
    defaults = {"author": author} if author else {}
    read = read_file(file, columns, defaults, lambda done, of: tell("checking", done, of))
    report: dict[str, Any] = {
        "file": str(file),
        "lines": read.judgments + len(read.bad),
        "used": read.judgments,
        "bad": [one._asdict() for one in read.bad],
        "one_grade": sum(map(has_one_grade, read.queries.values())),
        "dry_run": dry_run,
        "compared": False,
        "queries": {},
        "judgments_removed": 0,
        "sent": 0,
    }
    if (read.bad and not skip_bad) or (dry_run and settings.kafka_bootstrap is None):
        return report
    settings.require("kafka_bootstrap")
    plan = plan_import(read_golden(settings, tell), read.queries, replace=replace)
    sent = 0 if dry_run else send(settings, GOLDEN_QUERIES, plan.values.items())
    return report | {
        "compared": True,
        "queries": plan.queries,
        "judgments_removed": plan.judgments_removed,
        "sent": sent,
    }


def import_words(report: Mapping[str, Any]) -> str:
    """Say in a sentence what became of a file."""
    used = f"{counted(report['lines'], 'line')}: {counted(report['used'], 'judgment')}, {len(report['bad']):,} bad"
    if not report["compared"]:
        return f"{used}; nothing was compared or sent."
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in report["queries"].items())
    gone = f", {report['judgments_removed']:,} earlier judgments removed" if report["judgments_removed"] else ""
    sent = "nothing was sent (dry run)" if report["dry_run"] else f"{report['sent']:,} sent"
    return f"{used}; queries: {outcomes}{gone}; {sent}."


@golden_app.command("ls")
def golden_ls(json: Json = False) -> None:
    """List the golden queries with their judgments by grade.

    `millrace releases show` tells how a release ranks them.

    Example: millrace golden ls
    """
    with progress_bars() as tell:
        known = read_golden(running_settings(), tell)
    report = golden_report(known)
    print_json(report) if json else out().print(golden_table(report))
    if report["malformed"]:
        messages().print(
            f"{len(report['malformed']):,} records cannot be read: import these queries again, or remove them: "
            f"{', '.join(report['malformed'])}"
        )


def golden_report(known: Known) -> dict[str, Any]:
    """Everything that `golden ls` shows."""
    held = dict(sorted(_by_query(known).items()))
    return {
        "queries": [
            {
                "query": query.query,
                "judgments": len(query.judgments),
                "grades": {str(grade): sum(one.grade == grade for one in query.judgments) for grade in range(5)},
                "one_grade": has_one_grade(query),
            }
            for query in held.values()
            if query is not None
        ],
        "malformed": [key.decode(errors="replace") for key, query in held.items() if query is None],
    }


def golden_table(report: Mapping[str, Any]) -> Table:
    """The golden queries as a table; those that say nothing are marked."""
    found = report["queries"]
    title = f"{len(found):,} golden queries, {sum(one['judgments'] for one in found):,} judgments"
    table = Table("query", *numbers("judgments", *map(str, range(5))), "", title=title)
    for one in found:
        counts = (str(one["judgments"]), *map(str, one["grades"].values()))
        table.add_row(one["query"], *counts, "one grade: not measured" if one["one_grade"] else "")
    return table


@golden_app.command("remove")
def golden_remove(
    query: Annotated[str, typer.Argument(help="The query, however it is spelled.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All golden queries.")] = False,
    json: Json = False,
) -> None:
    """Remove a golden query with its judgments, or all of them; the next release is measured without.

    Example: millrace golden remove "quiet fridge"
    """
    if bool(query) == everything:
        raise UsageError("name one query, or --all", fix="`millrace golden ls` lists them")
    settings = running_settings()
    with progress_bars() as tell:
        known = read_golden(settings, tell)
        keys = known.keys() if everything else keys_of(known, query)
        if not keys and not everything:
            raise UsageError(f"{query!r} is no golden query", fix="`millrace golden ls` lists them")
        sent = send(settings, GOLDEN_QUERIES, ((key, None) for key in keys))
    print_json({"removed": sent}) if json else out().print(f"{sent:,} golden queries removed")
