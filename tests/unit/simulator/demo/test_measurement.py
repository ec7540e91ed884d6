"""Quality is asked as any client asks and leaves no trace; before and after are asked alike."""

import pytest

from contracts.errors import DependencyDown
from simulator.demo import measurement
from simulator.demo.measurement import Measurement, evaluate, sample_gain
from simulator.demo.report import figures_of
from simulator.evaluation import QueryScore, score
from simulator.shop.traffic import Totals
from simulator.shop.world import Judgment, Query, Split, World
from tests.support.shop import Shop

WORLD = World(
    tuple({"product_id": f"P-{number}", "title": f"Fridge {number}"} for number in range(3)),
    (Query("Q-1", "quiet fridge", "plain", "train"), Query("Q-2", "fridge for bachelors", "vague", "test")),
    {"Q-1": {"P-0": Judgment(4)}, "Q-2": {"P-1": Judgment(4)}},
    name="tiny",
)


@pytest.fixture
async def measured(monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """Give a measurement in which search learned to put the right product first."""
    ranked = [["P-2", "P-1", "P-0", "P-9"], ["P-1", "P-0", "P-2", "P-9"]]

    async def answered(world: World, url: str, *, split: Split) -> tuple[QueryScore, ...]:
        """Answer every query of a split with the same list."""
        assert url == "http://search"
        return tuple(
            score(query.query_id, ranked[0], query_class=query.query_class, grades=world.grades(query.query_id))
            for query in world.of_split(split)
        )

    monkeypatch.setattr(measurement, "evaluate", answered)
    asked = Measurement(WORLD, "http://search")
    await asked.before()
    ranked.pop(0)
    await asked.after()
    return asked


async def test_unseen_are_the_queries_that_nobody_typed(measured: Measurement) -> None:
    """`unseen` holds the test split, `seen` the train split, each with its change."""
    quality = measured.quality(seed=1)
    assert quality["unseen"]["before"]["mrr@10"] == 0.5
    assert quality["unseen"]["after"]["mrr@10"] == 1.0
    assert list(quality["unseen"]["by_class"]) == ["vague"]
    assert list(quality["seen"]["by_class"]) == ["plain"]


async def test_examples_show_titles_and_grades(measured: Measurement) -> None:
    """A product that the world does not know is shown by its id."""
    (example,) = measured.examples(seed=1)
    assert example["query"] == "fridge for bachelors"
    assert example["after"][0] == {"title": "Fridge 1", "grade": 4}
    assert example["after"][3] == {"title": "P-9", "grade": 0}
    assert example["before"][0] == {"title": "Fridge 2", "grade": 0}


async def test_figures_have_the_published_form(measured: Measurement) -> None:
    """Every key that others read is there; the classes are beside the splits, not in them."""
    quality = measured.quality(seed=3)
    freshness = {"click_to_search": {"p50": 1.0, "p99": 2.0}}
    figures = figures_of(
        seed=3, seconds=120, world="tiny", quality=quality, totals=Totals(sent=7), ledger={"events": {"balance": 0}},
        releases={"query": 1, "product": 1}, freshness=freshness,
    )  # fmt: skip
    assert list(figures) == [
        "seed", "world", "seconds", "events", "searches", "ledger", "releases", "quality", "freshness_s", "search_ms"
    ]  # fmt: skip
    assert (figures["seed"], figures["world"], figures["seconds"]) == (3, "tiny", 120)
    assert figures["events"] == {"sent": 7, "accepted": 0}
    assert figures["releases"] == {"query": 1, "product": 1}
    assert set(figures["quality"]) == {"unseen", "seen", "by_class"}
    assert set(figures["quality"]["unseen"]) >= {"queries", "before", "after", "difference"}
    assert set(figures["quality"]["unseen"]["difference"]["ndcg@10"]) == {"mean", "low", "high"}
    assert "by_class" not in figures["quality"]["seen"]
    assert "by_class" in quality["seen"]
    assert (figures["freshness_s"], figures["search_ms"]) == (freshness, {"p50": None, "p99": None})


def test_the_live_sample_says_its_change() -> None:
    """The nDCG now, and since the start, over how many queries."""
    before = (score("Q-2", ["P-2", "P-1"], query_class="vague", grades={"P-1": 4}),)
    after = (score("Q-2", ["P-1"], query_class="vague", grades={"P-1": 4}),)
    assert sample_gain(before, after) == "nDCG@10 1.000 on 1 unseen queries (+0.369 since the start)"


async def test_every_query_of_the_split_is_scored(small: World) -> None:
    """Scores come in the world's order, from the judgments of the world."""
    shop = Shop(["P-5", "P-4", "P-6"])
    scores = await evaluate(small, "http://search", split="test", transport=shop.transport)
    assert [one.query_id for one in scores] == ["Q-3", "Q-4"]
    assert [one.query_class for one in scores] == ["vague", "plain"]
    assert scores[0].recall == 1.0
    assert scores[0].ranked == ("P-5", "P-4", "P-6")
    assert scores[1].mrr is None


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
