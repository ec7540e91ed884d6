"""When held-out lists are looked at, and what a look says: so rarely and so cautiously that all looks err as one.

Who looks again and again finds a difference where there is none. So lists are looked at when they have doubled, and
each of at most `LOOKS` looks may err by an equal part of what the arms may err by at all times together: by Bonferroni
their sum is the most that all of them err by, however they depend on one another. Lists that are looked at anew are
others: of the next comparison, or of the next fortnight.

Source: docs/papers.md, "Releases judged by logged lists".
"""

from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from contracts.arms import INTERLEAVED
from contracts.comparison import ALPHA
from contracts.decisions import Comparison, Decisions, HeldOutLook
from contracts.outcomes import VALUE, Grade
from contracts.structs import JoinedSearch
from trainer.release.held_out import LEAST_LISTS, HeldOutLists, evaluate, fair_weights, own_weights

LOOKS: Final = 9
"""At 100 lists, 200, and so on to 25,600."""
APART_MS: Final = 300_000
"""Lists are not read more often."""
MOST_LISTS: Final = 50_000
"""Held in memory during a look, the newest: 14 kB each with 24 slots, 0.7 GB in all."""
NORMAL: Final = NormalDist().inv_cdf(1 - ALPHA / (2 * LOOKS))
"""How far the interval of one look reaches: 2.77 standard errors, where that of a single look reaches 1.96."""


class Question(NamedTuple):
    """What held-out lists are to be asked.

    Args:
        query_release: that is judged.
        against: that it is compared with.
        began_at: lists shown from then on count.
        looks: that were made of them.
        looked_lists: that the last look was at; 0 if there was none.
    """

    query_release: int
    against: int
    began_at: int
    looks: int = 0
    looked_lists: int = 0

    def counts(self, search: JoinedSearch) -> bool:
        """Whether a list says something here: one release chose it, and between learned ones neither of them did."""
        ranking = search.ranking
        is_of_one = ranking.ranker == "millrace" and ranking.arm != INTERLEAVED and ranking.query_release is not None
        return is_of_one and search.search_time >= self.began_at and not (self.against and ranking.query_release)

    def has_lists_of(self, other: "Question") -> bool:
        """Whether the lists that count are those of another question, too, beside the same release."""
        return (self.against, self.began_at) == (other.against, other.began_at)

    def rest_ms(self, now_ms: int) -> int:
        """How long to rest after the lists were read: until there may be an eighth more, and some minutes at least."""
        return max(APART_MS, (now_ms - self.began_at) // 8)

    def is_due(self, lists: int) -> bool:
        """Whether it is time for a look at so many lists.

        >>> asked = Question(7, 0, 0, looks=1, looked_lists=130)
        >>> asked.is_due(259), asked.is_due(260), asked._replace(looks=LOOKS).is_due(9999)
        (False, True, False)
        """
        return self.looks < LOOKS and lists >= max(LEAST_LISTS, 2 * self.looked_lists)


def is_noted(look: HeldOutLook, decisions: Decisions | None) -> bool:
    """Whether nothing is decided by a look any more: it was noted, or a later one, or its comparison is over."""
    if decisions is None or look.began_at < decisions.looks_began_at:
        return True
    noted = decisions.held_out
    return noted is not None and (noted.began_at, noted.looks) >= (look.began_at, look.looks)


class Scored(NamedTuple):
    """Held-out lists with what two releases say of them.

    Args:
        lists: with the clicks.
        worth: of each slot, what was chosen in worths of a click, (N,).
        ranked_by: query release that ranked each list, (L,).
        ours: scores of the judged release, (N,).
        theirs: scores of the other one, (N,).
    """

    lists: HeldOutLists
    worth: np.ndarray
    ranked_by: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray


def look_at(question: Question, scored: Scored, *, now_ms: int) -> HeldOutLook:
    """Look at held-out lists once.

    Args:
        question: what they are asked.
        scored: the lists.
        now_ms: the time.
    """
    worse_by = _compared(scored, fair_weights(scored.ranked_by, question.against))
    return HeldOutLook(
        query_release=question.query_release,
        against=question.against,
        began_at=question.began_at,
        looked_at=now_ms,
        looks=question.looks + 1,
        lists=len(scored.ranked_by),
        better_by=worse_by if question.against else _compared(scored, own_weights(scored.ranked_by)),
        worse_by=worse_by,
    )


def _compared(scored: Scored, weights: np.ndarray) -> tuple[Comparison, ...]:
    counted = {"clicked": (scored.lists.clicked, 1.0), "value": (scored.worth, float(VALUE[Grade.PURCHASE]))}
    found = []
    for metric, (of_slots, largest) in counted.items():
        lists = scored.lists._replace(clicked=of_slots)
        estimate = evaluate(lists, scored.ours, scored.theirs, weights=weights, normal=NORMAL, largest=largest)
        one, level = estimate.difference, estimate.level
        if one.value is not None and one.low is not None and one.high is not None:
            found.append(
                Comparison(
                    metric=metric, live=level + one.value, anchor=level,
                    value=one.value, low=one.low, high=one.high, more_lists=one.more_lists,
                )
            )  # fmt: skip
    return tuple(found)
