"""One search from request to answer, over stand-ins."""

import asyncio
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import structlog.testing

from contracts.errors import DependencyDown, Overloaded, TransientError
from contracts.events import person_id
from contracts.http import Filters
from indexer.search.exploration import MOST_EXPLORED, Policy
from indexer.search.load import FEWEST_OPEN, MOST_OPEN, AdaptiveLimit
from service.health import Health
from tests.support.hand_clock import HandClock
from tests.support.search_fakes import (
    DEPTH,
    DIM,
    NOW_MS,
    UNHURRIED_S,
    Search,
    product_of,
    question_of,
    request,
    served,
)


@pytest.fixture
def search() -> Search:
    """A search service with release 0 in force."""
    Health("search")
    return Search(deadline_s=UNHURRIED_S)


async def test_an_answer_names_its_search_its_release_and_its_products(search: Search) -> None:
    """Everything that later events need is in the answer."""
    answer = await search.service.search(request(k=3))
    assert answer.search_time == NOW_MS
    assert (answer.query_release, answer.product_release, answer.arm, answer.degraded) == (0, 0, "live", None)
    assert (answer.exploration.policy, answer.total) == ("none", 412)
    assert [(one.product_id, one.position) for one in answer.results] == [("P-1", 1), ("P-2", 2), ("P-3", 3)]
    first = answer.results[0]
    assert (first.title, first.price, first.category, first.in_stock) == ("title of P-1", 4.5, ("A", "B"), False)
    assert first.explanation is None


async def test_an_explanation_tells_the_parts_of_the_score(search: Search) -> None:
    """In nats, from the product's own vector, which is asked for only then."""
    search.release = served(2)
    explained = await search.service.search(request(explain=True, k=2))
    query = search.encoder.encode(["quiet fridge"])[0]
    _, asked, _, _ = search.store.asked[-1]
    for result in explained.results:
        assert result.explanation is not None
        assert result.explanation["quality"] == pytest.approx(2.0)
        assert result.explanation["memory"] == 0.0
        assert result.explanation["words"] == 0.25
        parts = result.explanation["text"] + result.explanation["taste"]
        assert parts == pytest.approx(10 * float(asked[:-1] @ product_of(asked)[:-1]), abs=1e-4)
        assert result.explanation["text"] == pytest.approx(10 * float(query @ product_of(asked)[:-1]), abs=1e-4)


async def test_lists_are_perturbed_only_where_that_is_asked_for_and_allowed() -> None:
    """The policy and the seed are in the answer and in the impression, so that anyone can compute it again."""
    search = Search(explore="noise:0.5")
    explored = await search.service.search(request(k=3))
    assert explored.exploration.policy == "noise:0.5"
    assert search.impressions.sent[-1].ranking.exploration == explored.exploration
    assert search.store.asked[-1][2] == MOST_EXPLORED
    hits = await search.store.best(
        "products-r0", question_of("x", np.ones(DIM + 1)), k=MOST_EXPLORED, filters=Filters()
    )
    again = Policy.named("noise:0.5").ranked(hits, seed=explored.exploration.seed)[:3]
    assert [one.product_id for one in explored.results] == [hit.payload["product_id"] for hit in again]
    assert {one.score for one in explored.results} == {hit.score for hit in again}
    plain = await search.service.search(request(k=3, explore=False))
    assert (plain.exploration.policy, plain.exploration.seed) == ("none", 0)
    assert [one.product_id for one in plain.results] == ["P-1", "P-2", "P-3"]
    assert search.store.asked[-1][2] == DEPTH
    assert (await search.service.search(request(k=3))).exploration.seed != explored.exploration.seed


async def test_a_remembered_list_says_how_it_was_perturbed() -> None:
    """And who does not want that is never given it again."""
    search = Search(explore="noise:3")
    explored = await search.service.search(request(k=3))
    search.store.down = True
    remembered = await search.service.search(request(k=3))
    assert (remembered.exploration, remembered.results) == (explored.exploration, explored.results)
    with pytest.raises(DependencyDown):
        await search.service.search(request(k=3, explore=False))


async def test_search_ids_are_unique_and_sort_by_time(search: Search) -> None:
    """Two searches of one millisecond differ; a later one sorts behind."""
    ids = [(await search.service.search(request())).search_id for _ in range(20)]
    assert len(set(ids)) == 20
    search.now_ms += 1
    assert (await search.service.search(request())).search_id > max(ids)


async def test_the_impression_is_what_was_served(search: Search) -> None:
    """Same search, time, slots and releases; the client by its stand-in, spaces in the query tidied."""
    answer = await search.service.search(request("  quiet \n fridge ", k=2, client_id="c9", session_id="k3"))
    (sent,) = search.impressions.sent
    assert (sent.search_id, sent.event_time, sent.query) == (answer.search_id, NOW_MS, "quiet fridge")
    assert (sent.client_id, sent.session_id) == (person_id("c9", b"key"), "k3")
    assert [(slot.product_id, slot.position, slot.parent_id) for slot in sent.slots] == [
        ("P-1", 1, "V-1"),
        ("P-2", 2, "V-1"),
    ]
    assert sent.ranking.model_dump(include={"query_release", "product_release", "ranker", "arm"}) == {
        "ranker": "millrace",
        "query_release": 0,
        "product_release": 0,
        "arm": "live",
    }


