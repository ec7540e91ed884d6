"""What attribution keeps in Redis, and under which names; all of it goes by itself after about a day.

Under `PREFIXmillrace:` stand:

- `attribution:chosen:DIGEST`, a hash: a product that was chosen in a list. `pair` is what a value pair needs of the
  pair that stands for it, `until` the event time up to which a conversion belongs to it, `grade` how far it went.
- `attribution:event:DIGEST`, a hash: a conversion that found its product. `origin` is the record that told of it first.
- `attribution:clock`, a hash: partition of a source -> up to when, in epoch milliseconds, what stood there is kept.
- `session-clicks:SESSION_ID`, a sorted set: the newest clicks of a session, each as JSON `[click_time, product_id,
  search_id, query]` with `click_time` as its score, and the query as `query_hash` has it; those kept before that have
  none. Search may read it; nobody else writes it.

Kafka is the truth: what was said of a record once is said again, so a killed agent repeats itself, and a Redis that was
emptied costs the value pairs that it knew of. Digests are BLAKE2b of the JSON array of what is named.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import orjson
import redis.asyncio
from redis.exceptions import RedisError

from contracts.telemetry import Process
from service.health import Dependency
from streams.attribution.conversions import Conversion, Found, candidates
from streams.attribution.remembered import HORIZON_MS, ChosenProduct, Content, KeptPair, SessionClick, SessionClicks

MOST_CLICKS: Final = 20
"""Clicks kept of a session: enough to know what it is after, and little of a robot that clicks without end."""
DIGEST_BYTES: Final = 16
BATCH: Final = 500
"""What is kept in one transaction: some milliseconds of Redis's time."""
PAUSE_S: Final = 1.0
FAILURES: Final = (RedisError, OSError, TimeoutError)

CLAIM: Final = """
local known = redis.call('HMGET', KEYS[1], 'origin', 'chosen', 'grade', 'search', 'inferred')
if known[1] then
  if known[1] ~= ARGV[1] then return {'duplicate'} end
  local pair = redis.call('HGET', known[2], 'pair')
  if pair then return {'found', pair, known[3], known[4], known[5]} end
  return {'nothing'}
end
local state = 'nothing'
for number = 2, #KEYS do
  local chosen = redis.call('HMGET', KEYS[number], 'pair', 'grade', 'until')
  if chosen[1] and tonumber(chosen[3]) < tonumber(ARGV[3]) then
    state = 'expired'
  elseif chosen[1] then
    local search, inferred = ARGV[2 * number + 1], ARGV[2 * number + 2]
    redis.call('HSET', KEYS[1], 'origin', ARGV[1], 'chosen', KEYS[number], 'grade', chosen[2], 'search', search,
      'inferred', inferred)
    redis.call('EXPIRE', KEYS[1], ARGV[4])
    if tonumber(ARGV[2]) > tonumber(chosen[2]) then redis.call('HSET', KEYS[number], 'grade', ARGV[2]) end
    return {'found', chosen[1], chosen[2], search, inferred}
  end
end
return {state}
"""
"""Finds the product of a conversion and notes that its grade is raised: at once, and for each conversion once.

Keys are those of the conversion and of the products it may be, the likeliest first. Arguments are its origin, grade and
event time, for how many seconds all this is kept, and of each product the search and whether it is inferred (0 or 1).
"""


