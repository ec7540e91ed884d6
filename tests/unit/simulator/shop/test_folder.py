"""A world is written to and read from a folder; what is wrong with a row is said with its place."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from simulator.shop.commands import export, world_of
from simulator.shop.folder import export_world, load_world
from simulator.shop.world import World

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
    export(first, 1)
    export_world(built_in, second)
    export_world(load_world(first), third)
    for name in ("products.jsonl", "queries.jsonl", "judgments.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()


def test_another_process_exports_the_same_bytes(built_in: World, tmp_path: Path) -> None:
    """Nothing in a world depends on the order of a process's hashes."""
    here, there = tmp_path / "here", tmp_path / "there"
    export_world(built_in, here)
    code = f"from pathlib import Path; from simulator.shop.commands import export; export(Path({str(there)!r}), 1)"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
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


def test_world_of_takes_the_folder_where_one_is_named(tmp_path: Path, built_in: World) -> None:
    """A folder replaces the built-in world."""
    assert len(world_of(_write(tmp_path), 1).products) == 1
    assert world_of(None, 1) == built_in


@pytest.mark.parametrize("name", ["products", "queries", "judgments"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """The error says which file is missing and what a world is."""
    (_write(tmp_path) / f"{name}.jsonl").unlink()
    with pytest.raises(UsageError, match=rf"{name}\.jsonl is missing") as caught:
        load_world(tmp_path)
    assert "millrace shop export" in caught.value.fix


@pytest.mark.parametrize(
    ("files", "place", "what"),
    [
        ({"products": [PRODUCT, "{"]}, "products.jsonl, line 2", "not JSON"),
        ({"products": ['{"title":"\\ud800"}']}, "products.jsonl, line 1", "half of a surrogate pair"),
        ({"products": ["[" * 5_000]}, "products.jsonl, line 1", "not JSON"),
        ({"products": ["[1]"]}, "products.jsonl, line 1", "not a JSON object"),
        ({"products": [{**PRODUCT, "title": ""}]}, "products.jsonl, line 1", "title"),
        (
            {"products": ['{"type":"product","product_id":"P-1","version":1,"title":"x","price":NaN}']},
            "line 1",
            "not JSON",
        ),
        ({"products": [PRODUCT, PRODUCT]}, "products.jsonl, line 2", "stands twice"),
        ({"products": [{"type": "product_deleted", "product_id": "P-1", "version": 1}]}, "line 1", "only products"),
        ({"queries": [{**QUERY, "split": "dev"}]}, "queries.jsonl, line 1", "train or test"),
        ({"queries": [{**QUERY, "query": 7}]}, "queries.jsonl, line 1", "`query`"),
        ({"queries": [{**QUERY, "query": "x" * 1001}]}, "queries.jsonl, line 1", "`query`"),
        ({"queries": [{**QUERY, "popularity": -1}]}, "queries.jsonl, line 1", "`popularity`"),
        ({"queries": [QUERY, QUERY]}, "queries.jsonl, line 2", "stands twice"),
        ({"queries": [QUERY, {**QUERY, "query_id": "Q-2", "split": "test"}]}, "queries.jsonl, line 2", "both splits"),
        ({"queries": [{**QUERY, "split": "test"}]}, "queries.jsonl", "no query of the split train"),
        ({"judgments": [{**JUDGMENT, "product_id": "P-9"}]}, "judgments.jsonl, line 1", "not in products.jsonl"),
        ({"judgments": [{**JUDGMENT, "query_id": "Q-9"}]}, "judgments.jsonl, line 1", "not in queries.jsonl"),
        ({"judgments": [{**JUDGMENT, "grade": 5}]}, "judgments.jsonl, line 1", "from 0 to 4"),
        ({"judgments": [{**JUDGMENT, "grade": 2.5}]}, "judgments.jsonl, line 1", "whole number"),
        ({"judgments": [{**JUDGMENT, "grade": True}]}, "judgments.jsonl, line 1", "`grade`"),
        ({"judgments": [{**JUDGMENT, "attraction": 1.5}]}, "judgments.jsonl, line 1", "`attraction`"),
        ({"judgments": [JUDGMENT, JUDGMENT]}, "judgments.jsonl, line 2", "judged twice"),
        ({"products": []}, "products.jsonl", "holds no product"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, files: dict[str, list[Any]], place: str, what: str
) -> None:
    """The error names the file, the line and what is wrong there."""
    with pytest.raises(UsageError) as caught:
        load_world(_write(tmp_path, **files))
    assert place in str(caught.value)
    assert what in str(caught.value)
    assert caught.value.fix


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 is a usage error, not a crash."""
    (_write(tmp_path) / "products.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        load_world(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path, small: World) -> None:
    """Exporting onto a file says so."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        export_world(small, tmp_path / "taken")
