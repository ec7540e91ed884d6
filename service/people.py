"""Persons without their names: the one way in which client and user ids are replaced and shared out.

The collector and the search service must give the same person the same stand-in, or arms and holdouts would differ
between what a shopper was shown and what is learned from it.
"""

import hashlib
import hmac
import re
from typing import Final

_STAND_IN: Final = re.compile("[0-9a-f]{64}")
_SHARE_DIGITS: Final = 13  # 52 bits: every value fits a float exactly and stays below 1


def person_id(identifier: str, person_key: bytes) -> str:
    """Return the stand-in of a client or user id: HMAC-SHA256 as hex.

    >>> person_id("c9", b"key")[:16]
    '93bc80f998a634a3'
    """
    return hmac.new(person_key, identifier.encode(), hashlib.sha256).hexdigest()


def protected_id(identifier: str, person_key: bytes | None) -> str | None:
    """Return an id that may be a stand-in already as one; None if there is no key to replace it.

    Whoever sends 64 hexadecimal digits sends no name: the collector and the search service write such ids.

    >>> protected_id("93bc80f998a634a3" * 4, b"key") == "93bc80f998a634a3" * 4
    True
    >>> protected_id("c9", b"key") == person_id("c9", b"key"), protected_id("c9", None)
    (True, None)
    """
    if _STAND_IN.fullmatch(identifier):
        return identifier
    return None if person_key is None else person_id(identifier, person_key)


def share(person: str, *, purpose: str = "") -> float:
    """Return where a person stands in [0, 1), the same for ever; `share(...) < 0.1` holds for a tenth of all persons.

    Args:
        person: what `person_id` returned.
        purpose: shares for different purposes are independent, so that one split never hides inside another.

    >>> share("8000000000000" + "0" * 51)
    0.5
    """
    digits = hashlib.sha256(f"{purpose}:{person}".encode()).hexdigest() if purpose else person
    return int(digits[:_SHARE_DIGITS], 16) / float(16**_SHARE_DIGITS)