class AttributionMemory:
    """Keeps in Redis what attribution needs, and tells when Redis is away.

    Args:
        client: gives up quickly, see `service.redis`.
        prefix: the deployment's, before each key.
        delay_ms: how long after it was set aside an event is looked up; what it looks for is kept so much longer.
        monotonic_s: clock that decides when to ask again.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        prefix: str,
        delay_ms: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._prefix = _whole(prefix)
        self._kept_s = (HORIZON_MS + delay_ms) // 1000
        self._monotonic_s = monotonic_s
        self._redis = Dependency(Process.REDIS, meaning="late carts and purchases wait")
        self._asked_again_at_s = monotonic_s()

    @property
    def is_up(self) -> bool:
        """Whether Redis answered when last asked."""
        return self._redis.is_up

    async def remember(self, contents: Sequence[Content]) -> bool:
        """Keep chosen products and clicks; return False if Redis was away, and not all is kept."""
        for start in range(0, len(contents), BATCH):

            def ask(pipeline: Any, batch: Sequence[Content] = contents[start : start + BATCH]) -> None:
                told = set[str]()
                for one in batch:
                    if isinstance(one, ChosenProduct):
                        key = _chosen_key(self._prefix, one.search_id, one.product_id)
                        if key not in told:  # the first pair of a product stands for it; most lists have several
                            told.add(key)
                            self._keep_product(pipeline, key, one)
                    else:
                        self._keep_clicks(pipeline, one)

            if await self._ask(ask) is None:
                return False
        return True

    async def tell_clock(self, place: str, at_ms: int) -> None:
        """Say up to when what stood in a partition is kept; if Redis is away, nobody needs it."""
        await self._ask(lambda pipeline: pipeline.hset(f"{self._prefix}attribution:clock", place, at_ms))

    async def clock_ms(self, places: Sequence[str]) -> int | None:
        """Return up to when what stood in all of these partitions is kept; None if that is not known of each."""
        answers = await self._ask(lambda pipeline: pipeline.hmget(f"{self._prefix}attribution:clock", places))
        if answers is None or None in answers[0]:
            return None
        return min(map(int, answers[0]))

    async def claim(self, conversions: Sequence[Conversion]) -> list[Found] | None:
        """Find what conversions belong to, and note that they have; None if Redis is of no use now."""
        if not conversions:
            return []

        def ask_clicks(pipeline: Any) -> None:
            for one in conversions:
                pipeline.zrange(_clicks_key(self._prefix, one.session_id or ""), 0, -1)

        def ask_claims(pipeline: Any) -> None:
            for one, searches in zip(conversions, wanted, strict=True):
                keys = [f"{self._prefix}attribution:event:{_digest(*one.identity)}"]
                keys += [_chosen_key(self._prefix, search_id, one.product_id) for search_id, _ in searches]
                origin = f"{one.origin.topic}/{one.origin.partition}/{one.origin.offset}"
                named = [part for search_id, inferred in searches for part in (search_id, int(inferred))]
                pipeline.eval(CLAIM, len(keys), *keys, origin, int(one.grade), one.event_time, self._kept_s, *named)

        clicks = await self._ask(ask_clicks)
        if clicks is None:
            return None
        wanted = [candidates(one, _clicks(members)) for one, members in zip(conversions, clicks, strict=True)]
        answers = await self._ask(ask_claims)
        return None if answers is None else list(map(_found, conversions, answers))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _keep_product(self, pipeline: Any, key: str, chosen: ChosenProduct) -> None:
        fields = {"pair": msgspec.msgpack.encode(chosen.pair), "until": chosen.until_ms, "grade": chosen.grade}
        for field, value in fields.items():
            pipeline.hsetnx(key, field, value)
        pipeline.expire(key, self._kept_s)

    def _keep_clicks(self, pipeline: Any, session: SessionClicks) -> None:
        key = _clicks_key(self._prefix, session.session_id)
        pipeline.zadd(key, {orjson.dumps(list(click)): click.click_time for click in session.clicks})
        pipeline.zremrangebyrank(key, 0, -MOST_CLICKS - 1)
        pipeline.expire(key, self._kept_s)

    async def _ask(self, ask: Callable[[Any], object]) -> list[Any] | None:
        """Return the answers of one transaction, or None if Redis is of no use now."""
        if self._monotonic_s() < self._asked_again_at_s:
            return None
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                ask(pipeline)
                answers: list[Any] = await pipeline.execute()
        except FAILURES as error:
            self._redis.failed(type(error).__name__)
            self._asked_again_at_s = self._monotonic_s() + PAUSE_S
            return None
        self._redis.answered()
        return answers


def keys_of(prefix: str, sessions: Iterable[str], chosen: Iterable[tuple[str, str]]) -> list[str]:
    """Under which keys the clicks of sessions stand, and products that were chosen in searches.

    Args:
        prefix: the deployment's.
        sessions: their ids.
        chosen: search and product.
    """
    whole = _whole(prefix)
    clicks = [_clicks_key(whole, session_id) for session_id in sessions]
    return clicks + [_chosen_key(whole, search_id, product_id) for search_id, product_id in chosen]


def _whole(prefix: str) -> str:
    return f"{prefix}millrace:"


def _clicks_key(prefix: str, session_id: str) -> str:
    return f"{prefix}session-clicks:{session_id}"


def _chosen_key(prefix: str, search_id: str, product_id: str) -> str:
    return f"{prefix}attribution:chosen:{_digest(search_id, product_id)}"


def _digest(*names: str) -> str:
    return hashlib.blake2b(orjson.dumps(names), digest_size=DIGEST_BYTES).hexdigest()


def _clicks(members: Sequence[bytes]) -> list[SessionClick]:
    return [SessionClick(*orjson.loads(member)) for member in members]


def _found(conversion: Conversion, answer: Sequence[Any]) -> Found:
    state = answer[0].decode()
    if state != "found":
        return Found(state)
    pair, grade, search_id, inferred = answer[1:]
    kept = msgspec.msgpack.decode(pair, type=KeptPair)
    chosen = ChosenProduct(search_id.decode(), conversion.product_id, int(grade), 0, kept)
    return Found("found", chosen, inferred == b"1")
