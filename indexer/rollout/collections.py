"""Our collections in the vector store: which there are, whether they can hold our vectors, and how another is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import numpy as np
from pydantic import ValidationError

from contracts.catalog import PointPayload
from contracts.errors import CheckFailed, InvariantError
from contracts.releases import Serving
from indexer.catalog.base_change import BATCH
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.points import Owner, ProductPoint, Target
from indexer.ports import Pause, Stopped, VectorLog
from indexer.rollout.refresh import Refresh
from indexer.store import ProductStore, StoredPoint
from service import metrics
from service.logging import get_logger
from towers.release_files import PROBE_VECTORS, Encoder, Release

FILL_WITHIN_S: Final = 24 * 3600.0
"""A collection that is not filled by then will not be: two times what ten million products need."""
GRAPH_WITHIN_S: Final = 3600.0
"""How long a full collection waits for its graph; then its searches scan, which is slow and right."""
GRAPH_LOOK_S: Final = 1.0
SAMPLE: Final = 64
NAMED: Final = 10
"""So many of the points that are left alone are named in the log."""
VECTOR_TOLERANCE: Final = 1e-4
"""Largest difference at which a stored vector still is the one of its product."""


class OwnCollections:
    """The collections under our names.

    Args:
        store: the index.
        owner: names them.
        log: `product-vectors`, and what is known from it.
        encoder: whose vectors they are to hold.
        pause: how to wait; True means stop.
    """

    def __init__(self, store: ProductStore, owner: Owner, *, log: VectorLog, encoder: Encoder, pause: Pause) -> None:
        self._store = store
        self._owner = owner
        self._log = log
        self._encoder = encoder
        self._pause = pause
        self._left_alone: set[tuple[str, str]] = set()

    def look(self) -> tuple[str | None, dict[str, int]]:
        """Return (collection that the alias names, all of ours with their numbers)."""
        numbers = {name: self._owner.number_of(name) for name in self._store.collections()}
        ours = {name: number for name, number in numbers.items() if number is not None}
        return self._store.alias_target(self._owner.alias), ours

    def misfit(self, collection: str) -> str | None:
        """Say why a collection cannot hold our vectors; one that is not there can, once it is made."""
        if not self._store.exists(collection):
            return None
        return self._store.form(collection).misfit(self._encoder.base_version, self._encoder.dim + 1)

    def kept(self, serving: Serving) -> str | None:
        """Name the collection before the one in force if another base is all that keeps our points out of it."""
        name = serving.previous_collection
        if name is None or not self._store.exists(name):
            return None
        form = self._store.form(name)
        misfit = form.misfit(form.metadata.get("base_version", ""), form.width or 0)
        return name if misfit is None else None

    def make(self, target: Target, *, query_release: int) -> None:
        """Make the collection of a target with its indexes, if there is none."""
        metadata = {
            "product_release": target.product_release,
            "query_release": query_release,
            "base_version": self._encoder.base_version,
        }
        self._store.ensure_collection(target.collection, self._encoder.dim + 1, metadata=metadata)

    def filled(self, product: Release, query: Release, before: Serving | None) -> tuple[Target, dict[str, StoredPoint]]:
        """Fill a collection for releases and, if it is to take the place of another, check it.

        Returns:
            The collection as a target, and what it holds.

        Raises:
            Stopped: asked to stop in the middle; the next start fills on.
            InvariantError: it is not filled in time, or does not hold what it should.
        """
        number = product.manifest.release
        collection, stored = self._chosen(number, before)
        target = Target(collection, number, product.product_tower())
        self.make(target, query_release=query.manifest.release)
        self._take_back_vectors()
        if before is None:
            self._log.complete()
        else:
            self.complete(before.collection, self._store.stored(before.collection))
        fill = Refresh(target, self._store, self._log.known, stored, window_s=FILL_WITHIN_S)
        self.write_all(fill, times_out=True)
        if before is not None:
            self._wait_for_graph(collection)
            self.write_all(Refresh(target, self._store, self._known_now(), stored, window_s=FILL_WITHIN_S))
            self._check(target, stored, query)
        return target, stored

    def _chosen(self, product_release: int, before: Serving | None) -> tuple[str, dict[str, StoredPoint]]:
        """Name a collection that can be filled, with what it holds: one that was begun or kept, else the next.

        Points of a newer product release would refuse ours: they are left from before `models` was lost.
        """
        names = {number: name for name, number in self.look()[1].items()}
        in_force, kept = (before.collection, before.previous_collection) if before else (None, None)
        for name in (names.get(max(names, default=-1)), kept):
            if name is None or name == in_force or name not in names.values() or self.misfit(name):
                continue
            stored = self._store.stored(name)
            if all(point.version.product_release <= product_release for point in stored.values()):
                return name, stored
        return self._owner.collection(max(names) + 1 if names else product_release), {}

    def _take_back_vectors(self) -> None:
        """Take vectors of our base from collections that hold them: a text that is the same is not encoded again.

        `product-vectors` has the newest base's alone; after a switch of bases, the way back begins here.
        """
        self._log.read_to_end()
        waiting = {state.product_id: state.text_hash for state in self._log.known.foreign_states()}
        for name in self.look()[1] if waiting else ():
            if self._store.form(name).metadata.get("base_version") != self._encoder.base_version:
                continue
            points = self._store.all_points(name)
            while batch := list(islice(points, BATCH)):
                taken = [product for point in batch if (product := self._taken(point, waiting)) is not None]
                self._log.publish(taken)
                for product in taken:
                    self._log.known.apply(product)
                if self._pause(0.0):
                    raise Stopped
            get_logger().info("vectors_taken_back", collection=name, left=len(waiting))

    def _taken(self, point: ProductPoint, waiting: dict[str, str]) -> BaseProduct | None:
        """Return the product that waits for the vector of a point, no longer waiting; None if none does."""
        said = (point.payload.get("text_hash"), point.payload.get("base_version"))
        if point.vector is None or said != (waiting.get(point.product_id), self._encoder.base_version):
            return None
        product = self._log.known.foreign(point.product_id)
        if product is None or product.text_hash != waiting.pop(point.product_id):
            return None
        vector = np.array(point.vector[:-1], dtype=np.float32)  # the last number is the quality
        return replace(product, base_version=self._encoder.base_version, vector=vector)

    def complete(self, collection: str, stored: Mapping[str, StoredPoint]) -> None:
        """Return once the base vectors hold every product, those included that are in a collection alone.

        Nothing is left on `product-vectors` of what was lost with the topic: its points would be neither refreshed nor
        learned of, and a second collection would lack them. Points that are no products of ours are named once.

        Raises:
            Stopped: asked to stop in the middle; what was written is kept.
        """
        self._log.read_to_end()
        known, taken, left = self._log.known, 0, list[str]()
        lost = [
            one
            for one in stored
            if one not in known and known.foreign(one) is None and (collection, one) not in self._left_alone
        ]
        for start in range(0, len(lost), BATCH):
            points = self._store.retrieve(collection, lost[start : start + BATCH])
            products = {one: product for one, point in points.items() if (product := _of_point(point, self._encoder))}
            self._log.publish(list(products.values()))
            for product in products.values():
                known.read(product)
            taken += len(products)
            left += [one for one in lost[start : start + BATCH] if one not in products]
            if self._pause(0.0):
                raise Stopped
        if left:
            self._left_alone.update((collection, one) for one in left)
            get_logger().warning(
                "points_left_alone",
                collection=collection,
                points=len(left),
                product_ids=sorted(left)[:NAMED],
                error="they are in our collection and no products of ours",
                fix="delete them, or send these products again: Millrace alone writes there",
            )
        if taken:
            get_logger().warning(
                "base_vectors_taken_from_index",
                products=taken,
                error="product-vectors does not hold what the index holds",
                fix="`millrace audit` tells whether the catalogue says the same",
            )
        self._log.complete()

    def write_all(self, refresh: Refresh, *, times_out: bool = False) -> None:
        """Write every batch of a refresh.

        Raises:
            Stopped: asked to stop in the middle.
            InvariantError: it took too long.
        """
        while not refresh.is_done:
            if times_out and refresh.is_late():
                raise InvariantError(
                    f"{refresh.target.collection} has {refresh.written} of {refresh.total} points after "
                    f"{FILL_WITHIN_S / 3600:.0f} h; what was in force stays in force",
                    fix="give the vector store more room, or set MILLRACE_BASE_MODEL back",
                )
            if self._pause(refresh.write_batch()):
                raise Stopped
            refresh.say()

    def _wait_for_graph(self, collection: str) -> None:
        waited_s = 0.0
        while not self._store.is_optimized(collection):
            if waited_s >= GRAPH_WITHIN_S:
                get_logger().warning("graph_not_waited_for", collection=collection, waited_s=waited_s)
                return
            if not waited_s:
                get_logger().info("graph_waited_for", collection=collection)
            if self._pause(GRAPH_LOOK_S):
                raise Stopped
            waited_s += GRAPH_LOOK_S

    def _check(self, target: Target, written: Mapping[str, StoredPoint], query: Release) -> None:
        try:
            check_collection(
                target,
                written,
                store=self._store,
                known=self._known_now,
                probes=query.tensors[PROBE_VECTORS],
            )
        except CheckFailed as error:
            raise InvariantError(
                f"the second collection must not come into force: {error.message}",
                fix="restart the indexer; if it says so again, look at the vector store",
            ) from error

    def _known_now(self) -> BaseVectors:
        self._log.read_to_end()
        return self._log.known

    def publish_alias(self, collection: str) -> None:
        """Let the alias name a collection."""
        self._store.publish_alias(self._owner.alias, collection)
        get_logger().info("alias_published", collection=collection)

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        self._store.drop(collection)
        metrics.INDEX_POINTS.labels(collection).set(0)
        get_logger().info("collection_dropped", collection=collection)


def _of_point(point: ProductPoint, encoder: Encoder) -> BaseProduct | None:
    """Return a product as its point has it; None of one that somebody else wrote. A deletion is of any base."""
    if point.vector is None:
        return BaseProduct(point.product_id, point.version, encoder.base_version)
    try:
        said = {name: point.payload[name] for name in PointPayload.model_fields if name in point.payload}
        payload, made_by = PointPayload.model_validate(said), point.payload["base_version"]
        vector = np.array(point.vector[:-1], dtype=np.float32)  # the last number is the quality
        product = BaseProduct(
            point.product_id, point.version, made_by, point.payload["text_hash"], vector=vector, payload=payload
        )
    except (KeyError, ValidationError):
        return None
    return product if made_by != encoder.base_version or product.fits(encoder.dim) else None


def check_collection(
    target: Target,
    written: Mapping[str, StoredPoint],
    *,
    store: ProductStore,
    known: Callable[[], BaseVectors],
    probes: np.ndarray,
) -> None:
    """Raise if a new collection must not come into force. Changes that arrive meanwhile never fail it.

    Args:
        target: the new collection.
        written: what it is to hold of every product.
        store: the index.
        known: every product, read to the end of its topic: a base vector is acknowledged before its point.
        probes: query vectors (N, D + 1).

    Raises:
        CheckFailed: which check failed, with its numbers.
    """
    name = target.collection
    stored = store.stored(name)
    lacking = [
        product_id
        for product_id, point in written.items()
        if (found := stored.get(product_id)) is None or point.order > found.order
    ]
    if lacking:
        raise CheckFailed(f"{name} lacks {len(lacking)} of {len(written)} products, {lacking[0]} for one")
    vectors = known()
    foreign = [
        product_id for product_id, point in stored.items() if not point.version.deleted and product_id not in vectors
    ]
    if foreign:
        raise CheckFailed(f"{name} holds {len(foreign)} products that nobody sent, {foreign[0]} for one")
    live = [product_id for product_id, point in written.items() if not point.version.deleted]
    sample = [vectors.get(product_id) for product_id in live[:: max(1, len(live) // SAMPLE)][:SAMPLE]]
    _check_vectors(target, [product for product in sample if product is not None and not product.is_deleted], store)
    answered = store.answered(name, probes) if live else len(probes)
    if answered < len(probes):
        raise CheckFailed(f"{name} answered {answered} of {len(probes)} shadow queries")


def _check_vectors(target: Target, sample: Sequence[BaseProduct], store: ProductStore) -> None:
    stored = store.retrieve(target.collection, [product.product_id for product in sample])
    for expected in target.points(sample):
        found = stored.get(expected.product_id)
        if found is None:
            raise CheckFailed(f"{target.collection} lacks product {expected.product_id}")
        if found.point_version != expected.point_version or found.vector is None or expected.vector is None:
            continue  # changed since
        difference = float(np.abs(np.subtract(found.vector, expected.vector)).max())
        if not difference <= VECTOR_TOLERANCE:
            raise CheckFailed(f"{target.collection}: vector of {expected.product_id} differs by {difference:.2g}")
