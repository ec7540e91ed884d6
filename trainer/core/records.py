"""What the trainer reads: a record of `preference-pairs`, decoded or found malformed."""

from typing import NamedTuple

from contracts.pairs import PreferencePair


class PairRecord(NamedTuple):
    """One record and where it stands; a malformed one has no pair and is a dead letter already."""

    partition: int
    offset: int
    pair: PreferencePair | None
