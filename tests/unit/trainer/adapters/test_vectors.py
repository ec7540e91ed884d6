"""Vectors and features of products, where the newest version wins and foreign ones stay out; texts, encoded once."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from contracts import wire
from tests.support.pairs import product_vector
from tests.support.tiny_encoder import TinyEncoder
from towers.features import key_of
from trainer.adapters.vectors import FIRST_ROWS, TextVectors, VectorTable

BASE = "tiny/4/t1"
ROW = np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)
OTHER = np.array([0.0, 1.0, 0.0, 0.0], dtype=np.float32)


def put(table: VectorTable, product_id: str, vector: np.ndarray | None, *, version: int = 1, base: str = BASE) -> None:
    """Hand a record to the table as a follower does."""
    message = product_vector(product_id, vector, base_version=base, version=version)
    table.on_record(product_id.encode(), wire.encode(message), 0)


def new_table() -> VectorTable:
    """Return an empty table."""
    return VectorTable(Path(tempfile.gettempdir()), 4, base_version=BASE)


def vectors_of(table: VectorTable, *product_ids: str) -> np.ndarray:
    """Return the vectors of products, 0 of one that is not there."""
    known, vectors = table.look(product_ids)[:2]
    assert np.array_equal(known, vectors.any(axis=1))
    return vectors


def test_features_are_counted_whatever_the_order_of_arrival() -> None:
    """Those that enough products have, and not too many; what a product was called before does not count."""
    forward, backward = new_table(), new_table()
    names = [f"{word} item{number}" for number in range(30) for word in ("fridge", "oven")]
    for table, order in ((forward, names), (backward, names[::-1])):
        put(table, "renamed", ROW)
        for number, name in enumerate(order):
            put(table, name, ROW, version=1 + number)
        put(table, "renamed", None, version=2)
    one, two = forward.feature_space(), backward.feature_space()
    assert np.array_equal(one.keys, two.keys)
    assert np.array_equal(one.idf, two.idf)
    assert sorted(forward.digests().tolist()) == sorted(backward.digests().tolist())
    assert len(set(forward.digests().tolist())) == 60
    features = forward.look(names[:1]).features
    assert features[0].tolist() == sorted((key_of("t:fridge"), key_of("t:item0")))


def test_the_newer_version_wins_in_every_order() -> None:
    """A record that is read again, or late, changes nothing."""
    table = new_table()
    put(table, "a", OTHER, version=2)
    put(table, "a", ROW, version=1)
    np.testing.assert_array_equal(vectors_of(table, "a")[0], OTHER)
    put(table, "a", ROW, version=3)
    np.testing.assert_array_equal(vectors_of(table, "a")[0], ROW)


def test_a_digest_changes_with_what_is_said_of_a_product_and_not_with_its_version() -> None:
    """A new price is no new catalogue; another title is."""
    table = new_table()
    found = []
    for version, title in enumerate(("fridge", "fridge", "oven", "fridge"), start=1):
        message = product_vector("a", ROW, base_version=BASE, version=version)
        assert message.payload is not None
        payload = message.payload.model_copy(update={"title": title, "price": float(version)})
        table.on_record(b"a", wire.encode(message.model_copy(update={"payload": payload})), 0)
        found.append(table.digests().tolist())
    assert found[0] == found[1] == found[3] != found[2]


def test_a_deleted_product_is_gone_and_its_older_versions_stay_away() -> None:
    """A deletion is a version too."""
    table = new_table()
    put(table, "a", ROW)
    put(table, "a", None, version=2)
    put(table, "a", ROW, version=1)
    assert not len(table.digests())
    assert not vectors_of(table, "a").any()


def test_a_tombstone_of_the_topic_removes_the_product() -> None:
    """Compaction's null value is a removal without a version."""
    table = new_table()
    put(table, "a", ROW)
    table.on_record(b"a", None, 0)
    assert not len(table.digests())


def test_vectors_of_another_base_or_width_are_left_out_and_counted() -> None:
    """They mean something else: training on them would be wrong in silence."""
    table = new_table()
    put(table, "a", ROW, base="other/4/t1")
    put(table, "b", np.ones(3, dtype=np.float32))
    assert not len(table.digests())
    assert table.foreign_records == 2


