"""`millrace golden` on a real Kafka: imported whole or not at all, listed, removed."""

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.topics import GOLDEN_QUERIES
from service.settings import Settings
from tests.support.command_line import Run, command_line
from tests.support.topics import read_topic

pytestmark = [pytest.mark.kafka]


@pytest.fixture
def run(two_partitions: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Give a function that runs `millrace golden` on this test's Kafka and returns its exit code."""
    return command_line(two_partitions, monkeypatch, tmp_path, "golden")


def sent(settings: Settings) -> list[tuple[str, dict[str, int]]]:
    """Return every record of the topic: its key, and grades by product; none of one that removes."""
    found = []
    for record in (record for own in read_topic(settings, GOLDEN_QUERIES).values() for record in own):
        assert record.key is not None
        judgments = json.loads(record.value)["judgments"] if record.value else []
        found.append((record.key.decode(), {one["product_id"]: one["grade"] for one in judgments}))
    return sorted(found, key=lambda one: one[0])


def test_a_golden_set_is_imported_listed_and_removed(
    run: Run, two_partitions: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole or not at all; again without any change; by `--replace` what the file does not name goes."""
    path = tmp_path / "golden.csv"
    path.write_text("query,product_id,grade\nQuiet fridge,P-1,4\nquiet fridge,P-2,x\nkettle,P-3,2\n", encoding="utf-8")

    def imported(*options: str) -> dict[str, Any]:
        assert run("import", str(path), "--json", *options) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    assert run("import", str(path)) == 3
    assert "line 3" in capsys.readouterr().err
    assert sent(two_partitions) == []
    assert imported("--skip-bad", "--dry-run")["queries"]["new"] == 2
    assert sent(two_partitions) == []
    path.write_text("query,product_id,grade\nQuiet fridge,P-1,4\nquiet fridge,P-2,0\nkettle,P-3,2\n", encoding="utf-8")
    report = imported("--author", "merch")
    assert (report["sent"], report["one_grade"]) == (2, 1)
    assert sent(two_partitions) == [("kettle", {"P-3": 2}), ("quiet fridge", {"P-1": 4, "P-2": 0})]
    again = imported("--author", "merch")
    assert (again["sent"], again["queries"]["unchanged"]) == (0, 2)
    path.write_text("query,product_id,grade\nquiet FRIDGE,P-1,3\n", encoding="utf-8")
    replaced = imported("--replace")
    assert (replaced["queries"], replaced["judgments_removed"]) == (
        {"new": 0, "changed": 1, "unchanged": 0, "removed": 1},
        2,
    )
    assert run("ls", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)["queries"]
    assert (listed["query"], listed["judgments"], listed["grades"]["3"]) == ("quiet FRIDGE", 1, 1)
    assert run("ls") == 0
    assert "1 golden queries, 1 judgments" in capsys.readouterr().out
    assert run("remove", "kettle") == 2
    assert "is no golden query" in capsys.readouterr().err
    assert run("remove") == 2
    assert run("remove", "Quiet Fridge?") == 0
    capsys.readouterr()
    assert run("ls", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"queries": [], "malformed": []}
    assert imported()["queries"]["new"] == 1
    assert run("remove", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"removed": 1}
