"""`millrace pairs ls`, `stats` and `export`: the preference pairs on Kafka, listed, counted and written to a file."""

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from heapq import nlargest
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args

import typer
from pydantic import TypeAdapter
from rich.table import Table

from contracts import wire
from contracts.errors import ContractError, UsageError
from contracts.pairs import PairSource, PreferencePair
from contracts.topics import CURATED_PAIRS, PREFERENCE_PAIRS
from millrace.asking import an_id, ids, numbers, running_settings, texts
from millrace.exporting import STDOUT, write_lines
from millrace.output import Json, Tell, counted, messages, out, print_json, progress_bars, utc
from service.kafka import admin, beginning_and_end_offsets, records_of
from service.settings import Settings
from towers.text import normalised

QUANTILES: Final = {"p1": 0.01, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
ID_SHOWN: Final = 12
"""Characters of a pair's id in a table: `explain` takes so many."""
PREFERENCE_PAIR: Final = TypeAdapter(PreferencePair)

pairs_app = typer.Typer(help="Preference pairs: what the trainer is told.", no_args_is_help=True)

Depth = Annotated[int, typer.Option(min=0, help="Look through the newest N records of each partition; 0: all.")]
_SOURCES: Final = ", ".join(get_args(PairSource))
OfSource = Annotated[
    str,
    typer.Option("--source", help=f"Only of this: {_SOURCES}. What was imported, on {CURATED_PAIRS}, is not listed."),
]
OfQuery = Annotated[str, typer.Option("--query", help="Only of queries that hold these words, in this order.")]
OfProduct = Annotated[str, typer.Option("--product", help="Only with this product, chosen or rejected.")]


class LoggedPair(NamedTuple):
    """A pair and where it stands.

    Args:
        partition: of `preference-pairs`.
        offset: in it.
        written_at: when Kafka got it, epoch milliseconds.
        value: as it stands there.
        pair: decoded; None if it is none.
    """

    partition: int
    offset: int
    written_at: int
    value: bytes
    pair: PreferencePair | None


class Wanted(NamedTuple):
    """Which pairs are asked for; an empty part asks for all.

    >>> from contracts.pairs import Factors, PairSide
    >>> side, other = PairSide(product_id="P-1", grade=1), PairSide(product_id="P-2", grade=0)
    >>> pair = PreferencePair(pair_id="p", search_id="s", query="Quiet  fridge", source="click", chosen=side,
    ...     rejected=other, weight=1.0, factors=Factors(value=1.0, ratio=1.0), event_time=10**12, closed_at=10**12)
    >>> Wanted(query="quiet").asks_for(pair), Wanted(product="P-2").asks_for(pair), Wanted("value").asks_for(pair)
    (True, True, False)
    """

    source: str = ""
    query: str = ""
    product: str = ""

    def asks_for(self, pair: PreferencePair) -> bool:
        """Whether a pair is one of them."""
        return (
            self.source in {"", pair.source}
            and self.product in {"", pair.chosen.product_id, pair.rejected.product_id}
            and (not self.query or normalised(self.query) in normalised(pair.query))
        )


def wanted_pairs(source: str, query: str, product: str) -> Wanted:
    """Read the filters of a command.

    Raises:
        UsageError: there is no such source.
    """
    if source and source not in get_args(PairSource):
        raise UsageError(f"--source: {source} is none", fix=f"choose from {_SOURCES}")
    return Wanted(source, query, product)


def logged_pairs(settings: Settings, depth: int, tell: Tell) -> Iterator[LoggedPair]:
    """Give the pairs on Kafka, in the order of each partition; what is no pair comes as well.

    Args:
        settings: of the deployment.
        depth: the newest so many records of each partition; 0 for all.
        tell: told the progress.
    """
    begins: dict[int, int] = {}
    if depth:
        with admin(settings) as client:
            ends = beginning_and_end_offsets(client, settings, [PREFERENCE_PAIRS])
        begins = {number: max(found.begin, found.end - depth) for (_, number), found in ends.items()}
    records = records_of(
        settings, PREFERENCE_PAIRS, begins=begins, tell=lambda done, of: tell("reading pairs", done, of)
    )
    for record in records:
        try:
            pair = wire.decode(record.value or b"", PREFERENCE_PAIR)
        except ContractError:
            pair = None
        yield LoggedPair(record.partition, record.offset, record.timestamp, record.value or b"", pair)


@pairs_app.command("ls")
def pairs_ls(
    source: OfSource = "",
    query: OfQuery = "",
    product: OfProduct = "",
    last: Annotated[int, typer.Option("-n", "--last", min=1, max=10_000, help="Show so many.")] = 20,
    depth: Depth = 10_000,
    json: Json = False,
) -> None:
    """List the newest pairs, the newest first.

    Example: millrace pairs ls --query fridge --source value
    """
    wanted, settings = wanted_pairs(source, query, product), running_settings()
    with progress_bars() as tell:
        report = newest_pairs(logged_pairs(settings, depth, tell), wanted, last)
    if json:
        print_json({**report, "pairs": [pair_json(one) for one in report["pairs"]]})
        return
    told = f"{report['found']:,} of {report['looked_through']:,} pairs looked through are asked for"
    if report["pairs"]:
        out().print(pairs_table(report["pairs"]))
    elif not report["looked_through"]:
        told = "there are no pairs"
    messages().print(told + (f"; {report['malformed']:,} records are no pairs" if report["malformed"] else ""))


def newest_pairs(pairs: Iterable[LoggedPair], wanted: Wanted, last: int) -> dict[str, Any]:
    """Find the newest of the pairs that are asked for, and count those looked through."""
    counts: Counter[str] = Counter(found=0, looked_through=0, malformed=0)

    def found() -> Iterator[LoggedPair]:
        for one in pairs:
            counts["malformed" if one.pair is None else "looked_through"] += 1
            if one.pair is not None and wanted.asks_for(one.pair):
                counts["found"] += 1
                yield one

    newest = nlargest(last, found(), key=lambda one: (one.written_at, one.partition, one.offset))
    return {**counts, "pairs": newest}


def pair_json(one: LoggedPair) -> dict[str, Any]:
    """Put a pair into stable JSON: its message, and where it stands."""
    place = {"partition": one.partition, "offset": one.offset, "written_at": one.written_at}
    return {**(one.pair.model_dump(mode="json", exclude_none=True) if one.pair else {}), **place}


def pairs_table(pairs: Sequence[LoggedPair]) -> Table:
    """The pairs as a table; positions stand behind the products, then grades."""
    table = Table(
        *texts("written (UTC)", "query", "chosen", "rejected", "source"),
        *numbers("weight"),
        ids("pair id", ["0" * ID_SHOWN]),
    )
    for one in pairs:
        if one.pair is not None:
            sides = [
                f"{side.product_id} @{side.position or '-'} g{side.grade}"
                for side in (one.pair.chosen, one.pair.rejected)
            ]
            weight, pair_id = f"{one.pair.weight:.3g}", one.pair.pair_id[:ID_SHOWN]
            table.add_row(utc(one.written_at), one.pair.query, *sides, one.pair.source, weight, an_id(pair_id))
    return table


@pairs_app.command("stats")
def pairs_stats(
    source: OfSource = "", query: OfQuery = "", product: OfProduct = "", depth: Depth = 0, json: Json = False
) -> None:
    """Count the pairs by source and grade, with their weights and what was sampled and capped.

    Example: millrace pairs stats --depth 100000
    """
    wanted, settings = wanted_pairs(source, query, product), running_settings()
    with progress_bars() as tell:
        report = pair_stats(logged_pairs(settings, depth, tell), wanted)
    print_json(report) if json else out().print(stats_table(report))


def pair_stats(pairs: Iterable[LoggedPair], wanted: Wanted) -> dict[str, Any]:
    """Count pairs. One that stands twice, written by a killed agent, counts once and as `repeated`.

    `weight` gives quantiles; `sampled` and `capped` how many pairs that factor changed, and its mean over them.
    """
    by: dict[str, Counter[str]] = {
        name: Counter() for name in ("source", "grade", "arm", "filters", "propensity_version")
    }
    weights, changed = array("d"), {"sampling": array("d"), "cap": array("d")}
    seen, searches = set[str](), set[str]()
    counts: Counter[str] = Counter(malformed=0, repeated=0, inferred=0)
    times: list[int] = []
    for one in pairs:
        pair = one.pair
        if pair is None or not wanted.asks_for(pair) or pair.pair_id in seen:
            counts["malformed" if pair is None else "repeated"] += pair is None or pair.pair_id in seen
            continue
        seen.add(pair.pair_id)
        searches.add(pair.search_id)
        counts["inferred"] += bool(pair.inferred)
        by["source"][pair.source] += 1
        by["grade"][str(pair.chosen.grade)] += 1
        by["arm"][pair.arm] += 1
        by["propensity_version"][str(pair.propensity_version)] += 1
        by["filters"].update(pair.filters)
        weights.append(pair.weight)
        for name, factors in changed.items():
            if (factor := getattr(pair.factors, name)) != 1:
                factors.append(factor)
        times = [min([*times[:1], pair.event_time]), max([*times[1:], pair.event_time])]
    return {
        "pairs": len(weights),
        "searches": len(searches),
        **counts,
        "from": times[0] if times else None,
        "to": times[1] if times else None,
        **{f"by_{name}": dict(sorted(found.items())) for name, found in by.items()},
        "weight": quantiles(weights),
        "sampled": {"pairs": len(changed["sampling"]), "mean_factor": _mean(changed["sampling"])},
        "capped": {"pairs": len(changed["cap"]), "mean_factor": _mean(changed["cap"])},
    }


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Nearest-rank quantiles, the mean and the sum.

    >>> quantiles([3.0, 1.0, 2.0])["p50"], quantiles([])["p50"]
    (2.0, None)
    """
    ordered = sorted(values)
    found = {
        name: ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else None
        for name, q in QUANTILES.items()
    }
    return {**found, "mean": _mean(ordered), "sum": sum(ordered)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def stats_table(report: Mapping[str, Any]) -> Table:
    """The counts as a table."""
    table = Table(
        "of the pairs",
        "",
        title=f"{counted(report['pairs'], 'pair')} of {counted(report['searches'], 'search', 'searches')}",
    )
    if report["pairs"]:
        table.add_row("clicked", f"{utc(report['from'])} to {utc(report['to'])} UTC")
    for name in ("source", "grade", "arm", "propensity_version", "filters"):
        told = ", ".join(f"{value} {count:,}" for value, count in report[f"by_{name}"].items())
        table.add_row(name.replace("_", " "), told or "none")
    weights = [f"{name} {value:.3g}" for name, value in report["weight"].items() if value is not None]
    table.add_row("weight", ", ".join(weights))
    for name in ("sampled", "capped"):
        mean = report[name]["mean_factor"]
        table.add_row(name, f"{report[name]['pairs']:,}" + ("" if mean is None else f", by {mean:.3g} on average"))
    for name in ("inferred", "repeated", "malformed"):
        table.add_row(name, f"{report[name]:,}")
    return table


@pairs_app.command("export")
def pairs_export(
    file: Annotated[Path, typer.Argument(help="JSON lines to write, packed if *.gz; - is stdout.")] = STDOUT,
    source: OfSource = "",
    query: OfQuery = "",
    product: OfProduct = "",
    depth: Depth = 0,
    json: Json = False,
) -> None:
    """Write pairs as JSON lines, each the message as it stands on the topic; of a file, --json tells what it holds.

    Example: millrace pairs export pairs.jsonl.gz --source click
    """
    wanted, settings = wanted_pairs(source, query, product), running_settings()
    malformed: list[LoggedPair] = []
    with progress_bars() if file != STDOUT else nullcontext(_silent) as tell:
        lines = export_lines(logged_pairs(settings, depth, tell), wanted, malformed)
        if file == STDOUT:
            sys.stdout.buffer.writelines(lines)
            sys.stdout.buffer.flush()
        else:
            count = write_lines(file, lines, lambda done: tell("pairs written", done, 0))
            if json:
                print_json({"file": str(file), "pairs": count, "malformed": len(malformed)})
            else:
                out().print(f"{counted(count, 'pair')} written to {file}")
    if malformed:
        messages().print(f"{len(malformed):,} records of the topic are no pairs and were left out")


def export_lines(pairs: Iterable[LoggedPair], wanted: Wanted, malformed: list[LoggedPair]) -> Iterator[bytes]:
    """One line for each pair that is asked for; records that are none are added to a list."""
    for one in pairs:
        if one.pair is None:
            malformed.append(one)
        elif wanted.asks_for(one.pair):
            yield one.value.replace(b"\n", b" ") + b"\n"


def _silent(_what: str, _done: int, _of: int) -> None:
    """Show nothing: the terminal may be where the lines go."""
