"""The doctor on a real Kafka, and the commands that look beside servers that accept and never answer."""

import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource

from contracts.errors import UsageError
from contracts.topics import CATALOG, SEARCH_EVENTS
from millrace.doctor import check_event_keys, check_kafka, check_topics, examine
from service.kafka import OutgoingRecord, admin, ensure_topics, produce_all, producer_config
from service.settings import Settings, env_name
from tests.conftest import SettingsFactory
from tests.support.poll import eventually

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


def set_config(settings: Settings, topic: str, **config: str) -> None:
    """Change a topic as another tool would; `_` stands for `.` in names."""
    named = {name.replace("_", "."): value for name, value in config.items()}
    with admin(settings) as client:
        client.alter_configs([ConfigResource("TOPIC", settings.topic(topic), named)])


def test_topics_as_we_make_them_are_well(two_partitions: Settings) -> None:
    """On one broker there is nothing to say."""
    assert (check_topics(two_partitions).status, check_topics(two_partitions).cause) == ("ok", "as Millrace needs them")


def test_a_kafka_without_topics_fails_no_check(kafka_settings: SettingsFactory) -> None:
    """Whoever asks before the first start reads what will be made, and finds nothing wrong."""
    probes = (check_kafka, check_topics, check_event_keys)
    checks = examine(kafka_settings(topic_prefix="nobodys-"), probes, deadline_s=60)
    assert [check.status for check in checks] == ["warn", "ok", "warn"]
    assert "topics missing: nobodys-" in checks[0].cause
    assert checks[2].cause == "there is no topic nobodys-search-events yet"


def test_a_topic_that_others_made_is_told_with_its_command(two_partitions: Settings) -> None:
    """CreateTime keeps processes from starting; the doctor says so first, and what to type."""
    set_config(two_partitions, CATALOG, message_timestamp_type="CreateTime")
    eventually(lambda: check_topics(two_partitions).status == "warn", timeout_s=30)
    set_config(two_partitions, SEARCH_EVENTS, message_timestamp_type="CreateTime")
    eventually(lambda: check_topics(two_partitions).status == "fail", timeout_s=30)
    check = check_topics(two_partitions)
    name = two_partitions.topic(SEARCH_EVENTS)
    assert f"topic {name} has message.timestamp.type=CreateTime: one event from the future closes" in check.cause
    assert f"--entity-name {name} --add-config message.timestamp.type=LogAppendTime" in check.fix
    with pytest.raises(UsageError, match=r"message\.timestamp\.type=CreateTime"):
        ensure_topics(two_partitions)


def test_a_producer_with_librdkafkas_default_is_named(two_partitions: Settings) -> None:
    """Its clicks would all be orphans; the newest events tell."""
    name = two_partitions.topic(SEARCH_EVENTS)
    keys = [f"search-{number}".encode() for number in range(100)]
    records = [
        OutgoingRecord(name, b'{"type":"click","search_id":"%s"}' % key, key, partition=zlib.crc32(key) % 2)
        for key in keys
    ]
    assert check_event_keys(two_partitions).status == "ok"
    with KafkaProducer(**producer_config(two_partitions)) as producer:
        produce_all(producer, records)
    check = check_event_keys(two_partitions)
    assert check.status == "fail"
    assert "the default of librdkafka" in check.cause
    assert "murmur2_random" in check.fix


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port on which everything is accepted and nothing answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


def run(tmp_path: Path, *arguments: str, **settings: Any) -> tuple[int, Any, str]:
    """Run a command in an empty folder; return its exit code, its JSON, and what it said on stderr."""
    ours = {env_name(name): str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", "from millrace.cli import main; main()", *arguments, "--json"],
        env={**os.environ, **ours, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_the_doctor_outlives_servers_that_never_answer(silent: int, tmp_path: Path) -> None:
    """Every check is told, and the command ends although its questions hang."""
    servers = {
        "kafka_bootstrap": f"127.0.0.1:{silent}",
        "redis_url": f"redis://127.0.0.1:{silent}/0",
        "qdrant_url": f"http://127.0.0.1:{silent}",
        "scrape": f"search=http://127.0.0.1:{silent}",
    }
    code, report, said = run(tmp_path, "doctor", **servers)
    assert code == 3, said
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    failed = {name for name, status in statuses.items() if status == "fail"}
    assert failed >= {"kafka", "topics", "event keys", "redis", "qdrant", "processes"}
    assert statuses["python"] == "ok"
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["lag"], ["ledger"], ["releases", "ls"]])
def test_commands_that_need_kafka_say_that_it_hangs(command: list[str], silent: int, tmp_path: Path) -> None:
    """One line and the exit code of a dependency that is down."""
    code, report, said = run(tmp_path, *command, kafka_bootstrap=f"127.0.0.1:{silent}")
    assert (code, report) == (4, None), said
    assert f"Kafka does not answer at 127.0.0.1:{silent}" in said
    assert "Traceback" not in said


def test_status_outlives_a_kafka_that_hangs(silent: int, tmp_path: Path) -> None:
    """What is not known has its reason; asking is no failure."""
    code, report, said = run(
        tmp_path, "status", kafka_bootstrap=f"127.0.0.1:{silent}", scrape=f"search=http://127.0.0.1:{silent}"
    )
    assert code == 0, said
    assert [(row["name"], row["state"]) for row in report["processes"]] == [("search", "unready")]
    assert "Kafka does not answer" in report["unknown"]["kafka"]


def test_half_a_deployment_is_told_by_every_command(two_partitions: Settings, tmp_path: Path) -> None:
    """A topic is gone: stdout is JSON all the same, and the exit code says that something is down."""
    with admin(two_partitions) as client:
        client.delete_topics([two_partitions.topic(CATALOG)])
    named = {name: getattr(two_partitions, name) for name in ("kafka_bootstrap", "topic_prefix", "partitions")}
    code, report, said = run(tmp_path, "lag", **named)
    assert (code, report["groups"]["indexer"]["records"], report["groups"]["join"]["records"]) == (4, None, 0), said
    code, report, said = run(tmp_path, "ledger", **named)
    assert (code, report["events"]["balance"], report["searches"]["balance"]) == (4, None, 0), said
    code, report, said = run(tmp_path, "releases", "ls", **named)
    assert (code, report) == (0, {"serving": None, "releases": [], "promoted": 0, "decisions": []}), said
    code, report, said = run(tmp_path, "status", **named)
    assert (code, set(report["unknown"])) == (0, {CATALOG}), said
    assert "Traceback" not in said
