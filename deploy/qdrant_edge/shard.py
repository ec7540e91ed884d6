"""The files of one collection: the shard that answers, and now and then a copy that takes its place with a graph.

`NAME/current.json` names the folder that answers; without it that is `NAME/shard`, which has no graph yet. A graph is
built on a copy outside, while writes go on, of which only the ids are kept. Then the copy opens beside the shard, each
changed point is taken over as it is by now, and in the step that takes the last one, `current.json` names the copy. So
whenever the process ends, the folder that is named holds every acknowledged write and nothing else.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson
import qdrant_edge as edge
from qdrant_client import models

from contracts.errors import InvariantError
from deploy.qdrant_edge.points import Update
from deploy.qdrant_edge.requests import ApiError, Json, PointId, as_object, edge_errors
from deploy.qdrant_edge.spec import edge_config
from service.machine import write_atomically

BUILDING: Final = ".graph-"
"""Begins the name of the folder, beside the collection's, where a copy gets its graph."""

TAKEN_AT_ONCE: Final = 256
"""Changed points that one step takes over beside as many as were written since the last, so that the steps end however
much is written. Searches are answered between two."""

RESERVE_BYTES: Final = 256 * 1024**2
"""More than one write takes: its body, a segment of the log, and a chunk of vectors and of payload, 32 MiB each."""

_FIRST: Final = "shard"
_CURRENT: Final = "current.json"


@dataclass(slots=True)
class _Successor:
    """A copy that is to take over, and what changed since it was made."""

    points: set[PointId] = field(default_factory=set)
    taken: set[PointId] = field(default_factory=set)
    left: int = 0
    """How many of the points were not taken over after the last step."""
    indexes: list[edge.UpdateOperation] = field(default_factory=list)
    name: str = ""
    engine: edge.EdgeShard | None = None


