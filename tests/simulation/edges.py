"""The world in place of clocks, Kafka, Redis and disk: the names through which agents reach them, replaced for a day.

Some limits are lowered too, so that a small shop comes to them; those of time are raised, for fewer steps a day.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from service import health, propensities
from streams.agents import partition_agent, progress
from streams.arms import partition_arms
from streams.attribution import agent as attribution_agent
from streams.attribution.memory import AttributionMemory
from streams.join import agent as join_agent
from streams.pairs import agent as pairs_agent
from streams.propensity import agent as propensity_agent
from streams.propensity import estimate, partition_propensity
from streams.propensity import reader as propensity_reader
from tests.simulation.loop import PROCESS
from tests.simulation.workers import App, Worker


class DiskFile:
    """A file on the disk of the worker that runs.

    Args:
        worker: whose disk it is on.
        name: of it.
    """

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker, self._name = worker, name
        self.parent = SimpleNamespace(mkdir=lambda **_: None)

    def read_bytes(self) -> bytes:
        """Return its content."""
        try:
            return self._worker.disk[self._name]
        except KeyError:
            raise FileNotFoundError(self._name) from None

    def write(self, content: bytes, *, mode: int) -> None:
        """Replace it in one step."""
        if self._worker.disk_is_full:
            raise OSError(28, f"No space left for {self._name}, {mode:o}")
        self._worker.disk[self._name] = content


class Narrator:
    """Takes what agents log: it is part of the story, and an error is one."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def info(self, event: str, **fields: object) -> None:
        """Note a line."""
        process = PROCESS.get()
        self._world.note("" if process is None else process.name, event, fields)

    warning = info

    def error(self, event: str, **fields: object) -> None:
        """Note a line that nothing here is a reason for."""
        self._world.fail(f"{event} {fields}")


@contextmanager
def installed(world: Any) -> Iterator[None]:
    """Put the world in place of clocks, Kafka, Redis and disk, for the agents."""
    clock = SimpleNamespace(monotonic=world.monotonic_s, time=lambda: world.epoch_ms() / 1000)
    workers = {worker.name: worker for worker in world.workers}
    real_owned = partition_agent.OwnedPartition

    def owned(*arguments: Any) -> Any:
        """Return an assigned partition whose moments are of this world."""
        made = real_owned(*arguments)
        made.moved_s = made.at_end_s = world.monotonic_s()
        return made

    def state_file(_agent: Any, tp: Any) -> DiskFile:
        process = PROCESS.get()
        assert process is not None
        return DiskFile(workers[process.name], f"{tp.topic}-{tp.partition}")

    narrator = Narrator(world)
    with ExitStack() as stack:

        def put(module: Any, **replaced: Any) -> None:
            stack.enter_context(patch.multiple(module, **replaced))

        for module in (partition_agent, join_agent, pairs_agent, attribution_agent, propensity_agent):
            put(module, time=clock)
        for module in (partition_agent, join_agent, attribution_agent, propensity_agent):
            put(module, epoch_ms=world.epoch_ms)
        put(
            partition_agent,
            BatchApp=lambda *_, **__: App(world.cluster),
            OwnedPartition=owned,
            get_logger=lambda **_: narrator,
            PROGRESS_EVERY_S=90.0,
            PROGRESS_AFTER_OUTPUT_S=3.0,
        )
        put(propensities, get_logger=lambda **_: narrator)
        put(propensity_reader, log_reader=world.cluster.reader)
        put(progress, log_reader=world.cluster.reader)
        stack.enter_context(patch.dict(progress._newest_progress.__kwdefaults__, tail=12))
        put(partition_propensity, BLOCK_LISTS=25)
        put(estimate, REPLICAS=2, ENOUGH_CLICKS=3.0)
        put(partition_arms, GROUPS=2)
        put(health, get_logger=lambda **_: narrator)
        put(
            attribution_agent,
            async_redis_client=lambda _: world.redis,
            AttributionMemory=partial(AttributionMemory, monotonic_s=world.monotonic_s),
        )
        put(
            join_agent,
            MARK_EVERY_S=90.0,
            REMIND_EVERY_S=1_800.0,
            SAVE_AFTER_RECORDS=8,
            write_atomically=lambda file, content, *, mode: file.write(content, mode=mode),
        )
        stack.enter_context(patch.object(join_agent.JoinAgent, "_state_file", state_file))
        yield
