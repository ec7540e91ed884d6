"""Redis clients that give up quickly and say so in one line."""

import pytest
import redis

from contracts.errors import DependencyDown, UsageError
from service.redis import (
    TIMEOUT_S,
    async_redis_client,
    expected_redis_error,
    redis_check,
    redis_client,
    translate_redis_errors,
)
from service.settings import Settings

GONE = Settings(redis_url="redis://:hush@127.0.0.1:1/0")


def test_clients_wait_briefly_and_do_not_retry() -> None:
    """Best effort costs a request at most a quarter of a second."""
    arguments = redis_client(GONE).connection_pool.connection_kwargs
    assert arguments["socket_timeout"] == arguments["socket_connect_timeout"] == TIMEOUT_S
    assert arguments["retry"].get_retries() == 0


def test_redis_that_is_gone_is_one_line_without_the_password() -> None:
    """Host and port are named; what else the address holds is not."""
    client = redis_client(GONE)
    with (
        pytest.raises(DependencyDown, match=r"Redis does not answer at 127\.0\.0\.1:1 ") as caught,
        translate_redis_errors(GONE),
    ):
        client.ping()
    assert "hush" not in caught.value.message + caught.value.fix


async def test_the_asyncio_client_fails_alike() -> None:
    """The same error comes from the event loop's client."""
    client = async_redis_client(GONE)
    with pytest.raises(DependencyDown), translate_redis_errors(GONE):
        await client.get("key")
    await client.aclose()


def test_the_check_gives_a_reason() -> None:
    """A health check says why, instead of raising."""
    assert redis_check(redis_client(GONE)) == "Redis does not answer (ConnectionError)"


def test_without_an_address_the_setting_is_named() -> None:
    """No client is built against a default address."""
    with pytest.raises(UsageError, match="MILLRACE_REDIS_URL is not set"):
        redis_client(Settings())


def test_only_redis_errors_are_redis_errors() -> None:
    """Everybody else's errors pass."""
    assert expected_redis_error(ValueError("x"), GONE) is None
    assert isinstance(expected_redis_error(redis.TimeoutError("slow"), GONE), DependencyDown)
