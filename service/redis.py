"""Redis clients from the settings, sync and asyncio, that give up quickly.

Redis holds nothing that Kafka does not: it may be emptied or gone at any time. So a call waits a quarter of a second,
is not retried, and what to do without the answer is the caller's choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from contracts.errors import DependencyDown, MillraceError
from service.settings import Settings

TIMEOUT_S: Final = 0.25
FAILURES: Final = (redis.RedisError, OSError, TimeoutError)
_QUICK: Final[dict[str, Any]] = {
    "socket_timeout": TIMEOUT_S,
    "socket_connect_timeout": TIMEOUT_S,
    "health_check_interval": 15,
}


def redis_client(settings: Settings) -> redis.Redis:
    """Give a client for threads; it connects at its first call."""
    return redis.Redis.from_url(settings.require("redis_url")[0], retry=Retry(NoBackoff(), 0), **_QUICK)


def async_redis_client(settings: Settings) -> redis.asyncio.Redis:
    """Give a client for one event loop; it connects at its first call. Close it with `aclose()`."""
    return redis.asyncio.Redis.from_url(settings.require("redis_url")[0], retry=AsyncRetry(NoBackoff(), 0), **_QUICK)


@contextmanager
def translate_redis_errors(settings: Settings) -> Iterator[None]:
    """Turn the Redis errors of the block into DependencyDown with the fix."""
    try:
        yield
    except redis.RedisError as error:
        raise _down(error, settings) from error


def expected_redis_error(error: BaseException, settings: Settings) -> MillraceError | None:
    """Say what an error of the Redis client means; None if it is not one."""
    return _down(error, settings) if isinstance(error, redis.RedisError) else None


def redis_check(client: redis.Redis) -> str | None:
    """Say why Redis is of no use now, or None; the form of a health check."""
    try:
        client.ping()
    except redis.RedisError as error:
        return f"Redis does not answer ({type(error).__name__})"
    return None


def _down(error: BaseException, settings: Settings) -> MillraceError:
    parts = urlsplit(settings.redis_url or "")
    where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else "the address in MILLRACE_REDIS_URL"
    return DependencyDown(
        f"Redis does not answer at {where} ({type(error).__name__})",
        fix="start it (`millrace up` does), or correct MILLRACE_REDIS_URL",
    )
