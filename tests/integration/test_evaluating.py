"""`millrace releases evaluate` on a real Kafka: lists, propensities, vectors and releases as services write them."""

import json
from pathlib import Path

import pytest
from kafka import KafkaProducer

from contracts import wire
from contracts.releases import SERVING_KEY, Serving
from contracts.structs import JoinedSearch, JoinedSlot, encode
from contracts.topics import HOLDOUT_SEARCHES, MODELS, PRODUCT_VECTORS
from service.kafka import OutgoingRecord, ensure_topics, produce_all, producer_config
from tests.conftest import SettingsFactory
from tests.support.command_line import command_line
from tests.support.indexing import NOW_MS, product_release, query_release
from tests.support.pairs import product_vector
from tests.support.tiny_encoder import WORDS
from towers.encoder import BaseEncoder
from towers.release_files import pack

pytestmark = [pytest.mark.kafka]


def held_out(number: int) -> JoinedSearch:
    """Return a list of six products, of which another one is clicked each time."""
    slots = tuple(
        JoinedSlot(product_id=WORDS[(number + place) % 12], position=place + 1, clicked=place == number % 6)
        for place in range(6)
    )
    return JoinedSearch(
        search_id=f"s-{number}", search_time=NOW_MS, closed_at=NOW_MS + 1, query=WORDS[number % 12], slots=slots,
        client_id=f"c-{number}",
    )  # fmt: skip


def test_a_release_is_judged_by_the_lists_that_were_held_out(
    kafka_settings: SettingsFactory,
    model_folder: Path,
    encoder: BaseEncoder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without any list it names the setting, or a release that is not there; with some, two releases are compared."""
    own = kafka_settings(partitions=2, base_model=str(model_folder), qdrant_url="http://127.0.0.1:1")
    ensure_topics(own)
    run = command_line(own, monkeypatch, tmp_path, "releases", "evaluate")
    serving = Serving(query_release=2, product_release=1, collection="c", published_at=NOW_MS)
    models = {
        b"query-1": pack(query_release(1, encoder)), b"query-2": pack(query_release(2, encoder, product_release=1)),
        b"product-1": pack(product_release(1, encoder)), SERVING_KEY: wire.encode(serving),
    }  # fmt: skip
    vectors = {
        name.encode(): wire.encode(product_vector(name, row, base_version=encoder.base_version))
        for name, row in zip(WORDS[:12], encoder.encode(WORDS[:12]), strict=True)
    }
    lists = {f"s-{number}".encode(): encode(held_out(number)) for number in range(120)}
    for topics in ({MODELS: models, PRODUCT_VECTORS: vectors}, {HOLDOUT_SEARCHES: lists}):
        with KafkaProducer(**producer_config(own)) as producer:
            produce_all(producer, [
                OutgoingRecord(own.topic(topic), value, key=key)
                for topic, records in topics.items() for key, value in records.items()
            ])  # fmt: skip
        if HOLDOUT_SEARCHES not in topics:
            assert run() == 2
            assert "MILLRACE_HOLDOUT_SHARE" in capsys.readouterr().err
            assert run("9") == 2
            assert "query release 9 is not on" in capsys.readouterr().err
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["query_release"], report["against"], report["lists"], report["clicks"]) == (2, 0, 120, 120)
    assert report["moved"] > 0
    assert report["low"] <= report["value"] <= report["high"]
    assert run("2", "--against", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "equal"
    assert run("1") == 0
    assert "query release 1 against 0" in capsys.readouterr().out
