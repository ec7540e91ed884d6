"""Which arm answers a search, and how its list is perturbed: decided once per search, by who asks and by what is drawn.

The anchor arm is the control of the experiment: release 0 over the very collection that live searches, without what
was learned of queries or of products. Nothing is kept for it, and it is never out of date (ADR 16).
"""

from functools import lru_cache
from typing import Final, NamedTuple

from contracts.arms import ANCHOR, is_anchored
from contracts.events import Exploration
from indexer.search.exploration import JITTER, NO_EXPLORATION, SWAP, Policy
from indexer.search.in_force import ServedRelease
from towers.model import QueryTower


class Shares(NamedTuple):
    """How many searches are for learning, each from 0 to 1.

    Args:
        anchor: of persons, whom the anchor arm answers.
        swap: of live lists, whose neighbours are exchanged.
    """

    anchor: float = 0.0
    swap: float = 0.0


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
    """

    release: ServedRelease
    policy: Policy = NO_EXPLORATION
    seed: int = 0

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


def perturbed(release: ServedRelease, explore: Policy, share: float, drawn: Draw) -> Assignment:
    """How a list may be perturbed: by jitter on the anchor arm; on the live arm by exchanges, else as `explore` says.

    Args:
        release: that answers.
        explore: the live arm's policy.
        share: of live lists whose neighbours are exchanged.
        drawn: by chance.
    """
    if release.arm == ANCHOR:
        return Assignment(release, JITTER, drawn.seed)
    policy = SWAP if drawn.chance < share else explore
    return Assignment(release, policy, drawn.seed if policy.explores else 0)
