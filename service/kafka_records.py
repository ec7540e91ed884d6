"""Records that Kafka takes and readers choke on: a header whose name is no UTF-8, which some clients write.

Kafka forbids such names and does not look. Both libraries would fail on the batch again and again, and every reader of
its partition would stand still; here its records are read all the same, their names with a mark for what is no text.
"""

from functools import cache
from typing import Any

import kafka.record.memory_records
from kafka.record.default_records import DefaultRecordBatch
from typing_extensions import override


class LenientBytes(bytearray):
    """Bytes whose text replaces what is no UTF-8."""

    @override
    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return LenientBytes(found) if isinstance(key, slice) else found

    @override
    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, "replace")


class LenientBatch(DefaultRecordBatch):
    """A batch of kafka-python that gives its records whatever the names of their headers are."""

    _buffer: bytearray

    @override
    def _read_msg(self, *arguments: Any) -> Any:
        try:
            return super()._read_msg(*arguments)
        except UnicodeDecodeError:
            self._buffer = LenientBytes(self._buffer)  # uncompressed by now, and its place moves after a record only
            return super()._read_msg(*arguments)


@cache
def read_any_header() -> None:
    """Let kafka-python's consumers read on whatever a header is called; `streams/transport` mends aiokafka's."""
    kafka.record.memory_records.DefaultRecordBatch = LenientBatch
