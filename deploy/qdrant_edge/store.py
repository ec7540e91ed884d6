"""All collections of one data folder, their aliases, and the lock that keeps a second process out.

The folder holds `.lock`, `.aliases.json`, and for each collection NAME/collection.json, what it was created as, beside
the files of its shard. A collection is made under a hidden name and renamed when complete, and deleted by renaming it
away first; a graph is built under a hidden name too. A crash in between leaves a hidden folder, which the next start
removes.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qdrant_client import models

from contracts.errors import DependencyDown, InvariantError
from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.requests import ApiError, Json, parse
from deploy.qdrant_edge.shard import BUILDING, Shard, read_json, write_json
from deploy.qdrant_edge.spec import read_spec, to_json, updated
from service.machine import PART_SUFFIX, sync_folder

_NAME: Final = re.compile(r"[^.<>:\"/\\|?*\x00-\x1f][^<>:\"/\\|?*\x00-\x1f]{0,199}")
_SPEC: Final = "collection.json"
_ALIASES: Final = ".aliases.json"
_MAKING: Final = ".making-"
_DROPPED: Final = ".dropped-"


class Store:
    """The open data folder, made if absent; one that another process has is `DependencyDown`."""

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
        for part in (*self._folder.glob(f"*{PART_SUFFIX}"), *self._folder.glob(f"*/*{PART_SUFFIX}")):
            if part.is_file():
                part.unlink()
        for entry in sorted(self._folder.iterdir()):
            if entry.name.startswith((_MAKING, _DROPPED, BUILDING)):
                shutil.rmtree(entry)
            elif (entry / _SPEC).is_file():
                self._collections[entry.name] = Collection(entry.name, _read_spec(entry), entry)
        recorded = self._folder / _ALIASES
        aliases = read_json(recorded) if recorded.exists() else {}
        self._aliases = {alias: name for alias, name in aliases.items() if name in self._collections}

    def close(self) -> None:
        """Close every collection and give the folder free."""
        for collection in self._collections.values():
            collection.shard.close()
        self._collections.clear()
        os.close(self._lock)

    def flush(self) -> None:
        """Write out every collection that changed since the last flush."""
        for collection in self._collections.values():
            if collection.shard.dirty:
                collection.shard.flush()

    def describe(self) -> dict[str, Json]:
        """Answer `GET /collections`."""
        return {"collections": [{"name": name} for name in sorted(self._collections)]}

    def points_counts(self) -> dict[str, int]:
        """Return the number of points per collection."""
        return {name: collection.shard.points_count() for name, collection in self._collections.items()}

    def exists(self, name: str) -> bool:
        """Return whether there is a collection or an alias of that name."""
        return name in self._collections or name in self._aliases

    def collections(self) -> list[Collection]:
        """List the open collections."""
        return list(self._collections.values())

    def collection(self, name: str) -> Collection:
        """Find the collection of a name or an alias."""
        found = self._collections.get(self._aliases.get(name, name))
        if found is None:
            raise ApiError(404, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: Json) -> bool:
        """Create a collection; it is there complete or not at all."""
        _check_name(name, "collection")
        if name in self._collections:
            raise ApiError(409, f"Wrong input: Collection `{name}` already exists!")
        if name in self._aliases:
            raise ApiError(400, f"Wrong input: Can't create collection with name {name}. It is the name of an alias")
        spec = read_spec(body)
        making = self._folder / f"{_MAKING}{name}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        Shard.make(making, spec)
        write_json(making / _SPEC, to_json(spec))
        making.rename(self._folder / name)
        sync_folder(self._folder)
        self._collections[name] = Collection(name, spec, self._folder / name)
        return True

    def update(self, name: str, body: Json) -> bool:
        """Change a collection's metadata."""
        collection = self.collection(name)
        spec = updated(collection.spec, body)
        write_json(self._folder / collection.name / _SPEC, to_json(spec))
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
        collection.shard.close()
        (self._folder / name).rename(dropped)
        sync_folder(self._folder)
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
        """Apply a list of alias actions: all of them, or none if one is wrong."""
        aliases = dict(self._aliases)
        for action in parse(models.ChangeAliasesOperation, body).actions:
            match action:
                case models.CreateAliasOperation(create_alias=create):
                    aliases[self._free_alias(create.alias_name)] = self._existing(create.collection_name)
                case models.DeleteAliasOperation(delete_alias=delete):
                    aliases.pop(delete.alias_name, None)
                case models.RenameAliasOperation(rename_alias=rename):
                    if rename.old_alias_name not in aliases:
                        raise ApiError(404, f"Not found: Alias {rename.old_alias_name} does not exists!")
                    aliases[self._free_alias(rename.new_alias_name)] = aliases.pop(rename.old_alias_name)
        self._keep_aliases(aliases)
        return True

    def _existing(self, name: str) -> str:
        if name not in self._collections:
            raise ApiError(404, f"Not found: Collection `{name}` doesn't exist!")
        return name

    def _free_alias(self, alias: str) -> str:
        _check_name(alias, "alias")
        if alias in self._collections:
            raise ApiError(409, f"Wrong input: Collection `{alias}` already exists!")
        return alias

    def _keep_aliases(self, aliases: Mapping[str, str]) -> None:
        if aliases != self._aliases:
            write_json(self._folder / _ALIASES, dict(aliases))
            self._aliases = dict(aliases)


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise ApiError(
            422,
            f"Validation error: {kind} name {name!r:.80} must have 1 to 200 characters, "
            'none of < > : " / \\ | ? * or control characters, and no dot in front',
        )


def _take_lock(folder: Path) -> int:
    """Return the descriptor that holds the folder for this process; the system frees it when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DependencyDown(
            f"{folder} is in use by another embedded Qdrant",
            fix="stop the other process, or give this one its own MILLRACE_DATA_DIR",
        ) from error
    return descriptor


def _read_spec(folder: Path) -> models.CreateCollection:
    path = folder / _SPEC
    try:
        return read_spec(read_json(path))
    except ApiError as error:
        raise InvariantError(f"{path} is damaged: {error.detail}", fix=f"move {folder} away") from error
