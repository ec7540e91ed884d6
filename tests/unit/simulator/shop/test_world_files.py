"""A world is written to and read from a folder; everything that is wrong with its files is told at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from simulator.shop.builtin import world_of
from simulator.shop.world import MOST_SHOWN, Fault, Judgment, UnreadableWorld, World, export_world, load_world

PRODUCT = {"type": "product", "product_id": "P-1", "version": 1, "title": "Fridge"}
QUERY = {"query_id": "Q-1", "query": "fridge", "class": "plain", "split": "train", "locale": "en-IN", "popularity": 1.0}
JUDGMENT = {"query_id": "Q-1", "product_id": "P-1", "grade": 3, "attraction": 0.3}


def _write(folder: Path, **files: list[Any]) -> Path:
    """Write a world's folder, with the given rows in place of good ones."""
    for name in ("products", "queries", "judgments"):
        rows = files.get(name, {"products": [PRODUCT], "queries": [QUERY], "judgments": [JUDGMENT]}[name])
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_an_exported_world_loads_as_the_same_world(built_in: World, tmp_path: Path) -> None:
    """Nothing is lost between the built-in world and its folder."""
    export_world(built_in, tmp_path)
    assert load_world(tmp_path) == built_in


def test_the_same_seed_exports_the_same_bytes(built_in: World, tmp_path: Path) -> None:
    """Two exports of a seed are equal to the byte, and so is the export of what was loaded."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    export_world(world_of(None, 1), first)
    export_world(built_in, second)
    export_world(load_world(first), third)
    for name in ("products.jsonl", "queries.jsonl", "judgments.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()


def test_another_process_exports_the_same_bytes(built_in: World, tmp_path: Path) -> None:
    """Nothing in a world depends on the order of a process's hashes."""
    here, there = tmp_path / "here", tmp_path / "there"
    export_world(built_in, here)
    command = [sys.executable, "-c", "from millrace.cli import main; main()", "shop", "export", str(there)]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, check=True, env=environment, timeout=120)
    for name in ("products.jsonl", "queries.jsonl", "judgments.jsonl"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_judgments_without_attraction_stay_without(tmp_path: Path, small: World) -> None:
    """A world graded by people only is exported as it was."""
    export_world(small, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "judgments.jsonl").read_text().splitlines()]
    assert [row for row in rows if "attraction" not in row] == [{"query_id": "Q-1", "product_id": "P-2", "grade": 3}]
    assert load_world(tmp_path) == small


def test_defaults_of_a_short_query_row(tmp_path: Path) -> None:
    """Locale, class and popularity may be left out."""
    world = load_world(_write(tmp_path, queries=[{"query_id": "Q-1", "query": "fridge", "split": "train"}]))
    assert world.queries[0].locale == "en-IN"
    assert world.queries[0].popularity == 1.0


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    for path in _write(tmp_path).iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_world(tmp_path).products) == 1


def test_world_of_takes_the_folder_where_one_is_named(tmp_path: Path, built_in: World) -> None:
    """A folder replaces the built-in world."""
    assert len(world_of(_write(tmp_path), 1).products) == 1
    assert world_of(None, 1) == built_in


