"""Dead letters on a real Kafka: a product that cannot be used is set aside, listed, and sent again."""

import pytest
from kafka import KafkaProducer

from contracts.topics import CATALOG, DEAD_LETTERS, set_aside_headers
from millrace.dead_letters import Wanted, dead_letters, listed, replay
from service.kafka import OutgoingRecord, produce_all, producer_config, records_of
from service.settings import Settings

pytestmark = [pytest.mark.kafka]


def test_a_dead_letter_goes_back_to_its_topic_under_its_key(two_partitions: Settings) -> None:
    """Bytes and key are those that came; the letter stays where it was, and sending it again is possible."""
    settings = two_partitions
    headers = set_aside_headers(CATALOG, 1, 7, stage="indexer", reason="unsupported_schema", error="version 9")
    letter = OutgoingRecord(settings.topic(DEAD_LETTERS), b'{"schema_version":9}', key=b"P-1", headers=tuple(headers))
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, [letter, letter])

    def silent(_what: str, _done: int, _of: int) -> None:
        """Show nothing."""

    report = listed(dead_letters(settings, silent), Wanted(), 5)
    assert (report["records"], report["newest"][0].letter_id) == (1, "indexer:catalog:1:7")
    for count in (1, 2):
        assert replay(settings, dead_letters(settings, silent), Wanted(stage="indexer"))["records"] == 1
        found = [(record.key, record.value, record.headers) for record in records_of(settings, CATALOG)]
        assert found == [(b"P-1", b'{"schema_version":9}', [])] * count
    assert len(list(records_of(settings, DEAD_LETTERS))) == 2
