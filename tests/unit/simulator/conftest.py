"""The built-in world, made once, and a small one whose every number is known."""

import pytest

from simulator.shop.builtin import builtin_world
from simulator.shop.world import Judgment, Query, World


@pytest.fixture(scope="session")
def built_in() -> World:
    """Return the built-in world of seed 1."""
    return builtin_world(1)


@pytest.fixture
def small() -> World:
    """Return a world of twelve products and four queries."""
    products = tuple(
        {"type": "product", "schema_version": 1, "product_id": f"P-{number}", "version": 1, "title": f"Fridge {number}"}
        | {"price": 100.0 + number, "currency": "INR", "category": ["Appliances", "Refrigerators"]}
        for number in range(12)
    )
    queries = (
        Query("Q-1", "quiet fridge", "plain", "train", popularity=3.0),
        Query("Q-2", "quiet small fridge", "vague", "train", popularity=1.0),
        Query("Q-3", "fridge for bachelors", "vague", "test"),
        Query("Q-4", "double door fridge", "plain", "test"),
    )
    judgments = {
        "Q-1": {"P-0": Judgment(4, 0.9), "P-1": Judgment(1, 0.05), "P-2": Judgment(3)},
        "Q-2": {"P-3": Judgment(4, 0.7)},
        "Q-3": {"P-4": Judgment(4, 0.7), "P-5": Judgment(3, 0.3)},
        "Q-4": {"P-6": Judgment(2, 0.14)},
    }
    return World(products, queries, judgments, name="small")
