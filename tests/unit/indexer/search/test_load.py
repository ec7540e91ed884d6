"""Equal searches at one time, and those that come a moment later."""

import asyncio
from typing import Any, Final

import pytest
import structlog.testing

from contracts.errors import DependencyDown
from indexer.search import finding
from indexer.search.good_match import FOLLOWS_S, RETRY_S, TEXTS
from indexer.search.retrieval import Hit
from service.health import Health
from tests.support.search_fakes import UNHURRIED_S, Search, request, served

POOR: Final = [Hit(-9.0, {"product_id": "P-1"})]
"""Found, and worse than what nonsense finds."""


@pytest.fixture
def search() -> Search:
    """A search service that keeps what it found for two seconds."""
    Health("search")
    return Search(hot_for_s=2, deadline_s=UNHURRIED_S)


async def test_equal_searches_at_one_time_ask_once(search: Search) -> None:
    """Spaces, case, width, session and page size make no difference; each has its own search and impression."""
    queries = ["quiet fridge", " Quiet  fridge", "ｑｕｉｅｔ fridge"]
    search.store.gate = asyncio.Event()
    asked = [request(query, session_id=f"k{number}", k=number + 2) for number, query in enumerate(queries)]
    waiting = [asyncio.create_task(search.service.search(one)) for one in asked]
    await search.store.was_asked.wait()
    search.store.gate.set()
    answers = await asyncio.gather(*waiting)
    assert len(search.store.asked) == 1
    assert len({one.search_id for one in answers}) == len(search.impressions.sent) == 3
    assert [len(one.results) for one in answers] == [2, 3, 4]
    assert {one.session_id for one in search.impressions.sent} == {"k0", "k1", "k2"}


async def test_equal_facets_are_counted_once(search: Search) -> None:
    """At one time and a moment later; other names or filters are another count, and one by words alone is not kept."""
    asked = request(facets=["brand", "category"])
    await asyncio.gather(*(search.service.search(asked) for _ in range(20)))
    await search.service.search(asked)
    assert len(search.store.asked) == 2  # one for the list, one for its facets
    await search.service.search(request(facets=["brand"]))
    await search.service.search(request("", facets=["brand"], filters={"in_stock": True}))
    assert (len(search.store.asked), len(search.store.faceted)) == (3, 1)
    search.encoder.fails = True
    for _ in range(2):
        await search.service.search(request("tv", facets=["brand"]))
    assert len(search.store.asked) == 7


async def test_what_is_hot_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest results go, and one that is too large is not kept at all."""
    monkeypatch.setattr(finding, "HOT_BYTES", 100_000)
    search = Search(hot_for_s=2)

    async def asked_again(count: int, **fields: object) -> int:
        """Return for how many of the same searches the store is asked a second time, the latest first."""
        for number in range(count):
            await search.service.search(request(f"fridge {number}", **fields))
        before = len(search.store.asked)
        for number in reversed(range(count)):
            await search.service.search(request(f"fridge {number}", **fields))
        return len(search.store.asked) - before

    assert await asked_again(2) == 0
    assert 0 < await asked_again(20) < 20
    assert await asked_again(1, k=100) == 1


async def test_who_hangs_up_takes_nothing_along(search: Search) -> None:
    """The call goes on for the others, and if nobody is left its error is nobody's."""
    search.store.gate = asyncio.Event()
    first, second = (asyncio.create_task(search.service.search(request())) for _ in range(2))
    await search.store.was_asked.wait()
    first.cancel()
    search.store.gate.set()
    assert (await second).results
    assert len(search.store.asked) == 1


async def test_a_search_is_hot_for_a_moment(search: Search) -> None:
    """Answers say how old they are; after two seconds the store is asked again, at a new release at once."""
    fresh = await search.service.search(request())
    search.clock.now_s += 1.5
    hot = await search.service.search(request())
    assert (fresh.age_s, hot.age_s, hot.degraded, len(search.store.asked)) == (None, 1.5, None, 1)
    assert (hot.results, hot.search_id == fresh.search_id) == (fresh.results, False)
    search.release = served(1)
    assert (await search.service.search(request())).query_release == 1
    search.clock.now_s += 2.1
    await search.service.search(request())
    assert len(search.store.asked) == 3


@pytest.mark.parametrize("other", [{"filters": {"in_stock": True}}, {"explain": True}])
async def test_what_asks_for_something_else_is_not_equal(search: Search, other: dict[str, Any]) -> None:
    """Filters, and vectors for an explanation."""
    await search.service.search(request())
    await search.service.search(request(**other))
    assert len(search.store.asked) == 2


