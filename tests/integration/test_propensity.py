"""Propensities on a real Kafka: lists in, versions out, each list once whatever is killed, and the command."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from kafka import KafkaProducer
from typer.testing import CliRunner

from contracts.joined import CLOSING_NUMBER_HEADER, ClosingNumber
from contracts.outcomes import Cell
from contracts.propensities import CELL_PROPENSITIES, CellPropensities
from contracts.structs import JoinedSearch, encode
from contracts.topics import JOINED_SEARCHES, PROPENSITIES, TOPICS, partition_for
from contracts.wire import decode
from millrace.cli import app
from service.kafka import OutgoingRecord, ensure_topics, produce_all, producer_config, records_of
from service.settings import Settings
from streams.propensity.partition_propensity import PROPENSITY
from streams.propensity.reader import PropensityReader
from tests.conftest import SettingsFactory
from tests.support.in_one_go import written_and_in_one_go
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.position_log import PositionShop
from tests.support.stream_worker import Worker

pytestmark = [pytest.mark.kafka]

CELL = Cell("search", "mobile")


@pytest.fixture
def start_worker(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[Callable[[str], Worker]]:
    """Give a function that starts workers of the propensity agent alone, which publish as soon as they may."""
    base = kafka_settings(partitions=2, agents="propensity", propensity_interval_s=1.0, session_timeout_s=6)
    ensure_topics(base, TOPICS)
    started = []

    def start(name: str) -> Worker:
        """Start a worker of this test's shop."""
        settings = base.model_copy(update={"port": free_port(), "worker_id": name})
        started.append(Worker(settings, tmp_path / f"{name}.log"))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def worker(start_worker: Callable[[str], Worker]) -> Worker:
    """Give one that is ready."""
    one = start_worker("w1")
    one.wait_ready()
    return one


def send(settings: Settings, lists: Sequence[JoinedSearch], first: int) -> None:
    """Write lists as a join does, numbered from `first`, each in the partition of its search."""
    records = []
    for number, search in enumerate(lists, start=first):
        key = search.search_id.encode()
        partition = partition_for(key, settings.partitions)
        header = (CLOSING_NUMBER_HEADER, ClosingNumber(f"{partition}-0", number).encode())
        records.append(OutgoingRecord(settings.topic(JOINED_SEARCHES), encode(search), key=key, headers=[header]))
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, records)


def versions(settings: Settings) -> list[CellPropensities]:
    """Return the versions on the topic, in the order in which they were published."""
    return [decode(record.value, CELL_PROPENSITIES) for record in records_of(settings, PROPENSITIES) if record.value]


def wait_counted(settings: Settings, lists: int) -> None:
    """Wait until the last version tells of so many lists."""

    def counted() -> bool:
        """Return whether it does."""
        return bool(found := versions(settings)) and found[-1].lists == lists

    eventually(counted, timeout_s=60, interval_s=0.3, what=f"a version of {lists} lists")


