"""A tiny shop's site for end-to-end tests: it knows only the two HTTP services, as a real site does."""

import time
import uuid
from typing import Any, Final

import httpx

TIMEOUT_S: Final = 20.0


class ShopSite:
    """Sends products and events, and searches.

    Args:
        collector_url: where events and products go.
        search_url: where searches go.
        write_key: for events.
        secret_key: for products.
    """

    def __init__(self, collector_url: str, search_url: str, *, write_key: str, secret_key: str) -> None:
        self._collector = httpx.Client(base_url=collector_url, timeout=TIMEOUT_S)
        self._search = httpx.Client(base_url=search_url, timeout=TIMEOUT_S)
        self._write = {"Authorization": f"Bearer {write_key}"}
        self._secret = {"Authorization": f"Bearer {secret_key}"}

    def close(self) -> None:
        """Close the connections."""
        self._collector.close()
        self._search.close()

    def products(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Send catalogue messages and return the collector's answer."""
        return self._answer(self._collector.post("/v1/products", json={"products": messages}, headers=self._secret))

    def events(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Send shop events and return the collector's answer."""
        return self._answer(self._collector.post("/v1/events", json={"events": messages}, headers=self._write))

    def search(
        self, query: str, *, k: int = 10, impression: str = "none", session: str | None = None
    ) -> dict[str, Any]:
        """Return the answer to a search."""
        body = {"query": query, "k": k, "impression": impression, "session_id": session}
        return self._answer(self._search.post("/v1/search", json=body))

    def rank(self, query: str, product_id: str) -> int | None:
        """Return where a product stands among the first fifty, None where it does not."""
        results = self.search(query, k=50)["results"]
        return next((result["position"] for result in results if result["product_id"] == product_id), None)

    def click(self, answer: dict[str, Any], product_id: str, session: str) -> None:
        """Click a product of an answer and stay on its page."""
        place = next(result for result in answer["results"] if result["product_id"] == product_id)
        click = event("click", answer, session) | {"product_id": product_id, "position": place["position"]}
        dwell = event("dwell", answer, session) | {
            "product_id": product_id, "click_id": click["event_id"], "dwell_ms": 45_000,
        }  # fmt: skip
        accepted = self.events([click, dwell])
        assert accepted["accepted"] == 2, accepted

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        """Return an answer's JSON, or fail with what it said."""
        assert response.is_success, f"{response.status_code}: {response.text}"
        answer: dict[str, Any] = response.json()
        return answer


def now_ms() -> int:
    """Return the wall clock in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def event(kind: str, answer: dict[str, Any], session: str) -> dict[str, Any]:
    """Return an event of a search that was answered."""
    return {
        "schema_version": 1, "type": kind, "event_id": uuid.uuid4().hex, "event_time": now_ms(), "session_id": session,
        "search_id": answer["search_id"], "search_time": answer["search_time"],
    }  # fmt: skip


def product(number: int, title: str, **fields: Any) -> dict[str, Any]:
    """Return a product message."""
    return {
        "schema_version": 1, "type": "product", "product_id": f"P-{number}", "version": 1, "title": title,
        "price": 100.0 + number, **fields,
    }  # fmt: skip
