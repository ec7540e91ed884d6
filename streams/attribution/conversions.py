"""Late and orphan carts and purchases: which earlier pair each one belongs to, and by how much it raises its value.

The join sets aside what comes after a list was closed. Of that, what tells a value is held back until every list that
could have led to it is closed and remembered; then it is looked up in Redis, in the log's order. One pair stands for a
product that was chosen in a list: the trainer adds a value to the product, so a second one would count it twice.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from contracts.base import Count
from contracts.errors import ContractError, MalformedMessage
from contracts.joined import ClosedSearches, Origin, closing_number_of
from contracts.outcomes import VALUE, Grade
from contracts.pairs import Factors, PairSide, PreferencePair, pair_id
from contracts.progress import AgentProgress
from contracts.structs import SEARCH_RECORD
from contracts.telemetry import AsideReason, EventOutcome, LeftReason, UnmatchedReason
from contracts.topics import (
    DEAD_LETTERS,
    LATE_EVENTS,
    ORPHAN_EVENTS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
    AsideHeader,
)
from contracts.wire import encode
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec, Emit, LogRecord, Plan, RecordRules
from streams.attribution.remembered import HORIZON_MS, ChosenProduct, SessionClick

SLACK_MS: Final = 5_000
"""For a search to close once its event time has come, and for its pairs to be made and kept."""
MOST_WAITING: Final = 20_000
"""Records of a partition that are held back, about 20 MB; beyond that the oldest are decided before their time."""
MOST_WAITING_BYTES: Final = 64 * 2**20
"""Likewise: a record may be as large as its topic allows."""
BATCH: Final = 500
MAX_OFFSET_DIGITS: Final = 16


class Conversion(NamedTuple):
    """A product put into the cart, or a line of an order."""

    origin: Origin
    """Where the event stands."""
    identity: tuple[str, ...]
    """What makes it unique: an order counts each of its products once, a cart event counts once."""
    grade: Grade
    product_id: str
    event_time: int
    session_id: str | None
    search_id: str | None


class Found(NamedTuple):
    """What Redis knows of a conversion; asked again, it says the same.

    `chosen.grade` is how far the shopper had gone with the product before.
    """

    state: Literal["found", "duplicate", "expired", "nothing"]
    chosen: ChosenProduct | None = None
    inferred: bool = False


class AttributionProgress(AgentProgress):
    """State of attribution in one partition of what the join set aside."""

    pairs: Count = 0
    """Value pairs made."""
    turns: dict[str, Count] = Field(default_factory=dict)
    """Join -> how much of what it set aside was seen; a record with the same number or a smaller one is a repeat."""


def conversion_of(record: LogRecord, source: str, partition: int) -> Conversion | LeftReason:
    """Return the conversion that a set-aside record tells of, or why it tells of none.

    Args:
        record: as the join set it aside.
        source: the topic that it was read from.
        partition: of that topic.

    Raises:
        ContractError: it is no shop event, or an order of several lines, which the join sets aside elsewhere.
    """
    event = SEARCH_RECORD.decode(record.value)
    if event.type != "cart" and event.type != "purchase":  # noqa: PLR1714 - a set would not narrow the type
        return LeftReason.OTHER_TYPE
    if event.synthetic:
        return LeftReason.SYNTHETIC
    if event.consent == "denied":
        return LeftReason.CONSENT
    origin = origin_of(record) or Origin(topic=source, partition=partition, offset=record.offset)
    if event.type == "cart":
        about = (event.product_id, event.event_time, event.session_id, event.search_id)
        return Conversion(origin, ("cart", event.event_id), Grade.CART, *about)
    if len(event.items) > 1:
        raise MalformedMessage(AsideReason.UNSPLIT_PURCHASE, "items: one record per line, please", field="items")
    line = event.items[0]
    about = (line.product_id, event.event_time, event.session_id, line.search_id)
    return Conversion(origin, ("purchase", event.order_id, line.product_id), Grade.PURCHASE, *about)


def origin_of(record: LogRecord) -> Origin | None:
    """Return where a record that was set aside had stood; None if its headers, which anyone may write, do not say."""
    headers = dict(record.headers)
    places = [headers.get(name) or b"" for name in (AsideHeader.ORIGIN_PARTITION, AsideHeader.ORIGIN_OFFSET)]
    if headers.get(AsideHeader.ORIGIN_TOPIC) != SEARCH_EVENTS.encode():
        return None
    if not all(place.isdigit() and len(place) < MAX_OFFSET_DIGITS for place in places):
        return None
    return Origin(topic=SEARCH_EVENTS, partition=int(places[0]), offset=int(places[1]))


def candidates(conversion: Conversion, clicks: Sequence[SessionClick]) -> list[tuple[str, bool]]:
    """Return the searches that a conversion may belong to, the likeliest first, each with whether it is inferred.

    The search that it names comes first; then those in which its session clicked the product before, within a day, the
    last one first: of a click that said nothing new no pair is known, and the one before it stands for both. Past the
    first of these searches that is known only those of its query are: its list may have given no pair on purpose.

    Args:
        conversion: the event.
        clicks: of its session.
    """
    earliest_ms = conversion.event_time - HORIZON_MS
    before = sorted(
        (
            click
            for click in clicks
            if click.product_id == conversion.product_id and earliest_ms <= click.click_time <= conversion.event_time
        ),
        reverse=True,
    )
    found = {} if conversion.search_id is None else {conversion.search_id: False}
    query = next((click.query for click in clicks if click.search_id == conversion.search_id), None)
    for click in before:
        if query is None or (query and click.query == query):
            found.setdefault(click.search_id, True)
            query = click.query
    return list(found.items())


def value_pair(conversion: Conversion, chosen: ChosenProduct, *, inferred: bool) -> PreferencePair | None:
    """Return the pair that says how much more a product is worth than was known; None if it is worth no more.

    Its value is the difference of the two grades' values, so that all pairs of a list together say what it is worth.

    Args:
        conversion: how far the shopper has gone with the product now.
        chosen: how far before, and the pair that stands for it.
        inferred: whether the event named no search that gave a pair.
    """
    if conversion.grade <= chosen.grade:
        return None
    kept = chosen.pair
    factors = Factors(
        value=VALUE[conversion.grade] - VALUE.get(Grade(chosen.grade), 0.0),
        ratio=kept.ratio,
        similarity=kept.similarity,
        sampling=kept.sampling,
        cap=kept.cap,
    )
    origins = [Origin(topic=SEARCH_EVENTS, partition=number, offset=offset) for number, offset in kept.origins]
    grade = int(conversion.grade)
    return PreferencePair(
        pair_id=pair_id(
            chosen.search_id,
            chosen.product_id,
            kept.rejected,
            source="value",
            rule_version=kept.rule_version,
            grade=grade,
        ),
        search_id=chosen.search_id,
        query=kept.query,
        source="value",
        chosen=PairSide(product_id=chosen.product_id, position=kept.chosen_position, grade=grade),
        rejected=PairSide(product_id=kept.rejected, position=kept.rejected_position, grade=kept.rejected_grade),
        weight=factors.weight(),
        factors=factors,
        confidence=kept.confidence,
        propensity_version=kept.propensity_version,
        filters=kept.filters,
        query_release=kept.query_release,
        product_release=kept.product_release,
        arm=kept.arm,
        event_time=conversion.event_time,
        closed_at=kept.closed_at,
        origins=(*origins, conversion.origin),
        rule_version=kept.rule_version,
        inferred=inferred or None,
    )


class PartitionConversions(RecordRules):
    """Attribution of one partition of late or orphan events.

    Args:
        source: the topic.
        partition: of it.
        delay_ms: how long after it was set aside an event is looked up: until its lists are closed and remembered.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, source: str, partition: int, *, delay_ms: int, past: AttributionProgress | None = None) -> None:
        super().__init__(partition, past)
        self.source = source
        self.delay_ms = delay_ms
        self.pairs = 0 if past is None else past.pairs
        self._written = ClosedSearches(None if past is None else past.turns)
        self._waiting: deque[tuple[LogRecord, Conversion | None]] = deque()
        self._waiting_bytes = 0
        self._read_to = self.next_offset
        self._found: Mapping[int, Found] | None = None

    @property
    def waits(self) -> bool:
        """Whether anything was read that is not decided."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether more waits than there is room for."""
        return _is_too_much(len(self._waiting), self._waiting_bytes)

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Let the partition's next record wait; nothing is planned before it is decided."""
        if record.offset < self._read_to:
            return
        self._read_to = record.offset + 1
        conversion = None
        with suppress(ContractError):
            read = conversion_of(record, self.source, self.partition)
            conversion = read if isinstance(read, Conversion) else None
        self._waiting.append((record, conversion))
        self._waiting_bytes += _size(record)

    def due(self, clock_ms: int | None) -> list[tuple[LogRecord, Conversion | None]]:
        """Return the oldest records that can be decided, in order, with the conversions to look up.

        Args:
            clock_ms: up to when all that was written to the log is remembered; None if that is not known.
        """
        left, left_bytes = len(self._waiting), self._waiting_bytes
        found: list[tuple[LogRecord, Conversion | None]] = []
        for record, conversion in islice(self._waiting, BATCH):
            is_due = clock_ms is not None and record.timestamp + self.delay_ms <= clock_ms
            if conversion is not None and not is_due and not _is_too_much(left, left_bytes):
                break
            found.append((record, conversion))
            left, left_bytes = left - 1, left_bytes - _size(record)
        return found

    def settle(self, count: int, found: Mapping[int, Found] | None, plan: Plan) -> None:
        """Decide the oldest records and add what follows from them to the plan.

        Args:
            count: how many.
            found: offset -> what Redis knows of the conversion there; None if it could not be asked.
            plan: of what is written.
        """
        self._found = found
        for _ in range(count):
            record, _ = self._waiting.popleft()
            self._waiting_bytes -= _size(record)
            super().take(record, plan)

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Make the value pair of a conversion that raises one."""
        if self._written.is_repeat(closing_number_of(record.headers)):
            return f"left/{LeftReason.REPEATED}"
        conversion = conversion_of(record, self.source, self.partition)
        if not isinstance(conversion, Conversion):
            return f"left/{conversion}"
        if self._found is None:
            return f"unmatched/{UnmatchedReason.NO_MEMORY}"
        found = self._found[record.offset]
        if found.state == "duplicate":
            return f"left/{LeftReason.DUPLICATE}"
        if found.chosen is None:
            return f"unmatched/{UnmatchedReason.EXPIRED if found.state == 'expired' else UnmatchedReason.NO_PAIR}"
        pair = value_pair(conversion, found.chosen, inferred=found.inferred)
        if pair is None:
            return f"{EventOutcome.ATTRIBUTED}/unchanged"
        self.pairs += 1
        plan.append(Emit(PREFERENCE_PAIRS, pair.search_id.encode(), encode(pair)))
        return f"{EventOutcome.ATTRIBUTED}/raised"

    @override
    def progress(self) -> AttributionProgress:
        """Return how far it has come; what waits is read again."""
        return AttributionProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            hold_offset=self.next_offset,
            counts=dict(self.counts),
            pairs=self.pairs,
            turns=dict(self._written.newest),
        )


def _size(record: LogRecord) -> int:
    return len(record.value or b"")


def _is_too_much(records: int, records_bytes: int) -> bool:
    return records > MOST_WAITING or records_bytes > MOST_WAITING_BYTES


def delay_ms(settings: Settings) -> int:
    """How long after it was set aside an event is looked up.

    A purchase without a search may follow a click of the same minute, whose list is open for a window; then the pairs
    stage holds it, for a join that is silent and for what it looks ahead.
    """
    held_ms = round(1000 * (settings.join_silence_s + settings.look_ahead_s))
    return settings.join_window_ms + settings.lateness_ms + held_ms + SLACK_MS


def _spec(name: str, source: str) -> AgentSpec[AttributionProgress]:
    def new_state(partition: int, progress: AttributionProgress | None, settings: Settings) -> PartitionConversions:
        return PartitionConversions(source, partition, delay_ms=delay_ms(settings), past=progress)

    return AgentSpec(
        name=name,
        source=source,
        outputs=(PREFERENCE_PAIRS, DEAD_LETTERS),
        progress=AttributionProgress,
        new_state=new_state,
        outcomes={
            EventOutcome.ATTRIBUTED.value: ("raised", "unchanged"),
            "unmatched": UnmatchedReason,
            "left": (
                LeftReason.OTHER_TYPE,
                LeftReason.REPEATED,
                LeftReason.DUPLICATE,
                LeftReason.SYNTHETIC,
                LeftReason.CONSENT,
            ),
            "dead_lettered": (),
        },
        ledger=(source.replace("-", "_"), "read"),
        counter=metrics.ATTRIBUTIONS,
        totals={"pairs": (metrics.PAIRS_BUILT, ("value",))},
        needs=("redis_url",),
        agent="streams.attribution.agent:ConversionAgent",
    )


LATE: Final = _spec("attribution", LATE_EVENTS)
ORPHANS: Final = _spec("attribution-orphans", ORPHAN_EVENTS)
