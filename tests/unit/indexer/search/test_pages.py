"""Pages of one list: ranked once, each product once, read anew."""

import asyncio
import contextlib

import pytest
import structlog.testing

from contracts import wire
from contracts.errors import Expired, MalformedMessage
from contracts.events import Click, Impression, Tick
from contracts.http import SearchRequest
from contracts.joined import JoinedSearch
from indexer.search import lists as lists_module
from indexer.search.lists import FORM, PAUSE_S, Entry, KeptLists, RankedList
from service.health import Health
from service.redis import async_redis_client
from service.settings import Settings
from streams.agents.spec import Emit, Plan
from streams.join.partition_join import PartitionJoin
from tests.conftest import SettingsFactory
from tests.support.hand_clock import HandClock
from tests.support.ports import free_port
from tests.support.search_events import Record
from tests.support.search_fakes import DEPTH, LISTS_KEPT_S, NOW_MS, UNHURRIED_S, Search, request, served


@pytest.fixture
def search() -> Search:
    """A search service with release 0 in force."""
    Health("search")
    return Search(deadline_s=UNHURRIED_S)


async def test_pages_go_on_where_the_one_before_ends(search: Search) -> None:
    """One search, one time, positions over the whole list, every product once; it ends where nothing is left."""
    first = await search.service.search(request(k=5))
    pages = [first]
    while pages[-1].has_more:
        pages.append(await search.service.search(request(k=5, search_id=first.search_id, page=len(pages) + 1)))
    assert [one.page for one in pages] == [1, 2, 3]
    assert {(one.search_id, one.search_time, one.total) for one in pages} == {(first.search_id, NOW_MS, 412)}
    shown = [(one.position, one.product_id) for page in pages for one in page.results]
    assert shown == [(number, f"P-{number}") for number in range(1, DEPTH + 1)]
    behind = await search.service.search(request(k=5, search_id=first.search_id, page=4))
    assert (behind.results, behind.has_more) == ((), False)


async def test_a_page_shows_what_was_ranked_as_it_is_today(search: Search) -> None:
    """Another release changes neither order nor releases named; prices are read anew; what is gone leaves a gap."""
    first = await search.service.search(request(k=5))
    search.release, search.now_ms = served(7, 3), NOW_MS + 60_000
    search.store.gone = {"P-7"}
    second = await search.service.search(request(k=5, search_id=first.search_id, page=2))
    assert (second.query_release, second.product_release, second.search_time) == (0, 0, NOW_MS)
    assert [(one.position, one.product_id) for one in second.results] == [
        (6, "P-6"), (8, "P-8"), (9, "P-9"), (10, "P-10"),
    ]  # fmt: skip
    assert {(one.price, one.product_release) for one in second.results} == {(9.5, 3)}
    assert [one.score for one in second.results] == pytest.approx([0.4, 0.2, 0.1, 0.0])


async def test_a_page_can_be_asked_for_without_an_earlier_answer(search: Search) -> None:
    """A link to page 2 ranks a list of its own."""
    second = await search.service.search(request(k=5, page=2))
    assert [one.position for one in second.results] == [6, 7, 8, 9, 10]
    third = await search.service.search(request(k=5, page=3, search_id=second.search_id))
    assert [one.product_id for one in third.results] == ["P-11", "P-12"]


async def test_an_exploring_list_is_perturbed_once() -> None:
    """Its pages together are what the first answer drew, and each impression names the same seed."""
    search = Search(explore="noise:3")
    first = await search.service.search(request(k=6))
    second = await search.service.search(request(k=6, page=2, search_id=first.search_id))
    assert second.exploration == first.exploration
    shown = [one.product_id for page in (first, second) for one in page.results]
    assert len(set(shown)) == 12


async def test_a_list_is_forgotten_after_a_while(search: Search) -> None:
    """The cause and the fix are said."""
    first = await search.service.search(request(k=5))
    search.clock.now_s += LISTS_KEPT_S - 1
    assert (await search.service.search(request(k=5, search_id=first.search_id, page=2))).results
    search.clock.now_s += 2
    with pytest.raises(Expired, match="kept for 600 s") as gone:
        await search.service.search(request(k=5, search_id=first.search_id, page=2))
    assert "without search_id" in gone.value.fix


