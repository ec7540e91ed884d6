"""Shoppers decide by seed and returned list alone, and behave as their options say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from simulator.shop.click_models import CLICK_MODELS, ETAS, ClickModel, Habits
from simulator.shop.shoppers import (
    COMPRESSED_CART_MS,
    GROUPS,
    MAX_SEARCHES,
    Action,
    Reaction,
    ShopperOptions,
    Shoppers,
    dwell,
)
from simulator.shop.world import Judgment, Query, World

LIST = tuple(f"P-{number}" for number in range(10))
CAREFUL = ShopperOptions(noise=0.0, trust=0.0, abandon=0.0, click_model="position", eta=1.0)


def _even(attraction: float = 0.4) -> World:
    """Return a world where every product of the list attracts alike."""
    query = Query("Q-1", "fridge", "plain", "train")
    products = tuple({"product_id": product_id, "brand": "Kelto"} for product_id in LIST)
    return World(products, (query,), {"Q-1": {product_id: Judgment(3, attraction) for product_id in LIST}})


def _reactions(
    world: World, options: ShopperOptions, *, visits: int = 4000, returned: Sequence[str] = LIST
) -> list[Reaction]:
    """Return what many visitors do with the same list."""
    shoppers = Shoppers(world, 7, options=options)
    query = world.of_split("train")[0]
    return [shoppers.react(shoppers.visit(number), 0, query=query, returned=returned) for number in range(visits)]


def clicks_of(reaction: Reaction) -> list[Action]:
    """Return the clicks alone."""
    return [action for action in reaction.actions if action.kind == "click"]


def _clicks_by_position(reactions: Sequence[Reaction]) -> list[int]:
    """Return how often each position was clicked."""
    count = Counter(click.position for reaction in reactions for click in clicks_of(reaction))
    return [count[position] for position in range(1, 11)]


def _actions(reactions: Sequence[Reaction], kind: str) -> list[Action]:
    """Return every action of one kind."""
    return [action for reaction in reactions for action in reaction.actions if action.kind == kind]


def test_same_seed_and_lists_give_the_same_visits_and_clicks(built_in: World) -> None:
    """Two shops of the same seed send the same people, who do the same with the same lists."""
    first, second = Shoppers(built_in, 5), Shoppers(built_in, 5)
    lists = [product["product_id"] for product in built_in.products[:10]]
    for number in range(50):
        visit = first.visit(number)
        assert visit == second.visit(number)
        assert first.react(visit, 1, query=visit.first, returned=lists) == second.react(
            visit, 1, query=visit.first, returned=lists
        )
    assert [Shoppers(built_in, 6).visit(number) for number in range(20)] != [first.visit(n) for n in range(20)]


def test_visits_can_be_made_in_any_order(built_in: World) -> None:
    """What happens in one visit does not depend on those before it."""
    shoppers = Shoppers(built_in, 5)
    forwards = [shoppers.visit(number) for number in range(20)]
    assert [shoppers.visit(number) for number in reversed(range(20))] == forwards[::-1]


def test_only_train_queries_are_typed(built_in: World) -> None:
    """Neither a first query nor a reformulation comes from the test split."""
    shoppers, test = Shoppers(built_in, 1), set(built_in.of_split("test"))
    typed = [shoppers.visit(number).first for number in range(500)]
    followed = [shoppers.react(shoppers.visit(n), 0, query=typed[n], returned=LIST).follow_up for n in range(500)]
    assert not test & {query for query in [*typed, *followed] if query is not None}
    assert any(query is not None for query in followed)


def test_popular_queries_are_typed_more_often(small: World) -> None:
    """Queries come in proportion to their popularity."""
    shoppers = Shoppers(small, 1)
    count = Counter(shoppers.visit(number).first.query_id for number in range(4000))
    assert count["Q-1"] / count["Q-2"] == pytest.approx(3.0, rel=0.15)


def test_clicks_fall_only_on_returned_products(built_in: World) -> None:
    """Every action names a product of the list at the position where it stood."""
    shoppers = Shoppers(built_in, 2, options=ShopperOptions(noise=0.3))
    for number in range(300):
        visit = shoppers.visit(number)
        for action in shoppers.react(visit, 0, query=visit.first, returned=LIST[:7]).actions:
            assert LIST[action.position - 1] == action.product_id
            assert action.position <= 7


def test_position_based_shoppers_click_in_proportion_to_examination() -> None:
    """Over many lists of equal products, clicks at slot k fall as 1/k."""
    clicks = _clicks_by_position(_reactions(_even(), CAREFUL))
    measured = np.array(clicks) / clicks[0]
    assert measured == pytest.approx(1 / np.arange(1, 11), abs=0.06)


def test_eta_sets_how_steep_the_bias_is() -> None:
    """With eta 0 every slot is looked at alike."""
    clicks = _clicks_by_position(_reactions(_even(), replace(CAREFUL, eta=0.0)))
    assert min(clicks) > 0.85 * max(clicks)


def test_cascade_shoppers_stop_after_a_good_click() -> None:
    """Where a click satisfies for certain, nobody clicks twice, and nobody looks below the click."""
    options = replace(CAREFUL, click_model="cascade", cascade_satisfied=1.0, eta=0.0)
    reactions = _reactions(_even(), options, visits=500)
    assert max(len(clicks_of(reaction)) for reaction in reactions) == 1
    clicks = _clicks_by_position(reactions)
    assert clicks[0] > clicks[1] > clicks[3]


def test_noise_and_trust_add_clicks_where_nothing_attracts() -> None:
    """Useless lists get no click from careful shoppers, some by mistake, more at the top by trust."""
    nothing = _even(0.0)
    assert sum(_clicks_by_position(_reactions(nothing, CAREFUL))) == 0
    noisy = _clicks_by_position(_reactions(nothing, replace(CAREFUL, eta=0.0, noise=0.1, trust=0.3)))
    assert noisy[0] > 2 * noisy[9] > 0
    assert Habits(trust=0.3, noise=0.1).click_probabilities(np.zeros(1)) == pytest.approx([0.37])


def test_a_moved_product_changes_only_the_slots_concerned() -> None:
    """Slots have draws of their own: swapping the last two leaves the clicks above as they were."""
    world, options = _even(), CAREFUL
    swapped = (*LIST[:8], LIST[9], LIST[8])
    for before, after in zip(
        _reactions(world, options, visits=200),
        _reactions(world, options, visits=200, returned=swapped),
        strict=True,
    ):
        assert [click.position for click in clicks_of(before)] == [click.position for click in clicks_of(after)]


def test_compressed_time_ends_clicks_and_dwell_within_two_seconds() -> None:
    """In the demo clicks and dwell reports arrive at once while the dwell keeps its length; carts come later."""
    reactions = _reactions(_even(0.9), ShopperOptions(compressed=True))
    for kind in ("view", "click", "dwell"):
        assert max(action.at_ms for action in _actions(reactions, kind)) < 2_000
    assert np.median([action.dwell_ms for action in _actions(reactions, "dwell")]) > 15_000
    assert min(action.at_ms for action in _actions(reactions, "cart")) >= COMPRESSED_CART_MS
    assert (
        0 < len(_actions(reactions, "purchase")) < len(_actions(reactions, "cart")) < len(_actions(reactions, "click"))
    )


def test_uncompressed_time_takes_as_long_as_people_do() -> None:
    """A dwell report comes after the time it reports, and a cart after the page was read."""
    for reaction in _reactions(_even(0.9), ShopperOptions(), visits=300):
        clicked = {click.position: click.at_ms for click in clicks_of(reaction)}
        for read in _actions([reaction], "dwell"):
            assert read.at_ms == clicked[read.position] + read.dwell_ms
        for cart in _actions([reaction], "cart"):
            assert cart.at_ms > clicked[cart.position]


def test_dwell_tells_a_grade_on_average_only() -> None:
    """Better products are read longer, yet a single reading time says little: every grade bounces and is read long."""
    draws = np.random.default_rng(1).random((5, 4_000))
    times = np.array([[dwell(grade, draw, tempo=0.5 * 0.3) for draw in draws[grade]] for grade in range(5)])
    assert list(np.median(times, axis=1)) == sorted(np.median(times, axis=1))
    bounced, long = (times < 5_000).mean(axis=1), (times > 30_000).mean(axis=1)
    assert 0.15 < bounced[0] < 0.45
    assert bounced[4] > 0.03
    assert long[0] > 0.1
    assert 0.4 < long[4] < 0.65
    assert (times[4] > times[1]).mean() < 0.8


def test_people_read_at_their_own_tempo(small: World) -> None:
    """A device keeps its tempo and its group on every visit; over many both are spread."""
    visits = [Shoppers(small, 1).visit(number) for number in range(2000)]
    by_client: dict[str, set[tuple[int, float]]] = {}
    for visit in visits:
        by_client.setdefault(visit.client_id, set()).add((visit.group, visit.tempo))
    assert all(len(found) == 1 for found in by_client.values())
    assert np.std([visit.tempo for visit in visits]) == pytest.approx(0.5, abs=0.05)
    assert set(Counter(visit.group for visit in visits)) == set(range(GROUPS))


def test_groups_like_brands_differently_and_nobody_more_often_in_all() -> None:
    """One group clicks a brand more than another; over all groups each brand gets the clicks that the world gives."""
    query = Query("Q-1", "fridge", "plain", "train")
    products = tuple({"product_id": one, "brand": f"B{place}"} for place, one in enumerate(LIST))
    world = World(products, (query,), {"Q-1": {one: Judgment(3, 0.2) for one in LIST}})
    shoppers = Shoppers(world, 7, options=replace(CAREFUL, eta=0.0))
    clicks = np.zeros((GROUPS, len(LIST)))
    visits = [shoppers.visit(number) for number in range(8_000)]
    for visit in visits:
        for click in clicks_of(shoppers.react(visit, 0, query=query, returned=LIST)):
            clicks[visit.group, click.position - 1] += 1
    rates = clicks / np.bincount([visit.group for visit in visits], minlength=GROUPS)[:, None]
    assert (rates.max(axis=0) / rates.min(axis=0)).mean() > 1.5
    assert rates.mean(axis=0) == pytest.approx(np.full(len(LIST), 0.2), abs=0.03)


def test_a_seed_draws_its_click_model_and_steepness() -> None:
    """Seeds differ in both, the same seed never does, and what an option names is not drawn."""
    drawn = [Habits.of_seed(seed) for seed in range(60)]
    assert drawn == [Habits.of_seed(seed) for seed in range(60)]
    assert {one.click_model for one in drawn} == set(CLICK_MODELS)
    steepness = [one.eta for one in drawn]
    assert (min(steepness), max(steepness)) == pytest.approx(ETAS, abs=0.1)
    named = Habits.of_seed(3, click_model="trust", eta=1.1)
    assert (named.click_model, named.eta) == ("trust", 1.1)
    assert named.trust > Habits.of_seed(3, click_model="position").trust


@pytest.mark.parametrize("model", CLICK_MODELS)
@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.9])
def test_lists_get_as_many_clicks_as_asked_for(model: ClickModel, wanted: float) -> None:
    """On lists that attract half as much as the best possible, whichever click model the seed has."""
    options = ShopperOptions(clicks=wanted, click_model=model)
    shoppers = Shoppers(_even(0.8), 7, options=options)
    query = Query("Q-1", "fridge", "plain", "train")
    half = Shoppers(_even(0.4), 7, options=options)
    half.habits = shoppers.habits
    reactions = [half.react(half.visit(number), 0, query=query, returned=LIST) for number in range(6_000)]
    assert np.mean([len(clicks_of(reaction)) for reaction in reactions]) == pytest.approx(wanted, rel=0.12)


def test_every_list_is_viewed_from_the_top() -> None:
    """The viewport's report covers the first slots without a gap, down to the last click at least."""
    for reaction in _reactions(_even(), ShopperOptions(), visits=300):
        (view,) = _actions([reaction], "view")
        assert [place for place, _, _ in view.visible] == list(range(1, len(view.visible) + 1))
        assert all(click.position <= len(view.visible) for click in clicks_of(reaction))


