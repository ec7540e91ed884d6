"""Collections, aliases and their files: whole or not at all, and the same after a restart."""

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import DependencyDown, InvariantError
from deploy.qdrant_edge import shard
from deploy.qdrant_edge.store import Store
from service.machine import PART_SUFFIX
from tests.unit.deploy.qdrant_edge.conftest import CREATE, point, refused


def create_alias(alias: str, collection: str) -> dict[str, Any]:
    """Return the action that makes or moves an alias."""
    return {"create_alias": {"alias_name": alias, "collection_name": collection}}


def targets(store: Store) -> dict[str, str]:
    """Return what each alias names."""
    return {entry["alias_name"]: entry["collection_name"] for entry in store.aliases()["aliases"]}


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """Points, indexes, metadata and aliases outlive the process."""
    store = Store(tmp_path)
    store.create("a", CREATE)
    store.update("a", {"metadata": {"seen": True}})
    store.collection("a").create_index({"field_name": "n", "field_schema": "integer"})
    store.collection("a").write("upsert", {"points": [point(1, n=1)]})
    store.update_aliases({"actions": [create_alias("now", "a")]})
    store.close()
    store = Store(tmp_path)
    info = store.collection("now").info()
    assert (info["points_count"], info["config"]["metadata"]) == (1, {"release": 1, "seen": True})
    assert info["payload_schema"] == {"n": {"data_type": "integer", "points": 1}}
    store.close()


def test_flush_reaches_changed_collections_only(store: Store) -> None:
    """A flush writes what changed and then finds nothing to do."""
    for name in ("a", "b"):
        store.create(name, CREATE)
    store.collection("a").write("upsert", {"points": [point(1)]})
    assert (store.collection("a").shard.dirty, store.collection("b").shard.dirty) == (True, False)
    store.flush()
    assert not store.collection("a").shard.dirty
    assert store.points_counts() == {"a": 1, "b": 0}


def test_second_process_is_kept_out(tmp_path: Path) -> None:
    """A folder that is in use is refused with the fix, and free again afterwards."""
    store = Store(tmp_path)
    with pytest.raises(DependencyDown, match="in use") as refusal:
        Store(tmp_path)
    assert "MILLRACE_DATA_DIR" in refusal.value.fix
    store.close()
    Store(tmp_path).close()


def test_half_made_and_half_deleted_collections_are_cleared(tmp_path: Path) -> None:
    """What a crash left unfinished is gone after the next start and hinders nothing."""
    for name in (".making-a", ".dropped-b"):
        (tmp_path / name / "shard").mkdir(parents=True)
    (tmp_path / f".aliases.json.1{PART_SUFFIX}").touch()
    store = Store(tmp_path)
    assert list(store.points_counts()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]
    store.create("a", CREATE)
    store.close()


