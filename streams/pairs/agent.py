"""The pairs agent: before it judges a list it knows the propensities in force when the list was shown."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from faust.types import TP
from typing_extensions import override

from contracts.errors import DependencyDown
from contracts.outcomes import Cell
from contracts.progress import PairsProgress
from streams.agents.partition_agent import RETRY_S, TAKE_OVER_PATIENCE_S, OwnedPartition, PartitionAgent
from streams.pairs.partition_pairs import PartitionPairs
from streams.propensity.reader import PropensityReader

READ_EVERY_S: Final = 15.0
"""A version is in force a minute after it is published: whoever reads so often weighs a list as any replay does."""


class PairsAgent(PartitionAgent[PartitionPairs, PairsProgress]):
    """Gives the rules what is in force, read before the first list and every few seconds from then on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = PropensityReader(self.settings)
        self._due_s = -float("inf")
        self._is_told = False
        """Whether it was said that they cannot be read."""

    @override
    async def take_over(self, assigned: set[TP]) -> Mapping[TP, int]:
        """Know what is in force first: a list that was judged without it would be weighed by the prior for good."""
        deadline_s = time.monotonic() + TAKE_OVER_PATIENCE_S
        while True:
            if await self._read_on() or time.monotonic() >= deadline_s:
                return await super().take_over(assigned)
            await asyncio.sleep(RETRY_S)

    @override
    def restore_state(self, tp: TP, state: PartitionPairs) -> int:
        """Have the state weigh lists by what was read."""
        state.theta = self._theta
        return super().restore_state(tp, state)

    @override
    async def idle(self, owned: OwnedPartition[PartitionPairs, PairsProgress]) -> None:
        if time.monotonic() >= self._due_s:
            await self._read_on()

    def _theta(self, cell: Cell, position: int, at_ms: int) -> tuple[float, int]:
        """Ask what is read by now; a topic that was made anew is another lookup."""
        return self._reader.lookup.theta(cell, position, at_ms)

    async def _read_on(self) -> bool:
        try:
            await self._reader.read_on()
        except DependencyDown as error:
            if not self._is_told:
                self.log.warning("propensities_not_read", error=error.message, fix=error.fix)
            self._is_told, self._due_s = True, time.monotonic() + RETRY_S
            return False
        self._is_told, self._due_s = False, time.monotonic() + READ_EVERY_S
        return True
