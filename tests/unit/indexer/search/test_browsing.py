"""Lists in another order than by relevance, lists without a query, and facets beside them, over stand-ins."""

import pytest
import structlog.testing

from contracts.errors import DependencyDown
from contracts.http import Filters
from indexer.search.facets import MATCHING
from indexer.search.finding import SAID_EVERY_S
from service.health import Health
from tests.support.search_fakes import NOW_MS, UNHURRIED_S, Search, request


@pytest.fixture
def search() -> Search:
    """A search service with release 0 in force."""
    Health("search")
    return Search(deadline_s=UNHURRIED_S)


async def test_a_sorted_list_is_of_what_matches_and_says_so() -> None:
    """By its field among the best, never perturbed; impression and answer name the sort, so that nobody learns."""
    search = Search(explore="noise:3")
    search.store.prices = {"P-1": 5.0, "P-2": 2.0, "P-3": 1.0}
    answer = await search.service.search(request(k=2, sort="price"))
    assert search.store.asked[-1][2] == MATCHING
    # P-3 and those after it score lower than the best by more than what still matches.
    assert [(one.product_id, one.position) for one in answer.results] == [("P-2", 1), ("P-1", 2)]
    assert (answer.sort, answer.exploration.policy) == ("price", "none")
    assert search.impressions.sent[-1].ranking.sort == "price"
    await search.service.search(request())
    assert search.impressions.sent[-1].ranking.sort is None


@pytest.mark.parametrize("query", ["", " \u200b"])
async def test_browsing_is_answered_without_a_query(search: Search, query: str) -> None:
    """Nothing is encoded, no answer is called degraded, and the impression says that there was no query."""
    answer = await search.service.search(request(query, k=2, filters={"brand": ["Kelto"]}, explain=True))
    assert search.store.browsed == [("products-r0", "relevance", MATCHING + 1, Filters(brand=("Kelto",)))]
    assert (search.encoder.batches, search.store.asked) == ([], [])
    assert (answer.degraded, answer.total) == (None, 412)
    assert [(one.product_id, one.explanation) for one in answer.results] == [
        ("relevance-1", {"quality": 0.5}),
        ("relevance-2", {"quality": 0.5}),
    ]
    assert search.impressions.sent[0].query == ""
    search.store.down = True
    remembered = await search.service.search(request(" ", k=2, filters={"brand": ["Kelto"]}))
    assert (remembered.degraded, len(remembered.results)) == ("remembered", 2)
    with pytest.raises(DependencyDown):
        await search.service.search(request("", k=2, filters={"brand": ["Kelto"]}, sort="price"))


async def test_a_browsed_list_has_pages_and_its_order_is_the_sort_alone(search: Search) -> None:
    """The second page goes on where the first ended; nothing that reorders what is relevant reorders a sorted list."""
    asked = {"k": 3, "filters": {"brand": ["Kelto"]}, "sort": "price", "diversity": 0.9}
    first = await search.service.search(request("", **asked, facets=["brand"]))
    assert [one.product_id for one in first.results] == ["price-1", "price-2", "price-3"]
    assert first.has_more
    second = await search.service.search(request("", **asked, search_id=first.search_id, page=2))
    assert [(one.position, one.product_id) for one in second.results] == [
        (4, "price-4"),
        (5, "price-5"),
        (6, "price-6"),
    ]
    assert (second.search_time, second.facets) == (first.search_time, None)


@pytest.mark.parametrize(("k", "size"), [(12, 1_000), (100, 200), (12, 201), (7, 3)])
async def test_every_product_can_be_browsed(search: Search, k: int, size: int) -> None:
    """Page by page to the end, each once and in order; `has_more` is true just while another product comes."""
    search.store.size = size
    asked = {"k": k, "sort": "price"}
    pages = [await search.service.search(request("", **asked))]
    while pages[-1].has_more:
        pages.append(
            await search.service.search(request("", **asked, search_id=pages[0].search_id, page=len(pages) + 1))
        )
    shown = [(one.position, one.product_id) for page in pages for one in page.results]
    assert shown == [(number, f"price-{number}") for number in range(1, size + 1)]
    assert all(page.results for page in pages)


async def test_a_late_page_is_reached_at_once_and_a_list_ends_where_positions_do(search: Search) -> None:
    """With and without an earlier answer; 10,000 products are the most."""
    search.store.size = 20_000
    late = await search.service.search(request("", k=10, sort="price", page=400))
    assert [one.product_id for one in late.results] == [f"price-{number}" for number in range(3_991, 4_001)]
    assert [one[2] for one in search.store.browsed] == [MATCHING + 1, 4_001 - MATCHING + 1]
    last = await search.service.search(request("", k=10, sort="price", search_id=late.search_id, page=1_000))
    assert ([one.position for one in last.results], last.has_more) == ([*range(9_991, 10_001)], False)
    largest = await search.service.search(request("", k=100, sort="price", page=101))
    assert (largest.results, largest.has_more) == ((), False)


