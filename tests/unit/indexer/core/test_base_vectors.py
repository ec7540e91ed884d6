"""What is known of every product: newest wins, and what a point says."""

import base64

import numpy as np
import pytest

from contracts.catalog import PointPayload, ProductVector
from indexer.core.base_vectors import BaseProduct, BaseVectors
from tests.support.indexer_fakes import base_product
from tests.support.tiny_encoder import TinyEncoder

ENCODER = TinyEncoder()


def test_only_a_newer_version_replaces_a_product() -> None:
    """An older or equal version changes nothing and says so."""
    vectors = BaseVectors()
    assert vectors.apply(base_product(ENCODER, "P-1", 2))
    assert not vectors.apply(base_product(ENCODER, "P-1", 1))
    assert not vectors.apply(base_product(ENCODER, "P-1", 2, "other"))
    assert vectors.apply(base_product(ENCODER, "P-1", 3))
    known = vectors.get("P-1")
    assert known is not None
    assert known.version == 3


def test_deletions_are_kept() -> None:
    """A deletion must keep older versions out of every later collection."""
    vectors = BaseVectors()
    vectors.apply(base_product(ENCODER, "P-1"))
    vectors.apply(BaseProduct("P-1", 2, ENCODER.base_version))
    vectors.apply(base_product(ENCODER, "P-2"))
    assert [product.is_deleted for product in vectors.snapshot()] == [True, False]


def test_a_foreign_base_version_is_noticed_among_live_products() -> None:
    """Vectors of another encoder must not be mixed in; deletions hold none."""
    vectors = BaseVectors()
    vectors.apply(BaseProduct("P-1", 1, "other/t1"))
    assert vectors.foreign_base_version(ENCODER.base_version) is None
    vectors.apply(base_product(ENCODER, "P-2"))
    assert vectors.foreign_base_version("mine/t1") == ENCODER.base_version


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
def test_a_point_says_where_it_comes_from(deleted: bool) -> None:
    """A live point carries the shown fields, base version and text hash; a deletion nothing but what orders it."""
    product = BaseProduct("P-1", 2, "b") if deleted else base_product(ENCODER, "P-1", 2)
    point = product.point(3, None if deleted else np.ones(ENCODER.dim, dtype=np.float32))
    assert (point.version, point.product_release, point.is_tombstone) == (2, 3, deleted)
    stored = point.stored_payload()
    assert stored["deleted"] == int(deleted)
    assert ("base_version" in stored) is not deleted
    assert ("text_hash" in stored) is not deleted
