"""Keeps the pair in force: follows `models`, proves each release before it answers, and swaps in one step.

Only `serving` moves the pair. A release that cannot be proven is refused and the pair in force stays.
"""

import threading
from typing import Final

import numpy as np

from contracts import wire
from contracts.errors import ContractError, InvariantError
from contracts.releases import PROBE_TOLERANCE, SERVING, SERVING_KEY, Serving, release_key
from contracts.topics import MODELS
from indexer.search.encoding import QueryEncoder
from indexer.search.pair import ServingPair
from service import metrics
from service.follow import TopicFollower
from service.logging import get_logger
from service.settings import Settings
from towers.release_files import PROBE_VECTORS, unpack

log = get_logger()
POLL_S: Final = 0.2


class PairKeeper:
    """The pair in force, kept by two threads: one follows the topic, one proves and swaps.

    Args:
        settings: of the deployment.
        encoder: proves the probe texts.
    """

    def __init__(self, settings: Settings, encoder: QueryEncoder) -> None:
        self._encoder = encoder
        self._follower = TopicFollower(settings, MODELS, self.take)
        self._releases: dict[bytes, bytes] = {}
        self._wanted: Serving | None = None
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pair-keeper", daemon=True)
        self.pair: ServingPair | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._follower.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._changed.set()
        self._follower.stop()
        self._thread.join(timeout=10)

    def not_ready(self) -> str | None:
        """Return why no request can be answered yet."""
        if self._follower.failure:
            return self._follower.failure.message
        if self.pair is not None:
            return None
        return "nothing is served yet: the indexer publishes the first pair"

    def take(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of `models`; the newest `serving` is what is wanted."""
        if key == SERVING_KEY:
            if value is not None:
                self._wanted = wire.decode(value, SERVING)
                self._changed.set()
        elif not key.startswith(b"query-"):
            return
        elif value is None:
            self._releases.pop(key, None)
        else:
            self._releases[key] = value

    def settle(self) -> None:
        """Put the wanted pair in force, or refuse it and keep the one there is."""
        wanted = self._wanted
        if wanted is None or self._is_in_force(wanted):
            return
        try:
            pair = self._prove(wanted)
        except (ContractError, InvariantError) as exc:
            metrics.RELEASES.labels(tower="query", decision="refused").inc()
            log.error("release_refused", query_release=wanted.query_release, error=exc.message, fix=exc.fix)
            return
        self.pair = pair
        metrics.RELEASE_INFO.labels(tower="query").set(pair.query_release)
        metrics.RELEASE_INFO.labels(tower="product").set(pair.product_release)
        log.info("pair_in_force", query_release=pair.query_release, product_release=pair.product_release)

    def _is_in_force(self, wanted: Serving) -> bool:
        pair = self.pair
        return pair is not None and (pair.query_release, pair.product_release, pair.collection) == (
            wanted.query_release,
            wanted.product_release,
            wanted.collection,
        )

    def _prove(self, wanted: Serving) -> ServingPair:
        """Return the wanted pair once its head is shown to be the trainer's.

        Raises:
            ContractError: the release is damaged.
            InvariantError: it is missing, for another base or product release, or its probe texts do not recompute.
        """
        if wanted.query_release == 0:
            return ServingPair(0, wanted.product_release, wanted.collection)
        value = self._releases.get(release_key("query", wanted.query_release))
        if value is None:
            raise InvariantError(f"query release {wanted.query_release} is not on the topic", fix="look at the trainer")
        release = unpack(value)
        manifest, ours = release.manifest, self._encoder.encoder.base_version
        if manifest.base_version != ours:
            fix = "give trainer, indexer and search the same MILLRACE_BASE_MODEL"
            raise InvariantError(f"it was trained over {manifest.base_version}, this process has {ours}", fix=fix)
        if manifest.product_release != wanted.product_release:
            raise InvariantError(f"it was trained for product release {manifest.product_release}")
        pair = ServingPair(
            wanted.query_release, wanted.product_release, wanted.collection,
            down=release.tensors["down"], up=release.tensors["up"], click_times=manifest.click_times,
        )  # fmt: skip
        recomputed = pair.transform(self._encoder.encoder.encode(manifest.probe_texts))
        difference = float(np.abs(recomputed - release.tensors[PROBE_VECTORS]).max(initial=0.0))
        if not difference <= PROBE_TOLERANCE:
            raise InvariantError(f"its probe texts differ by {difference:.2e}", fix="compare the base models' versions")
        return pair

    def _run(self) -> None:
        self._follower.caught_up.wait()
        while not self._stop.is_set():
            self._changed.clear()
            self.settle()
            self._changed.wait()
