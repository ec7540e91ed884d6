"""What both halves of the models lane work with, and the releases that they refuse."""

from collections.abc import Callable
from dataclasses import dataclass, field

from contracts.errors import CheckFailed, ContractError
from contracts.releases import Kind, Serving
from indexer.core.base_vectors import BaseVectors
from indexer.core.rollover import ReleaseId
from indexer.ports import CatchUp, Encoder, Pause, Releases, ShadowQueries, VectorStore
from indexer.releases import verified_release
from indexer.targets import Targets
from service import metrics
from service.logging import get_logger
from service.settings import Settings
from towers.release_files import Release


@dataclass(frozen=True, slots=True)
class Parts:
    """What the models lane works with."""

    settings: Settings
    store: VectorStore
    releases: Releases
    encoder: Encoder
    vectors: BaseVectors
    catch_up: CatchUp
    targets: Targets
    shadow: ShadowQueries
    leads: Callable[[], bool]
    pause: Pause
    refused: set[ReleaseId] = field(default_factory=set)

    def verified(self, kind: Kind, release: int) -> Release:
        """Return a release that may be used here.

        Raises:
            CheckFailed: it may not.
            ContractError: its bytes are damaged.
        """
        return verified_release(kind, release, value_of=self.releases.value, encoder=self.encoder)

    def use_or_refuse(self, kind: Kind, release: int) -> Release | None:
        """Return a release that may be used; one that may not is refused for good."""
        try:
            return self.verified(kind, release)
        except (CheckFailed, ContractError) as error:
            self.refuse(kind, release, error.message)
            return None

    def refuse(self, kind: Kind, release: int, reason: str) -> None:
        """Never try a release again, count it and say why."""
        self.refused.add((kind, release))
        metrics.RELEASES.labels(kind, "refused").inc()
        get_logger().error("release_refused", release=f"{kind}-{release}", error=reason)

    def make_collection(self, collection: str, *, product_release: int, query_release: int) -> None:
        """Make a collection that says whose vectors it holds, if there is none of that name."""
        metadata = {
            "product_release": product_release,
            "query_release": query_release,
            "base_version": self.encoder.base_version,
        }
        self.store.ensure_collection(collection, self.encoder.dim, metadata=metadata)

    def publish(self, serving: Serving) -> None:
        """Put a pair in force."""
        self.releases.publish(serving)
        metrics.RELEASES.labels("query", "in_force").inc()
        get_logger().info(
            "serving_published",
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
        )
