"""`millrace pairs import`: a file of curated pairs onto `curated-pairs`, checked whole before anything is sent."""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

import typer
from kafka import KafkaProducer
from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import ContractError, UsageError
from contracts.pairs import CURATED_PAIR, CuratedPair
from contracts.topics import CURATED_PAIRS
from deploy.local.state import load_running_settings
from millrace.importing import refused, show_bad_lines
from millrace.output import Json, Tell, counted, out, print_json, progress_bars
from millrace.tables import Row, column_names, read_rows, time_of
from service.kafka import OutgoingRecord, produce_all, producer_config, translate_kafka_errors
from service.settings import Settings
from towers.text import normalised

BATCH: Final = 500
M = TypeVar("M")


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


class LineForm(NamedTuple, Generic[M]):
    """What a line of a file says.

    Args:
        contract: what it must be.
        names: of its fields; columns of other names are left out.
        numbers: the field that is a number -> what a text says in numbers, or the text, which the contract refuses.
    """

    contract: TypeAdapter[M]
    names: Collection[str]
    numbers: Mapping[str, Callable[[str], object]]

    def refuse_unknown(self, columns: Iterable[str]) -> None:
        """Refuse names for columns that are none of a line's, and so would be left out.

        Raises:
            UsageError: one is not.
        """
        if unknown := [name for name in columns if name not in self.names]:
            raise UsageError(f"--columns: there is no {', '.join(unknown)}", fix=f"one of: {', '.join(self.names)}")

    def read(self, row: Row, defaults: Mapping[str, str]) -> M | BadLine:
        """Read a line. Null is absent, and in a table empty fields are.

        Args:
            row: of the file.
            defaults: fields of every line that does not have its own.
        """
        if row.error is not None:
            return BadLine(row.line, row.error.reason, row.error.field, str(row.error))
        fields = {name: value for name, value in row.fields.items() if value is not None}
        if all(isinstance(value, str) for value in fields.values()):
            given = {name: value.strip() for name, value in fields.items() if name in self.names and value.strip()}
            fields = given | {name: number(given[name]) for name, number in self.numbers.items() if name in given}
        try:
            return wire.validate({**defaults, **fields}, self.contract)
        except ContractError as error:
            return BadLine(row.line, error.reason, error.field, str(error))


def number_of(text: str) -> float | str:
    """What a text says in numbers, or the text.

    >>> number_of("0.5"), number_of("much")
    (0.5, 'much')
    """
    try:
        return float(text)
    except ValueError:
        return text


def time_or_text(text: str) -> int | str:
    """The time that a text says, in epoch milliseconds, or the text.

    >>> time_or_text("2026-12-24"), time_or_text("soon")
    (1798070400000, 'soon')
    """
    time_ms, _ = time_of(text)
    return text if time_ms is None else round(time_ms)


PAIR_LINE: Final = LineForm(
    CURATED_PAIR,
    [name for name in CuratedPair.model_fields if name != "schema_version"],
    {"weight": number_of, "margin": number_of, "expires_at": time_or_text},
)


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
    PAIR_LINE.refuse_unknown(columns)
    for row in read_rows(path, columns, needed=["query"], alone=True, tell=tell):
        read = PAIR_LINE.read(row, defaults)
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


def send(settings: Settings, topic: str, values: Iterable[tuple[bytes | None, bytes | None]]) -> int:
    """Write values to a topic, each under its key, and return how many Kafka acknowledged: all.

    Raises:
        DependencyDown: Kafka does not acknowledge; sending all of them again does no harm.
    """
    name, left = settings.topic(topic), iter(values)
    sent = 0
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        while batch := list(islice(left, BATCH)):
            sent += len(produce_all(producer, [OutgoingRecord(name, value, key=key) for key, value in batch]))
    return sent


def show_import(report: Mapping[str, Any], words: str, *, json: bool, skip_bad: bool) -> None:
    """Print what became of a file, its bad lines first.

    Raises:
        CheckFailed: a line is bad, and so nothing was sent.
    """
    bad = report["bad"]
    show_bad_lines([f"line {one['line']}: {one['message']} [{one['reason']}]" for one in bad])
    print_json(report) if json else out().print(words)
    if bad and not skip_bad:
        raise refused(len(bad), report["lines"])


def pairs_import(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines, packed by gzip or not.")],
    columns: Annotated[str, typer.Option(help="Your names for ours: query=search,chosen=better.")] = "",
    author: Annotated[str, typer.Option(help="Who wrote the pairs that name nobody.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, and send nothing.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Send the other lines if some are bad.")] = False,
    json: Json = False,
) -> None:
    """Send pairs that people wrote: query, chosen, rejected, and if you like weight, author and note.

    `chosen_text` and `rejected_text` say a product in words instead of its id. `source` is `rule` for pairs of your
    launches and priorities; all of these weigh a twentieth of the clicks at most, each until its `expires_at`
    (2026-12-31, or epoch milliseconds; one that has passed ends a rule). Exit code 3 if a line is bad; then none is
    sent, unless you skip them. Sending a pair again does not make it count more.

    Example: millrace pairs import pairs.csv --author "merchandising" --dry-run
    """
    settings = load_running_settings()
    with progress_bars() as tell:
        report = run_import(
            settings, file, column_names(columns), tell, author=author, dry_run=dry_run, skip_bad=skip_bad
        )
    told = "nothing was sent (dry run)" if dry_run else f"{report['sent']:,} sent"
    used = f"{counted(report['lines'], 'line')}: {counted(report['used'], 'pair')}, {len(report['bad']):,} bad"
    show_import(report, f"{used}; {told}.", json=json, skip_bad=skip_bad)


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
        sent = send(settings, CURATED_PAIRS, ((pair.query.encode(), wire.encode(pair)) for pair in pairs))
    return {
        "file": str(file),
        "lines": len(pairs) + len(bad),
        "used": len(pairs),
        "bad": [one._asdict() for one in bad],
        "dry_run": dry_run,
        "sent": sent,
    }
