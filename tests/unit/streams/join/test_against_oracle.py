"""The pure cores agree with the oracle of the kill test, record for record, before any process is killed."""

import orjson
import pytest

from contracts.joined import closed_watermark_of
from contracts.topics import PREFERENCE_PAIRS
from streams.agents.spec import Emit, Plan, SetAside
from streams.join.partition_join import PartitionJoin
from streams.pairs.partition_pairs import PairsOptions, PartitionPairs
from tests.faults.oracle import LogEntry, expect
from tests.faults.pair_oracle import rounded
from tests.faults.traffic import Traffic
from tests.support.search_events import T0, Record

WINDOW_MS, LATENESS_MS = 3_000, 1_000
SECONDS = 60


def traffic_log(seed: int) -> list[Record]:
    """Return a minute of traffic as the log of one partition, ended by a tick that closes everything."""
    traffic = Traffic(seed, searches_per_s=20, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS)
    sent = [
        (now_ms, one)
        for now_ms in range(T0, T0 + (SECONDS + 20) * 1000, 50)
        for one in traffic.until(now_ms, searching=now_ms < T0 + SECONDS * 1000)
    ]
    end_ms = T0 + 120_000
    ended = [(now_ms, one.value) for now_ms, one in sent] + [(end_ms, b'{"type":"tick","event_time":%d}' % end_ms)]
    return [Record(offset, now_ms, value) for offset, (now_ms, value) in enumerate(ended)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_join_and_pairs_say_what_the_oracle_says(seed: int) -> None:
    """Outcomes, reasons, searches and every field of every pair are those of the oracle."""
    log = traffic_log(seed)
    expected = expect(
        0,
        [LogEntry(record.offset, record.timestamp, record.value or b"") for record in log],
        window_ms=WINDOW_MS,
        lateness_ms=LATENESS_MS,
    )
    join, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS), Plan()
    for record in log:
        join.take(record, plan)
    assert {name: n for name, n in join.counts().items() if n} == expected.outcomes
    assert {one.record.offset: (one.outcome, one.reason) for one in plan if isinstance(one, SetAside)} == expected.aside
    pairs, made = PartitionPairs(0, options=PairsOptions(filters=frozenset())), Plan()
    for offset, search in enumerate(one for one in plan if isinstance(one, Emit)):
        pairs.take(Record(offset, T0, search.value), made)
    written = [one.value for one in made if isinstance(one, Emit) and one.topic == PREFERENCE_PAIRS]
    found = {pair["pair_id"]: pair for pair in map(orjson.loads, written)}
    assert {pair_id: rounded(pair) for pair_id, pair in found.items()} == {
        pair_id: rounded(pair) for pair_id, pair in expected.pairs.items()
    }
    assert len(expected.pairs) > 1000
    assert pairs.counts == expected.search_outcomes


@pytest.mark.parametrize("seed", [4, 5])
def test_a_watermark_is_a_promise(seed: int) -> None:
    """No list follows that closes earlier: neither after a list that carries one, nor after what the join tells."""
    join, promised_ms, lists = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS), 0, 0
    for record in traffic_log(seed):
        plan = Plan()
        join.take(record, plan)
        for one in (one for one in plan if isinstance(one, Emit)):
            told = closed_watermark_of(one.headers)
            assert told is not None
            assert promised_ms <= orjson.loads(one.value)["closed_at"] <= told.watermark_ms
            promised_ms, lists = told.watermark_ms, lists + 1
        assert join.event_time.watermark_ms >= promised_ms
        promised_ms = join.event_time.watermark_ms
    assert lists > 500