class Shard:
    """The open shard of a collection.

    Args:
        folder: of the collection; `make` made the shard in it.
        spec: what the collection was created as.

    Raises:
        InvariantError: it cannot be opened.
    """

    def __init__(self, folder: Path, spec: models.CreateCollection) -> None:
        self.dirty = False
        self.is_closed = False
        self._folder = folder
        self._config = edge_config(spec)
        current = self._recorded()
        self.has_graph = bool(current)
        self._name: str = current.get("shard", _FIRST)
        self._scanned_before: int = current.get("scanned", 0)
        self._scanned: set[PointId] = set()
        self._successor: _Successor | None = None
        self.remove_retired()
        self.engine = self._load(self._name)

    @staticmethod
    def make(folder: Path, spec: models.CreateCollection) -> None:
        """Make an empty shard in a collection's folder and leave it closed."""
        require_space(folder)
        (folder / _FIRST).mkdir()
        with edge_errors():
            edge.EdgeShard.create(str(folder / _FIRST), edge_config(spec)).close()

    def _load(self, name: str) -> edge.EdgeShard:
        try:
            return edge.EdgeShard.load(str(self._folder / name), self._config)
        except Exception as error:
            raise InvariantError(
                f"collection `{self._folder.name}` cannot be opened: {error}",
                fix=f"move {self._folder} away; the indexer fills a new one from the catalogue",
            ) from error

    def close(self) -> None:
        """Write everything out and let go of the files, those of a copy too."""
        self.is_closed = True
        self.abandon()
        self.flush()
        self.engine.close()

    def flush(self) -> None:
        """Write to disk what only the log has, so that the log stays short."""
        self.engine.flush()
        if self.dirty and self.has_graph:
            self._record(self._name, self.scanned())
        self.dirty = False

    def _recorded(self) -> Json:
        path = self._folder / _CURRENT
        return read_json(path) if path.exists() else {}

    def _record(self, name: str, scanned: int) -> None:
        write_json(self._folder / _CURRENT, {"shard": name, "scanned": scanned})

    def points_count(self) -> int:
        """Count the points, tombstones included."""
        return self.engine.info().points_count

    @property
    def is_building(self) -> bool:
        """Whether a copy is getting its graph, or is taking over."""
        return self._successor is not None

    def scanned(self) -> int:
        """Count the points that no graph leads to: every search reads all of them."""
        points = self.points_count()
        return min(points, self._scanned_before + len(self._scanned)) if self.has_graph else points

    def update(self, update: Update) -> None:
        """Apply an operation; it is in the log when this returns."""
        require_space(self._folder)
        if self.has_graph or self._successor:
            changed = self._ids(update.points)
            self._scanned.update(changed if self.has_graph else ())
            if self._successor:
                self._successor.points.update(changed)
        self.dirty = True
        self.engine.update(update.operation)

    def _ids(self, points: Collection[PointId] | edge.Filter | None) -> Collection[PointId]:
        if points is not None and not isinstance(points, edge.Filter):
            return points
        every = max(self.points_count(), 1)
        met = self.engine.scroll(edge.ScrollRequest(limit=every, filter=points, with_payload=False, with_vector=False))
        return [record.id for record in met[0]]

    def update_indexes(self, operation: edge.UpdateOperation) -> None:
        """Apply an operation that makes or drops a payload index."""
        require_space(self._folder)
        self.dirty = True
        self.engine.update(operation)
        if self._successor:
            self._successor.indexes.append(operation)

    @property
    def building(self) -> Path:
        """Where a copy gets its graph."""
        return self._folder.with_name(f"{BUILDING}{self._folder.name}")

    def begin_copy(self) -> Path:
        """Return the folder to copy, complete as long as nothing is written; what is written after is kept in mind."""
        self.flush()
        self._successor = _Successor()
        return self._folder / self._name

    def abandon(self) -> None:
        """Go on without the copy."""
        successor, self._successor = self._successor, None
        if successor and successor.engine:
            successor.engine.close()
        if successor and successor.name and self._recorded().get("shard") != successor.name:
            shutil.rmtree(self._folder / successor.name, ignore_errors=True)

    def take_over(self) -> bool:
        """Bring the copy, which has its graph by now, a step nearer to the present; return whether it answers now.

        A shard that was closed or abandoned its copy says so too: there is nothing left to do.
        """
        successor = self._successor
        if successor is None:
            return True
        if successor.engine is None:
            successor.name = f"{_FIRST}-{1 + int(self._name.partition('-')[2] or 0)}"
            self.building.rename(self._folder / successor.name)
            successor.engine = self._load(successor.name)
            successor.left = len(successor.points)
        self._take(successor, successor.engine)
        if successor.points:
            return False
        successor.engine.flush()
        self._record(successor.name, len(successor.taken))
        retired, self.engine, self._name = self.engine, successor.engine, successor.name
        self.has_graph, self._scanned_before, self._scanned = True, 0, successor.taken
        self._successor = None
        retired.close()
        return True

    def _take(self, successor: _Successor, engine: edge.EdgeShard) -> None:
        for operation in successor.indexes:
            engine.update(operation)
        successor.indexes.clear()
        written = len(successor.points) - successor.left
        changed = list(islice(successor.points, TAKEN_AT_ONCE + written))
        stored = self.engine.retrieve(changed, True, True)
        if gone := set(changed) - {record.id for record in stored}:
            engine.update(edge.UpdateOperation.delete_points(list(gone)))
        if stored:
            points = [edge.Point(record.id, record.vector or {}, record.payload or {}) for record in stored]
            engine.update(edge.UpdateOperation.upsert_points(points))
        successor.points.difference_update(changed)
        successor.left = len(successor.points)
        successor.taken.update(changed)

    def remove_retired(self) -> None:
        """Remove the folders of shards that answer no more, and of one that never did."""
        for path in self._folder.glob(f"{_FIRST}*"):
            if path.name != self._name:
                shutil.rmtree(path)


def require_space(folder: Path, needed_bytes: int = 0) -> None:
    """Raise if the disk under a folder is about to be full.

    Edge writes through mapped files: on a full disk the system would end the process with a bare SIGBUS in the middle
    of a write. So a write is refused while there is still space, and succeeds again once there is more.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < RESERVE_BYTES + needed_bytes:
        raise ApiError(
            500,
            f"Service internal error: only {free_bytes / 1024**2:.0f} MiB free in {folder}, writes need "
            f"{(RESERVE_BYTES + needed_bytes) // 1024**2}; free some space, or set MILLRACE_DATA_DIR to a larger disk",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a file of ours; InvariantError if it is damaged."""
    try:
        return as_object(orjson.loads(path.read_bytes()), path.name)
    except (orjson.JSONDecodeError, ApiError) as error:
        raise InvariantError(
            f"{path} is damaged: {error}", fix="move it away; collections keep their points"
        ) from error


def write_json(path: Path, value: Json) -> None:
    """Replace a file of ours in one step."""
    write_atomically(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))