async def test_a_hot_list_is_perturbed_anew_for_each_shopper() -> None:
    """What was found is shared, the draw is not."""
    search = Search(explore="noise:3", hot_for_s=2)
    answers = [await search.service.search(request(k=12)) for _ in range(3)]
    assert len(search.store.asked) == 1
    assert len({one.exploration.seed for one in answers}) == 3
    assert len({tuple(result.product_id for result in one.results) for one in answers}) > 1


async def test_what_words_alone_found_is_not_kept(search: Search) -> None:
    """The next one may be encoded in time."""
    search.encoder.fails = True
    assert (await search.service.search(request())).degraded == "lexical"
    search.encoder.fails = False
    assert (await search.service.search(request())).degraded is None


async def test_an_error_is_told_to_all_who_wait_and_not_kept(search: Search) -> None:
    """The next search asks again."""
    search.store.down = True
    answers = await asyncio.gather(*(search.service.search(request()) for _ in range(3)), return_exceptions=True)
    assert {type(one) for one in answers} == {DependencyDown}
    assert len(search.store.asked) == 1
    search.store.down = False
    assert (await search.service.search(request())).degraded is None


async def test_a_hot_answer_is_no_sign_of_the_store(search: Search) -> None:
    """While it is down, the outage is said once, however many are answered from memory beside."""
    await search.service.search(request())
    search.clock.now_s += 1
    search.store.down = True
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(DependencyDown):
                await search.service.search(request("tv"))
            assert (await search.service.search(request())).degraded is None
    assert [line["event"] for line in lines] == ["dependency_down"]


async def test_a_store_that_fails_leaves_searches_unjudged(search: Search) -> None:
    """It is tried again some seconds later, not by every search, and said once; what filters emptied never is."""
    search.store.down = True
    with structlog.testing.capture_logs() as lines:
        for _ in range(4):
            search.good_match.is_missed(served(), POOR)
            await judged(search)
            search.clock.now_s += RETRY_S / 2
    assert [line["event"] for line in lines] == ["good_match_unknown"]
    asked = len(search.store.asked)
    search.store.down = False
    assert not search.good_match.is_missed(served(), POOR)
    await judged(search)
    assert (asked, len(search.store.asked)) == (2, 2 + TEXTS)
    assert search.good_match.is_missed(served(), POOR)
    assert not search.good_match.is_missed(served(), [])  # filters left nothing, whatever the query means


async def judged(search: Search) -> None:
    """Wait until the bar is set."""
    assert search.good_match._setting is not None
    await search.good_match._setting


async def test_nonsense_is_no_good_match() -> None:
    """The bar is what the store finds for texts that mean nothing; until it is set, nothing is judged."""
    Health("search")
    search = Search(judges_match=True)
    assert not (await search.service.search(request())).no_good_match
    await judged(search)
    asked = len(search.store.asked)
    missed = await search.service.search(request(k=3))
    assert (missed.no_good_match, len(missed.results)) == (True, 3)  # the stand-in finds as much for anything
    again = await search.service.search(request(k=3, search_id=missed.search_id, page=2))
    assert again.no_good_match
    assert len(search.store.asked) == asked + 1


async def test_nothing_is_shown_if_nothing_matches_and_the_shop_wants_it_so() -> None:
    """Zero results then mean something; the impression and the facets say so too, and a remembered answer as well."""
    search = Search(judges_match=True, hides_no_good_match=True)
    await search.service.search(request())
    await judged(search)
    search.clock.now_s += 1
    asked = request(facets=["brand"])
    answer = await search.service.search(asked)
    assert (answer.no_good_match, answer.results, answer.total, answer.has_more) == (True, (), 0, False)
    assert answer.facets == {"brand": ()}
    assert (search.impressions.sent[-1].slots, search.impressions.sent[-1].total_results) == ((), 0)
    search.store.down = True
    remembered = await search.service.search(request())
    assert (remembered.degraded, remembered.no_good_match, remembered.total) == ("remembered", True, 0)


async def test_the_bar_follows_the_query_release() -> None:
    """It is set anew at the next one, the earlier one judges until then; many releases do not set it at each."""
    Health("search")
    search = Search(judges_match=True)
    await search.service.search(request())
    await judged(search)
    asked = len(search.store.asked)
    for release in (1, 2):
        search.release = served(release)
        await search.service.search(request())
        await judged(search)
    assert len(search.store.asked) == asked + 2
    search.clock.now_s += FOLLOWS_S
    assert (await search.service.search(request())).no_good_match
    await judged(search)
    assert len(search.store.asked) == asked + 3 + TEXTS
    await search.service.search(request())
    await judged(search)
    assert len(search.store.asked) == asked + 4 + TEXTS
