"""`millrace catalog import`: a file of products onto `catalog`, checked whole before anything is sent.

It writes to Kafka itself, by an idempotent producer that all copies acknowledge: a bulk of products takes nothing of
the collector's time for shoppers, and nothing is doubled or reordered. What `catalog` holds already is not sent again,
so running it again goes on where it was left, on any machine, and a nightly file sends what has changed. It sends no
faster than the indexers work off, so that what a shop changes meanwhile waits about as long as ever.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from kafka import KafkaConsumer, KafkaProducer

from contracts import wire
from contracts.base import YEAR_2000_MS
from contracts.catalog import CatalogChange, ProductDeleted
from contracts.errors import CheckFailed, UsageError
from contracts.topics import CATALOG
from deploy.local.state import load_running_settings
from millrace.backlog import LEAST, Backlog
from millrace.feed import Fault, Form, has_version, lacking_columns, read_change, refuse_unknown_fields, unused_columns
from millrace.output import Json, Tell, counted, messages, out, print_json, progress_bars
from millrace.tables import column_names, read_rows, refuse_pipe
from service.kafka import (
    OutgoingRecord,
    admin,
    open_consumer,
    produce_all,
    producer_config,
    read_to_end,
    translate_kafka_errors,
)
from service.kafka_settings import comma_list
from service.machine import epoch_ms
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.catalog.sent import Sent, SentProducts

MOST_DELETED_RATIO: Final = 0.2
"""Share of the live products that may be missing from a full file; above it the file is probably cut."""
BATCH: Final = LEAST
NO_INDEXER_S: Final = 15.0
"""How long an import waits for indexers that work nothing off: they may be starting."""
SHOWN_FAULTS: Final = 200

catalog_app = typer.Typer(help="Your products, in and out.", no_args_is_help=True)


class Outcome(StrEnum):
    """What becomes of one product of a file."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    OUTDATED = "outdated"
    """Its version is not above that of another content in the catalogue, where the newer one stays."""


class Line(NamedTuple):
    """One usable line: what it says, and whether the version in it is the shop's own."""

    change: CatalogChange
    is_versioned: bool


class FileRead(NamedTuple):
    """What a file holds.

    Args:
        lines: how many there are, unusable ones included.
        faults: the unusable ones.
        product_ids: that it names, those of unusable lines included.
        versioned: lines with a version of the shop's own.
    """

    lines: int
    faults: list[Fault]
    product_ids: set[str]
    versioned: int

    @property
    def used(self) -> int:
        """How many lines can be used."""
        return self.lines - len(self.faults)


