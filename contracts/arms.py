"""The arms that shoppers' searches are assigned to, and who is in the anchor arm."""

import hashlib
from typing import Final

LIVE: Final = "live"
"""Answers by the releases in force."""
ANCHOR: Final = "anchor"
"""Answers by release 0, what the shop would have without learning; live is compared with it."""

_KEYS: Final = 2**64


def is_anchored(person: str, share: float) -> bool:
    """Whether a person is in the anchor arm: by hash, so always the same; a larger share keeps who was in a smaller.

    Args:
        person: stand-in of the client's id, or the session's id.
        share: of persons, from 0 to 1.

    >>> [is_anchored(person, 0.1) for person in ("k1", "k3")], is_anchored("k1", 1.0), is_anchored("k3", 0.0)
    ([False, True], True, False)
    """
    # A hash of its own: who is held out, or sampled, by the same id is no more likely to be here.
    drawn = int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8, person=b"arm").digest(), "big")
    return drawn < share * _KEYS
