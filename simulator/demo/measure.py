"""Quality before and after, asked of the search service as any client asks, and the closing figures."""

from typing import Any

from simulator.demo.freshness import quantiles
from simulator.demo.options import DemoOptions
from simulator.demo.state import ReleaseLog
from simulator.evaluation import QueryScore, by_class, choose_examples, comparison, difference, means
from simulator.shop.ask import evaluate
from simulator.shop.traffic import Totals
from simulator.shop.world import Split, World

SPLIT_NAMES: dict[Split, str] = {"train": "seen", "test": "unseen"}


class Measurement:
    """Asks every query of a world twice: before the first click and after the last release.

    Args:
        world: whose queries and judgments are used; no service sees the judgments.
        search_url: the search service.
    """

    def __init__(self, world: World, search_url: str) -> None:
        self._world = world
        self._search_url = search_url
        self._before: dict[Split, tuple[QueryScore, ...]] = {}
        self._after: dict[Split, tuple[QueryScore, ...]] = {}

    async def before(self) -> None:
        """Ask the untrained system."""
        self._before = await self._ask()

    async def after(self) -> None:
        """Ask the trained system."""
        self._after = await self._ask()

    async def _ask(self) -> dict[Split, tuple[QueryScore, ...]]:
        return {split: await evaluate(self._world, self._search_url, split=split) for split in SPLIT_NAMES}

    def quality(self, *, seed: int) -> dict[str, Any]:
        """Return quality of both splits in the form of the demo's report."""
        return {
            name: {
                **comparison(self._before[split], self._after[split], seed=seed),
                "by_class": by_class(self._before[split], self._after[split], seed=seed),
            }
            for split, name in SPLIT_NAMES.items()
        }

    def examples(self, *, seed: int) -> list[dict[str, Any]]:
        """Return three unseen queries, chosen by the rule of `choose_examples`, with their results before and after."""
        chosen = choose_examples(self._before["test"], seed=seed)
        queries = {query.query_id: query for query in self._world.queries}
        lists = {
            when: {one.query_id: one.ranked for one in scores["test"]}
            for when, scores in (("before", self._before), ("after", self._after))
        }
        return [
            {
                "query": queries[query_id].query,
                "class": queries[query_id].query_class,
                **{when: self._rows(query_id, ranked[query_id]) for when, ranked in lists.items()},
            }
            for query_id in chosen
        ]

    def _rows(self, query_id: str, ranked: tuple[str, ...]) -> list[dict[str, Any]]:
        products = self._world.by_product_id
        titles = ((product_id, products.get(product_id, {}).get("title", product_id)) for product_id in ranked)
        return [
            {"title": title, "grade": self._world.judgment(query_id, product_id).grade} for product_id, title in titles
        ]


def sample_gain(before: tuple[QueryScore, ...], after: tuple[QueryScore, ...]) -> str:
    """Return nDCG@10 of a sample and its change, in words, for the live view."""
    change = difference(before, after)
    now = means(after)["ndcg@10"]
    return f"nDCG@10 {now:.3f} on {len(after)} unseen queries ({change.mean:+.3f} since the start)"


def figures_of(
    *,
    options: DemoOptions,
    world: World,
    quality: dict[str, Any],
    totals: Totals,
    ledger: dict[str, Any],
    releases: ReleaseLog,
    freshness: dict[str, Any],
) -> dict[str, Any]:
    """Return the demo's closing figures as one JSON document."""
    splits = {name: {key: part[key] for key in part if key != "by_class"} for name, part in quality.items()}
    return {
        "seed": options.seed,
        "world": world.name,
        "seconds": options.seconds,
        "events": {"sent": totals.sent, "accepted": totals.events_accepted},
        "searches": {"answered": totals.searches, "failed": totals.search_errors, "clicks": totals.clicks},
        "ledger": ledger,
        "releases": {"query": releases.query_releases_served(), "product": releases.product_releases_served()},
        "quality": {**splits, "by_class": {name: part["by_class"] for name, part in quality.items()}},
        "freshness_s": freshness,
        "search_ms": quantiles(totals.search_ms),
    }
