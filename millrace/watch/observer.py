"""Looks at Kafka from outside every consumer group, again and again: the edge of `millrace.watch`.

Followers keep the progress records and releases current, a consumer without a group reads what the join has not read
yet (so that pending events are counted, not inferred), and one admin client asks for offsets.
"""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import DependencyDown
from contracts.progress import PartitionProgress
from contracts.topics import MODELS, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts
from millrace.watch.releases import ReleaseBook
from millrace.watch.tails import TailCounter
from service.follow import OnRecord, TopicFollower
from service.kafka import admin, beginning_and_end_offsets, committed_offsets
from service.settings import Settings
from streams import registry
from streams.agents.spec import AgentSpec


class Observer:
    """A view of one deployment, a context manager. Not thread-safe: one caller at a time.

    Args:
        settings: of the deployment.

    Raises:
        DependencyDown: Kafka does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.releases = ReleaseBook()
        self._progress: dict[str, dict[int, PartitionProgress]] = {spec.name: {} for spec in registry.AGENTS}
        self._followers = (
            *(TopicFollower(settings, spec.progress_topic, self._on_progress(spec)) for spec in registry.AGENTS),
            TopicFollower(settings, MODELS, lambda key, value, _: self.releases.apply(key, value)),
        )
        with ExitStack() as opened:
            self._admin = admin(settings)
            opened.callback(self._admin.close)
            self._tails = TailCounter(settings)
            opened.callback(self._tails.close)
            for follower in self._followers:
                follower.start()
                opened.callback(follower.stop)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait_caught_up(self, timeout_s: float) -> None:
        """Wait until the progress records and releases that existed at the start have been read.

        Raises:
            DependencyDown: they could not be read in time.
        """
        deadline = time.monotonic() + timeout_s
        for follower in self._followers:
            if not follower.caught_up.wait(max(0.0, deadline - time.monotonic())):
                raise follower.failure or DependencyDown(
                    follower.not_caught_up() or "a topic was read too late",
                    fix="look at the broker with `millrace doctor`",
                )

    def look(self) -> KafkaFacts:
        """Return the facts of this moment.

        Offsets of consumers are taken before the log's ends, so that nothing can seem to be consumed before it exists;
        the unread tail is then counted up to those very ends.

        Raises:
            DependencyDown: Kafka does not answer.
            MillraceError: a record on a topic that only Millrace writes cannot be read.
        """
        for follower in self._followers:
            if follower.failure:
                raise follower.failure
        read = registry.group_topics()
        committed = {group: committed_offsets(self._admin, self._settings, group) for group in read}
        progress = {agent: dict(found) for agent, found in self._progress.items()}
        ends = beginning_and_end_offsets(self._admin, self._settings, {topic for own in read.values() for topic in own})
        search = {number: found for (topic, number), found in ends.items() if topic == SEARCH_EVENTS}
        join = progress["join"]
        positions = {n: join[n].next_offset if n in join else found.begin for n, found in search.items()}
        tails = self._tails.count(positions, search)
        return KafkaFacts(ends=ends, committed=committed, progress=progress, tails=tails)

    def close(self) -> None:
        """Stop following and close every client."""
        self._opened.close()

    def _on_progress(self, spec: AgentSpec[Any]) -> OnRecord:
        """Return what takes an agent's progress records."""
        contract: TypeAdapter[PartitionProgress] = TypeAdapter(spec.progress)

        def note(_key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
            if value is not None:
                progress = wire.decode(value, contract)
                self._progress[spec.name][progress.partition] = progress

        return note
