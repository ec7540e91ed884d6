"""Records that anybody may write: each is read by its offset and value, and none stops its readers."""

import pytest
from kafka.consumer import fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder

from service.kafka_config import consumer_config
from service.settings import Settings
from tests.support.topics import BadName


def packed(codec: int) -> bytes:
    """Return a batch of three records, the second of which has a header whose name is no text."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, 0, 10_000)
    for offset, name in enumerate(["plain", BadName("é"), "冷"]):
        headers = [(name, b"h"), ("null", None)]
        builder.append(offset, timestamp=17, key=b"k", value=b"v%d" % offset, headers=headers)
    return bytes(builder.build())


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_a_header_whose_name_is_no_text_stops_nobody(codec: int) -> None:
    """Kafka takes it, so it will come: the record is read with its value, and so are its neighbours, packed or not."""
    consumer_config(Settings(kafka_bootstrap="a:9092"))
    records = fetcher.MemoryRecords(packed(codec))
    batch = records.next_batch()
    assert batch.validate_crc()
    assert [(one.offset, one.value, one.headers) for one in batch] == [
        (offset, b"v%d" % offset, [(name, b"h"), ("null", None)])
        for offset, name in enumerate(["plain", "\ufffd", "冷"])
    ]
    assert not records.has_next()


def test_a_batch_that_is_damaged_is_still_refused() -> None:
    """Nothing is made up: only the text of a name is replaced, never what its lengths say."""
    consumer_config(Settings(kafka_bootstrap="a:9092"))
    damaged = packed(0).replace(b"\xe9", b"\xe9\xe9")
    with pytest.raises(CorruptRecordError):
        list(fetcher.MemoryRecords(damaged[:8] + (len(damaged) - 12).to_bytes(4, "big") + damaged[12:]).next_batch())
