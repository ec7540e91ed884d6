"""How a ranked list is arranged: boosts, variants, unlike things, sellers, pages."""

from typing import Any

import numpy as np
import pytest

from indexer.search.arrangement import DAY_MS, MOST_DIVERSE, Boosts, arranged, diverse, grouped, in_pages
from indexer.search.retrieval import Hit
from service.health import Health
from tests.support.search_fakes import NOW_MS, Search, request


def hit(
    product_id: str, score: float = 0.5, *, vector: list[float] | None = None, pin: float = 0.0, **payload: object
) -> Hit:
    """Return a product found."""
    return Hit(score, {"product_id": product_id, **payload}, vector, pin=pin)


def ids(hits: list[Hit]) -> str:
    """Return one-letter product ids."""
    return "".join(one.payload["product_id"] for one in hits)


def test_a_variant_group_shows_its_best() -> None:
    """With the others named, best first; products without a group stay, and no id is taken for a parent's."""
    found = [
        hit("a", parent_id="v"),
        hit("v"),
        hit("b", parent_id="w"),
        hit("c", parent_id="v"),
        hit("d", parent_id="v"),
    ]
    shown = grouped(found)
    assert [(one.payload["product_id"], one.variants) for one in shown] == [("a", ("c", "d")), ("v", ()), ("b", ())]


def test_a_seller_has_its_share_of_each_page() -> None:
    """What is too many waits for the next page, or fills its own where no other seller is left; nothing is lost.

    Who has no seller is not capped.
    """
    found = (
        [hit(one, seller_id="s") for one in "abcd"]
        + [hit(one, seller_id="t") for one in "ef"]
        + [hit(one) for one in "ghi"]
    )
    assert [ids(page) for page in in_pages(found, 4, per_seller=2)] == ["abef", "cdgh", "i"]
    assert [ids(page) for page in in_pages(found[:6], 3, per_seller=1)] == ["aeb", "cfd"]
    assert [ids(page) for page in in_pages(found[:4], 3, per_seller=1)] == ["abc", "d"]
    assert [ids(page) for page in in_pages(found, 4)] == ["abcd", "efgh", "i"]
    assert in_pages([], 4) == []


def test_diversity_takes_the_next_kind_before_the_next_of_a_kind() -> None:
    """Two fridges and a kettle: none moves at 0, the kettle is second at 0.5; quality is no likeness."""
    found = [
        hit("a", 0.9, vector=[1.0, 0.0, 0.3]),
        hit("b", 0.85, vector=[0.99, 0.1, -0.3]),
        hit("c", 0.6, vector=[0.0, 1.0, 0.0]),
    ]
    assert [ids(diverse(found, share)) for share in (0.0, 0.5, 1.0)] == ["abc", "acb", "acb"]
    assert [one.score for one in diverse(found, 0.5)] == [0.9, 0.6, 0.85]


def test_diversity_agrees_with_the_formula_of_its_paper() -> None:
    """Each step takes what maximises lambda sim1 - (1 - lambda) max sim2, written out in plain Python."""
    drawn = np.random.default_rng(5)
    rows = drawn.standard_normal((12, 6))
    found = [hit(chr(97 + place), float(drawn.random()), vector=row.tolist()) for place, row in enumerate(rows)]
    found.sort(key=lambda one: -one.score)

    def alike(one: Hit, other: Hit) -> float:
        """The cosine of two base vectors."""
        assert one.vector is not None
        assert other.vector is not None
        left, right = np.array(one.vector[:-1]), np.array(other.vector[:-1])
        return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))

    left, taken = list(found), list[Hit]()
    while left:
        best = max(
            left, key=lambda one: 0.7 * one.score - 0.3 * max([alike(one, other) for other in taken], default=0.0)
        )
        left.remove(best)
        taken.append(best)
    assert ids(diverse(found, 0.3)) == ids(taken)


async def test_a_diverse_list_is_not_explored() -> None:
    """Scores rank it again: a policy and seed that nothing shown follows would be a false record of chance."""
    Health("search")
    search = Search(explore="noise:3")
    plain, diverse_one = [await search.service.search(request(k=12, diversity=share)) for share in (0.0, 0.3)]
    assert (plain.exploration.policy, diverse_one.exploration.policy) == ("noise:3", "none")
    assert search.impressions.sent[-1].ranking.exploration == diverse_one.exploration


