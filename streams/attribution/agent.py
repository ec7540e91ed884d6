"""The agents of attribution: one that fills Redis from pairs and clicks, one that looks up what came late.

Without Redis both wait: the offsets stay where they are, Kafka keeps what was not read, and the rest of the worker goes
on. Each source is an agent of its own, so nothing orders them but the clock that the first keeps in Redis: up to when
what stood on its partitions is remembered. An event is looked up when that clock has passed it by a window.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from faust.types import TP
from typing_extensions import override

from contracts.progress import AgentProgress, PartitionProgress
from service.machine import epoch_ms
from service.redis import async_redis_client
from streams.agents.partition_agent import OwnedPartition, PartitionAgent
from streams.agents.spec import PartitionState, Plan
from streams.attribution.conversions import AttributionProgress, PartitionConversions, delay_ms
from streams.attribution.memory import AttributionMemory
from streams.attribution.remembered import CHOSEN, CLICKS, Remembering
from streams.transport.consumer import Chunk

RETRY_S: Final = 0.5
CLOCK_EVERY_S: Final = 0.5

S = TypeVar("S", bound=PartitionState[Any])
P = TypeVar("P", bound=PartitionProgress)


class RedisAgent(PartitionAgent[S, P]):
    """An agent that can do nothing while Redis is away, and needs no restart for that."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.memory = AttributionMemory(
            async_redis_client(self.settings), prefix=self.settings.topic_prefix, delay_ms=delay_ms(self.settings)
        )
        self.app.on_before_shutdown.connect(self._on_shutdown, weak=False)

    @override
    def not_ready(self) -> str | None:
        """Return why the agent is not ready; what it cannot catch up with while Redis is away holds up no other one."""
        if self.assigned is not None and not self.memory.is_up and not self.app.crashed:
            return None
        return super().not_ready()

    @override
    def stuck(self) -> str | None:
        """Return why only a restart helps, or None."""
        return super().stuck() if self.memory.is_up or self.app.crashed else None

    async def _on_shutdown(self, _app: Any, **_: Any) -> None:
        await self.memory.close()


class MemoryAgent(RedisAgent[Remembering, AgentProgress]):
    """Keeps in Redis what its rules say, before the progress that counts it is written."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._told_s: dict[int, float] = {}

    @override
    def shown(self) -> Mapping[str, Callable[[], str]]:
        """Show whether Redis answered when last asked: twice a second, for the clock."""
        return {"redis": lambda: "up" if self.memory.is_up else "down"}

    @override
    async def _carry_out(self, plan: Plan, tp: TP) -> None:
        await super()._carry_out(plan, tp)
        to_keep = self.owned[tp.partition].state.to_keep
        while not await self.memory.remember(to_keep):  # noqa: ASYNC110 - Redis tells nobody when it is back
            await asyncio.sleep(RETRY_S)
        to_keep.clear()

    @override
    async def idle(self, owned: OwnedPartition[Remembering, AgentProgress]) -> None:
        """Say up to when what stood on a partition is kept: now, if it was read to its end."""
        number, end = owned.tp.partition, self.end(owned.tp)
        if owned.owes_outputs or time.monotonic() - self._told_s.get(number, -CLOCK_EVERY_S) < CLOCK_EVERY_S:
            return
        at_end = end is not None and self.read_to(owned) >= max(end, owned.end_at_start)
        if at_end or owned.state.newest_append_ms > 0:
            self._told_s[number] = time.monotonic()
            at_ms = epoch_ms() if at_end else owned.state.newest_append_ms
            await self.memory.tell_clock(f"{self.spec.source}/{number}", at_ms)


class ConversionAgent(RedisAgent[PartitionConversions, AttributionProgress]):
    """Looks up what came late, once all is remembered that it could belong to."""

    @override
    async def _on_chunk(self, chunk: Chunk) -> None:
        await super()._on_chunk(chunk)
        owned = self.owned.get(chunk.tp.partition)
        if owned is not None and owned.state.is_full:
            async with owned.lock:
                await self.idle(owned)

    @override
    async def idle(self, owned: OwnedPartition[PartitionConversions, AttributionProgress]) -> None:
        """Decide what is due, a batch at a time."""
        state = owned.state
        while state.waits and not owned.owes_outputs:
            due = state.due(await self.memory.clock_ms(self._places()))
            wanted = {record.offset: conversion for record, conversion in due if conversion is not None}
            answers = await self.memory.claim(list(wanted.values()))
            if not due or (answers is None and not state.is_full):
                return
            plan: Plan = []
            owned.owes_outputs = True  # for good if a step below fails, as with a chunk
            found = None if answers is None else dict(zip(wanted, answers, strict=True))
            state.settle(len(due), found, plan)
            await self._carry_out(plan, owned.tp)
            owned.owes_outputs = False
            owned.owes_progress = True

    def _places(self) -> list[str]:
        return [f"{spec.source}/{number}" for spec in (CHOSEN, CLICKS) for number in range(self.settings.partitions)]
