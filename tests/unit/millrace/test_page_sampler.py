"""The sampler's verdicts about itself, and the gauges it sets."""

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown, MalformedMessage, MillraceError, UsageError
from contracts.telemetry import Process
from contracts.topics import CATALOG
from millrace import page as module
from millrace.page import STALE_AFTER_S, Sampler, export
from millrace.watch.kafka_view import KafkaView
from millrace.watch.observer import Observer, snapshot
from service import metrics
from service.health import Health
from service.models import ModelsView
from service.settings import Settings
from streams import registry
from tests.support.deployment import busy_kafka, busy_snapshot, models_table
from tests.support.poll import eventually
from tests.support.toy_agent import TOY

SETTINGS = Settings(kafka_bootstrap="broker:9092")


class Deployment:
    """An observer of a deployment that answers, or fails where told to."""

    failure: Exception | None = None
    unknown: Mapping[str, MillraceError] = MappingProxyType({})
    looks = 0

    def __init__(self, settings: Settings) -> None:
        assert settings.dependency_wait_s < SETTINGS.dependency_wait_s
        self.models = models_table()

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def wait_caught_up(self, timeout_s: float) -> None:
        """Have read everything."""
        assert timeout_s > 0

    def look(self) -> KafkaView:
        """Return what is seen."""
        type(self).looks += 1
        if self.failure is not None:
            raise self.failure
        return replace(busy_kafka(), unknown=self.unknown)


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> type[Deployment]:
    """Give a deployment that samplers of this test look at, without waiting between looks."""
    monkeypatch.setattr(module, "Observer", fresh := type("Fresh", (Deployment,), {}))
    monkeypatch.setattr(module, "PERIOD_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    Health(Process.PAGE)
    return fresh


def sample(name: str, **labels: str) -> float | None:
    """Return the value of a gauge."""
    return REGISTRY.get_sample_value(name, labels)


def test_a_sampler_becomes_ready_with_its_first_look(deployment: type[Deployment]) -> None:
    """The view is there, nothing is against it, and it goes on asking."""
    watching = Sampler(SETTINGS)
    watching.start()
    try:
        eventually(lambda: deployment.looks > 2)
        assert watching.not_ready() is None
        assert watching.latest is not None
        assert watching.latest["ledger"]["events"]["balance"] == 0
    finally:
        watching.stop()
    assert not watching._thread.is_alive()


@pytest.mark.parametrize(
    "failure", [DependencyDown("Kafka is away"), UsageError("login refused"), MalformedMessage("missing", "no release")]
)
def test_a_failure_is_shown_and_passes(failure: Exception, deployment: type[Deployment]) -> None:
    """Whatever is expected to fail makes the page not ready; it tries again and recovers by itself."""
    deployment.failure = failure
    watching = Sampler(SETTINGS)
    watching.start()
    try:
        eventually(lambda: watching.not_ready() == f"kafka not known: {failure}")
        assert watching.not_live() is None
        assert watching.latest is not None
        assert watching.latest["ledger"]["events"]["balance"] is None
        deployment.failure = None
        eventually(lambda: watching.not_ready() is None)
    finally:
        watching.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_only_a_fault_of_ours_ends_it(deployment: type[Deployment]) -> None:
    """A bug makes the process dead, because only a restart can help; it is not retried in silence."""
    deployment.failure = ZeroDivisionError("a bug")
    watching = Sampler(SETTINGS)
    watching.start()
    assert "a bug" in str(eventually(watching.not_live))
    watching.stop()


def test_half_a_view_is_shown_and_not_ready(deployment: type[Deployment]) -> None:
    """What is not known has its reason; the rest is current, and the page says that it is not whole."""
    deployment.unknown = {CATALOG: DependencyDown("the topic is gone")}
    watching = Sampler(SETTINGS)
    watching.start()
    try:
        eventually(lambda: watching.not_ready() == "catalog not known: the topic is gone")
        assert watching.latest is not None
        assert watching.latest["ledger"]["searches"]["balance"] == 0
        assert watching.latest["lag"]["groups"]["indexer"]["records"] is None
    finally:
        watching.stop()


def test_processes_are_shown_while_kafka_is_away(deployment: type[Deployment]) -> None:
    """Whoever looks for the cause sees who answers."""
    deployment.failure = DependencyDown("Kafka is away")
    watching = Sampler(SETTINGS.model_copy(update={"scrape": "search=http://127.0.0.1:1"}))
    watching.start()
    try:
        view = eventually(lambda: watching.latest)
        assert view is not None
        assert view["processes"] == [
            {"name": "search", "state": "silent", "reasons": ["does not answer: ConnectError"]}
        ]
        assert view["unknown"] == {"kafka": "Kafka is away"}
    finally:
        watching.stop()


def test_a_view_that_stays_old_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that hangs without failing is noticed by the age of the last one."""
    watching = Sampler(SETTINGS)
    watching.latest, watching._unknown = busy_snapshot(), None
    assert watching.not_ready() is None
    later = time.monotonic() + STALE_AFTER_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert "the last look is 16 s old" in str(watching.not_ready())


def test_stopping_what_never_began_is_harmless() -> None:
    """A process that fails at its start stops cleanly."""
    Sampler(SETTINGS).stop()


def test_a_wrong_target_is_refused_at_once() -> None:
    """A misspelt setting ends the process with one line, not the thread later."""
    with pytest.raises(UsageError, match="MILLRACE_SCRAPE"):
        Sampler(Settings(kafka_bootstrap="broker:9092", scrape="search"))


def test_the_balance_of_every_agents_ledger_is_there_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is added needs no second list: its ledger is that of its line in the registry."""
    monkeypatch.setattr(registry, "AGENTS", (*registry.AGENTS, TOY))
    metrics.LEDGER_BALANCE.clear()
    Health(Process.PAGE)
    Sampler(SETTINGS)
    assert [sample("millrace_ledger_balance_records", ledger=name) for name in ("events", "searches", "toy")] == [0] * 3
    metrics.LEDGER_BALANCE.clear()


def test_gauges_hold_lag_and_ledgers() -> None:
    """A term with reasons is exported as its sum; the balance has a gauge of its own."""
    Health(Process.PAGE)
    export(busy_snapshot())
    assert sample("millrace_consumer_lag_records", group="join", topic="search-events", partition="3") == 60
    assert sample("millrace_ledger_records", ledger="searches", term="unpaired") == 240
    assert sample("millrace_ledger_records", ledger="events", term="pending") == 4 * 20 + 114 + 40
    assert sample("millrace_ledger_records", ledger="events", term="balance") is None
    assert sample("millrace_ledger_balance_records", ledger="searches") == 0


def test_what_is_not_known_has_no_series() -> None:
    """An alert must neither fire on an old figure nor be calmed by it."""
    Health(Process.PAGE)
    export(busy_snapshot())
    kafka = replace(busy_kafka(), unknown={"kafka": DependencyDown("away")})
    export(snapshot(kafka, ModelsView(), {}, at_ms=0, promise_s=60))
    assert sample("millrace_consumer_lag_records", group="join", topic="search-events", partition="3") is None
    assert sample("millrace_ledger_records", ledger="searches", term="unpaired") is None
    assert sample("millrace_ledger_balance_records", ledger="events") is None


def test_a_kafka_that_is_away_shows_in_the_gauge(deployment: type[Deployment]) -> None:
    """Alerts see that the numbers beside it are old."""
    deployment.failure = DependencyDown("Kafka is away")
    watching = Sampler(SETTINGS)
    watching.start()
    try:
        eventually(lambda: sample("millrace_dependency_up", dependency="kafka") == 0)
        deployment.failure = None
        eventually(lambda: sample("millrace_dependency_up", dependency="kafka") == 1)
    finally:
        watching.stop()


def test_the_deployment_of_these_tests_stands_for_an_observer() -> None:
    """It has the methods that the sampler uses of the real one."""
    used = {"__enter__", "__exit__", "wait_caught_up", "look"}
    assert used <= set(vars(Deployment)) & set(vars(Observer))
