"""The closed loop without servers: seeded, honest about what exploring costs, and learning where there is something."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from simulator.shop.world import Judgment, Query, World
from simulator.shown_lists import SHOWN, SimulateOptions
from simulator.simulate import Simulation
from tests.support.tiny_encoder import WORDS, TinyEncoder
from trainer.preference.model import Deviations, Weights

FEW = SimulateOptions(lists=120, redeploy=60)
UNEQUAL = ("cpu_s", "peak_rss_mb")


def silent(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


def world(*, blue_is_better: bool = True) -> World:
    """Return forty products of two brands; whoever asks for a word likes the blue brand's, and the text does not say.

    Without that, products with the word are liked alike.
    """
    things = WORDS[:20]
    products = tuple(
        {"type": "product", "product_id": f"{brand}-{thing}", "version": 1, "price": 1.0, "title": f"{thing} {brand}"}
        for thing in things
        for brand in ("red", "blue")
    )
    queries, judgments = [], {}
    for number, thing in enumerate(things):
        for split, extra in (("train", things[(number + 1) % 20]), ("train", "cheap"), ("test", "small")):
            query = Query(f"Q-{number}-{extra}", f"{thing} {extra}", "plain", split)  # type: ignore[arg-type] # of a tuple
            queries.append(query)
            judgments[query.query_id] = {
                f"red-{thing}": Judgment(1 if blue_is_better else 3, 0.1 if blue_is_better else 0.6),
                f"blue-{thing}": Judgment(4, 0.9) if blue_is_better else Judgment(3, 0.6),
            }
    return World(products, tuple(queries), judgments, name="brands")


def run(options: SimulateOptions, on: World | None = None) -> dict[str, Any]:
    """Return the report of a run, without what differs between two equal ones."""
    report = Simulation(on or world(), TinyEncoder(), cache=None, tell=silent).run(options)
    return {name: value for name, value in report.items() if name not in UNEQUAL}


def gain(report: dict[str, Any], split: str) -> float:
    """Return the mean gain in nDCG@10 of a split."""
    return float(report["quality"][split]["difference"]["ndcg@10"]["mean"])


def test_the_report_has_the_form_that_is_documented() -> None:
    """All keys are there, and the whole report is JSON."""
    report = Simulation(world(), TinyEncoder(), cache=None, tell=silent).run(FEW)
    needed = {"world", "seed", "lists", "clicks", "learner", "settings", "quality", "curve", "cpu_s", "peak_rss_mb"}
    assert needed <= report.keys()
    assert (report["world"], report["seed"], report["lists"], report["learner"]) == ("brands", 1, 120, "preference")
    for split in ("seen", "unseen"):
        assert {"before", "after", "difference"} <= report["quality"][split].keys()
        assert {"mean", "low", "high"} == report["quality"][split]["difference"]["ndcg@10"].keys()
    assert [point["lists"] for point in report["curve"]] == [0, 60, 120]
    assert all({"lists", "seen", "unseen"} == point.keys() for point in report["curve"])
    assert orjson.loads(orjson.dumps(report, option=orjson.OPT_SERIALIZE_NUMPY))["clicks"] == report["clicks"]


@pytest.mark.parametrize("shoppers", ["simple", "shop"])
def test_the_same_seed_gives_the_same_report(shoppers: Any) -> None:
    """Everything but time and memory is equal; another seed clicks otherwise."""
    options = replace(FEW, shoppers=shoppers)
    assert run(options) == run(options)
    assert run(options)["clicks"] != run(replace(options, seed=5))["clicks"]


def test_clicks_teach_what_the_text_does_not_say() -> None:
    """Queries that nobody typed get better lists once enough was seen; the report says that it was released."""
    report = run(SimulateOptions(lists=600, redeploy=300))
    assert report["settings"]["prior"]["released"]
    assert gain(report, "seen") > 0.02
    assert gain(report, "unseen") > 0.02
    assert report["curve"][-1]["unseen"] - report["curve"][0]["unseen"] == pytest.approx(gain(report, "unseen"))


def test_without_a_learner_nothing_changes() -> None:
    """The untrained model stays in force, shoppers click all the same."""
    report = run(SimulateOptions(lists=600, redeploy=300, learner="none"))
    assert report["clicks"] > 0
    assert report["settings"]["prior"] is None
    assert gain(report, "seen") == gain(report, "unseen") == 0
    assert len({(point["seen"], point["unseen"]) for point in report["curve"]}) == 1


def test_the_clicks_do_not_depend_on_the_learner_before_it_is_released() -> None:
    """The same seed types the same queries and clicks alike on the same lists."""
    assert run(FEW)["clicks"] == run(replace(FEW, learner="none"))["clicks"]


@pytest.mark.parametrize("change", [{"bias": "none"}, {"weights": "one"}, {"loss": "logistic"}, {"seed": 9}])
def test_options_are_told_and_have_an_effect(change: dict[str, Any]) -> None:
    """The report tells each setting, and the outcome is another one."""
    plain, changed = (run(replace(SimulateOptions(lists=600, redeploy=600), **one)) for one in ({}, change))
    assert all(changed["settings"][name] == value for name, value in change.items())
    assert changed["settings"]["prior"] != plain["settings"]["prior"] or changed["curve"] != plain["curve"]


def test_exploration_tells_its_price() -> None:
    """Noise on shown lists loses attraction, more of it more; without noise nothing is lost."""
    lost = [run(replace(FEW, explore=nats))["exploration"] for nats in (0.0, 2.0, 20.0)]
    assert [one["nats"] for one in lost] == [0.0, 2.0, 20.0]
    assert lost[0]["utility_lost"] == 0
    assert lost[0]["utility_lost"] < lost[1]["utility_lost"] < lost[2]["utility_lost"]


def test_draws_explore_what_is_uncertain() -> None:
    """What is not known is drawn from the first list on, and the price is told."""
    options = replace(FEW, lists=60, explore=30.0, explore_by="draws")
    plain, drawn = run(replace(options, explore=0.0)), run(options)
    assert drawn["exploration"]["by"] == "draws"
    assert plain["exploration"]["utility_lost"] == 0
    assert drawn["exploration"]["utility_lost"] != 0


def test_draws_move_a_product_by_the_width_of_its_own_quality() -> None:
    """As in search: a product whose quality is sure stays where it is."""
    made = Simulation(world(), TinyEncoder(), cache=None, tell=silent)
    own = Deviations(own=np.zeros(1, np.float32), untried=1.0)
    weights = replace(Weights.untrained(made._catalogue), products=np.array([1]), deviations=own)
    drawn = made._noise(weights, replace(FEW, explore=2.0, explore_by="draws"), np.random.default_rng(1))
    expected = 2.0 * np.random.default_rng(1).standard_normal(3)
    np.testing.assert_allclose(drawn(np.array([0, 1, 2])), expected * [1, 0, 1])


def test_quality_is_told_by_class() -> None:
    """Each split has the comparison of each class of its queries."""
    report = run(FEW)
    for split in ("seen", "unseen"):
        assert set(report["by_class"][split]) == {"plain"}
        assert report["by_class"][split]["plain"]["difference"] == report["quality"][split]["difference"]


def test_exploration_never_touches_what_is_evaluated() -> None:
    """However loud the noise, the untrained model is scored on its own order."""
    reports = [run(replace(FEW, explore=nats, learner="none")) for nats in (0.0, 20.0)]
    assert reports[0]["curve"] == reports[1]["curve"]
    assert reports[0]["clicks"] != reports[1]["clicks"]


@pytest.mark.parametrize("shoppers", ["simple", "shop"])
def test_a_catalogue_smaller_than_a_list_is_shown_whole(shoppers: Any) -> None:
    """Four products make lists of four."""
    tiny = world()
    few = World(tiny.products[:4], tiny.queries, {"Q-0-cheap": tiny.judgments["Q-0-cheap"]}, name="few")
    assert len(few.products) < SHOWN
    assert run(replace(FEW, shoppers=shoppers), few)["lists"] == 120


def test_queries_without_popularity_are_typed_alike() -> None:
    """A world whose author gave all queries the popularity 0 runs too."""
    silent_world = world()
    queries = tuple(replace(query, popularity=0.0) for query in silent_world.queries)
    assert run(FEW, replace(silent_world, queries=queries))["clicks"] > 0


def test_progress_tells_both_kinds_of_work_to_the_end() -> None:
    """Encoding and lists are told from nothing to all."""
    told: list[tuple[str, int, int]] = []
    Simulation(world(), TinyEncoder(), cache=None, tell=lambda *one: told.append(one)).run(FEW)
    assert [one for one in told if one[0] == "lists"] == [("lists", 0, 120), ("lists", 60, 120), ("lists", 120, 120)]
    assert [one for one in told if one[0] == "encoding"][-1] == ("encoding", 97, 97)  # distinct texts


def test_the_naive_twin_is_solved_on_the_same_lists() -> None:
    """What exchanged neighbours say of it is told, and how much better the model in force ranks than the other one."""
    options = replace(FEW, lists=600, redeploy=300, swaps=1.0, twin=True)
    for told, strength in ((options, 1), (replace(options, weights="one"), 0)):
        report = run(told)
        assert (report["debiasing"]["strength"], report["twin"]["strength"]) == (strength, 1 - strength)
        assert report["debiasing"]["exchanges"] > 0
        assert report["twin"]["quality"]["unseen"]["after"] == report["quality"]["unseen"]["after"]
    assert run(FEW)["twin"] is None


@pytest.mark.parametrize("ranker", ["base", "weak", "strong"])
def test_a_fixed_ranker_shows_the_same_whatever_is_learned(ranker: Any) -> None:
    """Its clicks do not depend on what is solved in between; a strong one is clicked more than a weak one."""
    options = replace(FEW, ranker=ranker)
    assert run(options)["clicks"] == run(replace(options, learner="none"))["clicks"]
    assert run(replace(FEW, ranker="strong"))["clicks"] > run(replace(FEW, ranker="weak"))["clicks"]


@pytest.mark.parametrize("click_model", ["cascade", "trust"])
def test_simple_shoppers_read_as_they_are_told(click_model: Any) -> None:
    """Other clicks than those of who looks at positions one by one."""
    assert run(replace(FEW, click_model=click_model))["clicks"] != run(FEW)["clicks"]


def test_lists_go_through_the_pairs_stage() -> None:
    """Each list comes to something by the names of the ledger, and no filter finds fault with simple shoppers."""
    plain, unfiltered = (run(replace(FEW, filters=filters)) for filters in (FEW.filters, ()))
    assert sum(plain["lists_by_outcome"].values()) == 120
    assert plain["lists_by_outcome"] == unfiltered["lists_by_outcome"]
    assert plain["curve"] == unfiltered["curve"]
    assert plain["pushed"] is None


def test_a_product_that_robots_push_is_told_by_its_ranks() -> None:
    """Beside what honest shoppers alone would have taught; nothing moves if all robots are found."""
    options = SimulateOptions(lists=120, redeploy=120, trouble="fraud")
    pushed = run(replace(options, filters=()))["pushed"]
    assert pushed["most"] > 0
    assert pushed["queries"] > 0


def test_the_one_pass_heads_learn_in_the_same_loop() -> None:
    """What shoppers prefer rises, on queries that nobody typed too, once there is a whole micro-batch."""
    options = SimulateOptions(lists=1280, redeploy=64, learner="one-pass")
    report = run(options)
    assert gain(report, "unseen") > 0
    first, second, *_ = report["curve"]
    assert first["unseen"] == second["unseen"]
    assert run(replace(options, weights="one"))["curve"] != report["curve"]