def test_diversity_moves_the_best_alone() -> None:
    """What comes behind the first 200 stays as it stands, so that a long list costs no more than that."""
    found = [hit(f"p{number}", 1.0, vector=[1.0, 0.0, 0.0]) for number in range(MOST_DIVERSE)]
    found += [hit("unlike", 0.9, vector=[0.0, 1.0, 0.0]), hit("last", 1.0, vector=[0.0, 0.0, 1.0])]
    assert diverse(found, 0.9)[MOST_DIVERSE:] == found[MOST_DIVERSE:]
    assert diverse(found[1:], 0.9)[1].payload["product_id"] == "unlike"


def test_what_the_query_names_stays_first() -> None:
    """Neither a boost nor diversity moves it."""
    found = [hit("a", 0.1, pin=1.0, vector=[1.0, 0.0, 0.0]), hit("b", 0.9, vector=[1.0, 0.0, 0.0], priority=1.0)]
    assert ids(Boosts(priority_nats=3.0).ranked(found, NOW_MS)) == "ab"
    assert ids(diverse(found, 0.9)) == "ab"


def test_boosts_are_bounded_and_fade() -> None:
    """A product of the future counts as launched today, one without a date as old; priority is cut to 0 and 1."""
    boosts = Boosts(launch_nats=2.0, launch_days=10.0, priority_nats=1.0)
    ages: list[dict[str, Any]] = [{"launched_at": NOW_MS + days * DAY_MS} for days in (1, -5, -11)]
    terms = [boosts.of(one, NOW_MS) for one in ({**ages[0], "priority": 7.0}, *ages[1:], {})]
    assert [one["launch"] for one in terms] == [2.0, 1.0, 0.0, 0.0]
    assert [one["priority"] for one in terms] == [1.0, 0.0, 0.0, 0.0]
    found = [hit("a", 0.5), hit("b", 0.45, launched_at=NOW_MS)]
    assert [(one.payload["product_id"], one.score) for one in boosts.ranked(found, NOW_MS)] == [
        ("b", pytest.approx(0.65)),
        ("a", 0.5),
    ]
    assert Boosts().ranked(found, NOW_MS) == found


def test_a_boost_of_every_product_moves_none() -> None:
    """Where everything is a priority, nothing is."""
    found = [hit("a", 0.5, priority=1.0), hit("b", 0.45, priority=1.0), hit("c", 0.25, priority=1.0)]
    assert ids(Boosts(priority_nats=3.0).ranked(found, NOW_MS)) == "abc"
    del found[0].payload["priority"]
    assert ids(Boosts(priority_nats=3.0).ranked(found, NOW_MS)) == "bca"


def test_groups_come_before_the_seller_cap() -> None:
    """A seller's share of a page is counted in groups."""
    found = [
        hit(f"p{number}", parent_id=f"v{number // 3}", seller_id="s" if number < 15 else "t") for number in range(30)
    ]
    pages = arranged(found, request(k=4, group_variants=True, per_seller=2))
    assert [len(page) for page in pages] == [4, 4, 2]
    assert [one.payload["product_id"] for one in pages[0]] == ["p0", "p3", "p15", "p18"]


@pytest.mark.parametrize(("k", "asked"), [(3, [12, 72]), (1, [12]), (100, [300, 1_000])])
async def test_a_page_of_variant_groups_is_full_if_the_shop_has_so_many(
    monkeypatch: pytest.MonkeyPatch, k: int, asked: list[int]
) -> None:
    """If the variants of a few match best, more is found; not if it is enough, nor without end."""
    search = Search()
    as_it_is = search.store.payload
    monkeypatch.setattr(
        search.store, "payload", lambda one, release: as_it_is(one, release) | {"parent_id": f"V-{int(one[2:]) // 20}"}
    )
    answer = await search.service.search(request(k=k, group_variants=True))
    assert [one[2] for one in search.store.asked] == asked
    assert len(answer.results) == min(k, 51)
    assert len({one.parent_id for one in answer.results}) == len(answer.results)


async def test_an_answer_is_arranged_as_asked() -> None:
    """More is asked for if k groups are not found; boosts are a term of the explanation, which sums to the score."""
    Health("search")
    search = Search(boosts=Boosts(priority_nats=1.0))
    answer = await search.service.search(request(k=10, group_variants=True, explain=True))
    assert [one[2] for one in search.store.asked] == [30, 600]
    (one,) = answer.results  # all are of one parent
    assert one.variants == tuple(f"P-{number}" for number in range(2, 601))
    assert one.explanation is not None
    assert list(one.explanation)[-1] == "priority"
    kept = await search.service.search(request(k=10, group_variants=True, search_id=answer.search_id))
    assert kept.results[0].variants == one.variants
