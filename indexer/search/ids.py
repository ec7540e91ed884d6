"""Ids that sort by time: UUID version 7 (RFC 9562)."""

import os
from uuid import UUID


def time_ordered_id(time_ms: int, random: bytes | None = None) -> str:
    """Return a UUIDv7.

    Args:
        time_ms: epoch ms that its first 48 bits hold.
        random: 10 bytes; drawn from the system where None.

    >>> time_ordered_id(1_795_196_006_756, bytes(10))
    '01a1fa05-3164-7000-8000-000000000000'
    """
    tail = int.from_bytes(os.urandom(10) if random is None else random, "big")
    high, low = tail >> 68, tail & (2**62 - 1)
    return str(UUID(int=time_ms << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))
