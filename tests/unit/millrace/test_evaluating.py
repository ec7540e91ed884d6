"""What is read of held-out lists, what is told of two releases, and in which words."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typing_extensions import override

from contracts.errors import DependencyDown, UsageError
from contracts.propensities import Propensities
from contracts.structs import JoinedSearch, JoinedSlot, encode
from millrace.evaluating import evaluation_report, evaluation_table, evaluation_words
from service.models import ModelsTable
from tests.support.indexing import product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, EVERY_FOURTH, PRODUCTS, QUERIES, SHOWN, START_MS, FakeProducts
from towers.features import FeatureSpace, key_of
from towers.model import ProductTower
from towers.release_files import pack
from trainer.adapters.held_out_looks import towers_of
from trainer.learner import Looked, Towers
from trainer.release.held_out_lists import HeldOutList, held_out_lists

ENCODER = TinyEncoder(DIM)
UNTRAINED = Towers.untrained(DIM)
LIKED = [PRODUCTS[number] for number in sorted(EVERY_FOURTH)]


def pushed(names: list[str]) -> Towers:
    """Return towers that say nothing but that some products are better."""
    keys = np.array(sorted(map(key_of, names)), dtype=np.uint64)
    own, nothing = np.full(len(keys), 20.0, dtype=np.float32), np.zeros(0, np.float32)
    space = FeatureSpace(np.zeros(0, np.uint64), nothing)
    return UNTRAINED._replace(product=ProductTower(space, nothing, keys, own, own, 0.1, 100.0))


def joined(number: int = 0, **fields: Any) -> JoinedSearch:
    """Return one of endlessly many lists; shoppers like a quarter of the products, whatever they asked for."""
    rng = np.random.default_rng(number)
    shown = rng.permutation(len(PRODUCTS))[:SHOWN].tolist()
    chances = [(0.6 if product in EVERY_FOURTH else 0.05) / (place + 1) for place, product in enumerate(shown)]
    slots = tuple(
        JoinedSlot(product_id=PRODUCTS[product], position=place, clicked=clicked)
        for place, (product, clicked) in enumerate(zip(shown, (rng.random(SHOWN) < chances).tolist(), strict=True), 1)
    )
    told = {
        "search_id": f"s-{number}", "search_time": START_MS, "closed_at": START_MS + 60_000, "device": "mobile",
        "client_id": f"c{number // 2}", "query": QUERIES[number % 12] if number % 10 else f"oven {number}",
        "slots": slots, **fields,
    }  # fmt: skip
    return JoinedSearch(**told)


def report(
    ours: Towers,
    theirs: Towers = UNTRAINED,
    *,
    lists: int = 600,
    products: FakeProducts | None = None,
    share: float = 0.1,
) -> dict[str, Any]:
    """Return the report on lists by the numbers, of half as many clients, with one that could not be read."""
    held_out, left_out = held_out_lists([*(encode(joined(number)) for number in range(lists)), b"{"])
    found = evaluation_report(
        held_out, ours, theirs, products=products or FakeProducts(ENCODER), encoder=ENCODER,
        propensities=Propensities(), share=share, tell=lambda *_: None,
    )  # fmt: skip
    return {"query_release": 2, "against": 0, **found, "left_out": dict(left_out)}


def only(*slots: JoinedSlot, **fields: Any) -> list[HeldOutList]:
    """Return what is read of one list."""
    return held_out_lists([encode(joined(slots=slots, **fields))])[0]


def slot(position: int, **fields: Any) -> JoinedSlot:
    """Return a slot."""
    return JoinedSlot(product_id=fields.pop("product_id", f"P-{position}"), position=position, **fields)


def test_a_list_counts_once_and_what_is_left_out_is_counted_by_reason() -> None:
    """A killed agent may have written it twice; sorted lists, and those of later pages, say nothing of a ranking."""
    values = [
        encode(joined(1)), encode(joined(1)), encode(joined(2, page=2)), encode(joined(3, consent="denied")),
        encode(joined(4, slots=(slot(1),))), encode(joined(5, query=" ")), b"{}",
    ]  # fmt: skip
    lists, left_out = held_out_lists(values)
    assert [one.search.search_id for one in lists] == ["s-1"]
    assert {name: left_out[name] for name in ("duplicate", "later_page", "consent", "no_order")} == {
        "duplicate": 1, "later_page": 1, "consent": 1, "no_order": 2
    }  # fmt: skip
    assert left_out.total() == 6


def test_the_newest_lists_are_kept_and_the_others_counted() -> None:
    """Whatever the order in which partitions give them; a list that was given up does not come back."""
    times = [5, 1, 4, 2, 3, 1]
    values = [encode(joined(time, search_time=START_MS + time)) for time in times]
    lists, left_out = held_out_lists(values, most=2)
    assert [one.search.search_id for one in lists] == ["s-5", "s-4"]
    assert left_out == {"older": 4}


def test_slots_count_that_stood_by_rank_on_the_first_page() -> None:
    """Not what was placed, sold out, twice in the list or behind the first page; what was clicked counts as others."""
    placed = [slot(2, sponsored=True), slot(3, pinned=True), slot(4, in_stock=False)]
    twice = [slot(5, product_id="P-1", sponsored=True)]
    (one,) = only(slot(1), *placed, *twice, slot(6, clicked=True), slot(7), slot(8), slot(9), first_page_ends=8)
    assert [each.position for each in one.slots] == [6, 7, 8]


def test_of_lists_with_view_events_only_what_was_seen_counts() -> None:
    """A click without one was seen, too."""
    (one,) = only(slot(1, visible_ms=900), slot(2), slot(3, clicked=True), slot(4, visible_ms=0))
    assert [each.position for each in one.slots] == [1, 3]


def test_what_shoppers_like_is_found_better_and_the_other_way_round_worse() -> None:
    """The same lists, the same difference with the other sign."""
    better, worse = report(pushed(LIKED)), report(UNTRAINED, pushed(LIKED))
    assert better["value"] > 0
    assert better["value"] == pytest.approx(-worse["value"])
    assert better["low"] < better["value"] < better["high"]
    assert better["persons"] == 300
    assert better["lists_by_the_prior"] == better["lists"] == 600
    assert sum(better["left_out"].values()) == 1


def test_equal_releases_are_equal() -> None:
    """Nothing moves, and the sentence says so."""
    same = report(pushed(LIKED), pushed(LIKED))
    assert (same["verdict"], same["value"], same["moved"]) == ("equal", 0.0, 0)
    assert evaluation_words(same).startswith("release 2 and release 0 rank every list alike.")


def test_the_report_is_stable_json_with_slices_that_add_up() -> None:
    """Each list is of one device, one kind of query; the table shows the slices that divide anything."""
    found = report(pushed(LIKED))
    assert json.loads(json.dumps(found)) == found
    for name in ("query", "device", "layout", "arm"):
        assert sum(row["lists"] for row in found["slices"] if row["slice"] == name) == 600
    console = Console(width=160, record=True)
    console.print(evaluation_table(found))
    shown = console.export_text()
    assert "query: head" in shown
    assert "query: tail" in shown
    assert "query: first time" in shown
    assert "device: mobile" not in shown


def test_the_share_by_which_queries_count_as_held_out_is_said() -> None:
    """With 0, where the command is set otherwise than the stream workers, the missing part is explained."""
    found, without = report(pushed(LIKED), share=0.1), report(pushed(LIKED), share=0.0)
    assert "held out by a share of 0.1" in evaluation_words(found)
    assert not any(row["label"] == "first time" for row in without["slices"])
    assert "MILLRACE_HOLDOUT_SHARE of this command is 0" in evaluation_words(without)


def test_spellings_of_a_query_are_one_query() -> None:
    """They share what is remembered of it, so both orders resemble one another: too few queries say nothing."""
    values = [encode(joined(number, query=("Oven!", "oven", " oven ")[number % 3])) for number in range(300)]
    found = evaluation_report(
        held_out_lists(values)[0], pushed(LIKED), UNTRAINED, products=FakeProducts(ENCODER), encoder=ENCODER,
        propensities=Propensities(), share=0.1, tell=lambda *_: None,
    )  # fmt: skip
    assert (found["queries"], found["verdict"]) == (1, "too_little")


def test_products_that_are_gone_are_left_out_of_their_lists() -> None:
    """They are counted; if all are gone, that is said."""
    found = report(pushed(LIKED), products=FakeProducts(ENCODER, PRODUCTS[:30]))
    assert found["slots_of_unknown_products"] > 0
    assert found["slots"] + found["slots_of_unknown_products"] == 600 * SHOWN
    assert "slots whose product is gone" in evaluation_words(found)
    with pytest.raises(DependencyDown, match="has a vector"):
        report(UNTRAINED, products=FakeProducts(ENCODER, ["nothing"]))


class NotedProducts(FakeProducts):
    """A catalogue that notes how many products it is asked for at once, and may lose some after the first look."""

    def __init__(self) -> None:
        super().__init__(ENCODER)
        self.asked: list[int] = []
        self.later: FakeProducts | None = None
        """What is left of it once it was looked at."""

    @override
    def look(self, product_ids: Sequence[str]) -> Looked:
        """Look products up."""
        self.asked.append(len(product_ids))
        if self.later is not None and len(self.asked) > 1:
            return self.later.look(product_ids)
        return super().look(product_ids)


def test_a_product_is_looked_up_once_however_many_lists_show_it() -> None:
    """A look builds the vector of each, and holds the catalogue's lock meanwhile."""
    products = NotedProducts()
    report(pushed(LIKED), products=products)
    assert max(products.asked) == len(PRODUCTS)


