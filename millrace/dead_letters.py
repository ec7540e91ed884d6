"""`millrace dlq ls`, `show` and `replay`: what no stage could use, why, and the way back once the cause is mended."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from typing import Annotated, Any, Final, NamedTuple

import orjson
import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import UsageError
from contracts.topics import CATALOG, CURATED_PAIRS, DEAD_LETTERS, SEARCH_EVENTS, AsideHeader
from millrace.asking import an_id, ids, numbers, running_settings, texts
from millrace.curating import send
from millrace.output import Json, Tell, out, print_json, progress_bars, utc
from service.kafka import records_of
from service.settings import Settings

REPLAYED: Final = (SEARCH_EVENTS, CATALOG, CURATED_PAIRS)
"""Topics that anyone may write to, whose readers know a record that comes twice."""

dlq_app = typer.Typer(help="Dead letters: records that no stage could use.", no_args_is_help=True)

OfStage = Annotated[str, typer.Option("--stage", help="Only those that this stage set aside: join, indexer, ...")]
OfReason = Annotated[str, typer.Option("--reason", help="Only those set aside for this reason.")]
OfTopic = Annotated[str, typer.Option("--topic", help="Only those that stood on this topic.")]


class DeadLetter(NamedTuple):
    """A record that was set aside, as it came; nothing of a key or value that its topic does not take.

    Args:
        letter_id: made of its origin: one that was set aside twice, after a crash, has one id.
        stage: that could not use it.
        topic: where it stood, without the deployment's prefix.
        place: partition and offset there, as `0:17`.
        reason: a stable word.
        error: a sentence for people.
        written_at: when it was set aside, epoch milliseconds.
        key: as it came.
        value: likewise.
    """

    letter_id: str
    stage: str
    topic: str
    place: str
    reason: str
    error: str
    written_at: int
    key: bytes | None
    value: bytes

    def report(self) -> dict[str, Any]:
        """Put it into stable JSON; a value that is no JSON is told as text."""
        told = {**self._asdict(), "key": None if self.key is None else self.key.decode(errors="replace")}
        try:
            told["value"] = orjson.loads(self.value)
        except orjson.JSONDecodeError:
            told["value"] = self.value.decode(errors="backslashreplace")
        return told


class Wanted(NamedTuple):
    """Which dead letters are asked for; an empty part asks for all."""

    stage: str = ""
    reason: str = ""
    topic: str = ""

    def asks_for(self, letter: DeadLetter) -> bool:
        """Whether a letter is one of them."""
        return all(
            wanted in {"", has} for wanted, has in zip(self, (letter.stage, letter.reason, letter.topic), strict=True)
        )


def letter_of(record: Any) -> DeadLetter:
    """Read a record of `dead-letters`; headers that somebody else left out are empty."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers or ()}

    def said(header: AsideHeader) -> str:
        return headers.get(header.value, "")

    place = f"{said(AsideHeader.ORIGIN_PARTITION)}:{said(AsideHeader.ORIGIN_OFFSET)}"
    return DeadLetter(
        said(AsideHeader.ID) or f"{DEAD_LETTERS}:{record.partition}:{record.offset}", said(AsideHeader.STAGE),
        said(AsideHeader.ORIGIN_TOPIC), place, said(AsideHeader.REASON), said(AsideHeader.ERROR),
        record.timestamp, record.key, record.value or b"",
    )  # fmt: skip


def dead_letters(settings: Settings, tell: Tell) -> Iterator[DeadLetter]:
    """Give the dead letters on Kafka, each once."""
    seen: set[str] = set()
    for record in records_of(settings, DEAD_LETTERS, tell=lambda done, of: tell("reading dead letters", done, of)):
        letter = letter_of(record)
        if letter.letter_id not in seen:
            seen.add(letter.letter_id)
            yield letter


@dlq_app.command("ls")
def dlq_ls(
    stage: OfStage = "",
    reason: OfReason = "",
    topic: OfTopic = "",
    last: Annotated[int, typer.Option("-n", "--last", min=1, max=10_000, help="Show so many.")] = 20,
    json: Json = False,
) -> None:
    """Count the dead letters by stage and reason, and list the newest.

    Example: millrace dlq ls --stage indexer
    """
    with progress_bars() as tell:
        report = listed(dead_letters(running_settings(), tell), Wanted(stage, reason, topic), last)
    if json:
        print_json({**report, "newest": [letter.report() for letter in report["newest"]]})
        return
    if not report["records"]:
        out().print("there are no such dead letters" if any((stage, reason, topic)) else "there are no dead letters")
        return
    out().print(counts_table(report["by_reason"]))
    out().print(letters_table(report["newest"]))


