"""What is known of every product: newest wins, and what a point says."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from contracts.catalog import PointPayload, ProductVector
from indexer.catalog.base_vectors import SHORTEST_KEPT_MS, BaseProduct, BaseVectors, CatalogPlace
from indexer.points import Target
from tests.support.indexer_fakes import base_product, foreign, told, whole
from tests.support.tiny_encoder import TinyEncoder
from towers.model import ProductTower

ENCODER = TinyEncoder()


def test_only_what_is_not_older_replaces_a_product() -> None:
    """An older version changes nothing; of one version the last record stays, as compaction keeps it."""
    vectors = BaseVectors()
    second, third = base_product(ENCODER, "P-1", 2), base_product(ENCODER, "P-1", 3)
    for product in (base_product(ENCODER, "P-1", 2, "other"), second, base_product(ENCODER, "P-1", 1)):
        vectors.apply(product)
    assert told(vectors.get("P-1")) == told(second)
    vectors.apply(third)
    assert told(vectors.get("P-1")) == told(third)


def test_deletions_are_kept() -> None:
    """A deletion must keep older versions out of every later collection."""
    vectors = BaseVectors()
    vectors.apply(base_product(ENCODER, "P-1"))
    vectors.apply(BaseProduct("P-1", 2, ENCODER.base_version))
    vectors.apply(base_product(ENCODER, "P-2"))
    assert [product.is_deleted for product in whole(vectors)] == [True, False]


def test_of_one_version_the_deletion_wins_whatever_the_order() -> None:
    """A null deletes a product under its own version, and a late copy of that version does not bring it back."""
    live, gone = base_product(ENCODER, "P-1", 2), BaseProduct("P-1", 2, ENCODER.base_version)
    for order in ((live, gone), (gone, live)):
        vectors = BaseVectors()
        for product in order:
            vectors.apply(product)
        assert told(vectors.get("P-1")) == told(gone)


def test_a_null_forgets_an_old_deletion_and_whatever_else_it_has_overtaken_is_to_be_written_again() -> None:
    """A leader that stalled may forget a product that has come back, or was deleted again a moment ago."""
    vectors = BaseVectors()
    gone = BaseProduct("P-1", 2, ENCODER.base_version)
    vectors.read(base_product(ENCODER, "P-1"), 1_000)
    vectors.read(gone, 2_000)
    assert (vectors.deleted_before(2_000), told(*vectors.deleted_before(2_001))) == ([], told(gone))
    vectors.read_null("P-1", 1_999 + SHORTEST_KEPT_MS)
    assert told(vectors.get("P-1"), *vectors.outdated()) == told(gone, gone)
    vectors.read(gone, 3_000)
    vectors.read_null("P-1", 3_000 + SHORTEST_KEPT_MS)
    assert (vectors.get("P-1"), vectors.outdated(), vectors.deleted_before(9_000)) == (None, [], [])
    again = base_product(ENCODER, "P-1", 3)
    vectors.read(again, 4_000)
    vectors.read_null("P-1", 5_000 + SHORTEST_KEPT_MS)
    assert told(vectors.get("P-1"), *vectors.outdated()) == told(again, again)
    vectors.read_null("P-unknown", 5_000)
    assert told(*vectors.outdated()) == told(again)


def test_deletions_are_forgotten_some_at_a_time() -> None:
    """Those that were read first, and after their nulls the next."""
    vectors = BaseVectors()
    for number in range(5):
        vectors.read(BaseProduct(f"P-{number}", 2, ENCODER.base_version), written_at_ms=1_000)
    turns = []
    while some := vectors.deleted_before(2_000, most=2):
        turns.append([product.product_id for product in some])
        for product in some:
            vectors.read_null(product.product_id, 1_000 + SHORTEST_KEPT_MS)
    assert turns == [["P-0", "P-1"], ["P-2", "P-3"], ["P-4"]]


def test_a_record_that_is_older_than_what_is_known_leaves_the_topic_out_of_date() -> None:
    """Until the newest is read from it, after the older one; a repeat of what is known is no older record."""
    vectors = BaseVectors()
    old, new = base_product(ENCODER, "P-1", 1), base_product(ENCODER, "P-1", 2)
    seen = []
    for product in (old, new, new, old, old, new):
        vectors.read(product)
        seen.append(told(*vectors.outdated()))
    assert seen == [[], [], [], told(new), told(new), []]


def test_a_topic_that_was_made_anew_is_out_of_date_until_it_was_read() -> None:
    """What stands on it already need not be written again."""
    vectors = BaseVectors()
    for product_id in ("P-1", "P-2"):
        vectors.read(base_product(ENCODER, product_id, 3))
    vectors.topic_is_new()
    assert [product.product_id for product in vectors.outdated()] == ["P-1", "P-2"]
    vectors.read(base_product(ENCODER, "P-1", 3))
    vectors.read(base_product(ENCODER, "P-2", 2))
    assert [product.product_id for product in vectors.outdated()] == ["P-2"]


def test_vectors_of_another_base_are_set_aside_until_they_are_encoded_anew() -> None:
    """They must not be mixed in; deletions hold none, and what is known of the same state is not foreign."""
    vectors = BaseVectors(ENCODER.base_version)
    other = {number: base_product(TinyEncoder(12), "P-1", number) for number in (1, 2, 3)}
    vectors.read(BaseProduct("P-2", 1, "other/t1"))
    vectors.read(other[2])
    assert told(vectors.get("P-1"), *foreign(vectors)) == told(None, other[2])
    ours = base_product(ENCODER, "P-1", 2)
    vectors.read(ours)
    vectors.read(other[2])
    assert (told(vectors.get("P-1")), foreign(vectors), vectors.outdated()) == (told(ours), [], [])
    vectors.read(other[3])
    assert told(vectors.get("P-1"), *foreign(vectors)) == told(ours, other[3])
    vectors.read(BaseProduct("P-1", 3, "other/t1"))
    assert (foreign(vectors), [one.product_id for one in whole(vectors)]) == ([], ["P-2", "P-1"])


def test_of_another_base_too_the_newest_state_is_the_one_to_encode() -> None:
    """A writer that stalled has written last, and nobody has written the newest state again before bases changed."""
    vectors = BaseVectors("base of today")
    newest = base_product(ENCODER, "P-1", 4)
    for product in (newest, base_product(ENCODER, "P-1", 2)):
        vectors.read(product)
    assert told(*foreign(vectors)) == told(newest)


def test_an_older_record_of_another_base_leaves_the_topic_out_of_date() -> None:
    """As any older record does."""
    vectors, ours = BaseVectors(ENCODER.base_version), base_product(ENCODER, "P-1", 2)
    vectors.read(ours)
    vectors.read(base_product(TinyEncoder(12), "P-1", 1))
    assert (told(*vectors.outdated()), foreign(vectors)) == (told(ours), [])


def test_a_message_is_read_bit_for_bit() -> None:
    """The vector of a record is the float32 that was written."""
    vector = np.array([0.6, 0.8], dtype="<f4")
    message = ProductVector(
        product_id="P-1",
        version=3,
        base_version="b",
        text_hash="h",
        vector=base64.b64encode(vector.tobytes()).decode(),
        payload=PointPayload(title="Kettle"),
    )
    read = BaseProduct.from_message(message)
    assert read.vector is not None
    np.testing.assert_array_equal(read.vector, vector)
    gone = BaseProduct.from_message(ProductVector(product_id="P-1", version=4, deleted=True, base_version="b"))
    assert gone.is_deleted


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("place", [None, CatalogPlace(7, 1_795_196_600_000)])
def test_a_product_survives_its_record(deleted: bool, place: CatalogPlace | None) -> None:
    """What is written is read again, down to the place of the catalogue record; older records name none."""
    product = BaseProduct("P-1", 2, "b") if deleted else base_product(ENCODER, "P-1", 2)
    product = replace(product, place=place, content_hash="" if deleted else "c" * 32)
    again = BaseProduct.from_message(product.to_message())
    assert (again.order, again.text_hash, again.payload, again.place, again.content_hash) == (
        product.order, product.text_hash, product.payload, place, product.content_hash,
    )  # fmt: skip
    np.testing.assert_array_equal(again.vector, product.vector)
    np.testing.assert_array_equal(again.features, product.features)
    assert len(again.features) == (0 if deleted else 2)


@pytest.mark.parametrize("deleted", [True, False])
def test_a_point_says_where_it_comes_from(deleted: bool) -> None:
    """A live point carries the shown fields, base version and text hash; a deletion nothing but what orders it."""
    product = BaseProduct("P-1", 2, "b") if deleted else base_product(ENCODER, "P-1", 2)
    (point,) = Target("products-r3", 3, ProductTower.untrained()).points([product])
    assert (point.version, point.product_release, point.is_tombstone) == (2, 3, deleted)
    stored = point.stored_payload()
    assert stored["deleted"] == int(deleted)
    assert ("base_version" in stored) is not deleted
    assert ("text_hash" in stored) is not deleted
