"""A collector and a search service in memory, for the simulator's tests."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx


class Shop:
    """Answers `/v1/search`, `/v1/events` and `/v1/products` and remembers what it was told.

    Args:
        returned: product ids of every list.
        refusals: answers to give before the first proper one, to posts.
    """

    def __init__(self, returned: Sequence[str] = (), *, refusals: Sequence[httpx.Response | Exception] = ()) -> None:
        self.returned = list(returned)
        self.refusals = list(refusals)
        self.searches: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []
        self.attempts: list[list[dict[str, Any]]] = []
        self.seen: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.largest_batch = 0
        self.most_items = 10_000
        self.search_status = 200
        self.degraded: str | None = None
        self.rejected_ids: set[str] = set()
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        """Answer as the search service or the collector."""
        body = json.loads(request.content)
        if request.url.path == "/v1/search":
            return self._search(body)
        self.keys.add(request.headers["Authorization"])
        (items,) = body.values()
        self.attempts.append(items)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return refusal
        if len(items) > self.most_items:
            return httpx.Response(413, json={"error": "too_large"})
        return self._take(items)

    def _take(self, items: list[dict[str, Any]]) -> httpx.Response:
        """Take a batch as the collector does."""
        self.items.extend(items)
        self.largest_batch = max(self.largest_batch, len(items))
        results = [self._result(str(item.get("event_id") or item.get("product_id"))) for item in items]
        counts = Counter(result["status"] for result in results)
        body = {"accepted": counts["accepted"], "rejected": counts["rejected"], "duplicate": counts["duplicate"]}
        return httpx.Response(200, json={**body, "results": results})

    def _result(self, item_id: str) -> dict[str, Any]:
        """Return one item's outcome."""
        if item_id in self.rejected_ids:
            return {"event_id": item_id, "status": "rejected", "reason": "missing", "field": "title"}
        self.seen[item_id] += 1
        return {"event_id": item_id, "status": "duplicate" if self.seen[item_id] > 1 else "accepted"}

    def _search(self, body: dict[str, Any]) -> httpx.Response:
        """Answer a search with the list that the test set."""
        self.searches.append(body)
        if self.search_status != 200:
            return httpx.Response(self.search_status)
        results = [
            {"product_id": product_id, "position": place, "score": 1.0 / place, "title": product_id}
            | {"product_release": 0}
            for place, product_id in enumerate(self.returned[: body["k"]], start=1)
        ]
        answer = {
            "search_id": f"S-{len(self.searches)}",
            "search_time": time.time_ns() // 1_000_000,
            "query_release": 3,
            "product_release": 0,
            "arm": "live",
            "exploration": {"policy": "none", "seed": 0},
            "degraded": self.degraded,
            "took_ms": 1.0,
            "total": len(results),
            "results": results,
        }
        return httpx.Response(200, json=answer)
