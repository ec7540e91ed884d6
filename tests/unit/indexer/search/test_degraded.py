"""A search that cannot be encoded, or whose store hangs: what it is answered with, and when."""

import asyncio

import numpy as np
import pytest
import structlog.testing
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown, Overloaded
from service.health import Health
from tests.support.search_fakes import Search, request, served
from towers.lexical import read_query


@pytest.fixture(autouse=True)
def health() -> Health:
    """The process whose metrics are counted."""
    return Health("search")


async def test_a_search_ends_at_its_deadline_if_the_store_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second after it was asked the shopper has an error, if there is nothing to remember, and not before."""
    search = Search()
    search.clock.rule(monkeypatch)
    search.store.hangs = True
    await search.service.encode(("quiet fridge",))  # known: no thread is waited for
    waiting = asyncio.create_task(search.service.search(request()))
    await search.clock.move(0.99)
    assert not waiting.done()
    await search.clock.move(0.02)
    assert waiting.done()
    with pytest.raises(DependencyDown):
        await waiting


async def test_words_answer_alone_while_the_encoder_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """After six tenths of the deadline, marked, by the release in force, with what is known of each score."""
    search = Search()
    search.release = served(5, 1)
    search.clock.rule(monkeypatch)
    search.encoder.may_go_on.clear()
    explained = asyncio.create_task(search.service.search(request(explain=True, k=2)))
    await search.clock.move(0.59)
    assert not explained.done()
    await search.clock.move(0.02)
    answer = await explained
    search.encoder.may_go_on.set()
    assert (answer.degraded, answer.age_s, answer.query_release, answer.product_release) == ("lexical", None, 5, 1)
    assert [(one.product_id, one.explanation) for one in answer.results] == [
        ("P-10", {"quality": 0.5, "memory": 0.0, "words": 3.0}),
        ("P-11", {"quality": 0.5, "memory": 0.0, "words": 3.0}),
    ]
    assert search.store.questions[0].words.kind == read_query("quiet fridge").kind
    assert len(search.impressions.sent) == 1


@pytest.mark.parametrize("refuses", [True, False])
async def test_an_encoder_that_refuses_or_fails_leaves_it_to_words(
    monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """Today's prices and stock before an earlier answer; nothing is remembered or explored, and it is said once."""
    search = Search(explore="noise:3")
    whole = await search.service.search(request(k=3))

    async def refused(_texts: list[str]) -> np.ndarray:
        """Refuse as a full queue does, or fail as a broken model does."""
        raise Overloaded("many wait") if refuses else RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(search.finder._encoder, "encode", refused)
        with structlog.testing.capture_logs() as lines:
            await search.service.search(request("tv"))
            by_words = await search.service.search(request(k=3))
        assert [line["event"] for line in lines] == ([] if refuses else ["query_not_encoded"])
        assert (by_words.degraded, by_words.exploration.policy) == ("lexical", "none")
        assert [one.product_id for one in by_words.results] == ["P-10", "P-11", "P-12"]
        search.store.down = True
        remembered = await search.service.search(request(k=3))
        assert (remembered.degraded, remembered.results) == ("remembered", whole.results)


async def test_words_that_find_nothing_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier answer is, or else what kept the query from being encoded; the store is not to blame."""
    search = Search()
    whole = await search.service.search(request())
    search.store.knows_words = False

    async def refused(_texts: list[str]) -> np.ndarray:
        """Refuse as a full queue does."""
        raise Overloaded("many wait")

    monkeypatch.setattr(search.finder._encoder, "encode", refused)
    with structlog.testing.capture_logs() as lines:
        assert (await search.service.search(request())).results == whole.results
        with pytest.raises(Overloaded, match="many wait"):
            await search.service.search(request("tv"))
    assert lines == []


async def test_what_is_too_large_to_be_remembered_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of many attributes fail no search; an earlier answer to it stays, and says its age."""
    monkeypatch.setattr("indexer.search.remembered.REMEMBERED_BYTES", 20_000)
    search = Search()
    await search.service.search(request())
    search.store.said = {"attributes": {"manual": "x" * 4_000}}
    search.clock.now_s += 1
    assert len((await search.service.search(request())).results) == 10
    search.store.down = True
    assert (await search.service.search(request())).age_s == 1


@pytest.mark.parametrize("fault", ["down", "sheds"])
async def test_an_outage_ends_although_nobody_searches(fault: str) -> None:
    """The search that failed at night may be the last until morning; who sheds load is there."""
    search = Search()
    search.store.down = True
    with pytest.raises(DependencyDown):
        await search.service.search(request())
    assert REGISTRY.get_sample_value("millrace_dependency_up", {"dependency": "qdrant"}) == 0
    search.store.down = False
    search.store.sheds = fault == "sheds"
    search.store.was_asked.clear()
    async with search.service.probed(every_s=0.001), asyncio.timeout(5):
        await search.store.was_asked.wait()
    assert REGISTRY.get_sample_value("millrace_dependency_up", {"dependency": "qdrant"}) == 1
