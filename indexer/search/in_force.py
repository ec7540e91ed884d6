"""What search answers with: follows `models`, verifies a release, and swaps query tower and collection as one value.

A query vector and a product vector meet only if they come from one base: a request takes the value once and uses it to
its end, whatever is swapped in meanwhile. A release that cannot be verified is refused; the one before goes on.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from contracts.arms import LIVE
from contracts.errors import CheckFailed, ContractError, MillraceError, UsageError
from contracts.releases import Serving
from contracts.topics import MODELS
from indexer.points import Owner
from indexer.qdrant import Form
from indexer.store import OWNER
from service import metrics
from service.follow import TopicFollower
from service.logging import get_logger
from service.machine import EpochClock, epoch_ms
from service.models import ModelsTable
from service.settings import Settings
from towers.model import QueryTower
from towers.release_files import Encoder, Release, verified_release

RETRY_S: Final = 1.0

FormOf = Callable[[str], Form]
"""Tells how a collection holds products; raises MillraceError if it cannot be asked."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedRelease:
    """A query tower and the collection that it is used with.

    Args:
        query_release: of the tower.
        product_release: whose quality the products in the collection have.
        collection: its name in the vector store.
        tower: of queries.
        arm: that it answers for.
    """

    query_release: int
    product_release: int
    collection: str
    tower: QueryTower
    arm: str = LIVE

    def is_of(self, serving: Serving) -> bool:
        """Tell whether this is what a record on `models` names."""
        named = serving.query_release, serving.product_release, serving.collection
        return (self.query_release, self.product_release, self.collection) == named


class ServingFollower:
    """Keeps the release in force.

    Args:
        settings: of the deployment.
        encoder: the base encoder.
        form_of: of a collection.
        owner: whose collections are served.
        clock_ms: epoch milliseconds.
    """

    def __init__(
        self, settings: Settings, encoder: Encoder, *, form_of: FormOf, owner: Owner, clock_ms: EpochClock = epoch_ms
    ) -> None:
        self._encoder = encoder
        self._form_of = form_of
        self._owner = owner
        self._clock_ms = clock_ms
        self._measured_release = 0
        self._refused: Serving | None = None
        self._reason: str | None = None
        self._fault: str | None = None  # of ours, for which the one in force is not served
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
        elif self._fault is not None:
            missed = f"the release in force cannot be served: {self._fault}"
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
            is_done = self.follow()
        except Exception as error:  # noqa: BLE001 - a thread that ended here would leave search on an old release
            if self._fault != repr(error):
                get_logger().error("release_not_followed", error=repr(error), exc_info=error)
            self._fault = repr(error)
            return False
        self._fault = None
        return is_done

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
            number = serving.query_release
            release = verified_release("query", number, value_of=self.models.value, encoder=self._encoder)
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

    def _check_collection(self, serving: Serving) -> None:
        """Refuse a collection of another deployment, or with vectors of another base, width or distance.

        One without an owner was made by an earlier version of Millrace, before the indexer claimed it.
        """
        form = self._form_of(serving.collection)
        if (found := form.metadata.get(OWNER, self._owner.name)) != self._owner.name:
            raise UsageError(
                f"collection {serving.collection} belongs to {found}, not to {self._owner.name}",
                fix="correct MILLRACE_QDRANT_URL, MILLRACE_KAFKA_BOOTSTRAP or MILLRACE_TOPIC_PREFIX",
            )
        if misfit := form.misfit(self._encoder.base_version, self._encoder.dim + 1):
            raise CheckFailed(f"{serving.collection} {misfit}")

    def _swap(self, serving: Serving, release: Release) -> None:
        if self.current is not None:  # the first release of a process tells how long that was away
            self._measure(serving.query_release, release)
        self._measured_release = max(self._measured_release, serving.query_release)
        self.current = ServedRelease(
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
            tower=release.query_tower(),
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

    def _measure(self, query_release: int, release: Release) -> None:
        """Measure click to search: how old are the clicks that searches are answered by from now on?

        Whether somebody searches at once does not matter: at night nobody may for hours. A release that comes back was
        measured when it came first.
        """
        now_ms = self._clock_ms()
        for click_time in release.manifest.click_times if query_release > self._measured_release else ():
            metrics.FRESHNESS.labels("click_to_search").observe(max(now_ms - click_time, 0) / 1000)

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
