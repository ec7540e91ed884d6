"""A chunk: consecutive records of one partition, which an agent receives as one event.

Faust's machinery costs about 60 microseconds an event. Handing it a few thousand records at a time leaves that cost
where it is and makes it vanish.
"""

from typing import Any

from aiokafka.structs import ConsumerRecord
from faust.serializers.codecs import Codec
from faust.types import TP
from typing_extensions import override


class Chunk(list[ConsumerRecord]):
    """Consecutive records of one partition.

    Args:
        tp: the partition.
        records: its records, in the log's order, at least one.
    """

    __slots__ = ("tp",)

    def __init__(self, tp: TP, records: list[ConsumerRecord]) -> None:
        super().__init__(records)
        self.tp = tp


class Untouched(Codec):
    """The "serializer" of chunks: hands over what it is given; decoding is the agent's, record by record."""

    @override
    def _loads(self, s: Any) -> Any:
        """Return a chunk as it is."""
        return s

    @override
    def _dumps(self, s: Any) -> Any:
        """Return a value as it is."""
        return s
