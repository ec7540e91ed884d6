"""The collector's memory in Redis: events seen in the last day, and items per caller and window.

An event is marked after Kafka acknowledged it, never before: a mark set first would, after a crash or a failed
acknowledgement, answer "duplicate" to the resend of an event that is nowhere. The price is that two copies in flight at
once may both pass; the join removes the second.

Redis may be gone at any time. Then nothing is recalled, nothing is limited, every event is accepted; the outage is one
line in the log, and Redis is asked again once a second.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import redis.asyncio

from contracts.telemetry import Process
from service import metrics
from service.health import Dependency, probed
from service.redis import FAILURES
from streams.collector.web import Recollection

SEEN_S: Final = 86_400
WINDOW_KEPT_S: Final = 60
PAUSE_S: Final = 1.0
MARK: Final = "for _, key in ipairs(KEYS) do redis.call('SET', key, 1, 'EX', ARGV[1]) end"
"""One script has one answer to read; reading as many as there are commands costs more than all that Kafka is told."""


class RedisMemory:
    """Remembers by Redis, and does without it.

    Args:
        client: gives up quickly, see `service.redis`.
        prefix: the deployment's, before each key.
        monotonic_s: clock that decides when to ask again.
    """

    def __init__(
        self, client: redis.asyncio.Redis, *, prefix: str, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._prefix = f"{prefix}millrace:collector:"
        self._monotonic_s = monotonic_s
        self._redis = Dependency(Process.REDIS, meaning="accepting without duplicate and rate checks")
        self._asked_again_at_s = monotonic_s()

    @property
    def is_up(self) -> bool:
        """Whether Redis answered when last asked."""
        return self._redis.is_up

    def probed(self) -> AbstractAsyncContextManager[None]:
        """Know of Redis during the block although nothing is sent."""
        return probed(self._redis, self._client.ping)

    async def recall(self, identities: Sequence[str], *, caller: str, item_count: int, window: int) -> Recollection:
        """Return which events were seen, and count the caller's items, in one round trip."""
        counter = f"{self._prefix}rate:{caller}:{window}"

        def ask(pipeline: Any) -> None:
            pipeline.incrby(counter, item_count)
            pipeline.expire(counter, WINDOW_KEPT_S)
            if identities:
                pipeline.mget(list(map(self._key, identities)))

        answers = await self._ask(ask)
        if answers is None:
            return Recollection()
        marks = answers[2] if identities else []
        seen = frozenset(identity for identity, mark in zip(identities, marks, strict=True) if mark is not None)
        return Recollection(seen, int(answers[0]))

    async def remember(self, identities: Sequence[str]) -> None:
        """Mark events as acknowledged for a day."""

        def ask(pipeline: Any) -> None:
            pipeline.eval(MARK, len(identities), *map(self._key, identities), SEEN_S)

        if identities:
            await self._ask(ask)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _key(self, identity: str) -> str:
        return f"{self._prefix}seen:{identity}"

    async def _ask(self, ask: Callable[[Any], None]) -> list[Any] | None:
        """Return the answers of one pipeline, or None if Redis is of no use now."""
        if self._monotonic_s() >= self._asked_again_at_s:
            try:
                async with self._client.pipeline(transaction=False) as pipeline:
                    ask(pipeline)
                    answers: list[Any] = await pipeline.execute()
                self._redis.answered()
                return answers
            except FAILURES as error:
                self._redis.failed(type(error).__name__)
                self._asked_again_at_s = self._monotonic_s() + PAUSE_S
        metrics.DEGRADED.labels("without_redis").inc()
        return None
