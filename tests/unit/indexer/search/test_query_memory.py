"""What shoppers of a query chose, as search asks and tells it."""

from dataclasses import replace

import pytest

from contracts.catalog import point_id
from service.health import Health
from tests.support.search_fakes import UNHURRIED_S, Search, request, served
from towers.features import key_of
from towers.memory import QueryMemory


@pytest.fixture
def search() -> Search:
    """A search service with release 0 in force."""
    Health("search")
    return Search(deadline_s=UNHURRIED_S)


async def test_who_asks_the_store_themselves_is_told_what_shoppers_of_the_query_chose(search: Search) -> None:
    """By the id of the point, in units of the dot product; search adds the same, and says so in nats."""
    memory = QueryMemory.of([(key_of("fridge"), {"P-11": 5.0})])
    release = served(2, 1)
    search.release = replace(release, tower=replace(release.tower, memory=memory))
    answer = await search.service.encode(("Fridge", "tv"))
    assert answer.remembered == ({point_id("P-11"): 0.5}, {})
    await search.service.search(request("fridge"))
    assert search.store.questions[-1].remembered == {point_id("P-11"): 5.0}
