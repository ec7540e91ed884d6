"""Which pair is in force: follows `models`, verifies a release, and swaps the whole pair in one assignment.

A release that cannot be verified is refused, said and counted; the pair before it goes on answering.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from contracts.errors import CheckFailed, ContractError, MillraceError
from contracts.releases import Serving
from contracts.topics import MODELS
from indexer.releases import verified_release
from indexer.search.pair import Pair, pair_of
from service import metrics
from service.follow import TopicFollower
from service.logging import get_logger
from service.models import ModelsTable
from service.settings import Settings
from towers.release_files import Encoder, Release

RETRY_S: Final = 1.0

Metadata = Callable[[str], Mapping[str, Any]]
"""Returns what the creator of a collection wanted remembered; raises MillraceError if it cannot be asked."""


class ServingPairs:
    """Keeps the pair in force.

    Args:
        settings: of the deployment.
        encoder: the base encoder.
        metadata: of a collection.
    """

    def __init__(self, settings: Settings, encoder: Encoder, metadata: Metadata) -> None:
        self._encoder = encoder
        self._metadata = metadata
        self._refused: Serving | None = None
        self._wait: str | None = None
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving-pairs", daemon=True)
        self.models = ModelsTable(on_change=self._changed.set, bytes_of={"query"})
        self.follower = TopicFollower(settings, MODELS, self.models.apply, on_new_topic=self.models.forget)
        self.current: Pair | None = None
        """The pair in force; take it once per request."""

    def start(self) -> None:
        """Begin to follow."""
        self.follower.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        self._changed.set()
        self.follower.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def not_ready(self) -> str | None:
        """Return why no pair is in force yet, as a readiness check."""
        if self.follower.failure is not None:
            return self.follower.failure.message
        if self.current is not None:
            return None
        return self._wait or self.follower.not_caught_up() or "no pair is in force yet: the indexer publishes the first"

    def _run(self) -> None:
        while not self.follower.caught_up.wait(0.1):
            if self._stopping.is_set() or self.follower.failure is not None:
                return
        while not self._stopping.is_set():
            self._changed.clear()
            self._changed.wait(None if self._followed() else RETRY_S)

    def _followed(self) -> bool:
        """Follow what is wanted; an unforeseen error is logged and tried again, because search must go on moving."""
        try:
            return self.follow_wanted()
        except Exception as error:  # noqa: BLE001 - a thread that ended here would leave search on an old pair for ever
            get_logger().error("pair_not_followed", error=repr(error), exc_info=error)
            return False

    def follow_wanted(self) -> bool:
        """Swap to the pair that is wanted; return False if that has to be tried again."""
        serving, current = self.models.serving(), self.current
        if serving is None or serving is self._refused or (current is not None and current.is_of(serving)):
            return True
        try:
            self._check_collection(serving)
            release = self._verified(serving)
        except (CheckFailed, ContractError) as error:
            self._refuse(serving, error)
            return True
        except MillraceError as error:
            self._hold(error)
            return False
        self._swap(pair_of(serving, release, observed=current is not None))
        return True

    def _verified(self, serving: Serving) -> Release:
        release = verified_release("query", serving.query_release, value_of=self.models.value, encoder=self._encoder)
        if release.manifest.product_release != serving.product_release and serving.query_release != 0:
            raise CheckFailed(f"it was trained for product release {release.manifest.product_release}")
        return release

    def _check_collection(self, serving: Serving) -> None:
        """Refuse a collection that holds vectors of another base encoder or product release."""
        stored = self._metadata(serving.collection)
        expected = {"base_version": self._encoder.base_version, "product_release": serving.product_release}
        for name, value in expected.items():
            if stored.get(name, value) != value:
                raise CheckFailed(f"{serving.collection} holds vectors of {name} {stored[name]}, not {value}")

    def _swap(self, pair: Pair) -> None:
        self.current, self._wait = pair, None
        metrics.RELEASE_INFO.labels("query").set(pair.query_release)
        metrics.RELEASE_INFO.labels("product").set(pair.product_release)
        metrics.RELEASES.labels("query", "in_force").inc()
        get_logger().info(
            "pair_in_force",
            query_release=pair.query_release,
            product_release=pair.product_release,
            collection=pair.collection,
        )

    def _refuse(self, serving: Serving, error: MillraceError) -> None:
        self._refused, self._wait = serving, error.message
        metrics.RELEASES.labels("query", "refused").inc()
        get_logger().error(
            "pair_refused",
            query_release=serving.query_release,
            product_release=serving.product_release,
            error=error.message,
            fix=error.fix or "search goes on with the pair before; look at the release on models",
        )

    def _hold(self, error: MillraceError) -> None:
        if self._wait != error.message:
            get_logger().warning("pair_waits", error=error.message, fix=error.fix)
        self._wait = error.message
