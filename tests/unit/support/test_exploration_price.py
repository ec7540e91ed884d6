"""What exploration costs at the default shares."""

from dataclasses import replace

from service.settings import Settings
from simulator.shop.builtin import builtin_world
from tests.support.exploration_price import price


def test_exploration_costs_less_than_a_hundredth_at_the_default_shares() -> None:
    """Exchanged lists lose something, and all lists together less than a hundredth of nDCG@10."""
    world = builtin_world(1)
    found = price(replace(world, queries=world.queries[:60]), 1.5, lists=10)
    shares = Settings()
    assert 0.3 < found.ndcg < 0.7
    assert 0.001 < found.lost["swap"] < 0.03
    assert shares.swap_share * found.lost["swap"] + shares.anchor_share * found.lost["jitter"] < 0.01