def test_abandoning_shoppers_leave_without_a_click() -> None:
    """Where everybody abandons, nobody clicks and nobody searches again."""
    reactions = _reactions(_even(0.9), ShopperOptions(abandon=1.0), visits=50)
    assert not any(clicks_of(reaction) or reaction.follow_up for reaction in reactions)


def test_an_empty_list_ends_the_visit() -> None:
    """Nothing returned: nothing to see, nothing to click."""
    assert _reactions(_even(), ShopperOptions(), visits=5, returned=()) == [Reaction((), None)] * 5


def test_reformulations_share_a_word(small: World) -> None:
    """After no click a shopper asks for the same in other words."""
    shoppers = Shoppers(small, 1, options=ShopperOptions(reformulate=1.0, abandon=0.0, noise=0.0, trust=0.0))
    first, second = small.of_split("train")
    reaction = shoppers.react(shoppers.visit(0), 0, query=first, returned=["P-9"])
    assert clicks_of(reaction) == []
    assert reaction.follow_up == second


def test_a_visit_ends_after_a_few_searches() -> None:
    """Nobody searches for ever."""
    shoppers = Shoppers(_even(0.0), 1, options=ShopperOptions(reformulate=1.0, again=1.0))
    query = _even().queries[0]
    reaction = shoppers.react(shoppers.visit(0), MAX_SEARCHES - 1, query=query, returned=LIST)
    assert reaction.follow_up is None


def test_some_clients_come_back(small: World) -> None:
    """Sessions are new, while some devices have been here before."""
    visits = [Shoppers(small, 1).visit(number) for number in range(500)]
    assert len({visit.session_id for visit in visits}) == 500
    assert 350 < len({visit.client_id for visit in visits}) < 490
