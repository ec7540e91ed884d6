"""What a robot that clicks on one product all day does to ranks, through the pairs stage and the learner."""

from typing import Any

import numpy as np
import orjson

from contracts.structs import TRAINING_SEARCH
from contracts.telemetry import Filter
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, EVERY_FOURTH, PRODUCTS, QUERIES, SHOWN, FakeProducts, new_learner
from tests.unit.streams.pairs.test_filters import MINUTE_MS, WRITTEN_MS, Judged, shown
from trainer.learner import Towers

PUSHED = 1
"""Among the products that nobody likes much."""
PEOPLE, ROBOTS = 400, 160


def log() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lists of people, two each, and those of a robot that clicks on one product wherever it stands."""
    people: list[dict[str, Any]] = []
    robots: list[dict[str, Any]] = []
    rng = np.random.default_rng(3)
    for number in range(PEOPLE + ROBOTS):
        is_robot = number >= PEOPLE
        products = rng.permutation(len(PRODUCTS))[:SHOWN]
        if is_robot and PUSHED not in products:
            products[rng.integers(SHOWN)] = PUSHED
        chances = np.where(np.isin(products, list(EVERY_FOURTH)), 0.9, 0.2) / np.arange(1, SHOWN + 1)
        clicked = products == PUSHED if is_robot else rng.random(SHOWN) < chances
        slots = [
            {"product_id": PRODUCTS[product], "position": place, "clicked": bool(click)}
            for place, (product, click) in enumerate(zip(products.tolist(), clicked, strict=True), start=1)
        ]
        who = "robot" if is_robot else f"person {number // 2}"
        after_ms = int(rng.integers(12 * 60)) * MINUTE_MS
        query = QUERIES[int(rng.integers(len(QUERIES)))]
        one = shown(number, after_ms, query=query, slots=slots, session_id=who, client_id=who)
        (robots if is_robot else people).append(one)
    return people, robots


def ranks(lists: list[dict[str, Any]], *on: Filter) -> np.ndarray:
    """Return the rank of the pushed product for each query, once the lists were learned from."""
    learner = new_learner()
    in_time = sorted(lists, key=lambda one: one["search_time"])
    for message in Judged(in_time, *on).training.values():
        learner.evidence.take_list(TRAINING_SEARCH.decode(orjson.dumps(message)), time_ms=WRITTEN_MS)
    towers = learner.solve(Towers.untrained(DIM)).towers
    encoder = TinyEncoder(DIM)
    _, vectors, features, _ = FakeProducts(encoder).look(PRODUCTS)
    quality = towers.product.quality(PRODUCTS, features)
    nats = 10 * towers.query.vectors(encoder.encode(QUERIES))[:, :-1] @ vectors.T + quality
    nats += towers.query.memory.nats_of_products(QUERIES, PRODUCTS)
    return np.asarray((nats > nats[:, [PUSHED]]).sum(axis=1))


def test_a_robot_with_three_clicks_in_ten_moves_its_product_by_a_rank_at_most_on_average() -> None:
    """Over all queries: the filters leave little of it, and without them it moves by many."""
    people, robots = log()
    clicks = sum(slot["clicked"] for one in people for slot in one["slots"])
    assert len(robots) / (clicks + len(robots)) >= 0.3
    honest = ranks(people, *Filter)
    assert np.abs(honest - ranks([*people, *robots], *Filter)).mean() <= 1
    assert np.abs(honest - ranks([*people, *robots])).mean() > 2
