"""Rows of products in a file without a name: as many as the disk holds, and hardly any memory for each.

It is a cache of `product-vectors` and gone with its process: what one has left half written, no other ever reads.
"""

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from contracts.errors import InvariantError

CACHE_KIB: Final = 65_536
SCANNED: Final = 1_024
"""Rows that a scan reads at once: so many wait in memory, and a writer waits for no more."""
_BEGIN: Final = f"""
PRAGMA page_size = 8192;
PRAGMA cache_size = -{CACHE_KIB};
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE state (number INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, version, deleted, base_version,
    text_hash, content_hash, features);
CREATE TABLE content (number INTEGER PRIMARY KEY, catalog_offset, catalog_time, payload, vector);
BEGIN;
"""
"""Nothing has to survive, so nothing is committed or synced: what the cache cannot hold goes to the file.
Content has a table of its own, for scans of states pass it over."""
_UPSERT: Final = """
INSERT INTO state (product_id, version, deleted, base_version, text_hash, content_hash, features)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (product_id) DO UPDATE
SET (version, deleted, base_version, text_hash, content_hash, features)
    = (excluded.version, excluded.deleted, excluded.base_version, excluded.text_hash, excluded.content_hash,
       excluded.features)
RETURNING number
"""


class State(NamedTuple):
    """What a row says of how new it is and where it comes from, and the keys of its features, (N,) uint64."""

    product_id: str
    version: int
    is_deleted: bool
    base_version: str
    text_hash: str
    content_hash: str
    features: np.ndarray

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states of a product: the version, and of one version the deletion."""
        return self.version, self.is_deleted


class Row(NamedTuple):
    """A product: its state, offset and time of its record on `catalog`, its payload as JSON, its vector as float32."""

    state: State
    place: tuple[int, int] | None
    payload: bytes | None
    vector: bytes | None


class ProductFile:
    """One row for each product, in the order in which products came first. One thread at a time may use it.

    Args:
        folder: of the file; None keeps all in memory, for tests and small catalogues.

    Raises:
        InvariantError: the file cannot be made, written or read; it may be damaged then, so every later call says so.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = "memory" if folder is None else folder
        self._failure: Exception | None = None
        with self._asking(), ExitStack() as named:
            where = ":memory:"
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                where = named.enter_context(tempfile.NamedTemporaryFile(dir=folder)).name
            self._rows = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
            self._rows.executescript(_BEGIN)

    def put(self, row: Row) -> None:
        """Write a row, in the place of the one before it."""
        *state, features = row.state
        ((number,),) = self._ask(_UPSERT, *state, features.tobytes())
        place = row.place or (None, None)
        self._ask("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?, ?)", number, *place, row.payload, row.vector)

    def get(self, product_id: str) -> Row | None:
        """Return the row of a product."""
        found = self._ask("SELECT * FROM state NATURAL JOIN content WHERE product_id = ?", product_id)
        if not found:
            return None
        _, *state, offset, time, payload, vector = found[0]
        return Row(_state(*state), None if offset is None else (offset, time), payload, vector)

    def order(self, product_id: str) -> tuple[int, bool] | None:
        """Return what orders the row of a product; None if there is none."""
        found = self._ask("SELECT version, deleted FROM state WHERE product_id = ?", product_id)
        return (found[0][0], bool(found[0][1])) if found else None

    def remove(self, product_id: str) -> None:
        """Remove the row of a product, if there is one."""
        for number in self._ask("DELETE FROM state WHERE product_id = ? RETURNING number", product_id):
            self._ask("DELETE FROM content WHERE number = ?", *number)

    def states(self, after: int) -> tuple[list[State], int]:
        """Return the next states, and the number to ask for those after them; none if that was the end."""
        found = self._ask("SELECT * FROM state WHERE number > ? ORDER BY number LIMIT ?", after, SCANNED)
        return [_state(*columns) for _, *columns in found], found[-1][0] if found else after

    def product_ids(self) -> list[str]:
        """Return the ids of all products."""
        return [product_id for (product_id,) in self._ask("SELECT product_id FROM state ORDER BY number")]

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        with self._asking():
            return self._rows.execute(statement, values).fetchall()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            if self._failure is not None:
                raise self._failure
            yield
        except (sqlite3.Error, OSError) as error:
            self._failure = error
            raise InvariantError(
                f"the base vectors cannot be kept in {self._folder}: {error}",
                fix="let MILLRACE_DATA_DIR be writable, with room for 3 kB for each product, 5 kB while bases change",
            ) from error


def _state(*columns: Any) -> State:
    product_id, version, deleted, base_version, text_hash, content_hash, features = columns
    keys = np.frombuffer(features, dtype=np.uint64)
    return State(product_id, version, bool(deleted), sys.intern(base_version), text_hash, content_hash, keys)