class CatalogFile:
    """A file of products.

    Args:
        path: CSV, TSV or JSON lines, packed by gzip or not.
        columns: our name -> the file's.
        form: what rows mean.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], form: Form) -> None:
        self._path = path
        self._columns = columns
        self._form = form

    def lines(self, tell: Callable[[int, int], None]) -> Iterator[Line | Fault]:
        """Read it line by line; a product may come twice only under two versions."""
        seen: dict[str, int] = {}
        for row in read_rows(self._path, self._columns, tell=tell):
            change = read_change(row, self._form)
            if isinstance(change, Fault):
                yield change
            elif seen.get(change.product_id) == change.version:
                yield Fault(row.line, "repeated", "product_id", "product_id: was there before", change.product_id)
            else:
                seen[change.product_id] = change.version
                yield Line(change, has_version(row))

    def read(self, tell: Callable[[int, int], None]) -> FileRead:
        """Check every line.

        Raises:
            UsageError: no line can be used, and the file is empty.
        """
        count, faults, product_ids, versioned = 0, list[Fault](), set[str](), 0
        for line in self.lines(tell):
            count += 1
            if isinstance(line, Fault):
                faults.append(line)
                product_ids |= {line.product_id} if line.product_id else set()
            else:
                product_ids.add(line.change.product_id)
                versioned += line.is_versioned
        if not count:
            raise UsageError(f"{self._path} holds no product", fix="name a file with a line for each product")
        return FileRead(count, faults, product_ids, versioned)

    def unused_columns(self) -> list[str]:
        """Name the columns of which nothing comes.

        Raises:
            UsageError: those that say what a product is are missing, or of a table one that was named, or
                `--columns` names a field that no product has; or it is a pipe, which can be read only once.
        """
        refuse_pipe(self._path)
        refuse_unknown_fields([*self._columns], self._form)
        first = next(read_rows(self._path, self._columns), None)
        if first is None or first.error is not None:
            return []
        named = [*self._columns.values(), *self._form.attributes]
        is_table = all(isinstance(value, str) for value in first.fields.values())
        fix = "correct --columns or --attributes"
        missing = [name for name in named if is_table and name not in first.fields]
        if not missing and (missing := lacking_columns(first)):
            fix = f"say what they are called: --columns {missing[0]}=COLUMN"
        if missing:
            own = ", ".join(next(read_rows(self._path, {})).fields)
            raise UsageError(f"{self._path} has no column {', '.join(missing)}; it has {own}", fix=fix)
        return [name for name in unused_columns(first, self._form) if name not in named]


def plan_line(line: Line, known: "Sent | None") -> tuple[Outcome, CatalogChange]:
    """Decide what becomes of a line, and under which version it is sent.

    Without a version of the shop's own it gets the time of import, or the next number where the catalogue is beyond it.

    Args:
        line: of the file.
        known: what `catalog` holds of the product; None if it never came.
    """
    change = line.change
    if known is None:
        return Outcome.NEW, change
    is_newer = (change.version, isinstance(change, ProductDeleted)) > known.order
    if known.says(change) and not (line.is_versioned and is_newer):
        return Outcome.UNCHANGED, change
    if line.is_versioned:
        return Outcome.CHANGED if is_newer else Outcome.OUTDATED, change
    return Outcome.CHANGED, change.model_copy(update={"version": max(change.version, known.version + 1)})


def plan_deletions(known: "Mapping[str, Sent]", product_ids: set[str]) -> list[ProductDeleted]:
    """Return a deletion for each live product that a full file does not name.

    It has the version of what it deletes, which it wins over: the next version of the shop's own brings it back.
    """
    return [
        ProductDeleted(type="product_deleted", product_id=product_id, version=sent.version)
        for product_id, sent in known.items()
        if not sent.deleted and product_id not in product_ids
    ]


def refuse_unsafe(file: FileRead, known: "Mapping[str, Sent]", deletions: int | None, *, yes: bool) -> None:
    """Raise if sending would probably do harm.

    Args:
        file: what it holds.
        known: what `catalog` holds.
        deletions: how many products would be deleted; None if the file is not taken for a full one.
        yes: much may be deleted, and versions may become times.

    Raises:
        CheckFailed: too many products are missing, or which are cannot be told.
        UsageError: the time of import would be above every version that the shop's own numbers reach.
    """
    live = [sent for sent in known.values() if not sent.deleted]
    if deletions is not None and any(fault.product_id is None for fault in file.faults):
        line = next(fault.line for fault in file.faults if fault.product_id is None)
        raise CheckFailed(
            f"line {line} has no product_id that can be read, so which products are missing cannot be told",
            fix="correct it, or leave out --delete-missing",
        )
    if yes:
        return
    if deletions is not None and deletions > MOST_DELETED_RATIO * len(live):
        raise CheckFailed(
            f"{deletions:,} of {len(live):,} products are missing from the file, more than {MOST_DELETED_RATIO:.0%}; "
            "nothing was sent",
            fix="see whether the file is whole; --yes deletes them",
        )
    if file.versioned < file.used and (own := [one.version for one in live if one.version < YEAR_2000_MS]):
        raise UsageError(
            f"{len(own):,} products have versions that are no times, {own[0]} for one: after the time of import, "
            "numbers like these would count as old for ever",
            fix="name your version's column, --columns version=COLUMN; --yes goes over to times",
        )


def send(
    settings: Settings, changes: Iterator[CatalogChange], sent: "SentProducts", *, patience_s: float
) -> tuple[int, int]:
    """Write changes to `catalog`, no faster than they are worked off; return how many, and how many were overtaken.

    Kafka has the former on return. The latter are older than what `catalog` holds when their turn comes: as the last
    records of their keys they would be all that compaction keeps.

    Args:
        settings: of the deployment.
        changes: to send.
        sent: what `catalog` holds; it is read on before each batch.
        patience_s: if nothing is worked off for so long, no indexer runs, and the rest is sent at once.

    Raises:
        DependencyDown: Kafka does not acknowledge; running the command again goes on.
    """
    topic, written, overtaken, is_paced = settings.topic(CATALOG), 0, 0, True
    with translate_kafka_errors(settings), ExitStack() as stack:
        producer = stack.enter_context(KafkaProducer(**producer_config(settings)))
        consumer = stack.enter_context(open_consumer(settings))
        backlog = Backlog(settings, stack.enter_context(admin(settings)))
        while batch := list(islice(changes, BATCH)):
            for change in batch:
                sent.add(change)
            read_catalogue(consumer, settings, sent)
            newest = [one for one in batch if sent.holds(one)]
            records = [OutgoingRecord(topic, wire.encode(one), key=one.product_id.encode()) for one in newest]
            places = produce_all(producer, records)
            written, overtaken = written + len(places), overtaken + len(batch) - len(places)
            if is_paced:
                backlog.add(places)
                is_paced = backlog.wait(None, patience_s=patience_s)
                if not is_paced:
                    messages().print("no indexer works off the catalogue; the rest is sent at once")
    return written, overtaken


def read_catalogue(
    consumer: KafkaConsumer,
    settings: Settings,
    sent: "SentProducts",
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> None:
    """Read `catalog` to its end, from where it was read to before."""
    from indexer.catalog.topics import catalog_record

    for record in read_to_end(consumer, settings.topic(CATALOG), begins=sent.ends, tell=tell):
        sent.take(catalog_record(record))


@catalog_app.command("import")
def catalog_import(  # noqa: PLR0913, PLR0917 # a command line
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines, packed by gzip or not.")],
    columns: Annotated[str, typer.Option(help="Your names for ours: title=name,product_id=sku.")] = "",
    attributes: Annotated[str, typer.Option(help="Columns that become attributes: litres,colour.")] = "",
    default: Annotated[str, typer.Option(help="Fields of every product: locale=en-IN,currency=INR.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Send the other lines if some are bad.")] = False,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="The file is the whole shop: delete what it does not name.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also if much is deleted, or versions become times.")] = False,
    json: Json = False,
) -> None:
    """Send a file of products, those that are new or have changed. Exit code 3 if a line is bad; then none is sent.

    Takes product messages, columns named like their fields, and the columns of merchant feeds. Run it again to go on.

    Example: millrace catalog import products.csv --columns product_id=sku,title=name --attributes litres --dry-run
    """
    settings = load_running_settings()
    form = Form(epoch_ms(), comma_list(attributes), column_names(default, option="--default"))
    source = CatalogFile(file, column_names(columns), form)
    if unused := source.unused_columns():
        messages().print(f"not used: {', '.join(unused)}; --columns or --attributes names what you need")
    with progress_bars() as tell:
        report = run_import(settings, source, tell, dry_run=dry_run, skip_bad=skip_bad, full=delete_missing, yes=yes)
    shown = {"file": str(file), **report, "bad": [fault._asdict() for fault in report["bad"]]}
    print_json(shown) if json else out().print(import_words(shown))
    if report["bad"] and not skip_bad:
        raise refused(len(report["bad"]), report["lines"])


def run_import(
    settings: Settings,
    source: CatalogFile,
    tell: Tell,
    *,
    dry_run: bool,
    skip_bad: bool,
    full: bool,
    yes: bool,
    patience_s: float = NO_INDEXER_S,
) -> dict[str, Any]:
    """Check a file, send what is new, and report; nothing is sent if a line is bad, unless those are skipped.

    `overtaken` counts what would have been sent if nothing newer had come meanwhile, from the shop or the file.

    Args:
        settings: of the deployment; a dry run without Kafka checks the file alone.
        source: the file.
        tell: told the progress.
        dry_run: send nothing.
        skip_bad: send the lines that can be used.
        full: the file is the whole shop: what it does not name is deleted.
        yes: do not ask whether deletions and versions are meant.
        patience_s: how long to wait for indexers that work nothing off.
    """
    from indexer.catalog.sent import SentProducts

    read = source.read(lambda done, of: tell("checking", done, of))
    show_bad_lines([f"line {fault.line}: {fault.message} [{fault.reason}]" for fault in read.faults])
    report: dict[str, Any] = {"lines": read.lines, "used": read.used, "versioned": read.versioned, "bad": read.faults,
                              "dry_run": dry_run, "compared": False, "sent": 0, "deleted": 0, "overtaken": 0,
                              **dict.fromkeys(Outcome, 0)}  # fmt: skip
    if (read.faults and not skip_bad) or (dry_run and settings.kafka_bootstrap is None):
        return report
    settings.require("kafka_bootstrap")
    catalogue = SentProducts()
    with translate_kafka_errors(settings), open_consumer(settings) as consumer:
        read_catalogue(consumer, settings, catalogue, lambda done, of: tell("reading the catalogue", done, of))
    known = catalogue.newest
    deletions = plan_deletions(known, read.product_ids) if full else []
    refuse_unsafe(read, known, len(deletions) if full else None, yes=yes)
    counts: Counter[str] = Counter()

    def changes() -> Iterator[CatalogChange]:
        for line in source.lines(lambda done, of: tell("comparing" if dry_run else "sending", done, of)):
            if isinstance(line, Line):
                outcome, change = plan_line(line, known.get(line.change.product_id))
                counts[outcome] += 1
                if outcome in {Outcome.NEW, Outcome.CHANGED}:
                    yield change
        yield from deletions

    sent, overtaken = (0, 0) if dry_run else send(settings, changes(), catalogue, patience_s=patience_s)
    if dry_run:
        deque(changes(), maxlen=0)
    report |= {"compared": True, "deleted": len(deletions), "sent": sent, "overtaken": overtaken}
    return {**report, **counts}


def show_bad_lines(told: Sequence[str]) -> None:
    """Print what is wrong with the lines of a file, those that come first."""
    for one in told[:SHOWN_FAULTS]:
        messages().print(one)
    if len(told) > SHOWN_FAULTS:
        messages().print(f"and {len(told) - SHOWN_FAULTS:,} more bad lines; --json lists them all")


def refused(bad: int, lines: int) -> CheckFailed:
    """Return why nothing of a file was sent."""
    return CheckFailed(
        f"{bad:,} of {lines:,} lines cannot be used; nothing was sent", fix="correct them; --skip-bad sends the others"
    )


def import_words(report: Mapping[str, Any]) -> str:
    """Say in two sentences what became of a file."""
    if not report["compared"]:
        return f"{report['used']:,} of {report['lines']:,} lines can be used; nothing was compared or sent."
    outcomes = ", ".join(f"{report[name]:,} {name}" for name in (*Outcome, "deleted"))
    versions = "the time of import" if report["versioned"] == 0 else "the file"
    sent = "nothing was sent (dry run)" if report["dry_run"] else f"{report['sent']:,} sent"
    if report["overtaken"]:
        sent += f", {report['overtaken']:,} overtaken by newer changes"
    bad = f", {len(report['bad']):,} bad" if report["bad"] else ""
    return f"{counted(report['lines'], 'line')}: {outcomes}{bad}; {sent}. Versions are from {versions}."
