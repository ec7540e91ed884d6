"""Query vectors: cached, encoded once however many ask, failures heard by all."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from typing_extensions import override

from indexer.search.encoding import QueryEncoder
from tests.support.tiny_encoder import TinyEncoder


class Gated(TinyEncoder):
    """An encoder that waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self.batches: list[list[str]] = []
        self.fails = False

    @override
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Encode, once allowed."""
        self.may_go_on.wait(10)
        self.batches.append(list(texts))
        if self.fails:
            raise RuntimeError("out of memory")
        return super().encode(texts, batch_size=batch_size)


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    """Repeats included, whether cached or not."""
    encoder = TinyEncoder()
    queries = QueryEncoder(encoder)
    first = await queries.encode(["a", "b", "a"])
    np.testing.assert_array_equal(first, encoder.encode(["a", "b", "a"]))
    np.testing.assert_array_equal(await queries.encode(["b"]), first[1:2])


async def test_hot_queries_are_encoded_once() -> None:
    """The least lately asked is forgotten first."""
    encoder = TinyEncoder()
    queries = QueryEncoder(encoder, cached_queries=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await queries.encode([text])
    assert encoder.encoded == ["a", "b", "c", "b"]


async def test_what_waits_is_encoded_together_and_each_text_once() -> None:
    """While one batch runs, the next one gathers."""
    encoder = Gated()
    queries = QueryEncoder(encoder)
    first = asyncio.create_task(queries.encode(["a"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(queries.encode([text])) for text in ("b", "c", "b", "a")]
    await asyncio.sleep(0)
    encoder.may_go_on.set()
    await asyncio.gather(first, *others)
    assert sorted(text for batch in encoder.batches for text in batch) == ["a", "b", "c"]
    assert len(encoder.batches) <= 2


async def test_one_client_that_hangs_up_does_not_take_the_vector_from_another() -> None:
    """Both wait for the same text; the one that stays gets it."""
    encoder = Gated()
    queries = QueryEncoder(encoder)
    leaving, staying = (asyncio.create_task(queries.encode(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    encoder.may_go_on.set()
    assert (await staying).shape == (1, encoder.dim)


async def test_a_failure_is_heard_and_does_not_last() -> None:
    """Those who wait get the error; the next query is encoded as ever."""
    encoder = Gated()
    encoder.may_go_on.set()
    encoder.fails = True
    queries = QueryEncoder(encoder)
    with pytest.raises(RuntimeError, match="out of memory"):
        await queries.encode(["a"])
    encoder.fails = False
    assert (await queries.encode(["a"])).shape == (1, encoder.dim)
