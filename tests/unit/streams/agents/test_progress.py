"""Where an agent goes on, read through a client of its own; there is no Kafka here."""

import asyncio
import gc
from typing import Any

import pytest

from contracts.errors import DependencyDown
from streams.agents.progress import read_sources
from streams.join.spec import JOIN
from tests.conftest import SettingsFactory


async def test_a_reader_that_cannot_connect_leaves_nothing_behind(settings: SettingsFactory) -> None:
    """Its end is one error: the client that was not closed would complain as well, and keep what it had opened."""
    left: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: left.append(context))
    with pytest.raises(DependencyDown):
        await read_sources(settings(kafka_bootstrap="127.0.0.1:1"), JOIN, {0}, source_id=None)
    gc.collect()
    assert left == []
