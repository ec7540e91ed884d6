"""Decisions on releases: whether what is learned proved better than the anchor, and what was done about it."""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from contracts.arms import PersonGroup
from contracts.base import Count, Finite, Label, Message, Part, Release, Text, Time

DECISIONS_KEY: Final = b"decisions"
PROMOTION_KEY: Final = b"promotion"
KEPT_DECISIONS: Final = 50

Verdict = Literal["promoted", "stepped_back", "undecided", "too_little"]


class Comparison(Part):
    """Two sides by one metric, per search, with an interval that holds whenever it was looked."""

    metric: Label
    live: Finite
    """Of the live arm; of held-out lists, what is expected of them in the order of the release that is judged."""
    anchor: Finite
    """Of the anchor; of held-out lists, what is expected in the order of the release that it is compared with."""
    value: Finite
    """Live less anchor."""
    low: Finite
    high: Finite
    more_lists: Count | None = None
    """Of both arms, or of held-out lists, until a difference of this size is sure; None if it is, or if nobody can
    tell."""


class HeldOutLook(Part):
    """What held-out lists said of a release beside the one that live would step back to, at one look."""

    query_release: Release
    """That was judged: in force when it was looked."""
    against: Release
    """That it was compared with on the same lists; 0 is untrained."""
    began_at: Time
    """Lists shown from then on count; the looks at them spend one error together."""
    looked_at: Time
    looks: Annotated[Count, Field(ge=1)]
    """How often these lists were looked at, this look included."""
    lists: Count
    """That were looked at."""
    better_by: Annotated[tuple[Comparison, ...], Field(strict=False, max_length=16)] = ()
    """By which the release may prove better, one for each metric of which there is enough: on lists that learned
    releases chose, by whose choice it gains nothing; against a learned one, on those of the untrained release."""
    worse_by: Annotated[tuple[Comparison, ...], Field(strict=False, max_length=16)] = ()
    """By which it may prove worse: on lists of which those of learned releases weigh as much as those of the untrained
    one, so that neither gains by the choice; against a learned one, on those of the untrained release."""


class Decision(Part):
    """What was decided at one moment, on which numbers, and why."""

    verdict: Verdict
    decided_at: Time
    query_release: Release
    """In force at that moment."""
    subject: Release
    """What a promotion promoted, or what a step back went back to; else the release in force."""
    by: Literal["comparison", "person"] = "comparison"
    basis: Literal["arms", "held_out_lists"] | None = None
    """Which comparison decided; None where a person did, where a refused step back went on, and in older records."""
    reason: Annotated[Text, Field(max_length=1000)]
    """In a sentence."""
    began_at: Time
    """When the lists that it rests on began to be counted."""
    live_searches: Count = 0
    anchor_searches: Count = 0
    comparisons: Annotated[tuple[Comparison, ...], Field(strict=False, max_length=16)] = ()
    """Of the arms, one for each metric of which there is enough."""
    held_out: HeldOutLook | None = None
    """The last look at held-out lists by then, if there was one in their fortnight."""
    untested: Annotated[tuple[Annotated[Text, Field(max_length=300)], ...], Field(strict=False, max_length=16)] = ()
    """What could not be tested by then, and what each test takes."""


class Candidate(Part):
    """A release that was in force when so many searches of both arms had been compared."""

    searches: Count
    query_release: Release


class Decisions(Message):
    """Everything that the next decision depends on besides what was counted, and the last ones."""

    number: Count = 0
    """Grows with each record: an older one that is read later is left out."""
    promoted: Release = 0
    """The query release that a step back goes to: it proved better than the anchor, or a person vouches for it."""
    began_at: Time
    """When the present comparison began; before it comes, nothing is compared."""
    since: dict[Label, Annotated[tuple[PersonGroup, ...], Field(strict=False)]] | None = None
    """Arm -> what had been counted by then, which the comparison leaves out; None until it begins."""
    withdrawn: Count = 0
    """`withdrawn` of `serving` at that moment: a rollback by anyone ends a comparison."""
    collection: Label = ""
    """Likewise its collection: another base model ends it, too."""
    candidates: Annotated[tuple[Candidate, ...], Field(strict=False, max_length=2)] = ()
    """The release in force when the searches compared last doubled, and the one before: the older is promoted."""
    held_out: HeldOutLook | None = None
    """The last look at held-out lists of the present comparison: whoever takes over does not look at them again."""
    held_out_began_at: Time | None = None
    """When the looks at them began, if before the present comparison: without an anchor that begins anew every hour."""
    promotion_answered: Count = 0
    """`requested_at` of the last promotion that a person asked for."""
    latest: Decision | None = None
    """The newest, undecided ones included."""
    decided: Annotated[tuple[Decision, ...], Field(strict=False, max_length=KEPT_DECISIONS)] = ()
    """The last ones that moved something, newest last."""

    @property
    def looks_began_at(self) -> int:
        """When the first fortnight of the looks at held-out lists began."""
        return self.began_at if self.held_out_began_at is None else self.held_out_began_at

    @property
    def needed(self) -> set[int]:
        """The releases that a step back may go to, now or after a promotion."""
        return {self.promoted, *(one.query_release for one in self.candidates)} - {0}


class Promotion(Message):
    """Somebody vouches for a query release: a step back goes there."""

    query_release: Release
    requested_at: Time
    """Tells one request from another: a later one has a higher value."""


DECISIONS: Final[TypeAdapter[Decisions]] = TypeAdapter(Decisions)
PROMOTION: Final[TypeAdapter[Promotion]] = TypeAdapter(Promotion)
