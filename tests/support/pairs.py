"""Builders of preference pairs and product vectors."""

import base64

import numpy as np

from contracts.catalog import PointPayload, ProductVector
from contracts.pairs import Factors, PairSide, PairSource, PreferencePair, pair_id

CLICKED_MS = 1_795_196_006_756


def preference_pair(
    search_id: str = "s-1",
    *,
    query: str = "quiet fridge",
    chosen: str = "P-1",
    rejected: str = "P-2",
    weight: float = 1.0,
    source: PairSource = "click",
    event_time: int = CLICKED_MS,
) -> PreferencePair:
    """Return a pair as the stream worker emits it."""
    return PreferencePair(
        pair_id=pair_id(search_id, chosen, rejected, source=source),
        search_id=search_id,
        query=query,
        source=source,
        chosen=PairSide(product_id=chosen, position=2, grade=1),
        rejected=PairSide(product_id=rejected, position=1, grade=0),
        weight=weight,
        factors=Factors(value=weight, ratio=1.0),
        event_time=event_time,
        closed_at=event_time + 3_000,
    )


def product_vector(product_id: str, vector: np.ndarray | None, *, base_version: str, version: int = 1) -> ProductVector:
    """Return a product's vector as the indexer writes it; without one, its deletion."""
    if vector is None:
        return ProductVector(product_id=product_id, version=version, deleted=True, base_version=base_version)
    encoded = base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode()
    return ProductVector(
        product_id=product_id,
        version=version,
        base_version=base_version,
        vector=encoded,
        payload=PointPayload(title=product_id),
    )
