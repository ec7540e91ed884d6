"""The arms that shoppers' searches are assigned to, who is in the anchor arm, and what is counted of each arm."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Annotated, Final

from pydantic import Field

from contracts.base import Count, Finite, Label, Part
from contracts.comparison import Difference, GroupSums, difference
from contracts.events import Ranking
from contracts.outcomes import VALUE, Grade
from contracts.progress import AgentProgress

LIVE: Final = "live"
"""Answers by the releases in force."""
ANCHOR: Final = "anchor"
"""Answers by release 0, what the shop would have without learning; live is compared with it."""
INTERLEAVED: Final = "interleaved"
"""Answers by lists of both, slot by slot."""
UNTRAINED: Final = "untrained"
"""Live lists from before anything was learned, or after it was taken back, which say nothing about learning."""
OTHER: Final = "other"
"""Lists that another engine ranked, or of an arm that we do not know."""
ARMS: Final = (LIVE, ANCHOR, INTERLEAVED, UNTRAINED, OTHER)
"""As they are counted."""

COMPARED: Final = ("clicked", "purchased", "value")
"""What arms are compared by."""

_HASHES: Final = 2**64


def hashed(text: str, purpose: bytes) -> int:
    """Return 64 bits of a text, independent of those for another purpose."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=purpose).digest(), "big")


def is_in_share(text: str, purpose: bytes, share: float) -> bool:
    """Whether a text is in a share, from 0 to 1: by hash, so always the same; a larger share keeps a smaller one's."""
    return hashed(text, purpose) < share * _HASHES


def is_anchored(person: str, share: float) -> bool:
    """Whether a person is in the anchor arm: by hash, so always the same; a larger share keeps who was in a smaller.

    Args:
        person: stand-in of the client's id, or the session's id.
        share: of persons, from 0 to 1.

    >>> [is_anchored(person, 0.1) for person in ("k1", "k3")], is_anchored("k1", 1.0), is_anchored("k3", 0.0)
    ([False, True], True, False)
    """
    return is_in_share(person, b"arm", share)


def anonymous_session(search_id: str) -> str:
    """Return the session of a list that nobody is named for: it was drawn for no arm, and always answered live."""
    return f"anonymous-{search_id}"


def counted_arm(ranking: Ranking) -> str:
    """Return the arm under which a list is counted.

    >>> counted_arm(Ranking(arm="live", query_release=7)), counted_arm(Ranking(arm="live", query_release=0))
    ('live', 'untrained')
    """
    if ranking.ranker != "millrace" or ranking.arm not in {LIVE, ANCHOR, INTERLEAVED}:
        return OTHER
    return UNTRAINED if ranking.arm == LIVE and not ranking.query_release else ranking.arm


class ArmCounts(Part):
    """What became of an arm's lists on one surface: how many, and sums over them. Advertisements are left out."""

    searches: Count = 0
    clicked: Count = 0
    """Lists with a click, a stay, a cart or a purchase."""
    carted: Count = 0
    purchased: Count = 0
    abandoned: Count = 0
    """Lists that showed something, of which nothing was chosen."""
    reformulated: Count = 0
    """Lists of which nothing was chosen, and whose session went on, within five minutes, with another query."""
    zero_results: Count = 0
    no_good_match: Count = 0
    """Lists of which the ranker said that nothing in them matches well."""
    cart_adds: Count = 0
    """Products put into the cart."""
    value: Annotated[Finite, Field(ge=0)] = 0.0
    """What was chosen, in worths of a click (`contracts.outcomes.VALUE`)."""
    reciprocal_rank: Annotated[Finite, Field(ge=0)] = 0.0
    """Of the first click; 0 of a list without one."""


class PersonGroup(Part):
    """The same of one group of an arm's persons, as far as arms are compared by it."""

    searches: Count = 0
    clicked: Count = 0
    purchased: Count = 0
    value: Annotated[Finite, Field(ge=0)] = 0.0

    def sums(self, metric: str) -> GroupSums:
        """Return what a mean of a metric is made of."""
        return GroupSums(self.searches, getattr(self, metric))


class Interleaving(Part):
    """Interleaved lists by the team with more of its slots chosen."""

    live: Count = 0
    anchor: Count = 0
    tied: Count = 0


class ArmsProgress(AgentProgress):
    """State of the arms agent in one partition of `joined-searches`."""

    turns: dict[str, Count] = Field(default_factory=dict)
    """Join -> the last closed search that was seen of it; one with the same number or a smaller one is a repeat."""
    newest_closed_ms: int = -1
    """Newest deadline seen."""
    arms: dict[Label, dict[Label, ArmCounts]] = Field(default_factory=dict)
    """Arm -> surface -> what became of its lists."""
    groups: dict[Label, Annotated[tuple[PersonGroup, ...], Field(strict=False)]] = Field(default_factory=dict)
    """Arm -> the groups of its persons."""
    interleaving: Interleaving = Interleaving()


def groups_of(found: Iterable[ArmsProgress], arm: str) -> tuple[PersonGroup, ...]:
    """Sum an arm's groups over partitions: one person's sessions may lie in several, in groups of one number.

    A partition that names fewer groups than another says nothing of the rest.
    """
    partitions = [progress.groups[arm] for progress in found if arm in progress.groups]
    return tuple(
        PersonGroup(**{name: sum(getattr(one, name) for one in same) for name in PersonGroup.model_fields})
        for same in zip_longest(*partitions, fillvalue=PersonGroup())
    )


def compared(metric: str, arm: Sequence[PersonGroup], control: Sequence[PersonGroup]) -> Difference | None:
    """Compare an arm with its control by a metric of `COMPARED`; None while there is too little of either."""
    sums = [one.sums(metric) for one in arm], [one.sums(metric) for one in control]
    return difference(*sums, largest=largest_of(metric))


def largest_of(metric: str) -> float:
    """How much one list counts by a metric of `COMPARED` at most, about: a purchase, or one."""
    return float(VALUE[Grade.PURCHASE]) if metric == "value" else 1.0
