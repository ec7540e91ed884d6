"""Workers that come and go under load: what a worker keeps it does not read again, and nothing is lost or doubled.

Members without a name: each one that comes or goes makes Kafka take all partitions from all and hand them out anew.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.kafka import ensure_topics
from tests.conftest import SettingsFactory
from tests.faults.comparison import compare, is_settled
from tests.faults.shop_site import ShopSite
from tests.faults.test_kill_streams import LATENESS_S, WINDOW_S
from tests.faults.traffic import Traffic
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.stream_worker import Worker
from tests.support.topics import read_lists

SEED = 20_261_122
ROUNDS = 3

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def workers(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[list[Worker]]:
    """Give two workers without names, not started, and leave none behind."""
    windows = {"join_window_s": WINDOW_S, "lateness_s": LATENESS_S, "filters": "none"}
    both = [Worker(kafka_settings(port=free_port(), **windows), tmp_path / f"w{n}.log") for n in (1, 2)]
    ensure_topics(both[0].settings)
    try:
        yield both
    finally:
        for worker in both:
            worker.end()


def test_partitions_that_stay_are_not_read_again(workers: list[Worker]) -> None:
    """A second member joins and leaves, three times, under load: the first keeps its share, and all counts balance."""
    steady, guest = workers
    settings = steady.settings
    steady.start()
    steady.wait_ready()
    traffic = Traffic(SEED, searches_per_s=30, window_ms=int(WINDOW_S * 1000), lateness_ms=int(LATENESS_S * 1000))
    loaded = steady.loaded("join")
    with ShopSite(settings, traffic) as site:
        site.wait_for_more(100)
        for _ in range(ROUNDS):
            guest.start()
            guest.wait_ready()
            eventually(lambda: len(steady.partitions("join")) == 2, timeout_s=60, what="each has its share")
            kept = set(steady.partitions("join"))
            site.wait_for_more(60)
            assert guest.stop() == 0
            eventually(lambda: len(steady.partitions("join")) == 4, timeout_s=60, what="all partitions are back")
            steady.wait_ready()
            site.wait_for_more(60)
            came_back = steady.loaded("join") - loaded
            assert set(came_back) == set(range(4)) - kept
            loaded = steady.loaded("join")
        site.finish()
        eventually(lambda: is_settled(settings), timeout_s=60, interval_s=0.5, what="everything closed and paired")
    assert steady.stop() == 0
    counts = compare(settings)
    written = sum(map(len, read_lists(settings).values()))
    print(json.dumps({"sent": site.acknowledged, "searches_written": written, **counts}), file=sys.stderr)  # noqa: T201 - the test's figures
    assert site.acknowledged == counts["events"]
    assert counts["repeated_searches"] == counts["repeated"] == 0
    assert isinstance(loaded, Counter)