async def test_a_search_of_nobody_gets_a_session_of_its_own(search: Search) -> None:
    """Its events still join by search; two of them are never taken for one person."""
    for _ in range(2):
        await search.service.search(request())
    sessions = [sent.session_id for sent in search.impressions.sent]
    assert all(sessions)
    assert len(set(sessions)) == 2


@pytest.mark.parametrize("impression", ["client", "none"])
async def test_no_impression_is_written_where_the_request_says_so(search: Search, impression: str) -> None:
    """The site writes it itself, or nobody does."""
    await search.service.search(request(impression=impression))
    assert search.impressions.sent == []


async def test_a_request_keeps_its_release_while_another_is_swapped_in(search: Search) -> None:
    """Query head, collection and the releases named all come from the release taken at the start."""
    search.store.gate = asyncio.Event()
    running = asyncio.create_task(search.service.search(request()))
    await search.store.was_asked.wait()
    search.release = served(7, 3)
    search.store.gate.set()
    answer = await running
    assert (answer.query_release, answer.product_release) == (0, 0)
    assert {result.product_release for result in answer.results} == {0}
    later = await search.service.search(request())
    assert (later.query_release, later.product_release) == (7, 3)
    (old_collection, old_vector, *_), (new_collection, new_vector, *_) = search.store.asked
    assert (old_collection, new_collection) == ("products-r0", "products-r3")
    assert not np.allclose(old_vector, new_vector)


async def test_a_swap_while_the_query_is_encoded_changes_neither_half(search: Search) -> None:
    """The vector of the old head never meets the new collection."""
    running = asyncio.create_task(search.service.search(request()))
    await asyncio.sleep(0)
    search.release = served(7, 3)
    answer = await running
    assert (answer.query_release, search.store.asked[0][0]) == (0, "products-r0")


async def test_without_the_store_the_same_search_is_remembered(search: Search) -> None:
    """The earlier results with the releases that made them, marked; another filter is another search."""
    whole = await search.service.search(request())
    search.release, search.store.down = served(5, 1), True
    remembered = await search.service.search(request())
    assert remembered.degraded == "remembered"
    assert remembered.results == whole.results
    assert (remembered.query_release, remembered.product_release) == (0, 0)
    assert remembered.search_id != whole.search_id
    assert search.impressions.sent[-1].ranking.query_release == 0
    for unknown in (request("tv"), request(k=3), request(filters={"in_stock": True})):
        with pytest.raises(DependencyDown, match="no earlier answer is remembered"):
            await search.service.search(unknown)
    search.store.down = False
    assert (await search.service.search(request())).degraded is None


async def test_remembered_results_say_their_age_and_are_forgotten(search: Search) -> None:
    """Their products and prices are as old as they are: they are not given again for a whole outage."""
    await search.service.search(request())
    search.store.down = True
    search.clock.now_s += 299
    assert (await search.service.search(request())).age_s == 299
    search.clock.now_s += 2
    with pytest.raises(DependencyDown, match="no earlier answer is remembered"):
        await search.service.search(request())


async def test_a_remembered_answer_is_not_remembered_anew(search: Search) -> None:
    """Asking again and again does not make it younger."""
    await search.service.search(request())
    search.store.down = True
    for _ in range(2):
        search.clock.now_s += 120
        assert (await search.service.search(request())).degraded == "remembered"
    search.clock.now_s += 120
    with pytest.raises(DependencyDown):
        await search.service.search(request())


