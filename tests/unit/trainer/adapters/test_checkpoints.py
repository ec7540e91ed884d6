"""Checkpoint files: whole or refused, newest first, never another's."""

import hashlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from contracts.errors import DependencyDown
from tests.support.trainer import new_learner, records
from trainer.adapters import checkpoints
from trainer.adapters.checkpoints import FORMAT, HOUR_S, HOURS_KEPT, KEPT, READABLE, FileCheckpoints, writable_folder
from trainer.state import Progress, Snapshot

BASE = "tiny/16/t1"


def snapshot(number: int, outbox: dict[str, bytes] | None = None) -> Snapshot:
    """Return a small state that is told apart by its number."""
    tensors: dict[str, np.ndarray] = {
        "weights": np.full((2, 3), number, dtype=np.float32),
        "none": np.zeros((0, 16), dtype=np.uint8),
        "number": np.array(0.5 * number),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    return Snapshot(tensors, Progress(records=number, query_parent=number), outbox or {})


def loaded_number(store: FileCheckpoints) -> int | None:
    """Return the number of the state that is loaded."""
    found = store.load()
    return None if found is None else found.progress.records


def files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(folder.glob("*.safetensors"))


def content_of(found: Snapshot) -> tuple[object, ...]:
    """Return all of a state in a form that compares bit by bit."""
    tensors = {name: (tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in found.tensors.items()}
    return tensors, found.progress.model_dump(), list(found.outbox.items())


def test_a_state_returns_whole_with_its_outbox_in_order(tmp_path: Path) -> None:
    """Tensors, numbers and the bytes of releases come back; releases in the order in which they are published."""
    outbox = {"query-8": b"\x00\xffquery", "product-3": b"product"}
    FileCheckpoints(tmp_path, base_version=BASE).save(snapshot(7, outbox))
    found = FileCheckpoints(tmp_path, base_version=BASE).load()
    assert found is not None
    assert content_of(found) == content_of(snapshot(7, outbox))


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
    assert loaded_number(store) == 5
    assert len(list(tmp_path.iterdir())) == KEPT


def test_the_state_of_a_release_is_found_hours_later(tmp_path: Path) -> None:
    """Of each of the last 24 hours one state that was saved with a release stays; an earlier one serves, too."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    for number in range(1, 61):
        store.save(snapshot(number, {f"query-{number}": b"release"} if number % 2 else None))
        os.utime(files(tmp_path)[-1], (HOUR_S / 2 * number, HOUR_S / 2 * number))
    assert len(files(tmp_path)) == HOURS_KEPT + KEPT - 1
    found = [store.load(query_release=number) for number in (59, 52, 51, 9)]
    assert [one and one.progress.query_parent for one in found] == [59, 51, 51, None]
    earlier = store.load(query_release=52, taken_back=[(40, 51)])
    assert earlier is not None
    assert earlier.progress.query_parent == 39


@pytest.fixture
def two_states(tmp_path: Path) -> tuple[Path, list[tuple[object, ...]]]:
    """Give the folder of two saved states of a learner at work, and all that is in each."""
    store, learner, saved = FileCheckpoints(tmp_path, base_version=BASE), new_learner(), []
    for first in (0, 20):
        for record in records(first, first + 20):
            learner.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
        store.save(Snapshot(learner.state(), learner.progress, {f"query-{first}": b"release"}))
        found = store.load()
        assert found is not None
        saved.append(content_of(found))
    return tmp_path, saved


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file's content with one bit flipped, or cut short anywhere."""
    place = chance.randrange(len(content))
    if chance.random() < 0.2:
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def test_no_damage_to_a_checkpoint_is_ever_believed(two_states: tuple[Path, list[tuple[object, ...]]]) -> None:
    """Of 1,000 flipped bits and truncations each is noticed, whatever it hits, and the state before it is loaded."""
    folder, (before, _) = two_states
    newest, chance = files(folder)[-1], random.Random(1)
    whole = newest.read_bytes()
    for _ in range(1000):
        newest.write_bytes(damaged(whole, chance))
        found = FileCheckpoints(folder, base_version=BASE).load()
        assert found is not None
        assert content_of(found) == before


def test_every_single_bit_counts(tmp_path: Path) -> None:
    """Whichever bit of the newest checkpoint flips, the one before is loaded: nothing lies outside the hash."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    store.save(snapshot(2, {"query-1": b"release"}))
    newest = files(tmp_path)[-1]
    whole = newest.read_bytes()
    believed = []
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(flipped)
        if loaded_number(store) != 1:
            believed.append(bit)
    assert believed == []


def test_a_whole_checkpoint_is_believed_to_the_bit(two_states: tuple[Path, list[tuple[object, ...]]]) -> None:
    """The newest state is the one that is loaded, and with all of them damaged there is none."""
    folder, (_, newest) = two_states
    found = FileCheckpoints(folder, base_version=BASE).load()
    assert found is not None
    assert content_of(found) == newest
    for path in files(folder):
        path.write_bytes(path.read_bytes()[1:])
    assert FileCheckpoints(folder, base_version=BASE).load() is None


def with_its_own_digest(path: Path, content: bytes) -> None:
    """Write content that another program made, under the name that fits it."""
    stem = "-".join(path.name.split("-")[:3])
    path.unlink()
    (path.parent / f"{stem}-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


@pytest.mark.parametrize("known", READABLE)
def test_a_checkpoint_of_the_version_before_is_read(tmp_path: Path, known: int) -> None:
    """An upgrade goes on from what was known; how its parts are read is each part's own."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    newest = files(tmp_path)[-1]
    content = newest.read_bytes()
    with_its_own_digest(newest, content.replace(b'"format":%d' % FORMAT, b'"format":%d' % known))
    assert loaded_number(FileCheckpoints(tmp_path, base_version=BASE)) == 1


@pytest.mark.parametrize(
    "kind", ["future format", "former format", "no manifest", "no tensors", "removed", "name without a digest"]
)
def test_what_is_no_checkpoint_of_this_version_is_passed_over(tmp_path: Path, kind: str) -> None:
    """Whatever the newest file is, the trainer goes on from the last whole state that it understands."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    store.save(snapshot(2))
    newest = files(tmp_path)[-1]
    content = newest.read_bytes()
    match kind:
        case "future format":
            with_its_own_digest(newest, content.replace(b'"format":%d' % FORMAT, b'"format":9'))
        case "former format":
            with_its_own_digest(newest, content.replace(b'"format":%d' % FORMAT, b'"format":2'))
        case "no manifest":
            with_its_own_digest(newest, save({"weights": np.zeros(1)}))
        case "no tensors":
            with_its_own_digest(newest, b"junk")
        case "removed":
            newest.unlink()
        case _:
            newest.rename(tmp_path / "checkpoint-000001-00000002.safetensors")
    (tmp_path / "notes.txt").write_text("not ours")
    assert loaded_number(FileCheckpoints(tmp_path, base_version=BASE)) == 1


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the newest state; what it left is swept up by the next save."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    store.save(snapshot(1))
    with monkeypatch.context() as cut:
        cut.setattr(checkpoints, "write_atomically", _fail)
        with pytest.raises(OSError, match="full"):
            store.save(snapshot(2))
    (tmp_path / "checkpoint-000001-00000009-0a.safetensors.77.part").write_bytes(b"half")
    (tmp_path / "checkpoint-000001-00000001.json").write_bytes(b"{}")
    again = FileCheckpoints(tmp_path, base_version=BASE)
    assert loaded_number(again) == 1
    again.save(snapshot(3))
    assert sorted(tmp_path.iterdir()) == files(tmp_path)
    assert loaded_number(again) == 3


def _fail(_path: Path, _content: bytes) -> None:
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
    assert loaded_number(FileCheckpoints(tmp_path, base_version=BASE)) == 2


def test_of_the_state_of_another_base_model_what_was_counted_is_kept(tmp_path: Path) -> None:
    """Vectors, the prior and releases mean nothing over another; numbers and counts go on."""
    tensors = {name: np.ones(2) for name in ("evidence.table.keys", "evidence.query_vectors", "preference.learned")}
    progress = Progress(records=9, decided_records=9, lists_trained=8, last_query_release=7, query_parent=7)
    FileCheckpoints(tmp_path, base_version=BASE).save(Snapshot(tensors, progress, {"query-7": b"q"}))
    found = FileCheckpoints(tmp_path, base_version="other/384/t1").load()
    assert found is not None
    assert (list(found.tensors), found.outbox) == (["evidence.table.keys"], {})
    numbers = found.progress
    assert (numbers.lists_trained, numbers.last_query_release, numbers.query_parent) == (8, 7, 0)
    assert numbers.records > numbers.decided_records


def test_the_state_of_a_release_that_may_be_stepped_back_to_stays(tmp_path: Path) -> None:
    """Hours of newer states do not push it out: the one saved with it, or the last before it."""
    store = FileCheckpoints(tmp_path, base_version=BASE)
    for number in range(1, 12):
        saved = snapshot(number, {f"query-{number}": b"release"})
        saved.progress.query_parent, saved.progress.kept_for = number, [3] if number > 2 else []
        store.save(saved)
    loaded = store.load(query_release=3)
    assert loaded is not None
    assert loaded.progress.query_parent == 3
    assert len(list(tmp_path.glob("checkpoint-*"))) < 8
