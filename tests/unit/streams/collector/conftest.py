"""Collectors that tests send to."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from streams.collector.access import Limits
from tests.support.collector import POLICY, Running, start


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """Give a collector with the usual limits."""
    collector = await start(POLICY)
    yield collector
    await collector.client.close()


@pytest.fixture
async def strict() -> AsyncIterator[Running]:
    """Give a collector with small limits."""
    collector = await start(replace(POLICY, limits=Limits(write_body_bytes=2_000, items=3, write_items_per_window=5)))
    yield collector
    await collector.client.close()