async def test_a_product_that_moves_up_while_pages_are_turned_comes_next(search: Search) -> None:
    """None comes twice, however the order changes meanwhile."""
    search.store.size = 300
    asked = {"k": 100, "filters": {"brand": ["Kelto"]}, "facets": ["brand"]}
    first = await search.service.search(request("", **asked))
    search.store.size = 290  # ten are gone, the others are as they were
    pages = [await search.service.search(request("", **asked, search_id=first.search_id, page=page)) for page in (2, 3)]
    shown = [one.product_id for page in [first, *pages] for one in page.results]
    assert shown == [f"relevance-{number}" for number in range(1, 291)]


async def test_a_variant_group_stands_once_in_a_list_that_goes_on(search: Search) -> None:
    """Variants that come later join the product that stands for them."""
    search.store.size = 500
    search.store.said_of = {
        f"price-{number}": {"parent_id": f"V-{number % 40}"} for number in range(1, 501)
    } | {"price-450": {"parent_id": None}}  # fmt: skip
    asked = {"k": 20, "sort": "price", "group_variants": True}
    pages = [await search.service.search(request("", **asked))]
    while pages[-1].has_more:
        pages.append(
            await search.service.search(request("", **asked, search_id=pages[0].search_id, page=len(pages) + 1))
        )
    shown = [one.product_id for page in pages for one in page.results]
    assert shown == [*(f"price-{number}" for number in range(1, 41)), "price-450"]
    again = await search.service.search(request("", **asked, search_id=pages[0].search_id, page=1))
    assert len(again.results[0].variants) == 12


@pytest.mark.parametrize(("k", "groups"), [(24, 10), (50, 40), (10, 10), (7, 40)])
async def test_pages_of_variant_groups_are_full(search: Search, k: int, groups: int) -> None:
    """However many variants hide behind one: `k` products a page, and `has_more` only if another page shows any."""
    search.store.size = 900
    search.store.said_of = {
        f"newest-{number}": {"parent_id": f"V-{(number - 1) % groups + (number - 1) // 300 * groups}"}
        for number in range(1, 901)
    }
    asked = {"k": k, "sort": "newest", "group_variants": True}
    pages = [await search.service.search(request("", **asked))]
    while pages[-1].has_more:
        pages.append(
            await search.service.search(request("", **asked, search_id=pages[0].search_id, page=len(pages) + 1))
        )
    shown = [one for page in pages for one in page.results]
    best = [f"newest-{first + number}" for first in (1, 301, 601) for number in range(groups)]
    assert [(one.position, one.product_id) for one in shown] == [*enumerate(best, start=1)]
    assert {len(page.results) for page in pages[:-1]} <= {k}
    assert pages[-1].results


async def test_facets_are_counted_beside_the_search(search: Search) -> None:
    """Of what matches a query, or of all; asked for only if somebody wants them."""
    answer = await search.service.search(request(facets=["brand", "price"]))
    assert answer.facets is not None
    assert [(one.value, one.count) for one in answer.facets["brand"]] == [("Kelto", 2)]
    assert [one.count for one in answer.facets["price"]] == [2]
    assert (await search.service.search(request())).facets is None
    search.store.facets = {"brand": {"kelto": 7}}
    search.store.products = [{"brand": "Kelto"}]
    browsed = await search.service.search(request("", facets=["brand"]))
    assert browsed.facets is not None
    assert [(one.value, one.count) for one in browsed.facets["brand"]] == [("Kelto", 7)]


@pytest.mark.parametrize("trouble", ["count_fails", "count_hangs"])
async def test_a_search_is_answered_without_its_facets(trouble: str) -> None:
    """If the store cannot count, or not in time, results are there all the same; it is said once in a while."""
    search = Search(deadline_s=0.2)
    setattr(search.store, trouble, True)
    with structlog.testing.capture_logs() as logs:
        for query in ("", "tv", "quiet fridge"):
            answer = await search.service.search(request(query, facets=["brand"]))
            browsed = await search.service.search(request("", facets=["brand"]))
            assert (browsed.facets, len(answer.results)) == (None, 10)
    assert [entry["event"] for entry in logs] == ["facets_not_counted"]
    search.clock.now_s += SAID_EVERY_S
    with structlog.testing.capture_logs() as logs:
        await search.service.search(request("", facets=["brand"]))
    assert [entry["event"] for entry in logs] == ["facets_not_counted"]


async def test_a_result_says_what_the_shop_says(search: Search) -> None:
    """Whatever a page needs of a product comes with it."""
    said = {
        "currency": "INR", "url": "https://shop.example/p", "image_url": "https://shop.example/i", "rating": 4.5,
        "launched_at": NOW_MS, "seller_id": "S-2", "attributes": {"capacity_l": 190, "new": True},
    }  # fmt: skip
    search.store.said = said
    answer = await search.service.search(request(k=1))
    assert answer.results[0].model_dump(include=set(said)) == said
