"""Products in a file: what was put is found again, nothing is left of it, and a file that fails says so."""

import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from contracts.errors import InvariantError
from indexer.catalog import product_file
from indexer.catalog.base_vectors import BaseProduct, BaseVectors, CatalogPlace
from tests.support.indexer_fakes import base_product, told, whole
from tests.support.tiny_encoder import TinyEncoder

ENCODER = TinyEncoder()


@pytest.mark.parametrize("kept_on_disk", [True, False])
def test_what_is_put_is_found_again_bit_for_bit(tmp_path: Path, kept_on_disk: bool) -> None:
    """Vector, payload, features and where it came from, of products and of deletions; ids may hold any letter."""
    vectors = BaseVectors(ENCODER.base_version, tmp_path / "indexer" if kept_on_disk else None)
    product = replace(
        base_product(ENCODER, "é'%_\u0905"), place=CatalogPlace(7, 1_795_196_600_000), content_hash="c" * 32
    )
    gone = BaseProduct("P-2", 2**53 - 1, ENCODER.base_version)
    for one in (product, gone):
        vectors.read(one)
    assert told(*whole(vectors)) == told(product, gone)
    found, state = vectors.get(product.product_id), next(vectors.states())
    assert found is not None
    np.testing.assert_array_equal(found.features, product.features)
    np.testing.assert_array_equal(state.features, product.features)
    assert len(state.features) == 2
    assert ("P-2" in vectors, "P-3" in vectors, vectors.get("P-3")) == (True, False, None)


def test_nothing_is_left_of_the_file_for_another_process(tmp_path: Path) -> None:
    """It has no name while it is in use, so that a process that is killed leaves no half of it, and no room is lost."""
    vectors = BaseVectors(ENCODER.base_version, tmp_path)
    vectors.read(base_product(ENCODER, "P-1"))
    assert os.listdir(tmp_path) == []
    assert vectors.get("P-1") is not None


def test_products_lie_in_the_file_and_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes of vectors take a part of that, with a small cache."""
    monkeypatch.setattr(product_file, "_BEGIN", product_file._BEGIN.replace(str(product_file.CACHE_KIB), "1024"))
    vectors, memory = BaseVectors(None, tmp_path), psutil.Process().memory_info().rss
    payload = base_product(ENCODER, "P-1").payload
    for number in range(5_000):
        vectors.read(BaseProduct(f"P-{number}", 1, "b", "h", np.full(5_000, number, np.float32), payload))
    assert psutil.Process().memory_info().rss - memory < 50e6
    found = vectors.get("P-4321")
    assert found is not None
    np.testing.assert_array_equal(found.vector, np.full(5_000, 4321, np.float32))


def test_while_states_are_read_products_may_change_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that is there all the while is given once, as it was or as it became; what went before its turn is not."""
    monkeypatch.setattr(product_file, "SCANNED", 2)
    vectors = BaseVectors()
    for number in range(5):
        vectors.read(BaseProduct(f"P-{number}", 1, "b"))
    states = vectors.states()
    seen = [next(states)]
    vectors.read(BaseProduct("P-0", 2, "b"))
    vectors.read(BaseProduct("P-4", 2, "b"))
    vectors.read_null("P-3", 3_600_000)
    assert [(one.product_id, one.version) for one in [*seen, *states]] == [
        ("P-0", 1),
        ("P-1", 1),
        ("P-2", 1),
        ("P-4", 2),
    ]


def test_several_threads_may_read_and_write(tmp_path: Path) -> None:
    """The follower, both loops and the audit do."""
    vectors, failures = BaseVectors(None, tmp_path), list[BaseException]()

    def work(thread: int) -> None:
        """Write, and read what others write."""
        try:
            for number in range(200):
                vectors.read(base_product(ENCODER, f"P-{number % 20}", thread * 1_000 + number))
                vectors.get(f"P-{(number + 7) % 20}")
                sum(1 for _ in vectors.states())
        except BaseException as error:  # noqa: BLE001 - told by the assertion
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    assert [state.version for state in vectors.states()] == [3_180 + number for number in range(20)]


def test_a_file_that_cannot_be_written_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    """A full disk, or a folder that is none: going on would serve an index that lacks products."""
    (tmp_path / "file").touch()
    with pytest.raises(InvariantError, match=r"cannot be kept in .*/file"):
        BaseVectors(None, tmp_path / "file")
    vectors = BaseVectors(None, tmp_path)
    vectors._products._rows.execute("PRAGMA max_page_count = 20")
    large = BaseProduct("P-1", 1, "b", "h", np.ones(100_000, np.float32), base_product(ENCODER, "P-1").payload)
    with pytest.raises(InvariantError, match="full") as caught:
        vectors.read(large)
    assert "MILLRACE_DATA_DIR" in (caught.value.fix or "")
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_a_file_that_failed_answers_nothing_more(tmp_path: Path) -> None:
    """Of a row that was half written it would know the version and not the content."""
    vectors = BaseVectors(None, tmp_path)
    small, large = base_product(ENCODER, "P-1"), BaseProduct("P-1", 2, "b", "h", np.ones(100_000, np.float32))
    vectors.read(small)
    vectors._products._rows.execute("PRAGMA max_page_count = 20")
    for call in (
        lambda: vectors.read(large),
        lambda: vectors.get("P-1"),
        lambda: "P-1" in vectors,
        lambda: next(vectors.states()),
        lambda: vectors.read(small),
        vectors.topic_is_new,
    ):
        with pytest.raises(InvariantError, match="full"):
            call()


def test_states_share_the_name_of_their_base() -> None:
    """There are few bases and many products."""
    vectors = BaseVectors()
    for number in range(2):
        vectors.read(base_product(ENCODER, f"P-{number}"))
    first, second = vectors.states()
    assert first.base_version is second.base_version
