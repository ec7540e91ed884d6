"""The arms agent's state in one partition of `joined-searches`, and the agent's spec: what became of each arm's lists.

Sums live in the progress, beside the position that they are of: a kill or a rebalance counts nothing twice. What a join
that was killed writes once more is told by its closing number. Counted are lists that a query ranked and that may be
learned from, whichever arm they are of, so that no arm is counted otherwise than another.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

from typing_extensions import override

from contracts.arms import (
    ANCHOR,
    INTERLEAVED,
    LIVE,
    OTHER,
    ArmCounts,
    ArmsProgress,
    Interleaving,
    PersonGroup,
    anonymous_session,
    counted_arm,
    hashed,
)
from contracts.base import is_visible
from contracts.comparison import GROUPS
from contracts.errors import ContractError
from contracts.joined import ClosedSearches, closed_watermark_of, closing_number_of
from contracts.outcomes import VALUE, Grade, filter_reason, grade, is_bounce
from contracts.structs import JOINED_SEARCH, JoinedSearch, JoinedSlot
from contracts.telemetry import FilterReason
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec, LogRecord, Plan, RecordRules
from streams.arms.reformulations import Asked, RecentSearches
from towers.text import normalised

MOST_SURFACES: Final = 8
"""Counted apart, those seen first; anyone may name a surface, and each is a series of metrics."""
OTHER_SURFACES: Final = "other"
UNNAMED: Final = "unnamed"


@dataclass(slots=True)
class ListOutcome:
    """What became of one list, in the terms of `ArmCounts`."""

    clicked: int = 0
    carted: int = 0
    purchased: int = 0
    abandoned: int = 0
    zero_results: int = 0
    no_good_match: int = 0
    cart_adds: int = 0
    value: float = 0.0
    reciprocal_rank: float = 0.0
    searches: int = 1


@dataclass(slots=True)
class GroupOutcome:
    """Sums of a group of persons, in the terms of `PersonGroup`."""

    searches: int = 0
    clicked: int = 0
    purchased: int = 0
    value: float = 0.0

    def add(self, outcome: ListOutcome) -> None:
        """Count one list more."""
        self.searches += 1
        self.clicked += outcome.clicked
        self.purchased += outcome.purchased
        self.value += outcome.value


@dataclass(slots=True)
class ArmSums:
    """Everything that is counted of an arm."""

    surfaces: dict[str, dict[str, float]] = field(default_factory=dict)
    groups: list[GroupOutcome] = field(default_factory=lambda: [GroupOutcome() for _ in range(GROUPS)])


def outcome_of(search: JoinedSearch) -> ListOutcome:
    """Return what became of a list; an advertisement in it says nothing of the ranking.

    >>> slots = [JoinedSlot(product_id="P-1", position=1), JoinedSlot(product_id="P-2", position=2, clicked=True)]
    >>> found = outcome_of(JoinedSearch(search_id="s", search_time=0, closed_at=1, query="q", slots=tuple(slots)))
    >>> found.clicked, found.abandoned, found.value, found.reciprocal_rank
    (1, 0, 1.0, 0.5)
    """
    has_organic, chosen = any(not slot.sponsored for slot in search.slots), _chosen(search)
    first = min((slot for slot, _ in chosen), key=_clicked_at, default=None)
    return ListOutcome(
        clicked=int(bool(chosen)),
        carted=int(any(slot.cart_quantity for slot, _ in chosen)),
        purchased=int(any(slot.purchase_quantity for slot, _ in chosen)),
        abandoned=int(has_organic and not chosen),
        zero_results=int(not has_organic),
        no_good_match=int(bool(search.ranking.no_good_match)),
        cart_adds=sum(bool(slot.cart_quantity) for slot, _ in chosen),
        value=sum(VALUE[one] for slot, one in chosen if not is_bounce(slot)),
        reciprocal_rank=0.0 if first is None else 1 / first.position,
    )


def _chosen(search: JoinedSearch) -> list[tuple[JoinedSlot, Grade]]:
    """What was chosen of a list, advertisements aside, and how."""
    graded = ((slot, grade(slot)) for slot in search.slots if not slot.sponsored)
    return [(slot, one) for slot, one in graded if one is not Grade.SKIP]


def _clicked_at(slot: JoinedSlot) -> tuple[float, int]:
    return float("inf") if slot.click_time is None else slot.click_time, slot.position


def _is_of_nobody(search: JoinedSearch) -> bool:
    return search.client_id is None and search.session_id == anonymous_session(search.search_id)


def _arm_of(search: JoinedSearch) -> str:
    return OTHER if _is_of_nobody(search) else counted_arm(search.ranking)


def winner(search: JoinedSearch) -> str | None:
    """Return the team of an interleaved list of which more was chosen; None if neither."""
    chosen = [slot.team for slot, _ in _chosen(search)]
    lead = chosen.count(LIVE) - chosen.count(ANCHOR)
    return None if not lead else LIVE if lead > 0 else ANCHOR


class PartitionArms(RecordRules):
    """Counting of one partition.

    Args:
        partition: of `joined-searches`.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, partition: int, past: ArmsProgress | None = None) -> None:
        super().__init__(partition, past)
        self.newest_closed_ms = -1
        self.arms: dict[str, ArmSums] = {}
        self.won = {LIVE: 0, ANCHOR: 0, None: 0}
        self._closed = ClosedSearches()
        self._recent = RecentSearches()
        self._read_again_from = self.next_offset if past is None else past.hold_offset
        if past is not None:
            self.newest_closed_ms, self._closed = past.newest_closed_ms, ClosedSearches(past.turns)
            for arm, surfaces in past.arms.items():
                sums = {surface: counts.model_dump() for surface, counts in surfaces.items()}
                groups = [GroupOutcome(**group.model_dump()) for group in past.groups[arm]]
                self.arms[arm] = ArmSums(sums, groups)
            self.won = {LIVE: past.interleaving.live, ANCHOR: past.interleaving.anchor, None: past.interleaving.tied}

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record; of one that was counted before, only remember the list."""
        if record.offset >= self.next_offset:
            super().take(record, plan)
        elif record.offset >= self._read_again_from:
            self._read_again_from = record.offset + 1
            self._know_again(record)

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Count a list, or say why it is none of an experiment's."""
        search = JOINED_SEARCH.decode(record.value)
        self.newest_closed_ms = max(self.newest_closed_ms, search.closed_at)
        is_repeat = self._closed.is_repeat(closing_number_of(record.headers))
        reason = FilterReason.DUPLICATE if is_repeat else filter_reason(search)
        if reason is None and is_visible(search.query):
            self._count(search)
        for one in self._remember(search, record.offset):
            counted = self._sums(one.arm).surfaces.setdefault(one.surface, {})
            counted["reformulated"] = counted.get("reformulated", 0) + 1
        if reason is not None:
            return f"filtered/{reason}"
        return "counted" if is_visible(search.query) else "browsed"

    def _count(self, search: JoinedSearch) -> None:
        arm, outcome = _arm_of(search), outcome_of(search)
        sums = self._sums(arm)
        counted = sums.surfaces.setdefault(self._surface(search.surface), {})
        for name, number in asdict(outcome).items():
            counted[name] = counted.get(name, 0) + number
        person = search.client_id or search.session_id or search.search_id
        sums.groups[hashed(person, b"group") % GROUPS].add(outcome)
        if arm == INTERLEAVED:
            self.won[winner(search)] += 1

    def _sums(self, arm: str) -> ArmSums:
        return self.arms.setdefault(arm, ArmSums())

    def _remember(self, search: JoinedSearch, offset: int) -> Iterable[Asked]:
        """Remember a list, a repeat too, which whoever reads the log again cannot tell; return what it reformulates."""
        if search.session_id is None or _is_of_nobody(search):
            return ()
        if filter_reason(search) or not is_visible(search.query):
            return ()
        asked = Asked(
            search.search_time,
            search.search_id,
            search.session_id,
            normalised(search.query),
            bool(_chosen(search)),
            _arm_of(search),
            self._surface(search.surface),
            offset,
        )
        return self._recent.add(asked)

    def _know_again(self, record: LogRecord) -> None:
        told = closed_watermark_of(record.headers)
        if told is None or told.idle is None:
            with suppress(ContractError):
                self._remember(JOINED_SEARCH.decode(record.value), record.offset)

    def _surface(self, name: str | None) -> str:
        known = {surface for sums in self.arms.values() for surface in sums.surfaces}
        surface = name or UNNAMED
        return surface if surface in known or len(known) < MOST_SURFACES else OTHER_SURFACES

    @override
    def progress(self) -> ArmsProgress:
        """Return how far the agent has come and what became of every list so far."""
        oldest = self._recent.oldest_offset
        return ArmsProgress(
            **{**super().progress().model_dump(), **({} if oldest is None else {"hold_offset": oldest})},
            turns=dict(self._closed.newest),
            newest_closed_ms=self.newest_closed_ms,
            arms={
                arm: {surface: ArmCounts.model_validate(counts) for surface, counts in sums.surfaces.items()}
                for arm, sums in self.arms.items()
            },
            groups={
                arm: tuple(PersonGroup(**asdict(group)) for group in sums.groups) for arm, sums in self.arms.items()
            },
            interleaving=Interleaving(live=self.won[LIVE], anchor=self.won[ANCHOR], tied=self.won[None]),
        )


def _new_state(partition: int, progress: ArmsProgress | None, _: Settings) -> PartitionArms:
    return PartitionArms(partition, progress)


ARMS_AGENT: Final = AgentSpec(
    name="arms",
    source=JOINED_SEARCHES,
    outputs=(DEAD_LETTERS,),
    progress=ArmsProgress,
    new_state=_new_state,
    outcomes={"counted": (), "filtered": FilterReason, "browsed": (), "dead_lettered": ()},
    ledger=("arms", "closed"),
    counter=metrics.ARM_OUTCOMES,
    event_time="newest_closed_ms",
)