def test_a_catalogue_of_foreign_vectors_alone_is_a_reason_against_readiness() -> None:
    """Every pair would be dropped; an empty catalogue is no such reason, for pairs come after products."""
    table = new_table()
    assert table.not_usable() is None
    put(table, "a", ROW, base="other/4/t1")
    assert table.not_usable() == "no vector is of base model tiny/4/t1; the newest is of other/4/t1"
    put(table, "b", ROW)
    assert table.not_usable() is None


BROKEN_VECTOR = b'{"product_id":"a","version":2,"base_version":"%s","payload":{},"vector":"%s"}'


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"\xff", b'{"product_id": 1}', *(BROKEN_VECTOR % (BASE.encode(), text) for text in (b"x", b"AAAA"))],
)
def test_a_broken_record_changes_nothing(value: bytes) -> None:
    """One bad record does not end the trainer."""
    table = new_table()
    put(table, "a", ROW)
    table.on_record(b"a", value, 0)
    assert vectors_of(table, "a").any()


def test_the_table_grows_and_uses_freed_rows_again() -> None:
    """More products than rows at the start, each with its own vector."""
    table = new_table()
    for number in range(FIRST_ROWS + 10):
        put(table, f"p-{number:05d}", np.array([number, 1, 0, 0], dtype=np.float32))
    put(table, "p-00000", None, version=2)
    put(table, "new", OTHER)
    assert len(table.digests()) == FIRST_ROWS + 10
    found = vectors_of(table, f"p-{FIRST_ROWS + 5:05d}", "new", "p-00001")
    np.testing.assert_array_equal(found[:, 0], [FIRST_ROWS + 5, 0, 1])


def test_a_topic_that_was_made_anew_begins_with_nothing() -> None:
    """Products that are not on it are gone, and those that are count whatever versions the old one had."""
    table = new_table()
    put(table, "a", OTHER, version=9)
    put(table, "b", ROW)
    put(table, "c", ROW, base="other/4/t1")
    table.forget()
    assert (len(table.digests()), table.foreign_records, table.not_usable()) == (0, 0, None)
    put(table, "a", ROW, version=1)
    assert len(table.digests()) == 1
    np.testing.assert_array_equal(vectors_of(table, "a", "b"), [ROW, 0 * ROW])


def test_vectors_are_copies() -> None:
    """A later update does not change what a step is computed on."""
    table = new_table()
    put(table, "a", ROW)
    found = vectors_of(table, "a")
    put(table, "a", OTHER, version=2)
    np.testing.assert_array_equal(found[0], ROW)


def test_a_vector_that_is_not_finite_changes_nothing() -> None:
    """It would make every score of the product, and soon every weight, one that is not finite."""
    table = new_table()
    put(table, "a", ROW)
    put(table, "a", np.array([1.0, np.nan, 0.0, 0.0], dtype=np.float32), version=2)
    put(table, "b", np.full(4, np.inf, dtype=np.float32))
    np.testing.assert_array_equal(vectors_of(table, "a", "b"), [ROW, 0 * ROW])


def test_the_file_of_the_vectors_has_no_name(tmp_path: Path) -> None:
    """A killed trainer leaves nothing behind, and two in one folder do not meet."""
    table = VectorTable(tmp_path, 4, base_version=BASE)
    put(table, "a", ROW)
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_encoded_once_and_alone() -> None:
    """Its vector cannot depend on its neighbours, and the second look costs nothing."""
    encoder = TinyEncoder()
    vectors = TextVectors(encoder)
    first = [vectors(text) for text in ("fridge", "laptop", "fridge")]
    second = vectors("laptop")
    assert encoder.encoded == ["fridge", "laptop"]
    np.testing.assert_array_equal(first[1], second)
    np.testing.assert_array_equal(first[0], first[2])


def test_the_cache_forgets_what_was_not_asked_for_longest() -> None:
    """Memory stays bounded however many texts a shop has."""
    encoder = TinyEncoder()
    vectors = TextVectors(encoder, capacity=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        vectors(text)
    assert encoder.encoded == ["a", "b", "c", "b"]
