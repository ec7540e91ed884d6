"""A trainer that decides by held-out lists, as a real process on a real Kafka."""

from pathlib import Path

import numpy as np
import pytest

from contracts import wire
from contracts.decisions import DECISIONS_KEY, Decisions
from contracts.propensities import CellPropensities, SlotPropensity
from contracts.releases import ROLLBACK, ROLLBACK_KEY, Rollback
from contracts.structs import JoinedSearch, JoinedSlot, Ranking, encode
from contracts.topics import MODELS, PROPENSITIES
from service.machine import epoch_ms
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.trainer import PRODUCTS, QUERIES, SCATTERED
from tests.support.trainer_process import Shop, running
from towers.encoder import BaseEncoder

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

LEARNED = 600
"""Lists after which what was learned has been shown to predict, and is released."""


def looks_at(began_at: int) -> CellPropensities:
    """Return what is known well of where shoppers look: by 1/position."""
    slots = tuple(
        SlotPropensity(position=k, theta=1 / k, low=0.95 / k, high=1.05 / k, clicks=500.0, prior_only=False)
        for k in range(1, 7)
    )
    return CellPropensities(
        surface="", device="", layout="list", columns=1, kind="examined", version=1, effective_from=began_at,
        estimated_at=began_at, lists=400, swap_clicks=100.0, history_clicks=0.0, steepness=1.0, slots=slots,
    )  # fmt: skip


def held_out(number: int, began_at: int, *, query_release: int) -> bytes:
    """Return a list of shoppers who like what the learned from did not like."""
    rng = np.random.default_rng(number)
    shown = rng.permutation(len(PRODUCTS))[:6].tolist()
    chances = [(0.02 if product in SCATTERED else 0.8) / place for place, product in enumerate(shown, start=1)]
    slots = tuple(
        JoinedSlot(product_id=PRODUCTS[product], position=place, clicked=clicked)
        for place, (product, clicked) in enumerate(zip(shown, (rng.random(6) < chances).tolist(), strict=True), start=1)
    )
    ranking = Ranking(query_release=query_release, arm="live" if query_release else "anchor")
    return encode(
        JoinedSearch(
            search_id=f"s-{number}", search_time=began_at + number, closed_at=began_at + 60_000, slots=slots,
            query=QUERIES[number % len(QUERIES)], client_id=f"c-{number}", ranking=ranking,
        )
    )  # fmt: skip


def test_live_that_held_out_lists_find_worse_steps_back_by_itself(
    kafka_settings: SettingsFactory, encoder: BaseEncoder, model_folder: Path, tmp_path: Path
) -> None:
    """Of few searches, of which arms say nothing: the decision says by which lists, and is not made again."""
    own = kafka_settings(
        base_model=str(model_folder),
        release_interval_s=5,
        product_release_interval_s=5,
        holdout_share=0.05,
        session_timeout_s=6,
        log_format="json",
    )
    shop, began_at = Shop(own, encoder), epoch_ms()
    shop.send_vectors()
    shop.send_raw(PROPENSITIES, "known", wire.encode(looks_at(began_at)))
    shop.send_held_out({f"s-{one}": held_out(one, began_at, query_release=one % 2) for one in range(800)})
    with running(own, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        shop.wait_for("product")
        query = shop.newest("query")
        assert query is not None
        number = query.manifest.release
        shop.serve(number, query.manifest.product_release)  # what is in force is never retired
        begun = Decisions(number=9, began_at=began_at, since={}, collection="products-r0")
        shop.send_raw(MODELS, DECISIONS_KEY.decode(), wire.encode(begun))
        value = eventually(lambda: shop.record(ROLLBACK_KEY), timeout_s=120, what="a rollback is asked for")
        assert value is not None
        decisions = shop.decisions()
    shop.close()
    decision = decisions.decided[-1]
    assert (decision.verdict, decision.basis, decision.subject) == ("stepped_back", "held_out_lists", 0)
    assert decision.held_out is not None
    assert (decision.held_out.query_release, decision.held_out.lists, decision.held_out.looks) == (number, 800, 1)
    assert decision.held_out.worse_by[0].high < 0
    assert wire.decode(value, ROLLBACK) == Rollback(query_release=0, requested_at=decision.decided_at)
    assert len(trainer.said("held_out_lists_looked_at")) == 1
