"""The doctor names a cause and a fix for whatever is wrong, and one dead server hides nothing else."""

import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from contracts.errors import DependencyDown
from contracts.topics import partition_for
from millrace import asking
from millrace.doctor import (
    CRC32,
    NO_KEY,
    OTHER_KEY,
    OTHER_PARTITIONER,
    Check,
    check_disk,
    check_event_keys,
    check_kafka,
    check_keys,
    check_loopback,
    check_processes,
    check_python,
    check_qdrant,
    check_redis,
    check_topics,
    examine,
    judge_event_keys,
)
from service.settings import Settings, load_settings


def settings(tmp_path: Path, **changes: str) -> Settings:
    """Return settings that name no server."""
    return load_settings({"data_dir": str(tmp_path), **changes}, environ={}, directory=tmp_path)


def test_a_supported_python_is_well(tmp_path: Path) -> None:
    """The interpreter that runs the tests is one that is supported."""
    assert check_python(settings(tmp_path)).status == "ok"


def test_a_folder_that_cannot_be_made_fails_with_the_setting_to_change(tmp_path: Path) -> None:
    """A data folder below a file can never be written."""
    (tmp_path / "file").write_text("")
    check = check_disk(settings(tmp_path, data_dir=str(tmp_path / "file" / "below")))
    assert (check.status, "MILLRACE_DATA_DIR" in check.fix) == ("fail", True)


def test_short_keys_fail_without_showing_them(tmp_path: Path) -> None:
    """A key that can be guessed is a failure; its value is never printed."""
    keys = {"write_key": "hunter2", "secret_key": "s" * 32, "person_key": "p" * 32}
    check = check_keys(settings(tmp_path, **keys))
    assert check.status == "fail"
    assert "MILLRACE_WRITE_KEY" in check.cause
    assert "hunter2" not in check.cause + check.fix


def test_keys_that_the_collector_refuses_fail(tmp_path: Path) -> None:
    """`ok` beside a collector that does not start would send people elsewhere."""
    keys = {"write_key": "s" * 32, "secret_key": "s" * 32, "person_key": "p" * 32}
    (check,) = examine(settings(tmp_path, **keys), (check_keys,))
    assert (check.status, "are the same" in check.cause) == ("fail", True)
    assert check.fix


def test_listening_beyond_this_machine_is_a_warning(tmp_path: Path) -> None:
    """It may be meant, in containers; it must not go unseen."""
    assert check_loopback(settings(tmp_path, host="0.0.0.0")).status == "warn"  # noqa: S104 - the very thing warned of


def test_a_silent_process_is_named(tmp_path: Path) -> None:
    """Nothing listens on port 1: the process is named as not ready."""
    check = check_processes(settings(tmp_path, scrape="search=http://127.0.0.1:1"))
    assert (check.status, "search" in check.cause) == ("fail", True)


def test_a_failing_check_keeps_its_cause_and_fix(tmp_path: Path) -> None:
    """An expected failure inside a check becomes that check's outcome; the others still report."""

    def check_broken_thing(_settings: Settings) -> Check:
        raise DependencyDown("it is down", fix="start it")

    broken, python = examine(settings(tmp_path), (check_broken_thing, check_python))
    assert broken == Check("broken thing", "fail", "it is down", "start it")
    assert python.status == "ok"


def test_a_check_that_hangs_hides_no_other(tmp_path: Path) -> None:
    """All checks share one deadline; the one that hangs is named and does not keep the command from ending."""
    release = threading.Event()

    def check_slow_thing(_settings: Settings) -> Check:
        release.wait()
        return Check("slow thing", "ok", "at last")

    slow, python = examine(settings(tmp_path), (check_slow_thing, check_python), deadline_s=0.5)
    release.set()
    assert (slow.name, slow.status, slow.cause) == ("slow thing", "fail", "no answer in time")
    assert python.status == "ok"


def test_a_check_that_breaks_hides_no_other(tmp_path: Path) -> None:
    """A fault of ours in one check is shown as such; the others still report."""

    def check_faulty_thing(_settings: Settings) -> Check:
        raise ZeroDivisionError

    faulty, python = examine(settings(tmp_path), (check_faulty_thing, check_python))
    assert (faulty.status, "ZeroDivisionError" in faulty.cause) == ("fail", True)
    assert python.status == "ok"


