"""What search answers with: follows `models`, verifies a release, and swaps query head and collection as one value.

A query vector and a product vector meet only if their releases match: a request takes the value once and uses it to its
end, whatever is swapped in meanwhile. A release that cannot be verified is refused; the one before goes on answering.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from contracts.errors import CheckFailed, ContractError, MillraceError, UsageError
from contracts.releases import Serving
from contracts.topics import MODELS
from indexer.points import Owner
from indexer.store import OWNER
from service import metrics
from service.follow import TopicFollower
from service.logging import get_logger
from service.models import ModelsTable
from service.settings import Settings
from towers.release_files import Encoder, Release, verified_release

RETRY_S: Final = 1.0

Metadata = Callable[[str], Mapping[str, Any]]
"""Returns what the creator of a collection wanted remembered; raises MillraceError if it cannot be asked."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryTransform:
    """A query head as two matrices: what a request needs of it, without torch.

    Args:
        down: (rank, D).
        up: (D, rank).
    """

    down: np.ndarray
    up: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Map base vectors (N, D) to query vectors (N, D) of unit length; the same as the head's `forward`."""
        moved = rows + (rows @ self.down.T) @ self.up.T
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved / np.maximum(norms, 1e-12), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ServedRelease:
    """A query head and the collection whose vectors it was trained for.

    Args:
        query_release: of the head.
        product_release: of the vectors in the collection.
        collection: its name in the vector store.
        transform: the head.
        click_times: clicks that the release learned from, for the freshness of its first answer; epoch ms.
    """

    query_release: int
    product_release: int
    collection: str
    transform: QueryTransform
    click_times: tuple[int, ...] = ()

    def is_of(self, serving: Serving) -> bool:
        """Tell whether this is what a record on `models` names."""
        named = serving.query_release, serving.product_release, serving.collection
        return (self.query_release, self.product_release, self.collection) == named


class ServingFollower:
    """Keeps the release in force.

    Args:
        settings: of the deployment.
        encoder: the base encoder.
        metadata: of a collection.
        owner: whose collections are served.
    """

    def __init__(self, settings: Settings, encoder: Encoder, *, metadata: Metadata, owner: Owner) -> None:
        self._encoder = encoder
        self._metadata = metadata
        self._owner = owner
        self._refused: Serving | None = None
        self._reason: str | None = None
        self._is_anothers = False  # which may change, by the indexer's taking over: unlike other refusals, not for good
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)
        self.models = ModelsTable(on_change=self._changed.set, bytes_of={"query"})
        self.follower = TopicFollower(settings, MODELS, self.models.apply, on_new_topic=self.models.forget)
        self.current: ServedRelease | None = None
        """The release in force; take it once per request."""

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
        """Return why what is in force is not served, as a readiness check."""
        refused, current = self._refused, self.current
        missed = self.models.newest_unreadable({"query"})
        if refused is not None:
            missed = f"query release {refused.query_release} was refused: {self._reason}"
        if current is not None:
            goes_on = f"{missed}; query release {current.query_release} goes on answering"
            return goes_on if missed else self.follower.not_caught_up()
        nothing = "no release is in force yet: the indexer publishes the first"
        return missed or self._reason or self.follower.not_caught_up() or nothing

    def _run(self) -> None:
        while not self.follower.caught_up.wait(0.1):
            if self._stopping.is_set() or self.follower.failure is not None:
                return
        while not self._stopping.is_set():
            self._changed.clear()
            self._changed.wait(None if self._followed() else RETRY_S)

    def _followed(self) -> bool:
        try:
            return self.follow()
        except Exception as error:  # noqa: BLE001 - a thread that ended here would leave search on an old release
            get_logger().error("release_not_followed", error=repr(error), exc_info=error)
            return False

    def follow(self) -> bool:
        """Swap to the release that is in force; return False if that has to be tried again."""
        serving, current = self.models.serving(), self.current
        if serving is None or (serving is self._refused and not self._is_anothers):
            return True
        if current is not None and current.is_of(serving):
            self._refused = None
            return True
        try:
            self._check_collection(serving)
            release = self._verified(serving)
        except (CheckFailed, ContractError, UsageError) as error:
            self._refuse(serving, error)
            return not self._is_anothers
        except MillraceError as error:
            if self._reason != error.message:
                get_logger().warning("release_waits", error=error.message, fix=error.fix)
            self._reason = error.message
            return False
        self._swap(serving, release)
        return True

    def _verified(self, serving: Serving) -> Release:
        release = verified_release("query", serving.query_release, value_of=self.models.value, encoder=self._encoder)
        if release.manifest.product_release != serving.product_release and serving.query_release != 0:
            raise CheckFailed(f"it was trained for product release {release.manifest.product_release}")
        return release

    def _check_collection(self, serving: Serving) -> None:
        """Refuse a collection of another deployment, or with vectors of another base encoder or product release.

        One without an owner was made by an earlier version of Millrace, before the indexer claimed it.
        """
        stored = self._metadata(serving.collection)
        if (found := stored.get(OWNER, self._owner.name)) != self._owner.name:
            raise UsageError(
                f"collection {serving.collection} belongs to {found}, not to {self._owner.name}",
                fix="correct MILLRACE_QDRANT_URL, MILLRACE_KAFKA_BOOTSTRAP or MILLRACE_TOPIC_PREFIX",
            )
        expected = {"base_version": self._encoder.base_version, "product_release": serving.product_release}
        for name, value in expected.items():
            if stored.get(name, value) != value:
                raise CheckFailed(f"{serving.collection} holds vectors of {name} {stored[name]}, not {value}")

    def _swap(self, serving: Serving, release: Release) -> None:
        # The first answers of a process tell how long it was away, not how fresh the way from click to search is.
        click_times = release.manifest.click_times if self.current is not None else ()
        self.current = ServedRelease(
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
            transform=QueryTransform(release.tensors["down"], release.tensors["up"]),
            click_times=click_times,
        )
        self._refused = self._reason = None
        metrics.RELEASE_INFO.labels("query").set(serving.query_release)
        metrics.RELEASE_INFO.labels("product").set(serving.product_release)
        metrics.RELEASES.labels("query", "in_force").inc()
        get_logger().info(
            "release_in_force",
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
        )

    def _refuse(self, serving: Serving, error: MillraceError) -> None:
        if serving is self._refused and self._reason == error.message:
            return
        self._reason, self._refused, self._is_anothers = error.message, serving, isinstance(error, UsageError)
        metrics.RELEASES.labels("query", "refused").inc()
        get_logger().error(
            "release_refused",
            query_release=serving.query_release,
            product_release=serving.product_release,
            error=error.message,
            fix=error.fix or "search goes on with the release before; look at this one on models",
        )