def faults_of(folder: Path) -> list[str]:
    """Return what is said about a folder that is not a world."""
    with pytest.raises(UnreadableWorld) as caught:
        load_world(folder)
    assert "millrace shop export" in caught.value.fix
    assert len(caught.value.faults) <= MOST_SHOWN
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("name", ["products", "queries", "judgments"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """It is the only fault: what refers to it is not wrong as well."""
    (_write(tmp_path) / f"{name}.jsonl").unlink()
    assert faults_of(tmp_path) == [f"{name}.jsonl: is missing"]


def test_a_folder_that_is_none_lacks_every_file(tmp_path: Path) -> None:
    """A misspelt folder is told by all that is missing in it."""
    names = ("products", "queries", "judgments")
    assert faults_of(tmp_path / "nowhere") == [f"{name}.jsonl: is missing" for name in names]


@pytest.mark.parametrize(
    ("files", "place", "what"),
    [
        ({"products": [PRODUCT, "{"]}, "products.jsonl, line 2", "not JSON"),
        ({"products": [PRODUCT, "[" * 5_000]}, "products.jsonl, line 2", "not JSON"),
        ({"products": [PRODUCT, "[1]"]}, "products.jsonl, line 2", ""),
        ({"products": [{**PRODUCT, "title": ""}]}, "products.jsonl, line 1, title", "at least 1 character"),
        ({"products": [PRODUCT, json.dumps(PRODUCT)[:-1] + ',"price":NaN}']}, "products.jsonl, line 2", "not JSON"),
        ({"products": [PRODUCT, PRODUCT]}, "products.jsonl, line 2, product_id", "'P-1' is in line 1 already"),
        ({"products": [{**PRODUCT, "type": "product_deleted"}]}, "products.jsonl, line 1, type", "only products"),
        ({"queries": [{**QUERY, "split": "dev"}]}, "queries.jsonl, line 1, split", "'train' or 'test'"),
        ({"queries": [{**QUERY, "query": 7}]}, "queries.jsonl, line 1, query", "string"),
        ({"queries": [{**QUERY, "query": "x" * 1001}]}, "queries.jsonl, line 1, query", "1000"),
        ({"queries": [{**QUERY, "class": ""}]}, "queries.jsonl, line 1, class", "at least 1"),
        ({"queries": [{**QUERY, "popularity": -1}]}, "queries.jsonl, line 1, popularity", "greater than"),
        ({"queries": [{**QUERY, "popularity": True}]}, "queries.jsonl, line 1, popularity", "number"),
        ({"queries": [QUERY, QUERY]}, "queries.jsonl, line 2, query_id", "'Q-1' is in line 1 already"),
        ({"queries": [QUERY, {**QUERY, "query_id": "Q-2", "split": "test"}]}, "queries.jsonl, line 2, split", "both"),
        ({"queries": [{**QUERY, "split": "test"}]}, "queries.jsonl", "no query of the split train"),
        ({"judgments": [{**JUDGMENT, "product_id": "P-9"}]}, "judgments.jsonl, line 1, product_id", "not in products"),
        ({"judgments": [{**JUDGMENT, "query_id": "Q-9"}]}, "judgments.jsonl, line 1, query_id", "not in queries.jsonl"),
        ({"judgments": [{**JUDGMENT, "grade": 5}]}, "judgments.jsonl, line 1, grade", "less than or equal to 4"),
        ({"judgments": [{**JUDGMENT, "grade": 2.5}]}, "judgments.jsonl, line 1, grade", "multiple of 1"),
        ({"judgments": [{**JUDGMENT, "grade": True}]}, "judgments.jsonl, line 1, grade", "number"),
        ({"judgments": [{**JUDGMENT, "attraction": 1.5}]}, "judgments.jsonl, line 1, attraction", "less than"),
        ({"judgments": [JUDGMENT, JUDGMENT]}, "judgments.jsonl, line 2", "judged twice"),
        ({"products": [], "judgments": []}, "products.jsonl", "holds no product"),
        ({"judgments": []}, "judgments.jsonl", "holds no judgment"),
    ],
)
def test_a_fault_is_told_by_file_line_and_field(
    tmp_path: Path, files: dict[str, list[Any]], place: str, what: str
) -> None:
    """It says where it is and what is wrong there, and nothing else is blamed for it."""
    (fault,) = faults_of(_write(tmp_path, **files))
    assert fault.startswith(f"{place}: ")
    assert what in fault


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    """Reading goes on after a fault, through all three files; what refers to a faulty line is not wrong as well."""
    _write(
        tmp_path,
        products=[{**PRODUCT, "title": ""}, {**PRODUCT, "product_id": "P-2"}, {**PRODUCT, "version": -1}],
        queries=[{**QUERY, "split": "dev"}, {**QUERY, "query_id": "Q-2"}],
        judgments=[JUDGMENT, {**JUDGMENT, "query_id": "Q-9"}, {**JUDGMENT, "product_id": "P-9", "grade": 9}],
    )
    with pytest.raises(UnreadableWorld) as caught:
        load_world(tmp_path)
    assert [(fault.file, fault.line, fault.field) for fault in caught.value.faults] == [
        ("products.jsonl", 1, "title"),
        ("products.jsonl", 3, "version"),
        ("products.jsonl", 3, "product_id"),
        ("queries.jsonl", 1, "split"),
        ("judgments.jsonl", 2, "query_id"),
        ("judgments.jsonl", 3, "grade"),
    ]
    first, *lines = str(caught.value).splitlines()
    counts = "3 in products.jsonl, 1 in queries.jsonl, 2 in judgments.jsonl"
    assert first == f"{tmp_path} is not a world (faults: {counts})"
    assert lines == [f"  {fault}" for fault in caught.value.faults]


def test_what_an_unreadable_line_held_is_not_missed(tmp_path: Path) -> None:
    """A judgment whose product may be in a line that is not JSON is not blamed."""
    _write(tmp_path, products=[PRODUCT, "{"], judgments=[JUDGMENT, {**JUDGMENT, "product_id": "P-2"}])
    (fault,) = faults_of(tmp_path)
    assert fault.startswith("products.jsonl, line 2: not JSON")


def test_only_so_many_faults_are_told_one_by_one(tmp_path: Path) -> None:
    """A file in another form does not fill the screen: the first faults are told, the others counted."""
    _write(tmp_path, products=["title;price"] * (MOST_SHOWN + 7), judgments=[])
    assert len(faults_of(tmp_path)) == MOST_SHOWN
    with pytest.raises(UnreadableWorld) as caught:
        load_world(tmp_path)
    assert caught.value.counts == {"products.jsonl": MOST_SHOWN + 7}
    assert str(caught.value).splitlines()[-1] == "  and 7 more"


def test_a_fault_without_a_line_names_its_file_only() -> None:
    """So it reads when the whole file is meant."""
    assert str(Fault("queries.jsonl", None, None, "is missing")) == "queries.jsonl: is missing"


def test_a_whole_grade_may_be_written_as_a_fraction(tmp_path: Path) -> None:
    """Tables that know only floating-point numbers write 3.0."""
    judged = load_world(_write(tmp_path, judgments=[{**JUDGMENT, "grade": 3.0}])).judgments
    assert judged == {"Q-1": {"P-1": Judgment(3, 0.3)}}


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    """A line that is not UTF-8 is a fault like another, not a crash."""
    (_write(tmp_path) / "products.jsonl").write_bytes(json.dumps(PRODUCT).encode() + b"\n\xff\xfe\x00\n")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith("products.jsonl, line 2: not JSON")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A folder in the place of a file is said to be one."""
    (_write(tmp_path) / "queries.jsonl").unlink()
    (tmp_path / "queries.jsonl").mkdir()
    assert faults_of(tmp_path) == ["queries.jsonl: cannot be read: Is a directory"]


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path, small: World) -> None:
    """Exporting onto a file says so."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        export_world(small, tmp_path / "taken")
