"""`millrace pairs import`: a file of curated pairs onto `curated-pairs`, checked whole before anything is sent."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from kafka import KafkaProducer

from contracts import wire
from contracts.errors import ContractError, UsageError
from contracts.pairs import CURATED_PAIR, CuratedPair
from contracts.topics import CURATED_PAIRS
from deploy.local.state import load_running_settings
from millrace.importing import refused, show_bad_lines
from millrace.output import Json, Tell, out, print_json, progress_bars
from millrace.tables import Row, column_names, read_rows
from service.kafka import OutgoingRecord, produce_all, producer_config, translate_kafka_errors
from service.settings import Settings
from towers.text import normalised

FIELDS: Final = tuple(name for name in CuratedPair.model_fields if name != "schema_version")
NUMBERS: Final = ("weight", "margin")
BATCH: Final = 500


class BadLine(NamedTuple):
    """Why a line cannot be used.

    Args:
        line: where it begins in the file, from 1.
        reason: a stable word.
        field: to blame, if any.
        message: what is wrong, for people.
    """

    line: int
    reason: str
    field: str | None
    message: str


def read_pair(row: Row, defaults: Mapping[str, str]) -> CuratedPair | BadLine:
    """Read a line. In a table, empty fields are absent and columns of other names are left out.

    Args:
        row: of the file.
        defaults: fields of every pair that does not have its own.
    """
    if row.error is not None:
        return BadLine(row.line, row.error.reason, row.error.field, str(row.error))
    is_table = all(isinstance(value, str) for value in row.fields.values())
    fields = {name: value for name, value in row.fields.items() if name in FIELDS or not is_table}
    if is_table:
        fields = {name: _number(value) if name in NUMBERS else value for name, value in fields.items() if value.strip()}
    try:
        return wire.validate({**defaults, **fields}, CURATED_PAIR)
    except ContractError as error:
        return BadLine(row.line, error.reason, error.field, str(error))


def _number(text: str) -> float | str:
    """What a text says in numbers; if it says none, the contract refuses the text."""
    try:
        return float(text)
    except ValueError:
        return text


def read_file(
    path: Path, columns: Mapping[str, str], defaults: Mapping[str, str], tell: Callable[[int, int], None]
) -> tuple[list[CuratedPair], list[BadLine]]:
    """Read a file whole. The same preference for the same query counts once, so it may come once.

    Raises:
        UsageError: it cannot be read, lacks the query, or holds nothing.
    """
    pairs: list[CuratedPair] = []
    bad: list[BadLine] = []
    seen: dict[tuple[object, ...], int] = {}
    for row in read_rows(path, columns, needed=["query"], tell=tell):
        read = read_pair(row, defaults)
        if isinstance(read, BadLine):
            bad.append(read)
            continue
        said = (normalised(read.query), read.chosen, read.chosen_text, read.rejected, read.rejected_text)
        if (before := seen.setdefault(said, row.line)) != row.line:
            bad.append(BadLine(row.line, "repeated", None, f"says the same as line {before}"))
        else:
            pairs.append(read)
    if not pairs and not bad:
        raise UsageError(f"{path} holds no pair", fix="name a file with a line for each pair")
    return pairs, bad


def send_pairs(settings: Settings, pairs: list[CuratedPair]) -> int:
    """Write pairs to `curated-pairs`, keyed by query, and return how many Kafka acknowledged: all.

    Raises:
        DependencyDown: Kafka does not acknowledge; sending all of them again does no harm.
    """
    topic, left = settings.topic(CURATED_PAIRS), iter(pairs)
    sent = 0
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        while batch := list(islice(left, BATCH)):
            records = [OutgoingRecord(topic, wire.encode(pair), key=pair.query.encode()) for pair in batch]
            sent += len(produce_all(producer, records))
    return sent


def pairs_import(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines, packed by gzip or not.")],
    columns: Annotated[str, typer.Option(help="Your names for ours: query=search,chosen=better.")] = "",
    author: Annotated[str, typer.Option(help="Who wrote the pairs that name nobody.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, and send nothing.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Send the other lines if some are bad.")] = False,
    json: Json = False,
) -> None:
    """Send pairs that people wrote: query, chosen, rejected, and if you like weight, author and note.

    `chosen_text` and `rejected_text` say a product in words instead of its id. Exit code 3 if a line is bad; then none
    is sent. Sending a pair again does not make it count more.

    Example: millrace pairs import pairs.csv --author "merchandising" --dry-run
    """
    settings = load_running_settings()
    with progress_bars() as tell:
        report = run_import(
            settings, file, column_names(columns), tell, author=author, dry_run=dry_run, skip_bad=skip_bad
        )
    bad = report["bad"]
    show_bad_lines([f"line {one['line']}: {one['message']} [{one['reason']}]" for one in bad])
    if json:
        print_json(report)
    else:
        told = "nothing was sent (dry run)" if dry_run else f"{report['sent']:,} sent"
        out().print(f"{report['lines']:,} lines: {report['used']:,} pairs, {len(bad):,} bad; {told}.", markup=False)
    if bad and not skip_bad:
        raise refused(len(bad), report["lines"])


def run_import(
    settings: Settings,
    file: Path,
    columns: Mapping[str, str],
    tell: Tell,
    *,
    author: str = "",
    dry_run: bool = False,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Check a file, send its pairs, and report; nothing is sent if a line is bad, unless those are skipped."""
    defaults = {"author": author} if author else {}
    pairs, bad = read_file(file, columns, defaults, lambda done, of: tell("checking", done, of))
    sent = 0
    if not dry_run and not (bad and not skip_bad):
        settings.require("kafka_bootstrap")
        sent = send_pairs(settings, pairs)
    return {
        "file": str(file),
        "lines": len(pairs) + len(bad),
        "used": len(pairs),
        "bad": [one._asdict() for one in bad],
        "dry_run": dry_run,
        "sent": sent,
    }
