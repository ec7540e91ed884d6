"""The vectors of products as a file that another engine takes."""

import base64
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from indexer.points import ProductPoint
from millrace.exporting import VectorForm, vector_lines, write_lines

NUMBERS = np.array([0.6, -0.8, 0.015625], dtype=np.float32)
POINTS = [
    ProductPoint("P-1", 7, 3, NUMBERS.tolist(), {"base_version": "base/1", "title": "Kettle"}),
    ProductPoint("P-2", 8, 3, None),
]


def test_products_on_sale_are_written_with_their_quality_and_deletions_left_out() -> None:
    """One line each: what identifies the vector, and its numbers as float32, the quality last."""
    (line,) = vector_lines(POINTS, VectorForm.NUMBERS)
    read = orjson.loads(line)
    assert np.array_equal(np.array(read.pop("vector"), dtype=np.float32), NUMBERS)
    assert read == {"product_id": "P-1", "version": 7, "product_release": 3, "base_version": "base/1"}


@pytest.mark.parametrize(("form", "kind"), [(VectorForm.FLOAT32, "<f4"), (VectorForm.FLOAT16, "<f2")])
def test_packed_numbers_are_little_endian_bytes(form: VectorForm, kind: str) -> None:
    """Base64 of float32 is exact, of float16 near."""
    (line,) = vector_lines(POINTS, form)
    packed = np.frombuffer(base64.b64decode(orjson.loads(line)["vector"]), dtype=kind)
    assert np.array_equal(packed, NUMBERS.astype(kind))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """An export that fails in the middle leaves the file of last night and nothing beside it."""
    path = tmp_path / "vectors.jsonl.gz"
    told: list[int] = []
    assert write_lines(path, [b"1\n", b"2\n"], told.append) == 2
    assert (gzip.decompress(path.read_bytes()), told[-1]) == (b"1\n2\n", 2)

    def broken() -> Iterator[bytes]:
        """Fail after a line."""
        yield b"3\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(path, broken(), told.append)
    assert gzip.decompress(path.read_bytes()) == b"1\n2\n"
    assert list(tmp_path.iterdir()) == [path]