def test_products_that_go_while_queries_are_encoded_are_left_out_of_their_lists() -> None:
    """Nothing is known of them any more but their quality: they count as those that went before."""
    products = NotedProducts()
    products.later = FakeProducts(ENCODER, PRODUCTS[:30])
    meanwhile, before = (report(pushed(LIKED), products=one) for one in (products, products.later))
    for name in ("slots", "slots_of_unknown_products"):
        assert meanwhile[name] == before[name] > 0
    products = NotedProducts()
    products.later = FakeProducts(ENCODER, ["nothing"])
    with pytest.raises(DependencyDown, match="has a vector"):
        report(UNTRAINED, products=products)


@pytest.mark.parametrize(
    ("verdict", "more", "said"),
    [
        ("better", None, "release 2 is better than release 0 on these lists"),
        ("worse", None, "release 2 is worse than release 0 on these lists"),
        ("undecided", 1200, "with about 1,200 more lists, of as many more persons and queries"),
        ("undecided", None, "too small a difference"),
        ("propensities", None, "MILLRACE_SWAP_SHARE"),
        ("too_little", None, "it takes 100 lists with 40 clicks, of 8 persons and 8 queries at least"),
    ],
)
def test_every_verdict_is_said_with_what_it_cannot_know(verdict: str, more: int | None, said: str) -> None:
    """Each sentence comes with the limits of re-ranking what was shown."""
    words = evaluation_words(report(UNTRAINED, lists=20) | {"verdict": verdict, "more_lists": more})
    assert said in words
    assert "cannot judge what no list showed" in words


def test_a_query_release_is_judged_with_the_quality_that_it_was_published_beside() -> None:
    """0 is untrained; one that is not there, or of another base model, is refused."""
    table = ModelsTable()
    quality = product_release(1, ENCODER, nats=0.5)
    query = query_release(2, ENCODER, product_release=1)
    table.apply(b"product-1", pack(quality))
    table.apply(b"query-2", pack(query))
    assert towers_of(table, 0, ENCODER).product.cap == 0.0
    found = towers_of(table, 2, ENCODER)
    assert np.array_equal(found.product.words, quality.tensors["words"])
    assert np.array_equal(found.query.taste, query.tensors["taste"])
    with pytest.raises(UsageError, match="query release 3 is not on"):
        towers_of(table, 3, ENCODER)
    other = replace(query, manifest=query.manifest.model_copy(update={"base_version": "other"}))
    table.apply(b"query-2", pack(other))
    with pytest.raises(UsageError, match="is over other"):
        towers_of(table, 2, ENCODER)