def test_servers_that_are_away_are_named_with_their_setting(tmp_path: Path) -> None:
    """Kafka, Redis and the vector store each say where nothing answers."""
    named = settings(
        tmp_path,
        kafka_bootstrap="127.0.0.1:1",
        redis_url="redis://:hunter2@127.0.0.1:2/0",
        qdrant_url="http://127.0.0.1:3",
    )
    probes = (check_kafka, check_redis, check_qdrant, check_topics, check_event_keys)
    kafka, redis, qdrant, topics, events = examine(named, probes)
    assert [check.status for check in (kafka, redis, qdrant, topics, events)] == ["fail"] * 5
    assert kafka.cause == topics.cause == events.cause
    assert ("127.0.0.1:1" in kafka.cause, "MILLRACE_KAFKA_BOOTSTRAP" in kafka.fix) == (True, True)
    assert ("127.0.0.1:2" in redis.cause, "hunter2" in redis.cause + redis.fix) == (True, False)
    assert "127.0.0.1:3" in qdrant.cause


def test_where_no_server_is_named_the_fix_is_up(tmp_path: Path) -> None:
    """Nothing is wrong yet: a warning with the command that starts everything."""
    probes = (check_kafka, check_topics, check_event_keys, check_redis, check_qdrant, check_processes)
    for check in examine(settings(tmp_path), probes):
        assert (check.status, check.fix) == ("warn", "`millrace up`")


def test_the_report_has_the_published_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` carries name, status, cause and fix of every check."""
    monkeypatch.setattr("millrace.doctor.examine", lambda _settings: [Check("a", "ok", "b")])
    asking.doctor(json=True)
    row = {"name": "a", "status": "ok", "cause": "b", "fix": ""}
    assert orjson.loads(capsys.readouterr().out) == {"checks": [row]}


SEARCHES = [f"search-{number}".encode() for number in range(200)]


def click(search_id: bytes) -> bytes:
    """Return a click of a search."""
    return orjson.dumps({"type": "click", "search_id": search_id.decode()})


def test_events_in_the_partitions_of_their_searches_are_well() -> None:
    """Ticks, events of no search and what is no event do not matter; an order is looked at by its line."""
    order = orjson.dumps({"type": "purchase", "items": [{"search_id": "search-7"}]})
    others = [b'{"type":"tick"}', b"not json", b"[]", b"7", b'{"items":[]}', b'{"items":[7]}', b'{"search_id":7}', None]
    records: list[tuple[int, bytes | None, bytes | None]] = []
    records += [(partition_for(key, 4), key, click(key)) for key in SEARCHES]
    records += [(partition_for(b"search-7", 4), b"search-7", order), *((0, None, value) for value in others)]
    check = judge_event_keys(records, 4)
    assert (check.status, check.cause[:10]) == ("ok", "201 events")


@pytest.mark.parametrize(
    ("place", "key_of", "says", "fix"),
    [
        (lambda key: zlib.crc32(key) % 4, lambda key: key, CRC32, "partitioner=murmur2_random"),
        (lambda key: len(key) % 4, lambda key: key, OTHER_PARTITIONER, "partitioner=murmur2_random"),
        (lambda key: sum(key) % 4, lambda _key: None, NO_KEY, "search_id"),
        (lambda _key: partition_for(b"k3", 4), lambda _key: b"k3", OTHER_KEY, "search_id"),
    ],
)
def test_each_mistake_of_a_producer_is_named(
    place: Callable[[bytes], int], key_of: Callable[[bytes], bytes | None], says: str, fix: str
) -> None:
    """Which it is decides what to change, so the doctor says it first."""
    check = judge_event_keys([(place(key), key_of(key), click(key)) for key in SEARCHES], 4)
    assert check.status == "fail"
    assert re.search(r"become orphans: \d+ " + re.escape(says), check.cause), check.cause
    assert fix in check.fix.split(";")[0]


def test_no_events_are_no_mistake() -> None:
    """A new deployment is well."""
    assert judge_event_keys([], 4).status == "ok"