def test_failed_creation_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that cannot be made is not there, and its name stays free."""
    with monkeypatch.context() as broken:
        broken.setattr(shard.Shard, "make", _no_space)
        with pytest.raises(OSError, match="No space"):
            store.create("a", CREATE)
    assert not store.exists("a")
    store.create("a", CREATE)
    assert list(store.points_counts()) == ["a"]


def _no_space(*_: object) -> None:
    """Fail as a full disk does."""
    raise OSError(28, "No space left on device")


def test_delete_takes_files_and_aliases_along(store: Store, tmp_path: Path) -> None:
    """Nothing of a deleted collection is left; deleting what is not there says so."""
    store.create("a", CREATE)
    store.update_aliases({"actions": [create_alias("now", "a")]})
    assert store.delete("now") is False
    assert store.delete("a") is True
    assert store.delete("a") is False
    assert (list(store.points_counts()), targets(store)) == ([], {})
    assert not [entry for entry in (tmp_path / "qdrant").iterdir() if entry.is_dir()]


def test_aliases_are_created_moved_renamed_and_deleted(store: Store) -> None:
    """Each action does what it says, in the order of the list."""
    for name in ("a", "b"):
        store.create(name, CREATE)
    store.update_aliases({"actions": [create_alias("now", "a"), create_alias("now", "b"), create_alias("old", "a")]})
    assert targets(store) == {"now": "b", "old": "a"}
    assert store.aliases("a") == {"aliases": [{"alias_name": "old", "collection_name": "a"}]}
    assert store.aliases("old") == store.aliases("absent") == {"aliases": []}
    rename = {"rename_alias": {"old_alias_name": "old", "new_alias_name": "older"}}
    store.update_aliases({"actions": [rename, {"delete_alias": {"alias_name": "now"}}]})
    assert targets(store) == {"older": "a"}
    assert store.collection("older").name == "a"


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (create_alias("next", "absent"), 404),
        (create_alias("a", "a"), 409),
        (create_alias("../x", "a"), 422),
        ({"rename_alias": {"old_alias_name": "absent", "new_alias_name": "x"}}, 404),
        ({"swap_alias": {}}, 400),
        ({"create_alias": {"alias_name": "x"}}, 400),
        ({"create_alias": {"alias_name": "x", "collection_name": "a", "force": "yes"}}, 400),
        ({}, 400),
    ],
)
def test_one_wrong_alias_action_changes_none(store: Store, action: dict[str, Any], status: int) -> None:
    """A list with a wrong action is refused whole."""
    store.create("a", CREATE)
    store.update_aliases({"actions": [create_alias("now", "a")]})
    with refused(status):
        store.update_aliases({"actions": [{"delete_alias": {"alias_name": "now"}}, action]})
    assert targets(store) == {"now": "a"}


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a\\b", "a\x00b", 'a"b', "x" * 256])
def test_impossible_names_are_refused(store: Store, name: str, tmp_path: Path) -> None:
    """A name never leads out of the folder."""
    before = sorted(tmp_path.rglob("*"))
    with refused(422):
        store.create(name, CREATE)
    assert sorted(tmp_path.rglob("*")) == before


def test_taken_names_are_refused(store: Store) -> None:
    """Neither a collection nor an alias is made twice under one name."""
    store.create("a", CREATE)
    store.update_aliases({"actions": [create_alias("now", "a")]})
    with refused(409):
        store.create("a", CREATE)
    with refused(400, match="alias"):
        store.create("now", CREATE)
    with refused(404):
        store.collection("b")


@pytest.mark.parametrize("damaged", ["a/collection.json", ".aliases.json", "a/shard/edge_config.json"])
def test_damaged_file_is_named(tmp_path: Path, damaged: str) -> None:
    """A file that cannot be read ends the start with its name and a fix, and frees the folder."""
    store = Store(tmp_path)
    store.create("a", CREATE)
    store.update_aliases({"actions": [create_alias("now", "a")]})
    store.close()
    whole = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(b"{")
    with pytest.raises(InvariantError, match=r"damaged|cannot be opened") as failure:
        Store(tmp_path)
    assert "away" in failure.value.fix
    (tmp_path / damaged).write_bytes(whole)
    Store(tmp_path).close()


def test_a_disk_about_to_be_full_refuses_writes_and_goes_on_answering(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write into a mapped file on a full disk would end the process; with room again it succeeds."""
    store.create("a", CREATE)
    store.collection("a").write("upsert", {"points": [point(1)]})
    with monkeypatch.context() as full:
        full.setattr(shard, "RESERVE_BYTES", 2**62)
        with refused(500, match="MILLRACE_DATA_DIR"):
            store.collection("a").write("upsert", {"points": [point(2)]})
        with refused(500, match="free some space"):
            store.create("b", CREATE)
        assert store.points_counts() == {"a": 1}
    store.collection("a").write("upsert", {"points": [point(2)]})
    store.create("b", CREATE)
    assert store.points_counts() == {"a": 2, "b": 0}
