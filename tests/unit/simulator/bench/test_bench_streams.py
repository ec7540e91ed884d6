"""The stream bench: the same log for the same seed, a peer that does the work, and rows that say what was measured."""

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from contracts.structs import SEARCH_RECORD
from contracts.topics import JOINED_SEARCHES, PREFERENCE_PAIRS, partition_for
from simulator.bench import lean_collector, lean_join
from simulator.bench.collector import Logs
from simulator.bench.streams import LOGS, bench_log
from streams.agents.spec import Emit, Plan
from streams.join.partition_join import PartitionJoin
from streams.pairs.partition_pairs import PartitionPairs
from tests.support.search_events import T0

PARTITION = 1


class Read(NamedTuple):
    """A record as Kafka gives it."""

    offset: int
    key: bytes | None
    value: bytes
    timestamp: int = T0 + 3_600_000
    headers: Any = ()


def our_searches(log: list[Read]) -> list[Emit]:
    """Return what our join closes of a log."""
    join, plan = PartitionJoin(PARTITION, window_ms=3_000, lateness_ms=1_000), Plan()
    for record in log:
        join.take(record, plan)
    return [planned for planned in plan if isinstance(planned, Emit)]


@pytest.fixture(params=LOGS, ids=lambda log: f"{log.slots} slots")
def records(request: pytest.FixtureRequest) -> list[Read]:
    """Give a partition of each of the bench's logs."""
    log = bench_log(request.param, 4_000, seed=1, start_ms=T0, partitions=4)[PARTITION]
    return [Read(offset, record.key, record.value or b"") for offset, record in enumerate(log)]


def test_the_log_is_the_same_for_the_same_seed() -> None:
    """Both sides read the same bytes, today and tomorrow."""
    one, same, other = (bench_log(LOGS[0], 20, seed=seed, start_ms=T0, partitions=4) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_the_log_holds_valid_events_where_their_keys_belong() -> None:
    """2.65 events a search, in event time, each as a shop would send it."""
    log = bench_log(LOGS[0], 2_000, seed=1, start_ms=T0, partitions=4)
    assert sum(map(len, log.values())) / 2_000 == pytest.approx(2.65, abs=0.05)
    for partition, records in log.items():
        times = [SEARCH_RECORD.decode(record.value).event_time for record in records]
        assert times == sorted(times)
        assert {partition_for(record.key or b"", 4) for record in records} <= {partition}


def test_the_peer_writes_what_our_join_writes(records: list[Read]) -> None:
    """Keys and messages are equal, field by field: the peer is quicker by what it leaves out, not by writing less."""
    join, closed = lean_join.LeanJoin(PARTITION, window_ms=3_000, lateness_ms=1_000), list[tuple[bytes, bytes]]()
    for record in records:
        join.take(record, closed)
    ours = {emit.value: emit.key for emit in our_searches(records)}
    assert len(closed) > 800
    assert {json.dumps(json.loads(value)): key for value, key in ours.items()} == {
        json.dumps(json.loads(value)): key for key, value in closed
    }


@pytest.mark.parametrize(("peer", "packages"), [(lean_join, set()), (lean_collector, {"aiohttp"})])
def test_the_peer_shares_no_code_with_ours(peer: ModuleType, packages: set[str]) -> None:
    """It imports the standard library, aiokafka and msgspec, and a server; a slow core of ours cannot hide in it."""
    nodes = list(ast.walk(ast.parse(Path(str(peer.__file__)).read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"aiokafka", "msgspec", *packages}


def test_the_peer_would_read_again_from_the_oldest_open_search(records: list[Read]) -> None:
    """What it commits loses nothing either: no record below it belongs to a search that is open."""
    join, closed = lean_join.LeanJoin(PARTITION, window_ms=3_000, lateness_ms=1_000), list[tuple[bytes, bytes]]()
    for record in records[:2_000]:
        join.take(record, closed)
    again = lean_join.LeanJoin(PARTITION, window_ms=3_000, lateness_ms=1_000)
    rest = list[tuple[bytes, bytes]]()
    for record in records[join.hold_offset() :]:
        again.take(record, rest)
    whole = {emit.value for emit in our_searches(records)}
    as_written = {json.dumps(json.loads(value)) for value in whole}
    assert {json.dumps(json.loads(value)) for _, value in (*closed, *rest)} >= as_written


def test_the_shop_like_log_makes_two_pairs_a_list() -> None:
    """The pairs agent is measured at the work that a shop gives it."""
    log = bench_log(LOGS[1], 4_000, seed=1, start_ms=T0, partitions=4)[PARTITION]
    searches = our_searches([Read(offset, record.key, record.value or b"") for offset, record in enumerate(log)])
    assert {emit.topic for emit in searches} == {JOINED_SEARCHES}
    pairs, plan = PartitionPairs(PARTITION), Plan()
    for offset, search in enumerate(searches):
        pairs.take(Read(offset, search.key, search.value, headers=search.headers), plan)
    made = sum(isinstance(one, Emit) and one.topic == PREFERENCE_PAIRS for one in plan)
    assert made / len(searches) == pytest.approx(2.0, abs=0.25)


def test_the_collector_bench_sends_as_many_requests_as_it_says() -> None:
    """Each has as many events as its row is called by, and none was sent before."""
    logs = Logs()
    bodies = [*logs.requests(7, batch=10), *logs.requests(5, batch=10)]
    sent = [[event["event_id"] for event in json.loads(body)["events"]] for body in bodies]
    assert [len(events) for events in sent] == [10] * 12
    assert len({event for events in sent for event in events}) == 120
