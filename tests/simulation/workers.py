"""Stream workers: the real agents, with a consumer, a group and a producer that live in memory.

What stands here in place of Faust and of our transport does what those do: a chunk counts as finished once the agent
asks for the next, a rebalance waits for the chunk in hand, lets the agent settle and commits, and a member that does
not answer in time loses its partitions without knowing.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import orjson
from faust.types import TP

from contracts.errors import DependencyDown
from streams.agents.spec import AgentSpec
from streams.app import agent_class
from streams.transport.consumer import Chunk
from tests.simulation.kafka import Cluster, LoggedOutput
from tests.simulation.loop import PROCESS, Process

SESSION_S: Final = 10.0
REBALANCE_S: Final = 60.0
HEARTBEAT_S: Final = 3.0
MOST_IDLE_S: Final = 1_200.0


class App:
    """Stands where an agent's Faust app is.

    Args:
        cluster: that it speaks to.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.consumer = self
        self.crashed, self.rebalancing = False, True
        self.commit_limits: dict[TP, int] = {}
        nobody = SimpleNamespace(connect=lambda *_, **__: None)
        self.on_partitions_assigned = self.on_partitions_revoked = self.on_before_shutdown = nobody

    def batch_topic(self, name: str) -> str:
        """Return a topic."""
        return name

    def agent(self, _topic: str, *, name: str) -> Any:
        """Take an agent's body, which whoever runs it knows."""
        return lambda body: body

    def timer(self, _interval_s: float) -> Any:
        """Take a timer's body, which whoever runs it knows."""
        return lambda body: body

    def output(self) -> LoggedOutput:
        """Return what agents write through."""
        return LoggedOutput(self.cluster)

    def highwater(self, tp: TP) -> int:
        """Return where a log ends."""
        return self.cluster.logs[tp.topic, tp.partition].end

    def read_past(self, tp: TP, offset: int) -> int:
        """Return where the next record stands, or the log's end: some offsets hold none."""
        log = self.cluster.logs[tp.topic, tp.partition]
        following = log.read(offset, 1)
        return following[0].offset if following else log.end

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        """Return where logs begin."""
        return dict.fromkeys(tps, 0)