def listed(letters: Iterable[DeadLetter], wanted: Wanted, last: int) -> dict[str, Any]:
    """Count the letters that are asked for, and find the newest of them."""
    counts: Counter[tuple[str, str, str]] = Counter()

    def found() -> Iterator[DeadLetter]:
        for letter in letters:
            if wanted.asks_for(letter):
                counts[letter.stage, letter.topic, letter.reason] += 1
                yield letter

    newest = nlargest(last, found(), key=lambda letter: letter.written_at)
    ordered = sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))
    by_reason = [
        {"stage": stage, "topic": topic, "reason": reason, "records": count}
        for (stage, topic, reason), count in ordered
    ]
    return {"records": counts.total(), "by_reason": by_reason, "newest": newest}


def counts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How many there are of each kind."""
    table = Table(*texts("stage", "topic", "reason"), *numbers("records"))
    for row in rows:
        table.add_row(*(Text(row[name]) for name in ("stage", "topic", "reason")), f"{row['records']:,}")
    return table


def letters_table(letters: Sequence[DeadLetter]) -> Table:
    """The newest; what a sender wrote is shown as it is, never as markup."""
    id_column = ids("id", (letter.letter_id for letter in letters))
    table = Table(*texts("set aside (UTC)"), id_column, *texts("reason", "what is wrong"))
    for letter in letters:
        table.add_row(utc(letter.written_at), an_id(letter.letter_id), Text(letter.reason), Text(letter.error))
    return table


@dlq_app.command("show")
def dlq_show(
    letter_id: Annotated[str, typer.Argument(help="As `millrace dlq ls` shows it.")], json: Json = False
) -> None:
    """Show a dead letter whole: where it stood, why it was set aside, and its bytes, as far as they were kept.

    Example: millrace dlq show join:search-events:2:1706
    """
    with progress_bars() as tell:
        letter = next((one for one in dead_letters(running_settings(), tell) if one.letter_id == letter_id), None)
    if letter is None:
        raise UsageError(f"there is no dead letter {letter_id}", fix="`millrace dlq ls` lists them")
    print_json(letter.report()) if json else out().print(letter_table(letter))


def letter_table(letter: DeadLetter) -> Table:
    """One letter whole."""
    report = letter.report()
    table = Table("field", *texts("value"), title=Text(letter.letter_id))
    for name in ("stage", "topic", "place", "reason", "error", "key"):
        table.add_row(name, Text(str(report[name])))
    table.add_row("set aside (UTC)", utc(letter.written_at))
    table.add_row("value", Text(letter.value.decode(errors="backslashreplace")))
    return table


@dlq_app.command("replay")
def dlq_replay(
    letter_id: Annotated[str, typer.Argument(help="One dead letter; else all that are asked for.")] = "",
    stage: OfStage = "",
    reason: OfReason = "",
    topic: OfTopic = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and send nothing.")] = False,
    json: Json = False,
) -> None:
    """Send dead letters once more to the topic that they stood on, unchanged, when what was in their way is mended.

    Only to `search-events`, `catalog` and `curated-pairs`, whose readers know a record that comes twice. Events whose
    window is over are late then, and told so; a record that still cannot be used becomes a dead letter once more.

    Example: millrace dlq replay --stage indexer --reason unsupported_schema
    """
    wanted, settings = Wanted(stage, reason, topic), running_settings()
    if not letter_id and not any(wanted):
        raise UsageError("nothing says which dead letters", fix="name one, or give --stage, --reason or --topic")
    with progress_bars() as tell:
        report = replay(settings, dead_letters(settings, tell), wanted, letter_id=letter_id, dry_run=dry_run)
    if json:
        print_json(report)
        return
    told = "would be sent" if dry_run else "sent again"
    why = "they stood on topics that are not replayed, or their bytes were not kept"
    left = f"; {report['left']:,} left: {why}" if report["left"] else ""
    out().print(f"{report['records']:,} {told}{left}")


def replay(
    settings: Settings, letters: Iterable[DeadLetter], wanted: Wanted, *, letter_id: str = "", dry_run: bool = False
) -> dict[str, Any]:
    """Send the letters that are asked for to where they stood; report how many, and how many are left.

    What was sent again before, and set aside once more, is sent once. Of an event that was no JSON object nothing was
    kept, because nobody knows whom it names.

    Raises:
        UsageError: none is asked for.
        DependencyDown: Kafka does not acknowledge; sending all of them again does no harm.
    """
    asked = [one for one in letters if wanted.asks_for(one) and letter_id in {"", one.letter_id}]
    if not asked:
        raise UsageError("there is no such dead letter", fix="`millrace dlq ls` lists them")
    distinct = {(one.topic, one.key, one.value): one for one in asked if one.topic in REPLAYED and one.value}
    for topic in () if dry_run else dict.fromkeys(one.topic for one in distinct.values()):
        send(settings, topic, ((one.key, one.value) for one in distinct.values() if one.topic == topic))
    left = sum(one.topic not in REPLAYED or not one.value for one in asked)
    return {"records": len(distinct), "left": left, "dry_run": dry_run}