@pytest.mark.parametrize("other", [{"query": "tv"}, {"k": 6}, {"filters": {"brand": ["Arvo"]}}, {"diversity": 0.5}])
async def test_a_page_of_another_request_is_refused(search: Search, other: dict[str, object]) -> None:
    """A list is of what was asked for; who asks, and how it is logged, may differ."""
    first = await search.service.search(request(k=5))
    with pytest.raises(MalformedMessage, match="asked for something else"):
        await search.service.search(
            SearchRequest.model_validate(
                {"query": "quiet fridge", "k": 5, "search_id": first.search_id, "page": 2, **other}
            )
        )
    same = request("  quiet   fridge", k=5, search_id=first.search_id, page=2, session_id="k9", impression="none")
    assert (await search.service.search(same)).page == 2


async def test_attributes_may_be_named_in_any_order(search: Search) -> None:
    """A client that builds its request anew for the second page keeps no order."""
    colour, size = ("colour", ["red"]), ("size", {"gte": 3})
    first = await search.service.search(request(k=5, filters={"attributes": dict([colour, size])}))
    other = request(k=5, filters={"attributes": dict([size, colour])}, search_id=first.search_id, page=2)
    assert (await search.service.search(other)).page == 2


async def test_pages_join_to_one_search(search: Search) -> None:
    """Their impressions name one search and one time, so that the join makes one list of all; a repeat adds nothing."""
    first = await search.service.search(request(k=5, session_id="k3"))
    search.store.gone = {"P-7"}
    for page in (3, 2, 2):
        await search.service.search(request(k=5, session_id="k3", search_id=first.search_id, page=page))
    sent = search.impressions.sent
    assert [one.page for one in sent] == [1, 3, 2, 2]
    assert len({one.event_id for one in sent}) == 4
    click = Click(
        type="click", event_id="c", event_time=NOW_MS + 9, session_id="k3", search_id=first.search_id,
        search_time=first.search_time, product_id="P-12", position=12,
    )  # fmt: skip
    tick = Tick(type="tick", event_time=NOW_MS + 20_000)
    plan: Plan = []
    join = PartitionJoin(0, window_ms=10_000, lateness_ms=1_000)
    events: list[Impression | Click | Tick] = [*sent, click, tick]
    for offset, event in enumerate(events):
        join.take(Record(offset, event.event_time, wire.encode(event)), plan)
    (joined,) = (JoinedSearch.model_validate_json(one.value) for one in plan if isinstance(one, Emit))
    assert [slot.position for slot in joined.slots] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [slot.product_id for slot in joined.slots if slot.clicked] == ["P-12"]
    counts = join.counts()
    assert (counts["joined"], counts["duplicate"], counts["late"]) == (4, 1, 0)


def ranked(*pages: str) -> RankedList:
    """Return a list of one-letter products."""
    entries = tuple(tuple(Entry(product, 0.5, ("v",)) for product in page) for page in pages)
    return RankedList(b"asked", NOW_MS, 3, 1, "live", "none", 0, None, 7, no_good_match=False, pages=entries)


@pytest.mark.redis
async def test_search_processes_share_their_lists(settings: SettingsFactory, redis_url: str) -> None:
    """By Redis, where a list ends by itself; one without a second page stays at home."""
    own = settings(redis_url=redis_url)
    one, other = (KeptLists(kept_for_s=600, client=async_redis_client(own), prefix=own.topic_prefix) for _ in range(2))
    one.keep("long", ranked("ab", "c"))
    one.keep("short", ranked("ab"))
    await asyncio.gather(*one._writing)
    assert await other.find("long") == ranked("ab", "c")
    assert (await one.find("short"), await other.find("short")) == (ranked("ab"), None)
    async with contextlib.aclosing(async_redis_client(own)) as client:
        assert 0 < await client.pttl(f"{own.topic_prefix}millrace:search:list:{FORM}:long") <= 600_000
    await one.close()
    await other.close()


async def test_without_redis_each_process_has_its_own_lists() -> None:
    """An outage is one line, and neither keeping nor finding fails."""
    client = async_redis_client(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    clock = HandClock()
    lists = KeptLists(kept_for_s=600, client=client, monotonic_s=clock)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            lists.keep("here", ranked("ab", "c"))
            assert await lists.find("elsewhere") is None
            clock.now_s += PAUSE_S
    assert await lists.find("here") == ranked("ab", "c")
    assert [line["event"] for line in lines] == ["dependency_down"]
    await lists.close()


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest lists go."""
    monkeypatch.setattr(lists_module, "MEMORY_BYTES", 5_000)
    lists = KeptLists(kept_for_s=600)
    for number in range(100):
        lists.keep(f"s{number}", ranked("ab", "c"))
    kept = [number for number in range(100) if await lists.find(f"s{number}") is not None]
    assert kept == list(range(100 - len(kept), 100))
    assert 0 < len(kept) < 20
