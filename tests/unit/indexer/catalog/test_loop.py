"""The catalogue loop on a store in memory: order of outputs, failures, repeats."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from contracts.catalog import PointPayload, PointVersion, Product
from contracts.errors import InvariantError, TransientError
from contracts.progress import CatalogCounts
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.loop import CatalogLoop
from indexer.catalog.planning import CatalogRecord
from indexer.points import InForce, Target
from indexer.ports import Pause, Stopped
from service.health import Health
from tests.support.indexer_fakes import Catalog, FlakyStore, Log, first_target, null, record
from tests.support.indexing import deleted, product, product_release
from tests.support.tiny_encoder import TinyEncoder

R0 = "products-r0"
R3 = "products-r3"


class Indexing:
    """A catalogue loop with everything around it.

    Args:
        batches: of the catalogue.
        stop_after: how many pauses it takes before it is asked to stop.
    """

    def __init__(self, *batches: Sequence[CatalogRecord], stop_after: int = 1_000) -> None:
        self.catalog = Catalog(*batches)
        self.log = Log()
        self.store = FlakyStore()
        self.encoder = TinyEncoder()
        self.pauses: list[float] = []
        self.waited_for: list[str | None] = []
        self.target = first_target(self.encoder)
        self.in_force: InForce | None = self.target.in_force
        self._stop_after = stop_after
        for collection in (R0, R3):
            self.store.ensure_collection(collection, self.encoder.dim + 1)
        self.new_process()

    def new_process(self, pause: Pause | None = None, monotonic_s: Callable[[], float] = time.monotonic) -> CatalogLoop:
        """Return the loop of an indexer that has just started."""
        self.loop = CatalogLoop(
            self.catalog,
            self.log,
            store=self.store,
            encoder=self.encoder,
            target=lambda: self.target,
            in_force=self._in_force,
            pause=pause or self.pause,
            monotonic_s=monotonic_s,
        )
        return self.loop

    def _in_force(self) -> InForce:
        """Return what is in force, or fail as told."""
        if self.in_force is None:
            raise TransientError("models could not be read")
        return self.in_force

    def pause(self, seconds: float) -> bool:
        """Note a pause, and end the process where told."""
        self.pauses.append(seconds)
        self.waited_for.append(self.loop.waiting_for())
        return len(self.pauses) >= self._stop_after

    def versions(self, collection: str = R0) -> dict[str, PointVersion]:
        """Return what is stored."""
        return self.store.versions(collection)


def test_a_batch_is_kept_written_and_then_committed() -> None:
    """Products reach the log and the store; the commit counts every record."""
    it = Indexing([record(product("P-1"), 0), record(b"{", 1), null("P-9", 2), record(deleted("P-2"), 3)])
    assert it.loop.step() == 4
    assert [(product.product_id, product.is_deleted) for product in it.log.vectors] == [("P-1", False), ("P-2", True)]
    assert [refusal.record.offset for refusal in it.log.refusals] == [1]
    assert it.store.counts(R0) == (1, 1)
    assert it.catalog.committed[0].counts == CatalogCounts(catalogue=3, dead_lettered=1)
    assert it.catalog.committed[0].next_offset == 4
    assert it.loop.waiting_for() is None


def test_an_unchanged_text_is_not_encoded_again() -> None:
    """A price change reuses the base vector; equal texts of two products are encoded once."""
    it = Indexing(
        [record(product("P-1"), 0), record(product("P-2"), 1)],
        [record(product("P-1", 2, price=9.0), 2)],
        [record(product("P-1", 3, "large fridge"), 3)],
    )
    while it.loop.step():
        pass
    assert it.encoder.encoded == ["quiet fridge", "large fridge"]
    np.testing.assert_array_equal(it.log.vectors[2].vector, it.log.vectors[0].vector)
    payload = it.log.vectors[2].payload
    assert payload is not None
    assert payload.price == 9.0


def test_what_is_sent_again_mends_vector_and_point_of_its_version() -> None:
    """The text is encoded anew, whatever is known of it, and both are written over what is of the same version."""
    it = Indexing([record(product("P-1"), 0)], [replace(record(product("P-1"), 1), again=True)])
    it.loop.step()
    known = it.log.known.get("P-1")
    assert known is not None
    assert known.vector is not None
    damaged = replace(known, vector=-known.vector)
    it.log.known.apply(damaged)
    it.store.write(R0, first_target(it.encoder).points([damaged]), again={"P-1"})
    it.loop.step()
    assert it.encoder.encoded == ["quiet fridge", "quiet fridge"]
    mended = it.log.vectors[-1].vector
    assert mended is not None
    np.testing.assert_array_equal(mended, known.vector)
    found = it.store.retrieve(R0, ["P-1"])["P-1"].vector
    assert found is not None
    np.testing.assert_allclose(found[:-1], known.vector)


def test_new_products_are_written_before_refreshes() -> None:
    """Two writes: what cannot be found yet first."""
    it = Indexing([record(product("P-1"))], [record(product("P-1", 2, "x"), 1), record(product("P-2"), 2)])
    it.loop.step()
    it.loop.step()
    assert it.store.writes == [(R0, ["P-1"]), (R0, ["P-2"]), (R0, ["P-1"])]


def test_behind_a_bulk_load_the_youngest_are_written_ahead_of_their_turn_and_committed_in_it() -> None:
    """They are found at once, encoded once, counted and committed with the batch in which they stand."""
    youngest = record(product("P-9", title="red oven"), 9)
    it = Indexing([record(product("P-1"))], [record(product("P-2", title="small tv"), 1)], [youngest])
    it.catalog.ahead = [youngest, null("P-1", 8)]
    it.loop.step()
    assert it.versions() == {"P-1": PointVersion(1, 0), "P-9": PointVersion(1, 0)}
    assert it.catalog.committed[0].next_offset == 1
    while it.loop.step():
        pass
    assert it.encoder.encoded == ["quiet fridge", "red oven", "small tv"]
    assert it.catalog.committed[0].counts == CatalogCounts(catalogue=10)
    assert [product.product_id for product in it.log.vectors] == ["P-1", "P-9", "P-2"]


def test_the_first_content_of_a_version_replaces_what_was_read_ahead() -> None:
    """Reading ahead decides nothing: a shop that sent one version twice finds the content that came first."""
    it = Indexing([record(product("P-1"))], [record(product("P-2", title="red oven"), 1)])
    it.catalog.ahead = [record(product("P-2", title="red fridge"), 9)]
    it.loop.step()
    assert it.store.retrieve(R0, ["P-2"])["P-2"].payload["title"] == "red fridge"
    it.loop.step()
    assert it.store.retrieve(R0, ["P-2"])["P-2"].payload["title"] == "red oven"


def test_batches_shrink_where_encoding_is_slow() -> None:
    """What is new waits for one batch: it takes about a second, whatever the encoder costs."""
    it = Indexing([record(product(f"P-{number}"), number) for number in range(100)])
    clock = iter([0.0, 2.0])
    loop = it.new_process(monotonic_s=lambda: next(clock))
    loop.step()
    loop.step()
    assert it.catalog.asked_for == [16, 50]


def test_a_new_product_is_written_with_the_quality_of_its_words_at_once() -> None:
    """Its point carries what the product release in force says of it, in the vector and in nats beside how sure."""
    it = Indexing([record(product("P-1"))])
    it.target = Target(R0, 1, product_release(1, it.encoder, nats=2.0).product_tower())
    it.in_force = it.target.in_force
    it.loop.step()
    stored = it.store.retrieve(R0, ["P-1"])["P-1"]
    assert stored.point_version == PointVersion(1, 1)
    assert stored.payload["quality"] == pytest.approx(2 * 2**0.5)
    assert stored.payload["quality_width"] == 0.5
    assert stored.vector is not None
    np.testing.assert_allclose(stored.vector, [*it.encoder.encode(["quiet fridge"])[0], 0.2 * 2**0.5], atol=1e-6)


def test_a_store_that_does_not_answer_holds_it_up_and_keeps_its_place_in_the_group() -> None:
    """It tries again with growing pauses, says why it is not ready, and commits only afterwards."""
    it = Indexing([record(product("P-1"))])
    it.store.failures = 3
    assert it.loop.step() == 1
    assert it.waited_for == ["Qdrant cannot be reached"] * 3
    assert it.pauses == sorted(it.pauses)
    assert len(set(it.pauses)) == 3
    assert it.catalog.membership_kept == 3
    assert it.store.counts(R0).live == 1
    assert it.loop.waiting_for() is None


def test_a_log_that_does_not_acknowledge_lets_nothing_into_the_index() -> None:
    """The point is written only once its base vector is kept."""
    it = Indexing([record(product("P-1"))], stop_after=1)
    it.log.failures = 5
    with pytest.raises(Stopped):
        it.loop.step()
    assert it.store.writes == []
    assert it.catalog.committed == {}


def test_a_member_that_lost_its_partitions_gives_the_batch_up_and_reads_it_again() -> None:
    """What the group moved elsewhere is not committed here; still held, it is read again and nothing is lost."""
    it = Indexing([record(product("P-1"))])
    it.store.failures = 1
    it.catalog.loses_group = True
    assert it.loop.step() == 0
    assert it.catalog.committed == {}
    assert it.loop.step() == 1
    assert it.catalog.started_again == 1
    assert it.store.counts(R0).live == 1


def test_a_crash_between_base_vector_and_point_is_made_good_by_the_repeat() -> None:
    """The version is known from the log, is not encoded or logged again, and yet written."""
    it = Indexing([record(product("P-1"))], stop_after=1)
    it.store.failures = 1
    with pytest.raises(Stopped):
        it.loop.step()
    it.catalog.start_again()
    assert it.new_process().step() == 1
    assert len(it.log.vectors) == 1
    assert it.encoder.encoded == ["quiet fridge"]
    assert it.versions() == {"P-1": PointVersion(1, 0)}


@pytest.mark.parametrize("collection", [R0, R3])
def test_a_batch_is_not_committed_before_what_came_into_force_has_it(collection: str) -> None:
    """If `models` names another collection or product release than was written, the batch waits and is written anew."""
    it = Indexing([record(product("P-1"))])
    it.in_force = InForce(collection, 1)
    takes_over_at = 3

    def pause(seconds: float) -> bool:
        """Take over a little later, as the other loop does."""
        assert it.catalog.committed == {}
        if len(it.pauses) == takes_over_at:
            it.target = Target(collection, 1, product_release(1, it.encoder).product_tower())
        return it.pause(seconds)

    loop = it.new_process(pause)
    assert loop.step() == 1
    assert it.versions(collection) == {"P-1": PointVersion(1, 1)}
    assert [written for written, _ in it.store.writes] == [R0, collection]
    assert it.catalog.committed[0].next_offset == 1
    assert it.catalog.membership_kept == takes_over_at + 1
    assert it.waited_for[0] == f"{collection} at product release 1 came into force"
    assert loop.waiting_for() is None


def test_nothing_is_committed_while_it_is_unknown_what_is_in_force() -> None:
    """A `models` that cannot be read holds it up, visibly."""
    it = Indexing([record(product("P-1"))], stop_after=2)
    it.in_force = None
    with pytest.raises(Stopped):
        it.loop.step()
    assert it.waited_for == 2 * ["models could not be read"]
    assert it.catalog.committed == {}


def test_a_collection_in_force_that_refuses_writes_stops_the_process() -> None:
    """Going on would lose products silently."""
    it = Indexing([record(product("P-1"))])
    it.store.drop(R0)
    with pytest.raises(InvariantError):
        it.loop.step()
    assert it.catalog.committed == {}


def test_vectors_that_are_kept_do_not_keep_those_of_their_batch() -> None:
    """A row of a batch is a view of all of it: of a batch that is all but replaced, its whole would stay in memory."""
    it = Indexing([record(product(f"P-{number}", title=f"fridge {number}"), number) for number in range(3)])
    it.loop.step()
    assert [kept.vector is not None and kept.vector.base is None for kept in it.log.vectors] == 3 * [True]


def test_a_null_deletes_a_product() -> None:
    """It becomes a deletion on `product-vectors` and a tombstone in the index, and counts as a catalogue record."""
    it = Indexing([record(product("P-1", 5), 0), record(product("P-2"), 1)], [null("P-1", 2)])
    it.loop.step()
    it.loop.step()
    assert (it.log.vectors[-1].order, it.log.vectors[-1].place) == ((5, True), null("P-1", 2).place)
    assert it.versions() == {"P-1": PointVersion(5, 0, deleted=True), "P-2": PointVersion(1, 0)}
    assert it.catalog.committed[0].counts == CatalogCounts(catalogue=3)


def test_a_null_deletes_what_another_member_of_the_group_has_written() -> None:
    """Who takes a partition over reads the base vectors to their end first: the product may be newer than it knew."""
    it = Indexing([null("P-1", 9)])
    elsewhere = BaseProduct("P-1", 7, it.encoder.base_version, "h", np.ones(it.encoder.dim), PointPayload())
    it.log.before_end = lambda: it.log.known.read(elsewhere)
    it.loop.step()
    assert it.versions() == {"P-1": PointVersion(7, 0, deleted=True)}


def test_a_batch_with_a_null_waits_until_the_base_vectors_are_known() -> None:
    """Nothing is decided on half of what there is."""
    it = Indexing([null("P-1", 9)])
    it.log.failures = 2
    assert it.loop.step() == 1
    assert it.waited_for == 2 * ["Kafka does not acknowledge"]
    assert it.catalog.committed[0].next_offset == 10


def test_a_key_that_is_not_the_product_id_is_warned_of() -> None:
    """Once a batch, with the place of the first such record; the product is found nevertheless."""
    it = Indexing([replace(record(product(f"P-{n}"), n), key=b'{"id":"P-%d"}' % n) for n in range(3)])
    with capture_logs() as lines:
        it.loop.step()
    (line,) = [line for line in lines if line["event"] == "key_is_not_the_product_id"]
    assert (line["count"], line["partition"], line["offset"]) == (3, 0, 0)
    assert it.store.counts(R0) == (3, 0)


@pytest.mark.parametrize(
    "other", [product("P-1", 5, "large fridge"), product("P-1", 5, image_url="https://a.shop/P-1.jpg")]
)
def test_the_same_version_with_other_content_is_counted_by_its_own_reason(other: Product) -> None:
    """The metric and the log say so; the first content stays, and the ledger counts the record as any other."""
    Health("indexer")
    it = Indexing([record(product("P-1", 5), 0)], [record(other, 1)])
    before = writes("same_version"), writes("stale")
    it.loop.step()
    with capture_logs() as lines:
        it.loop.step()
    assert (writes("same_version"), writes("stale")) == (before[0] + 1, before[1])
    (line,) = [line for line in lines if line["event"] == "same_version_other_content"]
    assert (line["count"], line["partition"], line["offset"]) == (1, 0, 1)
    assert it.store.retrieve(R0, ["P-1"])["P-1"].payload["title"] == "quiet fridge"
    assert it.catalog.committed[0].counts == CatalogCounts(catalogue=2)


def writes(kind: str) -> float:
    """Return how many writes of a kind were counted so far."""
    return REGISTRY.get_sample_value("millrace_index_writes_total", {"kind": kind}) or 0.0


def test_a_member_that_the_group_takes_for_dead_writes_no_base_vectors() -> None:
    """It stalled while it encoded: what it would write now may be older than what another member has written since."""
    it = Indexing([record(product("P-1"))])
    it.catalog.is_taken_for_dead = True
    assert it.loop.step() == 0
    assert it.encoder.encoded == ["quiet fridge"]
    assert it.log.vectors == []
    assert it.store.writes == []
    it.catalog.is_taken_for_dead = False
    assert it.loop.step() == 1
    assert it.catalog.started_again == 1
    assert it.catalog.confirmed == [{0}]
