"""What attribution keeps of pairs and clicks, so that a later cart or purchase finds what it belongs to.

Of each product that was chosen in a list, one pair is kept: the first that comes, which is the one with the least id,
and so one of them by chance. Of each session the newest clicks are kept. Both are read from Kafka and kept in Redis
for about a day (`memory.py` says under which names); what Redis loses costs value pairs alone.
"""

from typing import Any, Final, NamedTuple

import msgspec
from typing_extensions import override

from contracts.outcomes import filter_reason, grade
from contracts.progress import AgentProgress
from contracts.structs import JOINED_SEARCH, PREFERENCE_PAIR, PreferencePair
from contracts.telemetry import FilterReason, LeftReason
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES, PREFERENCE_PAIRS, SEARCH_EVENTS
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec, LogRecord, Plan, RecordRules
from towers.text import normalised, text_hash

HORIZON_MS: Final = 86_400_000
"""How long after the click a cart or purchase still belongs to it."""
KEPT_ORIGINS: Final = 16
"""Records that a kept pair names as its origins; most pairs have fewer."""
QUERY_HASH_CHARS: Final = 12
"""Enough to tell apart what one session typed."""


class KeptPair(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a value pair needs of the pair whose value it raises: about 150 bytes and the query."""

    query: str
    chosen_position: int | None
    rejected: str
    rejected_position: int | None
    rejected_grade: int
    ratio: float
    similarity: float
    sampling: float
    cap: float
    confidence: float
    propensity_version: int
    filters: tuple[str, ...]
    query_release: int | None
    product_release: int | None
    arm: str
    closed_at: int
    rule_version: int
    origins: tuple[tuple[int, int], ...]
    """Partition and offset of records of `search-events`."""


class ChosenProduct(NamedTuple):
    """A product that was chosen in a list, with the pair that stands for it."""

    search_id: str
    product_id: str
    grade: int
    until_ms: int
    """Event time up to which a cart or purchase belongs to it."""
    pair: KeptPair


class SessionClick(NamedTuple):
    """A click of a session."""

    click_time: int
    product_id: str
    search_id: str
    query: str = ""
    """`query_hash` of what was typed; empty if nothing was, or the click was kept before queries were."""


class SessionClicks(NamedTuple):
    """The clicks of one list."""

    session_id: str
    clicks: tuple[SessionClick, ...]


def query_hash(query: str) -> str:
    """Return what tells apart queries of a session, however each is spelled; empty if nothing was typed."""
    name = normalised(query)
    return name and text_hash(name)[:QUERY_HASH_CHARS]


def kept_pair(pair: PreferencePair) -> KeptPair:
    """Return what is kept of a pair."""
    factors = pair.factors
    return KeptPair(
        query=pair.query,
        chosen_position=pair.chosen.position,
        rejected=pair.rejected.product_id,
        rejected_position=pair.rejected.position,
        rejected_grade=pair.rejected.grade,
        ratio=factors.ratio,
        similarity=factors.similarity,
        sampling=factors.sampling,
        cap=factors.cap,
        confidence=pair.confidence,
        propensity_version=pair.propensity_version,
        filters=tuple(pair.filters),
        query_release=pair.query_release,
        product_release=pair.product_release,
        arm=pair.arm,
        closed_at=pair.closed_at,
        rule_version=pair.rule_version,
        origins=tuple((o.partition, o.offset) for o in pair.origins[:KEPT_ORIGINS] if o.topic == SEARCH_EVENTS),
    )


Content = ChosenProduct | SessionClicks


class Remembering(RecordRules):
    """Rules that keep something of each record, and know how far the log has come.

    Args:
        partition: of the source.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, partition: int, past: AgentProgress | None = None) -> None:
        super().__init__(partition, past)
        self.newest_append_ms = -1
        """When Kafka got the newest record taken; -1 before the first."""
        self.to_keep: list[Content] = []
        """What follows from the records taken and is not in Redis yet."""

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one taken before adds nothing."""
        super().take(record, plan)
        self.newest_append_ms = max(self.newest_append_ms, record.timestamp)


class ChosenProducts(Remembering):
    """Keeps of each pair that a click made what a value pair would need."""

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Keep one pair."""
        pair = PREFERENCE_PAIR.decode(record.value)
        if pair.source != "click":
            return f"left/{LeftReason.OTHER_SOURCE}"
        until_ms = pair.event_time + HORIZON_MS
        chosen = pair.chosen
        self.to_keep.append(ChosenProduct(pair.search_id, chosen.product_id, chosen.grade, until_ms, kept_pair(pair)))
        return "kept"


class ClicksOfSessions(Remembering):
    """Keeps which products the shoppers of a session went on with, and from which list."""

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Keep the clicks of one list."""
        search = JOINED_SEARCH.decode(record.value)
        reason = filter_reason(search)
        if reason is FilterReason.SYNTHETIC or reason is FilterReason.CONSENT:
            return f"left/{LeftReason(reason.value)}"
        if search.session_id is None:
            return f"left/{LeftReason.NO_SESSION}"
        query = query_hash(search.query)
        clicks = tuple(
            SessionClick(
                search.search_time if slot.click_time is None else slot.click_time,
                slot.product_id,
                search.search_id,
                query,
            )
            for slot in search.slots
            if grade(slot)
        )
        if not clicks:
            return f"left/{LeftReason.NO_CLICK}"
        self.to_keep.append(SessionClicks(search.session_id, clicks))
        return "kept"


def _spec(name: str, source: str, rules: type[Remembering], ledger: str, reasons: tuple[LeftReason, ...]) -> Any:
    def new_state(partition: int, progress: AgentProgress | None, _: Settings) -> Remembering:
        return rules(partition, progress)

    return AgentSpec(
        name=name,
        source=source,
        outputs=(DEAD_LETTERS,),
        progress=AgentProgress,
        new_state=new_state,
        outcomes={"kept": (), "left": reasons, "dead_lettered": ()},
        ledger=(ledger, "read"),
        counter=metrics.ATTRIBUTION_MEMORY,
        needs=("redis_url",),
        agent="streams.attribution.agent:MemoryAgent",
    )


CHOSEN: Final[AgentSpec[AgentProgress]] = _spec(
    "attribution-pairs", PREFERENCE_PAIRS, ChosenProducts, "attribution_pairs", (LeftReason.OTHER_SOURCE,)
)
CLICKS: Final[AgentSpec[AgentProgress]] = _spec(
    "attribution-clicks",
    JOINED_SEARCHES,
    ClicksOfSessions,
    "attribution_clicks",
    (LeftReason.SYNTHETIC, LeftReason.CONSENT, LeftReason.NO_SESSION, LeftReason.NO_CLICK),
)
