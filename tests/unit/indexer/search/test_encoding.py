"""Query vectors: cached, encoded once however many ask, shoppers before bulk, failures heard by all."""

import asyncio

import numpy as np
import pytest

from contracts.errors import Overloaded
from indexer.search import encoding
from indexer.search.encoding import BULK_AT_ONCE, ENTRY_BYTES, SLICE_CHARS, QueryEncoder
from tests.support.hand_clock import settle
from tests.support.search_fakes import DIM, GatedEncoder
from tests.support.tiny_encoder import TinyEncoder

ROW_BYTES = 4 * DIM + ENTRY_BYTES


@pytest.fixture
def gated() -> GatedEncoder:
    """An encoder that waits until it may go on."""
    encoder = GatedEncoder()
    encoder.may_go_on.clear()
    return encoder


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    """Repeats included, whether cached or not."""
    encoder = TinyEncoder()
    queries = QueryEncoder(encoder)
    first = await queries.encode(["a", "b", "a"])
    np.testing.assert_array_equal(first, encoder.encode(["a", "b", "a"]))
    np.testing.assert_array_equal(await queries.encode(["b"]), first[1:2])
    np.testing.assert_array_equal(await queries.encode_bulk(["b", "c"]), encoder.encode(["b", "c"]))


async def test_hot_queries_are_encoded_once() -> None:
    """Within the bytes that it may take; the least lately asked is forgotten first."""
    encoder = TinyEncoder(DIM)
    queries = QueryEncoder(encoder, cache_bytes=2 * ROW_BYTES)
    for text in ("a", "b", "a", "c", "a", "b"):
        await queries.encode([text])
    assert encoder.encoded == ["a", "b", "c", "b"]


async def test_a_cached_vector_holds_no_others_in_memory() -> None:
    """A row of a matrix would keep the whole matrix."""
    queries = QueryEncoder(TinyEncoder())
    await queries.encode_bulk([f"text {number}" for number in range(64)])
    assert {row.base is None for row in queries._cache.values()} == {True}


async def test_what_waits_is_encoded_together_and_each_text_once(gated: GatedEncoder) -> None:
    """While one slice runs, the next one gathers."""
    queries = QueryEncoder(gated)
    first = asyncio.create_task(queries.encode(["a"]))
    await settle()
    others = [asyncio.create_task(queries.encode([text])) for text in ("b", "c", "b", "a")]
    await settle()
    gated.may_go_on.set()
    await asyncio.gather(first, *others)
    assert gated.batches == [["a"], ["b", "c"]]


async def test_a_shopper_waits_for_one_slice_of_bulk_texts_at_most(gated: GatedEncoder) -> None:
    """A slice of the longest texts holds few; a query that is asked for meanwhile is next."""
    queries, longest = QueryEncoder(gated), SLICE_CHARS // 2
    bulk = asyncio.create_task(queries.encode_bulk([f"{number:0{longest}}" for number in range(256)]))
    await settle()
    shopper = asyncio.create_task(queries.encode(["quiet fridge"]))
    await settle()
    gated.may_go_on.set()
    await asyncio.gather(shopper, bulk)
    assert [len(batch) for batch in gated.batches[:3]] == [2, 1, 2]
    assert gated.batches[1] == ["quiet fridge"]


async def test_a_shopper_who_asks_for_a_bulk_text_goes_before_bulk(gated: GatedEncoder) -> None:
    """Whoever asked first, the text is encoded once, in the shopper's turn."""
    queries = QueryEncoder(gated)
    texts = [f"{number:0{SLICE_CHARS}}" for number in range(5)]
    bulk = asyncio.create_task(queries.encode_bulk(texts))
    await settle()
    shopper = asyncio.create_task(queries.encode([texts[4]]))
    await settle()
    gated.may_go_on.set()
    await asyncio.gather(shopper, bulk)
    assert [batch[0] for batch in gated.batches] == [texts[0], texts[4], *texts[1:4]]


async def test_bulk_requests_beyond_the_bound_are_refused(gated: GatedEncoder) -> None:
    """They say so at once, and when one is done the next is taken."""
    queries = QueryEncoder(gated)
    taken = [asyncio.create_task(queries.encode_bulk([f"a{number}", "b"])) for number in range(BULK_AT_ONCE)]
    await settle()
    with pytest.raises(Overloaded):
        await queries.encode_bulk(["x", "y"])
    gated.may_go_on.set()
    await asyncio.gather(*taken)
    assert len(await queries.encode_bulk(["x", "y"])) == 2


async def test_a_shopper_behind_more_than_can_be_encoded_in_time_is_refused(
    gated: GatedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a text takes is measured; what is cached is given however many wait."""
    queries = QueryEncoder(gated)
    gated.may_go_on.set()
    await queries.encode(["known"])
    gated.may_go_on.clear()
    running = asyncio.create_task(queries.encode(["running"]))
    await settle()
    monkeypatch.setattr(queries, "_text_s", 0.2)
    waiting = [asyncio.create_task(queries.encode([f"{number}"])) for number in range(5)]
    await settle()
    refused = [task for task in waiting if task.done()]
    assert len(refused) == 2  # three of them take 0.6 s, more than may wait
    for task in refused:
        with pytest.raises(Overloaded):
            await task
    assert len(await queries.encode(["known"])) == 1
    gated.may_go_on.set()
    await asyncio.gather(running, *(task for task in waiting if task not in refused))


async def test_what_nobody_waits_for_any_more_is_not_encoded(gated: GatedEncoder) -> None:
    """The shopper is gone before the encoder came to it."""
    queries = QueryEncoder(gated)
    first, gone, staying = (asyncio.create_task(queries.encode([text])) for text in ("a", "b", "c"))
    await settle()
    gone.cancel()
    await settle()
    gated.may_go_on.set()
    await asyncio.gather(first, staying)
    assert "b" not in [text for batch in gated.batches[1:] for text in batch]


async def test_one_client_that_hangs_up_does_not_take_the_vector_from_another(gated: GatedEncoder) -> None:
    """Both wait for the same text; the one that stays gets it."""
    queries = QueryEncoder(gated)
    leaving, staying = (asyncio.create_task(queries.encode(["a"])) for _ in range(2))
    await settle()
    leaving.cancel()
    gated.may_go_on.set()
    assert (await staying).shape == (1, gated.dim)


async def test_a_failure_is_heard_and_does_not_last() -> None:
    """Those who wait get the error; the next query is encoded as ever."""
    encoder = GatedEncoder()
    encoder.fails = True
    queries = QueryEncoder(encoder)
    with pytest.raises(RuntimeError, match="out of memory"):
        await queries.encode(["a"])
    encoder.fails = False
    assert (await queries.encode(["a"])).shape == (1, encoder.dim)


def test_the_caches_are_bounded_in_bytes() -> None:
    """Queries of any number take no more than what was set aside for them."""
    assert encoding.CACHE_BYTES <= 64 * 2**20