class Group:
    """The members that share the partitions of a topic.

    Args:
        partitions: how many there are.
        rng: decides who gets which.
    """

    def __init__(self, partitions: int, rng: random.Random) -> None:
        self.partitions = partitions
        self.rng = rng
        self.members: list[Member] = []
        """Those that were given partitions last."""
        self._joining: dict[Member, asyncio.Future[list[int]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def join(self, member: "Member") -> list[int]:
        """Ask for partitions; return the numbers of those that the member is given."""
        self._joining[member] = asyncio.get_running_loop().create_future()
        self.kick()
        return await self._joining[member]

    def leave(self, member: "Member") -> None:
        """Let a member go; if it had partitions others get them, and are asked to join for that."""
        self._joining.pop(member, None)
        if member in self.members:
            self.members.remove(member)
            for other in self.members:
                other.asked.set()
            self.kick()

    def kick(self) -> None:
        """See to it that partitions are given out anew."""
        if self._task is None or self._task.done():
            context = PROCESS.set(None)  # a broker dies with nobody
            self._task = asyncio.get_running_loop().create_task(self._rebalance())
            PROCESS.reset(context)

    async def _rebalance(self) -> None:
        """Give partitions to whoever joins, until nobody asks any more."""
        await asyncio.sleep(self.rng.random())
        while self._joining:
            for member in self.members:
                member.asked.set()
            waited_s = 0.0
            while set(self.members) - self._joining.keys() and waited_s < REBALANCE_S:
                await asyncio.sleep(1.0)
                waited_s += 1.0
            joined, self._joining = self._joining, {}
            if not joined:
                return  # whoever asked is gone
            self.members = [*joined]
            given: dict[Member, list[int]] = {member: [] for member in joined}
            for number in range(self.partitions):
                given[self.rng.choice(self.members)].append(number)
            for member, future in joined.items():
                member.asked.clear()
                future.set_result(given[member])
            await asyncio.sleep(1.0)


class Member:
    """One agent in one worker, with its place in its group.

    Args:
        agent: a real one.
        group: whose partitions it shares.
        world: what it runs in; its chance decides how much is read at once, and how long it takes.
    """

    def __init__(self, agent: Any, group: Group, world: Any) -> None:
        self.agent, self.group, self.cluster, self.rng = agent, group, world.cluster, world.rng
        self._fail = world.fail
        self.asked = asyncio.Event()
        """Whether the group wants it to join again."""
        self.news = asyncio.Event()
        self.committed: dict[TP, int] = {}
        self._positions: dict[TP, int] = {}
        self._finished: dict[TP, int] = {}
        self._flows = False
        self._done = asyncio.Event()
        self._done.set()
        self._calm_s = 0.0
        for number in range(group.partitions):
            self.cluster.logs[agent.topic, number].readers.append(self.news.set)

    def forget(self) -> None:
        """Let nobody tell it of records any more."""
        for number in range(self.group.partitions):
            self.cluster.logs[self.agent.topic, number].readers.remove(self.news.set)

    async def take_chunks(self) -> None:
        """Run the agent's own loop."""
        await self.agent._run(self._chunks())

    async def keep_time(self) -> None:
        """Run the agent's timer: often while anything moves, and more and more rarely while nothing does."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.5, 1.0) * (2.0 + self._calm_s))
            self._calm_s = min(4 * self._calm_s + 4.0, MOST_IDLE_S)
            await self.agent._on_timer()

    async def be_member(self) -> None:
        """Join, take over what is given, and give it back when the group asks."""
        while True:
            numbers = await self.group.join(self)
            tps = {TP(self.agent.topic, number): None for number in numbers}.keys()
            await self.agent._on_assigned(None, tps)
            self._positions = dict(await self.agent.take_over(tps))
            self._flows, self.agent.app.rebalancing = True, False
            self.stir()
            await self.asked.wait()
            await asyncio.sleep(HEARTBEAT_S * self.rng.random())
            await self.give_back()

    async def give_back(self) -> None:
        """Finish the chunk in hand, write what is owed, commit, and let go."""
        self._flows, self.agent.app.rebalancing = False, True
        await self._done.wait()
        await self.agent.settle()
        self.commit()
        self._finished.clear()
        self.agent.app.commit_limits.clear()
        await self.agent._on_revoked(None, self._positions.keys())

    def commit(self) -> None:
        """Commit what is finished, as far as the agent allows."""
        limits = self.agent.app.commit_limits
        for tp, finished in self._finished.items():
            committed = min(finished, limits.get(tp, finished))
            if committed > self.committed.get(tp, 0):
                written = self.cluster.logs[self.agent.spec.progress_topic, tp.partition].records[-6:]
                held = max((orjson.loads(record.value or b"")["hold_offset"] for record in written), default=0)
                if committed > held:
                    self._fail(f"{self.agent.name} commits {committed} of {tp}; a restart would read from {held}")
            self.committed[tp] = committed

    def stir(self) -> None:
        """Something moves: look soon."""
        self._calm_s = 0.0
        self.news.set()

    async def _chunks(self) -> AsyncIterator[Chunk]:
        """Give chunk after chunk; one is finished when the next is asked for."""
        while True:
            chunk = self._next_chunk() if self._flows else None
            if chunk is None:
                self.news.clear()
                await self.news.wait()
                await asyncio.sleep(self.rng.random() ** 3 * 60.0)  # fetches gather
                continue
            self._positions[chunk.tp] = chunk[-1].offset + 1
            if chunk[-1].key is not None:
                self.stir()
            self._done.clear()
            yield chunk
            self._done.set()
            self._finished[chunk.tp] = chunk[-1].offset + 1
            self.commit()

    def _next_chunk(self) -> Chunk | None:
        """Return some of the next records of a partition; None if there are none."""
        tps = [*self._positions]
        self.rng.shuffle(tps)
        for tp in tps:
            found = self.cluster.logs[tp.topic, tp.partition].read(self._positions[tp], self.rng.choice((1, 3, 50)))
            if found:
                records: list[Any] = [*found]
                return Chunk(tp, records)
        return None


class Worker:
    """A process that runs every agent, is started again whenever it ends, and keeps its disk.

    Args:
        name: of it.
        specs: the agents.
        groups: name of an agent -> its group.
        world: what it runs in: `cluster`, `rng`, `settings`, `note`, `fail`.
    """

    def __init__(self, name: str, specs: Iterable[AgentSpec[Any]], groups: Mapping[str, Group], world: Any) -> None:
        self.name, self.specs, self.groups, self.world = name, tuple(specs), groups, world
        self.disk: dict[str, bytes] = {}
        self.disk_is_full = False
        self.process = Process(name)
        self.process.is_alive = False
        self.members: list[Member] = []
        self.tasks: list[asyncio.Task[None]] = []
        """All that it ever began, kept: a killed one that is collected would run its `finally`."""

    def start(self, after_s: float = 0.0) -> None:
        """Start it, if it does not run, after a while."""
        context = PROCESS.set(None)
        asyncio.get_running_loop().call_later(after_s, self._start)
        PROCESS.reset(context)

    def _start(self) -> None:
        """Start the process, if it does not run."""
        if self.process.is_alive or self.world.is_over:
            return
        process = self.process = Process(self.name)
        process.interrupt = partial(self.kill, "killed")
        process.steps_left = self.world.steps_after_start()
        token = PROCESS.set(process)
        loop = asyncio.get_running_loop()
        self.members = [
            Member(agent_class(spec)(spec, self.world.settings), self.groups[spec.name], self.world)
            for spec in self.specs
        ]
        for member in self.members:
            for body in (member.be_member, member.take_chunks, member.keep_time):
                self.tasks.append(loop.create_task(body()))
                self.tasks[-1].add_done_callback(self._on_end)
        PROCESS.reset(token)
        self.world.note("starts", self.name)

    def kill(self, why: str) -> None:
        """End it between two steps."""
        if not self.process.is_alive:
            return
        self.process.is_alive = False
        self.world.note(why, self.name)
        context = PROCESS.set(None)
        loop = asyncio.get_running_loop()
        for member in self.members:
            member.forget()
            loop.call_later(SESSION_S, member.group.leave, member)
        PROCESS.reset(context)
        self.start(self.world.restart_after_s())

    async def stop(self) -> None:
        """End it in an orderly way, as a rolling restart does."""
        process = self.process
        for member in self.members:
            if process.is_alive and process is self.process:
                await member.give_back()
                member.group.leave(member)
        if process.is_alive:
            self.kill("stopped")

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """End the process with one of its tasks, as a worker does."""
        if task.cancelled() or self.world.is_over:
            return
        error = task.exception()
        if isinstance(error, DependencyDown):
            self.kill(f"ends: {error}")
        else:
            self.world.fail(f"{self.name} ended with {error!r}")
            self.kill("crashed")
