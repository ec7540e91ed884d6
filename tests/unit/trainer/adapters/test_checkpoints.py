"""Checkpoint files: whole or refused, newest first, never another's."""

import os
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import DependencyDown, UsageError
from trainer.adapters import checkpoints
from trainer.adapters.checkpoints import KEPT, FileCheckpoints, writable_folder
from trainer.core.state import Snapshot

BASE = "tiny/16/t1"


def snapshot(number: int, outbox: dict[str, bytes] | None = None) -> Snapshot:
    """Return a small state that is told apart by its number."""
    tensors: dict[str, np.ndarray] = {
        "weights": np.full((2, 3), number, dtype=np.float32),
        "none": np.zeros((0, 16), dtype=np.uint8),
    }
    return Snapshot(tensors, {"numbers": {"step": number}}, outbox or {})


def loaded_step(store: FileCheckpoints) -> int | None:
    """Return the number of the state that is loaded."""
    found = store.load()
    return None if found is None else int(found.facts["numbers"]["step"])


def newest(folder: Path, ending: str) -> Path:
    """Return the newest file of an ending."""
    return max(folder.glob(f"*.{ending}"))


def test_a_state_returns_whole_with_its_outbox_in_order(tmp_path: Path) -> None:
    """Tensors, facts and the bytes of releases come back; releases in the order in which they are published."""
    outbox = {"query-8": b"\x00\xffquery", "product-3": b"product"}
    FileCheckpoints(tmp_path, base_version=BASE).save(snapshot(7, outbox))
    found = FileCheckpoints(tmp_path, base_version=BASE).load()
    assert found is not None
    np.testing.assert_array_equal(found.tensors["weights"], np.full((2, 3), 7, dtype=np.float32))
    assert found.tensors.keys() == {"weights", "none"}
    assert found.tensors["none"].shape == (0, 16)
    assert list(found.outbox.items()) == list(outbox.items())


def test_an_empty_folder_has_no_state(tmp_path: Path) -> None:
    """A fresh trainer begins anew; its folder is made."""
    folder = writable_folder(tmp_path / "new" / "trainer")
    assert FileCheckpoints(folder, base_version=BASE).load() is None
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_with_a_fix(tmp_path: Path) -> None:
    """Found out at the start, in one line, not at the first checkpoint."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DependencyDown, match="file") as refused:
        writable_folder(tmp_path / "file" / "trainer")
    assert "MILLRACE_DATA_DIR" in refused.value.fix


def test_the_newest_is_loaded_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    """A few are kept against damage, not every one."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    for number in range(6):
        store.save(snapshot(number))
    assert loaded_step(store) == 5
    assert len(list(tmp_path.iterdir())) == 2 * KEPT


@pytest.mark.parametrize("damage", ["truncate tensors", "flip tensors", "break manifest", "remove tensors", "future"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with the newest, the trainer goes on from the last whole state."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    store.save(snapshot(2))
    tensors, manifest = newest(tmp_path, "safetensors"), newest(tmp_path, "json")
    match damage:
        case "truncate tensors":
            os.truncate(tensors, 20)
        case "flip tensors":
            content = bytearray(tensors.read_bytes())
            content[-1] ^= 1
            tensors.write_bytes(content)
        case "break manifest":
            manifest.write_bytes(b'{"format": 1')
        case "remove tensors":
            tensors.unlink()
        case "future":
            manifest.write_bytes(manifest.read_bytes().replace(b'"format":1', b'"format":2'))
    assert loaded_step(FileCheckpoints(tmp_path, base_version=BASE)) == 1


def test_a_save_that_was_cut_short_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its manifest a checkpoint is none; what it left is swept up by the next save."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    with monkeypatch.context() as cut:
        cut.setattr(checkpoints, "_sync_folder", _fail)
        with pytest.raises(OSError, match="full"):
            store.save(snapshot(2))
    newest(tmp_path, "json").unlink()
    (tmp_path / "checkpoint-000001-00000009.safetensors.part").write_bytes(b"half")
    again = FileCheckpoints(tmp_path, base_version=BASE)
    assert loaded_step(again) == 1
    again.save(snapshot(3))
    assert not list(tmp_path.glob("*.part"))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.glob("*.json")))


def _fail(_folder: Path) -> None:
    """Fail as a full disk does."""
    raise OSError(28, "disk full")


def test_what_a_stalled_predecessor_still_writes_never_counts_as_newer(tmp_path: Path) -> None:
    """The later start wins, however often the earlier one saves; and it does not sweep away its successor's files."""
    stalled = FileCheckpoints(tmp_path, base_version=BASE)
    stalled.save(snapshot(1))
    successor = FileCheckpoints(tmp_path, base_version=BASE)
    successor.save(snapshot(2))
    for number in range(100, 106):
        stalled.save(snapshot(number))
    assert loaded_step(FileCheckpoints(tmp_path, base_version=BASE)) == 2


def test_the_state_of_another_base_model_is_refused_by_name(tmp_path: Path) -> None:
    """Heads do not fit another encoder; the error names both and the fix."""
    FileCheckpoints(tmp_path, base_version=BASE).save(snapshot(1))
    with pytest.raises(UsageError, match=r"tiny/16/t1.*other") as refused:
        FileCheckpoints(tmp_path, base_version="other/384/t1").load()
    assert "MILLRACE_BASE_MODEL" in refused.value.fix
