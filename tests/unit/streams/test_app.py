"""How a worker says what it crashed with."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from aiokafka.errors import InvalidSessionTimeoutError, NodeNotReadyError

from contracts.errors import InvariantError, MillraceError, UsageError
from contracts.telemetry import Process
from service.health import Dependency
from service.process import Shutdown
from service.settings import Settings
from streams import app
from streams.agents.partition_agent import PartitionAgent
from streams.app import _raise_crash, _run_agents, _watch_kafka, agent_class, tune_interpreter
from streams.attribution.agent import ConversionAgent
from streams.join.agent import JoinAgent
from streams.pairs.agent import PairsAgent
from streams.propensity.agent import PropensityAgent
from streams.registry import AGENTS
from tests.conftest import SettingsFactory


def crashed(reason: BaseException | None) -> Any:
    """Return an agent whose app crashed with a reason."""
    return SimpleNamespace(name="join", app=SimpleNamespace(crashed=reason is not None, crash_reason=reason))


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        (UsageError("no such thing", fix="do this"), UsageError, "no such thing"),
        (InvalidSessionTimeoutError(), UsageError, "MILLRACE_SESSION_TIMEOUT_S"),
        (KeyError("oops"), InvariantError, "agent join crashed"),
    ],
)
def test_a_crash_ends_as_one_error_with_its_fix(
    settings: SettingsFactory, reason: BaseException, kind: type[MillraceError], words: str
) -> None:
    """Ours as it is, Kafka's translated, anything else named with its agent."""
    with pytest.raises(kind, match=words) as raised:
        _raise_crash(crashed(reason), settings())
    assert raised.value.fix


def test_an_agent_that_runs_raises_nothing(settings: SettingsFactory) -> None:
    """Watching costs nothing while all is well."""
    _raise_crash(crashed(None), settings())


def test_every_agent_in_the_registry_can_be_run() -> None:
    """One that does more than its rules plan names its class; the others need none."""
    classes: dict[str, Any] = {spec.name: agent_class(spec) for spec in AGENTS}
    assert (classes["join"], classes["pairs"], classes["attribution"]) == (JoinAgent, PairsAgent, ConversionAgent)
    assert classes["propensity"] is PropensityAgent
    assert all(issubclass(found, PartitionAgent) for found in classes.values())


@pytest.fixture
def collected() -> Iterator[list[int]]:
    """Give the generations of the collections that come during the test; Python's thresholds return afterwards."""
    generations: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        """Note the generation of a collection."""
        if phase == "start":
            generations.append(info["generation"])

    before = gc.get_threshold()
    gc.callbacks.append(note)
    yield generations
    gc.callbacks.remove(note)
    gc.set_threshold(*before)


def test_what_is_kept_for_long_is_not_looked_at_again_and_again(collected: list[int]) -> None:
    """A full collection would stop the worker for seconds with half a million searches open: none comes by itself."""
    tune_interpreter()
    gc.set_threshold(100, *gc.get_threshold()[1:])  # a small worker: as many collections for a fraction of the objects
    collected.clear()
    kept = [[number] for number in range(300_000)]
    assert len(kept) == 300_000
    assert set(collected) == {0, 1}


def asked(kafka_answers: Callable[[], Any], settings: Settings | None = None) -> Any:
    """Return an agent whose client answers so whether Kafka does."""
    client = SimpleNamespace(force_metadata_update=kafka_answers)
    app = SimpleNamespace(crashed=False, start=lambda: asyncio.sleep(0))
    return SimpleNamespace(app=app, settings=settings, output=SimpleNamespace(producer=SimpleNamespace(client=client)))


async def test_a_worker_is_not_ready_while_kafka_does_not_answer(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No, silence, errors and yes: one line when it goes, one when it is back, and a reason for it in between."""
    monkeypatch.setattr(app, "KAFKA_ANSWERS_WITHIN_S", 0.01)
    monkeypatch.setattr(app, "KAFKA_ASKED_EVERY_S", 0)
    kafka = Dependency(Process.KAFKA)
    answers: list[Any] = [True, False, None, NodeNotReadyError(), ConnectionResetError(), True]
    seen: list[str | None] = []

    async def force_metadata_update() -> bool:
        """Answer as the client does, or not at all; in the end the process stops."""
        seen.append(kafka.not_ready())
        if not answers:
            raise asyncio.CancelledError
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return await asyncio.Event().wait() if answer is None else bool(answer)

    with structlog.testing.capture_logs() as lines, pytest.raises(asyncio.CancelledError):
        await _watch_kafka(asked(force_metadata_update, settings(kafka_bootstrap="127.0.0.1:1")), kafka)
    assert [reason and reason.partition(" at ")[0] for reason in seen] == [
        None, None, *["Kafka does not answer"] * 4, None,
    ]  # fmt: skip
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_back"]


async def test_a_watch_that_breaks_ends_the_worker(settings: SettingsFactory) -> None:
    """What nobody expected is not passed over: a worker that no longer knows of Kafka would say that all is well."""

    async def force_metadata_update() -> bool:
        """Break."""
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        await _run_agents([asked(force_metadata_update, settings())], settings(), Shutdown(), Dependency(Process.KAFKA))
