"""Identifiers that several services must derive alike."""

import hashlib
from typing import Final
from uuid import NAMESPACE_OID, uuid5

import orjson

EpochMs = int
"""Milliseconds since 1970-01-01 UTC."""

RULE_VERSION: Final = 1
"""Version of the pairing rules; part of every pair id, so that changed rules make new pairs."""


def point_id(product_id: str) -> str:
    """Return the Qdrant point id of a product.

    Qdrant takes only unsigned integers and UUIDs as ids, so the shop's own id is hashed.

    >>> point_id("P-1")
    '529a5352-385c-5db4-9dd0-0c347ac4b3bb'
    """
    return str(uuid5(NAMESPACE_OID, product_id))


def pair_id(search_id: str, chosen: str, rejected: str, *, source: str, rule_version: int = RULE_VERSION) -> str:
    """Return the id of a preference pair: sha256 of the JSON array of what makes it unique, as hex.

    >>> pair_id("s1", "P-4", "P-1", source="click")[:16]
    '159d57d9e42c164c'
    """
    return hashlib.sha256(orjson.dumps([search_id, chosen, rejected, source, rule_version])).hexdigest()
