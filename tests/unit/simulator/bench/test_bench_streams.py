"""The stream bench: the same log for the same seed, and rows that say what was measured."""

import pytest

from contracts.events import SEARCH_RECORD
from contracts.topics import partition_for
from contracts.wire import decode
from simulator.bench.streams import EVENTS_PER_SEARCH, bench_log, machine, result
from tests.support.search_events import T0


def test_the_log_is_the_same_for_the_same_seed() -> None:
    """Both sides read the same bytes, today and tomorrow."""
    assert bench_log(20, seed=1, start_ms=T0, partitions=4) == bench_log(20, seed=1, start_ms=T0, partitions=4)
    assert bench_log(20, seed=1, start_ms=T0, partitions=4) != bench_log(20, seed=2, start_ms=T0, partitions=4)


def test_the_log_holds_valid_events_where_their_keys_belong() -> None:
    """Nine events a search, in event time, each as a shop would send it."""
    log = bench_log(20, seed=1, start_ms=T0, partitions=4)
    assert sum(map(len, log.values())) == 20 * EVENTS_PER_SEARCH
    for partition, records in log.items():
        times = [decode(record.value, SEARCH_RECORD).event_time for record in records]
        assert times == sorted(times)
        assert {partition_for(record.key or b"", 4) for record in records} <= {partition}


@pytest.mark.parametrize(("ours", "met"), [([94, 96, 95], True), ([90, 94, 99], False)])
def test_a_row_compares_medians_with_the_goal(ours: list[float], met: bool) -> None:
    """The middle round of each side decides."""
    row = result("events", "events/s", ours=ours, peer="bare", peers=[100, 100, 101], goal=0.95)
    assert (row["met"], row["peer_value"], row["rounds"]["ours"]) == (met, 100, ours)


def test_figures_name_the_machine() -> None:
    """A figure without its machine says nothing."""
    assert machine()["cores"] >= 1
    assert set(machine()) == {"system", "processor", "cores", "memory_gb", "python"}
