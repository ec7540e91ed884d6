"""Which arm answers a search, and how its list is perturbed: decided once per search, by who asks and by what is drawn.

The anchor arm is the control of the experiment: release 0 over the very collection that live searches, without what
was learned of queries or of products. Nothing is kept for it, and it is never out of date (ADR 19).
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

from contracts.arms import ANCHOR, INTERLEAVED, LIVE, is_anchored
from contracts.events import Exploration
from indexer.search.arrangement import in_pages
from indexer.search.exploration import JITTER, NO_EXPLORATION, SWAP, TEAM_DRAFT, Policy
from indexer.search.in_force import ServedRelease
from indexer.search.lists import Found
from indexer.search.retrieval import Hit
from towers.features import key_of
from towers.model import QueryTower


class Shares(NamedTuple):
    """How many searches are for learning, each from 0 to 1.

    Args:
        anchor: of persons, whom the anchor arm answers.
        swap: of live lists, whose neighbours are exchanged.
        interleave: of live lists, that are made of the live and the anchor's list.
    """

    anchor: float = 0.0
    swap: float = 0.0
    interleave: float = 0.0


NO_SHARES: Final = Shares()


class Draw(NamedTuple):
    """What chance says to one search: a number from 0 to 1, and the seed of its perturbation."""

    chance: float
    seed: int


class Assignment(NamedTuple):
    """How a search is answered.

    Args:
        release: that answers.
        policy: how its list is perturbed.
        seed: of the perturbation.
        rival: whose list is interleaved with that of the release.
    """

    release: ServedRelease
    policy: Policy = NO_EXPLORATION
    seed: int = 0
    rival: ServedRelease | None = None

    @property
    def exploration(self) -> Exploration:
        """The perturbation as it is logged."""
        return Exploration(policy=self.policy.name, seed=self.seed)


@lru_cache(maxsize=1)
def anchor_of(release: ServedRelease) -> ServedRelease:
    """What the anchor arm answers with while a release is in force: release 0, to which no product is better."""
    tower = QueryTower.untrained(len(release.tower.common), quality=0.0)
    return ServedRelease(0, 0, release.collection, tower, arm=ANCHOR)


def arm_of(release: ServedRelease, person: str | None, share: float) -> ServedRelease:
    """What answers a ranked search: the release in force, or the anchor for those who are in its arm.

    While release 0 is in force nothing was learned that could be compared, and nobody is in the anchor arm. Neither is
    who gives no id, for each of their searches could fall into another arm.

    Args:
        release: in force.
        person: stand-in of the client's id, else the session's; None if neither is known.
        share: of persons who are in the anchor arm.
    """
    if not release.query_release or person is None or not is_anchored(person, share):
        return release
    return anchor_of(release)


def perturbed(release: ServedRelease, explore: Policy, shares: Shares, drawn: Draw) -> Assignment:
    """How a list may be perturbed: one way at most, so that what is logged is all that was done.

    On the anchor arm by jitter; on the live arm by interleaving, by exchanges, else as `explore` says.

    Args:
        release: that answers.
        explore: the live arm's policy.
        shares: of live lists that are interleaved, and whose neighbours are exchanged.
        drawn: by chance.
    """
    if release.arm == ANCHOR:
        return Assignment(release, JITTER, drawn.seed)
    interleaved = shares.interleave if release.query_release else 0.0
    if drawn.chance < interleaved:
        return Assignment(release, TEAM_DRAFT, drawn.seed, rival=anchor_of(release))
    policy = SWAP if drawn.chance < interleaved + shares.swap else explore
    return Assignment(release, policy, drawn.seed if policy.explores else 0)


def interleaved(live: Found, anchor: Found, *, k: int, seed: int) -> Found:
    """The live list with the turns of a team draft between it and the anchor's, each slot explained by its own list."""
    first, second = chain.from_iterable(live.pages), chain.from_iterable(anchor.pages)
    drafted = team_draft([*first], [*second], seed)
    by_team = {LIVE: live.explanations, ANCHOR: anchor.explanations}
    explanations = {
        product_id: by_team[hit.team or LIVE][product_id]
        for hit in drafted
        if (product_id := hit.payload["product_id"]) in by_team[hit.team or LIVE]
    }
    return live._replace(
        pages=in_pages(drafted, k),
        arm=INTERLEAVED,
        exploration=Exploration(policy=TEAM_DRAFT.name, seed=seed),
        explanations=explanations,
    )


def team_draft(live: Sequence[Hit], anchor: Sequence[Hit], seed: int) -> list[Hit]:
    """Interleave two lists: in turns each takes the best product of its own that is not taken yet.

    The team with fewer products is next, by lot if both have as many: a team's clicks over the other's say which list
    shoppers prefer. What the query names stands first and belongs to neither.

    Source: Radlinski, Kurup, Joachims, How does clickthrough data reflect retrieval quality?, CIKM 2008.

    Args:
        live: the first list, best first.
        anchor: the second.
        seed: of the lots.
    """
    drafted = [hit for hit in live if hit.pin]
    taken = {hit.payload["product_id"] for hit in drafted}
    queues = {LIVE: deque(live), ANCHOR: deque(anchor)}
    turns = {LIVE: 0, ANCHOR: 0}
    while True:
        for queue in queues.values():
            while queue and queue[0].payload["product_id"] in taken:
                queue.popleft()
        waiting = [team for team, queue in queues.items() if queue]
        if not waiting:
            return drafted
        if turns[LIVE] == turns[ANCHOR]:
            team = (LIVE, ANCHOR)[key_of(f"draft {seed} {turns[LIVE]}") % 2]
        else:
            team = min(turns, key=turns.__getitem__)
        team = team if team in waiting else waiting[0]
        hit = queues[team].popleft()._replace(team=team)
        drafted.append(hit)
        taken.add(hit.payload["product_id"])
        turns[team] += 1