async def test_lists_become_versions_once_each_though_the_worker_is_killed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums equal those of a log read in one go; versions rise by one; lookup and command show the last one."""
    lists = list(PositionShop([1, 0.6, 0.4, 0.3], swapped=0.5, anchored=0.5, queries=8).lists(3_000))
    for begin in range(0, 3_000, 1_000):
        send(worker.settings, lists[begin : begin + 1_000], begin + 1)
        if begin < 2_000:
            eventually(lambda: bool(versions(worker.settings)), timeout_s=60, interval_s=0.2, what="a version")
            worker.kill()
            send(worker.settings, lists[begin : begin + 100], begin + 1)  # a join that was killed writes them again
            worker.start()
            worker.wait_ready()
    wait_counted(worker.settings, 3_000)
    found, whole = await written_and_in_one_go(worker.settings, PROPENSITY)
    assert {number: one.cells for number, one in found.items()} == {number: one.cells for number, one in whole.items()}
    assert sum(one.counts["left/duplicate"] for one in found.values()) == 200
    published = versions(worker.settings)
    assert [one.version for one in published] == list(range(1, len(published) + 1))
    assert all(one.cell == CELL and one.effective_from >= one.estimated_at + 60_000 for one in published)
    assert all(a.effective_from < b.effective_from for a, b in pairwise(published))

    reader = PropensityReader(worker.settings)
    await reader.read_on()
    last = published[-1]
    assert reader.newest() == {CELL: last}
    assert reader.lookup.theta(CELL, 2, last.effective_from) == (last.slots[1].theta, last.version)
    assert reader.lookup.theta(CELL, 2, published[0].effective_from - 1) == (0.5, 0)

    for name, value in worker.environ.items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(app, ["propensities", "--json"])
    assert shown.exit_code == 0
    (cell,) = json.loads(shown.stdout)["cells"]
    assert (cell["version"], cell["slots"][1]["theta"]) == (last.version, last.slots[1].theta)
    assert 'millrace_propensity_lists_total{outcome="counted",reason=""}' in worker.metrics()
    assert worker.stop() == 0
    assert worker.complaints() == []


def test_another_worker_goes_on_publishing(start_worker: Callable[[str], Worker]) -> None:
    """Who owns partition 0 publishes; after its death the next owner does, version by version, with the same sums."""
    both = [start_worker("w1"), start_worker("w2")]
    eventually(
        lambda: sorted(number for one in both for number in one.partitions("propensity")) == [0, 1],
        timeout_s=60,
        interval_s=0.3,
        what="a partition for each worker",
    )
    for one in both:
        one.wait_ready()
    settings = both[0].settings
    lists = list(PositionShop([1, 0.6, 0.4, 0.3], swapped=0.5, anchored=0.5, queries=8).lists(3_000))
    send(settings, lists[:2_000], 1)
    wait_counted(settings, 2_000)
    publisher, other = sorted(both, key=lambda one: one.partitions("propensity"))
    publisher.kill()
    send(settings, lists[2_000:], 2_001)
    wait_counted(settings, 3_000)
    assert other.partitions("propensity") == [0, 1]
    published = versions(settings)
    assert [one.version for one in published] == list(range(1, len(published) + 1))
    assert sum("propensities_published" in one.log_path.read_text(encoding="utf-8") for one in both) == 2


async def test_a_reader_follows_what_is_taken_back(worker: Worker) -> None:
    """A version that was deleted holds no more; one that cannot be read is left out, and the others stand."""
    reader = PropensityReader(worker.settings)
    await reader.read_on()
    assert reader.newest() == {}
    slots = [{"position": 1, "theta": 1.0, "low": 1.0, "high": 1.0, "clicks": 0.0, "prior_only": False}]
    base = {**CELL._asdict(), "effective_from": 1_795_196_000_000, "estimated_at": 1_795_196_000_000, "lists": 9}
    base |= {"swap_clicks": 5.0, "history_clicks": 0.0, "steepness": 2.0, "slots": slots}
    one, two = (CellPropensities.model_validate({**base, "version": n, "steepness": n}) for n in (1, 2))
    topic = worker.settings.topic(PROPENSITIES)
    with KafkaProducer(**producer_config(worker.settings)) as producer:
        values = [(b"[]", b"no version"), (one.key, one.model_dump_json().encode())]
        produce_all(producer, [OutgoingRecord(topic, value, key=key) for key, value in values])
        await reader.read_on()
        assert reader.newest() == {CELL: one}
        values = [(two.key, two.model_dump_json().encode())]
        produce_all(producer, [OutgoingRecord(topic, value, key=key) for key, value in values])
        await reader.read_on()
        assert reader.lookup.theta(CELL, 2, 1_795_196_000_001) == (0.25, 2)
        produce_all(producer, [OutgoingRecord(topic, None, key=two.key)])
        await reader.read_on()
    assert reader.lookup.theta(CELL, 2, 1_795_196_000_001) == (0.5, 1)