async def test_what_is_remembered_is_bounded_in_bytes(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go, however many are asked for."""
    monkeypatch.setattr("indexer.search.remembered.REMEMBERED_BYTES", 20_000)
    search = Search()
    for number in range(100):
        await search.service.search(request(f"fridge {number}"))
    search.store.down = True
    answers = [
        await asyncio.gather(search.service.search(request(f"fridge {number}")), return_exceptions=True)
        for number in range(100)
    ]
    remembered = [number for number, (answer,) in enumerate(answers) if not isinstance(answer, BaseException)]
    assert remembered == list(range(100 - len(remembered), 100))
    assert 0 < len(remembered) < 20


async def test_a_store_that_sheds_load_is_no_outage(search: Search) -> None:
    """The search is refused as too much, with the store's own time to come back, or answered from memory."""
    await search.service.search(request())
    search.store.sheds = True
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(Overloaded) as refused:
            await search.service.search(request("tv"))
        assert (await search.service.search(request())).degraded == "remembered"
    assert refused.value.retry_after_s == 2
    assert lines == []


async def test_an_outage_is_said_once_and_its_end_too(search: Search) -> None:
    """However many searches meet it."""
    await search.service.search(request())
    with structlog.testing.capture_logs() as lines:
        for search.store.down in (True, True, True, False, False):
            await search.service.search(request())
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_back"]


async def test_a_store_that_hangs_is_waited_for_by_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are answered from memory at once; when it answers again, all are asked of it again."""
    search = Search()
    search.clock.rule(monkeypatch)
    requests = [request(f"fridge {number}") for number in range(MOST_OPEN)]
    await asyncio.gather(*map(search.service.search, requests))
    search.store.hangs, at_once = True, 0
    for _ in range(20):
        waiting = [asyncio.create_task(search.service.search(one)) for one in requests]
        await search.clock.move(0.5)
        at_once = sum(task.done() for task in waiting)
        await search.clock.move(0.6)
        assert {task.result().degraded for task in waiting} == {"remembered"}
    assert at_once == MOST_OPEN - FEWEST_OPEN
    search.store.hangs = False
    answers = [await search.service.search(request()) for _ in range(10)]
    assert {answer.degraded for answer in answers} == {None}


def test_the_bound_follows_what_the_machine_can_do() -> None:
    """A slow search takes a quarter off, once for all that were under way with it; quick ones bring it back."""
    clock = HandClock()
    limit = AdaptiveLimit(1.0, clock)

    def room() -> int:
        """Return how many searches are let in at once."""
        with ExitStack() as stack:
            for number in range(MOST_OPEN + 1):
                try:
                    stack.enter_context(limit.one_more())
                except Overloaded:
                    return number
        return MOST_OPEN + 1

    assert room() == MOST_OPEN
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(limit.measured())
        clock.now_s += 0.8
    assert room() == MOST_OPEN * 3 // 4
    for _ in range(100):
        with suppress(TransientError), limit.measured():
            raise TransientError("Qdrant cannot be reached")
    assert room() == FEWEST_OPEN
    for _ in range(MOST_OPEN**2):
        with limit.measured():
            clock.now_s += 0.7
    assert room() == MOST_OPEN
    for _ in range(100):
        with suppress(OverflowError), limit.measured():
            raise OverflowError
    assert room() == MOST_OPEN


async def test_only_the_store_lowers_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither facets that are late nor queries that cannot be encoded and whose words find nothing do."""
    search = Search(deadline_s=0.1)
    search.store.count_hangs = True
    for _ in range(3):
        assert (await search.service.search(request("", facets=["brand"]))).facets is None
    search.store.knows_words = False

    async def refused(_texts: list[str]) -> np.ndarray:
        """Refuse as a full queue does."""
        raise Overloaded("many wait")

    monkeypatch.setattr(search.finder._encoder, "encode", refused)
    for _ in range(20):
        with pytest.raises(Overloaded, match="many wait"):
            await search.service.search(request())
    assert search.finder._limit._most == MOST_OPEN


async def test_a_count_that_fails_does_not_fail_the_search(search: Search) -> None:
    """The total is then what was found, marked as a lower bound; the impression leaves it out."""
    search.store.count_fails = True
    answer = await search.service.search(request(k=4))
    assert (answer.total, answer.total_relation) == (DEPTH, "gte")
    assert search.impressions.sent[0].total_results is None


async def test_a_count_that_hangs_does_not_cost_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are there: they wait a tenth of the deadline for their total, and nobody counts a second time."""
    search = Search()
    await search.service.encode(("quiet fridge",))
    search.clock.rule(monkeypatch)
    search.store.count_hangs = True
    for _ in range(3):
        waiting = asyncio.create_task(search.service.search(request(k=2)))
        await search.clock.move(0.09)
        assert not waiting.done()
        await search.clock.move(0.02)
        answer = await waiting
        assert (answer.degraded, answer.total, answer.total_relation) == (None, DEPTH, "gte")
    assert search.store.counted == 1


async def test_nothing_is_answered_before_a_release_is_in_force(search: Search) -> None:
    """Search and encode say what is missing."""
    search.release = None
    with pytest.raises(DependencyDown, match="nothing is served yet"):
        await search.service.search(request())
    with pytest.raises(DependencyDown, match="nothing is served yet"):
        await search.service.encode(("x",))


async def test_encode_returns_vectors_of_the_release_in_force(search: Search) -> None:
    """In the order of the texts, with the releases they belong to; the last number of each asks for quality."""
    search.release = served(2, 1)
    answer = await search.service.encode(("fridge", "tv"))
    assert (answer.query_release, answer.product_release, answer.collection) == (2, 1, "products-r1")
    expected = search.release.tower.vectors(search.encoder.encode(["fridge", "tv"]))
    assert expected.shape == (2, DIM + 1)
    assert [row[-1] for row in answer.vectors] == [1.0, 1.0]
    np.testing.assert_allclose(np.array(answer.vectors), expected, rtol=1e-6)
    assert answer.remembered == ({}, {})


async def test_filters_reach_the_store_as_they_were_asked(search: Search) -> None:
    """They are conditions of the query itself, not of its results."""
    await search.service.search(request(filters={"brand": ["Kelto"], "price": {"lte": 500}}, k=7))
    _, _, k, filters = search.store.asked[0]
    assert k == DEPTH
    assert filters == Filters.model_validate({"brand": ("Kelto",), "price": {"lte": 500}})
