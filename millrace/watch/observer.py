"""Looks at Kafka from outside every consumer group, again and again: the edge of `millrace.watch`.

Followers keep the progress records and releases current, a consumer without a group reads what the join has not read
yet (so that pending events are counted, not inferred), and one admin client asks for offsets.
"""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import DependencyDown
from contracts.progress import JoinProgress, PairsProgress
from contracts.telemetry import Process
from contracts.topics import (
    CATALOG,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    MODELS,
    PAIRS_PROGRESS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
)
from millrace.watch.facts import KafkaFacts
from millrace.watch.lag import BUILT_GROUPS
from millrace.watch.tails import TailCounter
from service.dependency import Dependency
from service.follow import PATIENCE_S, TopicFollower
from service.kafka import admin, beginning_and_end_offsets, committed_offsets
from service.models import ModelsTable
from service.settings import Settings

WATCHED: Final = (SEARCH_EVENTS, JOINED_SEARCHES, PREFERENCE_PAIRS, CATALOG)
_JOIN: Final = TypeAdapter(JoinProgress)
_PAIRS: Final = TypeAdapter(PairsProgress)


class Observer:
    """A view of one deployment, a context manager. Not thread-safe: one caller at a time.

    Args:
        settings: of the deployment.

    Raises:
        DependencyDown: Kafka does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.models = ModelsTable(bytes_of=())
        self._join: dict[int, JoinProgress] = {}
        self._pairs: dict[int, PairsProgress] = {}
        kafka = Dependency(Process.KAFKA, patience_s=PATIENCE_S)
        self._followers = (
            TopicFollower(settings, JOIN_PROGRESS, self._on_join, on_new_topic=self._join.clear, kafka=kafka),
            TopicFollower(settings, PAIRS_PROGRESS, self._on_pairs, on_new_topic=self._pairs.clear, kafka=kafka),
            TopicFollower(settings, MODELS, self.models.apply, on_new_topic=self.models.forget, kafka=kafka),
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
        committed = {group: committed_offsets(self._admin, self._settings, group) for group in BUILT_GROUPS}
        join, pairs = dict(self._join), dict(self._pairs)
        ends = beginning_and_end_offsets(self._admin, self._settings, WATCHED)
        search = {number: found for (topic, number), found in ends.items() if topic == SEARCH_EVENTS}
        positions = {n: join[n].next_offset if n in join else found.begin for n, found in search.items()}
        tails = self._tails.count(positions, search)
        return KafkaFacts(ends=ends, committed=committed, join=join, pairs=pairs, tails=tails)

    def close(self) -> None:
        """Stop following and close every client."""
        self._opened.close()

    def _on_join(self, _key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        if value is not None:
            progress = wire.decode(value, _JOIN)
            self._join[progress.partition] = progress

    def _on_pairs(self, _key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        if value is not None:
            progress = wire.decode(value, _PAIRS)
            self._pairs[progress.partition] = progress
