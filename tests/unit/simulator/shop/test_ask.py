"""The evaluation asks as any client does and leaves no trace."""

import pytest

from contracts.errors import DependencyDown
from simulator.shop.ask import evaluate
from simulator.shop.world import World
from tests.support.shop import Shop


async def test_every_query_of_the_split_is_scored(small: World) -> None:
    """Scores come in the world's order, from the judgments of the world."""
    shop, seen = Shop(["P-5", "P-4", "P-6"]), []
    scores = await evaluate(
        small,
        "http://search",
        split="test",
        progress=lambda done, total: seen.append((done, total)),
        transport=shop.transport,
    )
    assert [one.query_id for one in scores] == ["Q-3", "Q-4"]
    assert [one.query_class for one in scores] == ["vague", "plain"]
    assert scores[0].recall == 1.0
    assert scores[0].ranked == ("P-5", "P-4", "P-6")
    assert scores[1].mrr is None
    assert seen == [(1, 2), (2, 2)]


async def test_evaluation_writes_no_impression(small: World) -> None:
    """Nothing that is measured can be learned from."""
    shop = Shop(["P-4"])
    await evaluate(small, "http://search", split="test", transport=shop.transport)
    assert {body["query"] for body in shop.searches} == {"fridge for bachelors", "double door fridge"}
    for body in shop.searches:
        assert body["impression"] == "none"
        assert body["k"] == 10
        assert not body["explore"]


async def test_a_search_service_that_is_down_is_named(small: World) -> None:
    """After some attempts the error says which service did not answer, and for what."""
    shop = Shop(["P-4"])
    shop.search_status = 503
    with pytest.raises(DependencyDown, match="http://search did not answer"):
        await evaluate(small, "http://search", split="test", transport=shop.transport)


async def test_a_degraded_answer_is_no_measurement(small: World) -> None:
    """Popular results in place of the model's say nothing about the model."""
    shop = Shop(["P-4"])
    shop.degraded = "popular"
    with pytest.raises(DependencyDown, match="degraded"):
        await evaluate(small, "http://search", split="test", transport=shop.transport)
