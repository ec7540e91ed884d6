"""The numbers of the trainer's state: positions, counts, release numbers. JSON in the checkpoint."""

from pydantic import BaseModel


class PendingRelease(BaseModel):
    """A product release that the index is being moved to."""

    product_release: int
    query_release: int
    """Its first query release."""


class Facts(BaseModel):
    """The numbers of the state, as JSON in the checkpoint."""

    step: int = 0
    pairs_trained: int = 0
    lists_trained: int = 0
    offsets: dict[int, int] = {}
    """Partition -> offset of the next record to learn from."""
    newest_list: dict[int, str] = {}
    """Partition -> search_id of the last pair; the pairs of a list stand together."""
    last_query_release: int = 0
    """Highest number given out; numbers only grow."""
    last_product_release: int = 0
    query_release: int = 0
    """In force, as `serving` says."""
    product_release: int = 0
    pending: PendingRelease | None = None
    query_parent: int = 0
    """Last query release of the pair in force, which the next goes on from."""
    click_times: list[int] = []
    unserved_ratio: float = 0.0
    """How much of what the query lane learned the released head still lacks: 1 after a step, less with each release."""
    product_lane_moved: bool = False
    """Whether there was a step since the last product release."""
    query_released_ms: int = 0
    product_released_ms: int = 0
