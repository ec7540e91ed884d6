"""All collections of one data folder, their aliases, and the lock that keeps a second process out.

    <folder>/.lock                      held while a process has the folder
    <folder>/.aliases.json              alias -> collection
    <folder>/<name>/collection.json     what the collection was created as, with its metadata
    <folder>/<name>/shard/              Edge's files

A collection is made under a hidden name and renamed when complete; it is deleted by renaming it away first. A crash in
between leaves a hidden folder, which the next start removes. Nothing here is shared between threads.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from contracts.errors import DependencyDown, InvariantError
from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.errors import ApiError, BadRequest, Conflict, NotFound, Unprocessable
from deploy.qdrant_edge.fields import Json, as_list, as_object, as_text, known_only
from deploy.qdrant_edge.translate_config import CollectionSpec

_NAME: Final = re.compile(r"[^.<>:\"/\\|?*\x00-\x1f][^<>:\"/\\|?*\x00-\x1f]{0,199}")
_SPEC: Final = "collection.json"
_SHARD: Final = "shard"
_ALIASES: Final = ".aliases.json"
_MAKING: Final = ".making-"
_DROPPED: Final = ".dropped-"


class Store:
    """The open data folder.

    Args:
        folder: made if absent.

    Raises:
        DependencyDown: another process has the folder, or it cannot be written.
        InvariantError: a collection in it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = _take_lock(folder)
        self._collections: dict[str, Collection] = {}
        self._aliases: dict[str, str] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for entry in sorted(self._folder.iterdir()):
            if entry.name.startswith((_MAKING, _DROPPED)):
                shutil.rmtree(entry)
            elif (entry / _SPEC).is_file():
                self._collections[entry.name] = Collection(entry.name, _read_spec(entry), entry / _SHARD)
        recorded = self._folder / _ALIASES
        aliases = _read_json(recorded) if recorded.exists() else {}
        self._aliases = {alias: name for alias, name in aliases.items() if name in self._collections}

    def close(self) -> None:
        """Close every collection and give the folder free."""
        for collection in self._collections.values():
            collection.close()
        self._collections.clear()
        os.close(self._lock)

    def flush(self) -> None:
        """Write out every collection that changed since the last flush."""
        for collection in self._collections.values():
            if collection.dirty:
                collection.flush()

    def names(self) -> list[str]:
        """Return the names of the collections."""
        return sorted(self._collections)

    def points_counts(self) -> dict[str, int]:
        """Return the number of points per collection."""
        return {name: collection.points_count() for name, collection in self._collections.items()}

    def exists(self, name: str) -> bool:
        """Return whether there is a collection or an alias of that name."""
        return name in self._collections or name in self._aliases

    def collection(self, name: str) -> Collection:
        """Return the collection of a name or an alias.

        Raises:
            NotFound: there is neither.
        """
        found = self._collections.get(self._aliases.get(name, name))
        if found is None:
            raise NotFound(f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: Json) -> bool:
        """Create a collection; it is there complete or not at all.

        Raises:
            BadRequest: the request is wrong, or the name is an alias's.
            Unprocessable: the name is impossible.
            Conflict: there is such a collection.
        """
        _check_name(name, "collection")
        if name in self._collections:
            raise Conflict(f"Wrong input: Collection `{name}` already exists!")
        if name in self._aliases:
            raise BadRequest(f"Wrong input: Can't create collection with name {name}. It is the name of an alias")
        spec = CollectionSpec.parse(body)
        making = self._folder / f"{_MAKING}{name}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        Collection.make_shard(spec, making / _SHARD)
        _write_json(making / _SPEC, spec.to_json())
        making.rename(self._folder / name)
        _sync_folder(self._folder)
        self._collections[name] = Collection(name, spec, self._folder / name / _SHARD)
        return True

    def update(self, name: str, body: Json) -> bool:
        """Change a collection's metadata."""
        collection = self.collection(name)
        spec = collection.spec.with_update(body)
        _write_json(self._folder / collection.name / _SPEC, spec.to_json())
        collection.spec = spec
        return True

    def delete(self, name: str) -> bool:
        """Delete a collection with its aliases; return whether there was one. An alias is no collection here."""
        collection = self._collections.get(name)
        if collection is None:
            return False
        self._keep_aliases({alias: target for alias, target in self._aliases.items() if target != name})
        dropped = self._folder / f"{_DROPPED}{name}"
        del self._collections[name]
        collection.close()
        (self._folder / name).rename(dropped)
        _sync_folder(self._folder)
        shutil.rmtree(dropped)
        return True

    def aliases(self, name: str | None = None) -> dict[str, Json]:
        """Return the aliases, of one collection by its own name or of all."""
        return {
            "aliases": [
                {"alias_name": alias, "collection_name": collection}
                for alias, collection in sorted(self._aliases.items())
                if name in (None, collection)
            ]
        }

    def update_aliases(self, body: Json) -> bool:
        """Apply a list of alias actions: all of them, or none where one is wrong."""
        fields = as_object(body, "alias request")
        known_only(fields, frozenset({"actions"}), "alias request")
        aliases = dict(self._aliases)
        for action in as_list(fields.get("actions"), "actions"):
            self._apply_alias(as_object(action, "action"), aliases)
        self._keep_aliases(aliases)
        return True

    def _apply_alias(self, action: dict[str, Any], aliases: dict[str, str]) -> None:
        if len(action) != 1:
            raise BadRequest("Format error in JSON body: an action is an object with one key, its kind")
        ((kind, value),) = action.items()
        names = {key: as_text(entry, key) for key, entry in as_object(value, kind).items()}
        match kind, names:
            case "create_alias", {"collection_name": name, "alias_name": alias, **rest} if not rest:
                aliases[self._free_alias(alias)] = self._existing(name)
            case "delete_alias", {"alias_name": alias, **rest} if not rest:
                aliases.pop(alias, None)
            case "rename_alias", {"old_alias_name": old, "new_alias_name": new, **rest} if not rest:
                if old not in aliases:
                    raise NotFound(f"Not found: Alias {old} does not exists!")
                aliases[self._free_alias(new)] = aliases.pop(old)
            case _:
                raise BadRequest(f"Format error in JSON body: unknown or incomplete alias action `{kind}`")

    def _existing(self, name: str) -> str:
        if name not in self._collections:
            raise NotFound(f"Not found: Collection `{name}` doesn't exist!")
        return name

    def _free_alias(self, alias: str) -> str:
        _check_name(alias, "alias")
        if alias in self._collections:
            raise Conflict(f"Wrong input: Collection `{alias}` already exists!")
        return alias

    def _keep_aliases(self, aliases: Mapping[str, str]) -> None:
        if aliases != self._aliases:
            _write_json(self._folder / _ALIASES, dict(aliases))
            self._aliases = dict(aliases)


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise Unprocessable(
            f"Validation error: {kind} name {name!r:.80} must have 1 to 200 characters, "
            'none of < > : " / \\ | ? * or control characters, and no dot in front'
        )


def _take_lock(folder: Path) -> int:
    """Return the descriptor that holds the folder for this process; the system frees it when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise DependencyDown(
            f"{folder} is in use by another embedded Qdrant",
            fix="stop the other process, or give this one its own MILLRACE_DATA_DIR",
        ) from exc
    return descriptor


def _read_spec(folder: Path) -> CollectionSpec:
    path = folder / _SPEC
    try:
        return CollectionSpec.parse(_read_json(path))
    except ApiError as exc:
        raise InvariantError(f"{path} is damaged: {exc.message}", fix=f"move {folder} away") from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return as_object(orjson.loads(path.read_bytes()), path.name)
    except (orjson.JSONDecodeError, ApiError) as exc:
        raise InvariantError(f"{path} is damaged: {exc}", fix="move it away; collections keep their points") from exc


def _write_json(path: Path, value: Json) -> None:
    """Replace a file in one step that survives a crash: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
