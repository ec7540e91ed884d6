"""Days of stream agents and indexers in virtual time and all that may happen; `python -m tests.simulation` has more."""

from typing import Any

import pytest
from typing_extensions import override

from contracts.joined import ClosedSearches
from indexer.catalog.loop import CatalogLoop
from indexer.catalog.planning import CatalogRecord, plan_batch
from streams.agents.partition_agent import PartitionAgent
from streams.arms import partition_arms
from streams.transport.consumer import Chunk
from tests.simulation import check_index
from tests.simulation.check import problems
from tests.simulation.index_world import IndexWorld
from tests.simulation.world import World


def lived(seed: int) -> World:
    """Return the world of a seed after its day."""
    world = World(seed)
    world.run()
    return world


def indexed(seed: int) -> IndexWorld:
    """Return the indexers' world of a seed after its day."""
    world = IndexWorld(seed)
    world.run()
    return world


@pytest.mark.parametrize("seed", [*range(5), 431])
def test_whatever_happens_to_the_workers_the_agents_say_what_the_log_says(seed: int) -> None:
    """Lists, pairs, sums, late values and every ledger are those of a day without faults."""
    assert problems(lived(seed)) == []


def test_a_seed_is_one_story() -> None:
    """Whatever was found is found again: the same steps, to the last."""
    first, second = lived(3), lived(3)
    assert (list(first.steps), first.loop.time()) == (list(second.steps), second.loop.time())
    assert len(first.steps) > 10


async def _progress_first(self: PartitionAgent[Any, Any], chunk: Chunk) -> None:
    """Take a chunk, and count what follows from it before that is written."""
    owned = self.owned.get(chunk.tp.partition)
    if owned is None:
        return
    async with owned.lock:
        plan: list[Any] = []
        for record in chunk:
            owned.state.take(record, plan)
        owned.read_offset = chunk[-1].offset + 1
        await self._write_progress(owned)
        await self._carry_out(plan, chunk.tp)


def test_progress_before_its_outputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the delivery promise is what the days are about: turned round, pairs or lists are missing soon."""
    monkeypatch.setattr(PartitionAgent, "_on_chunk", _progress_first)
    assert any(problems(lived(seed)) for seed in range(20))


def test_repeats_that_are_counted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that a killed join wrote twice is told by its closing number alone."""

    class Forgetful(ClosedSearches):
        """Takes no list for a repeat."""

        @override
        def is_repeat(self, closing: Any) -> bool:
            """Say no."""
            return closing is None

    monkeypatch.setattr(partition_arms, "ClosedSearches", Forgetful)
    assert any("arms" in problem for seed in range(20) for problem in problems(lived(seed)))


@pytest.mark.parametrize("seed", [*range(5), 7])
def test_whatever_happens_to_the_indexers_the_index_says_what_the_catalogue_says(seed: int) -> None:
    """Once quiet: nothing missing, stale or resurrected, one base, the newest release that was not taken back."""
    assert check_index.problems(indexed(seed)) == []


def test_an_index_day_is_one_story_too() -> None:
    """Threads take turns by the seed alone."""
    first, second = indexed(2), indexed(2)
    assert (list(first.steps), first.turns.now_s) == (list(second.steps), second.turns.now_s)
    assert len(first.steps) > 10


def test_a_commit_before_its_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the indexer's promise is what its days are about: turned round, changes are missing soon."""

    def commit_first(self: CatalogLoop, records: list[CatalogRecord]) -> None:
        """Move the offsets, then do what they stand for."""
        plan = plan_batch(records, self._log.known.get)
        self._log.set_aside(plan.refusals)
        self._commit(records, plan)
        for changes in plan.batches():
            self._apply(changes)

    monkeypatch.setattr(CatalogLoop, "_work_off", commit_first)
    assert any("is committed at" in problem for seed in range(5) for problem in check_index.problems(indexed(seed)))
