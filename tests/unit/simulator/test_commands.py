"""The simulator's commands: what they pass on, what they refuse, and what they print where."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts.errors import UsageError
from simulator import commands
from simulator.demo.run import DemoOptions
from tests.support.tiny_encoder import TinyEncoder
from tests.unit.simulator.test_experiment import brands


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, where no deployment is."""
    monkeypatch.chdir(tmp_path)


def test_an_unknown_bench_is_refused() -> None:
    """The ones that exist are named."""
    with pytest.raises(UsageError, match="there is no bench stream") as raised:
        commands.bench("stream")
    assert "streams" in raised.value.fix


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bench_prints_what_it_measured(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress goes to stderr, figures to stdout."""
    row = {"name": "joined events", "unit": "events/s", "ours": 9.5, "peer": "bare loop", "peer_value": 10.0}
    report = {"bench": "streams", "machine": {}, "results": [{**row, "ratio": 0.95, "goal": ">= 0.95", "met": True}]}
    module = ModuleType("simulator.bench.streams")

    def measure(tell: Callable[[str], None]) -> dict[str, Any]:
        """Stand for the bench."""
        tell("warming up")
        return report

    vars(module)["run"] = measure
    monkeypatch.setitem(sys.modules, "simulator.bench.streams", module)
    commands.bench("streams", json=as_json)
    printed = capsys.readouterr()
    assert printed.err == "warming up\n"
    assert "bare loop" in printed.out
    if as_json:
        assert json.loads(printed.out) == report


def test_demo_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every option reaches the demo."""
    asked: list[DemoOptions] = []
    monkeypatch.setattr("simulator.demo.run.run_demo", asked.append)
    commands.demo(world=tmp_path, seed=3, seconds=30, clicks=0.2, keep=True, json=tmp_path / "figures.json")
    assert asked == [
        DemoOptions(tmp_path, seed=3, seconds=30, clicks=0.2, keep=True, json_file=tmp_path / "figures.json")
    ]


def test_a_world_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The folder is read first; no server is started for nothing."""
    with pytest.raises(UsageError):
        commands.demo(world=tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_world_that_is_wrong_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line shows each fault on a line of its own, then the fix, and ends with wrong usage."""
    from millrace import cli

    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "products.jsonl").write_text('{"type":"product"}\n[]\n')
    monkeypatch.setattr(sys, "argv", ["millrace", "demo", "--world", "world"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    progress, first, *lines, fix = capsys.readouterr().err.splitlines()
    assert progress == "reading the world"
    counts = "2 in products.jsonl, 1 in queries.jsonl, 1 in judgments.jsonl"
    assert first == f"error: world is not a world (faults: {counts})"
    assert [line.split(":")[0] for line in lines] == [
        "  products.jsonl, line 1, product_id",
        "  products.jsonl, line 2",
        "  queries.jsonl",
        "  judgments.jsonl",
    ]
    assert fix.startswith("fix:   ")


def test_an_exported_world_is_one_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `shop export` writes is what `demo --world` reads; the folder is named on stderr."""
    from simulator.shop.builtin import builtin_world
    from simulator.shop.world import load_world

    commands.shop_export(tmp_path / "mine", seed=3)
    assert load_world(tmp_path / "mine") == builtin_world(3)
    assert "world 3 written to" in capsys.readouterr().err


def test_a_world_is_never_written_over_another_one(tmp_path: Path) -> None:
    """What somebody edited stays, and all beside it; what would be the same is simply written again."""
    commands.shop_export(tmp_path, seed=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    commands.shop_export(tmp_path, seed=3)
    with pytest.raises(UsageError, match=r"products\.jsonl is of another world"):
        commands.shop_export(tmp_path, seed=4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "products.jsonl").unlink()
    (tmp_path / "judgments.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"judgments\.jsonl is of another world"):
        commands.shop_export(tmp_path, seed=3)
    assert not (tmp_path / "products.jsonl").exists()


@pytest.mark.parametrize("as_json", [True, False])
def test_an_experiment_is_written_and_shown(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells, summary, table, page and pictures are there; the table, or the same summary as JSON, is on stdout."""
    from simulator.shop.world import export_world

    monkeypatch.setattr("towers.encoder.load_encoder", lambda _model: TinyEncoder())
    export_world(brands(), tmp_path / "brands")
    plan = 'title = "Noise"\nseeds = [1, 2]\nworld = [{ name = "two brands", folder = "brands" }]\n'
    (tmp_path / "noise.toml").write_text(plan + "settings = { lists = 20, redeploy = 20 }\ngrid = { explore = [0, 1] }")
    commands.experiment_run(Path("noise.toml"), json=as_json)
    printed = capsys.readouterr()
    (folder,) = tmp_path.glob(".millrace/experiments/noise")
    assert len(list(folder.glob("two_brands-*.json"))) == 4
    summary = json.loads((folder / "summary.json").read_bytes())
    pictures = {"two_brands-seen.png", "two_brands-unseen.png"}
    assert {"table.txt", "report.html", *pictures} <= {path.name for path in folder.iterdir()}
    if as_json:
        assert json.loads(printed.out) == summary
    else:
        assert "Noise: two brands" in printed.out
        assert "explore=1" in printed.out
    assert "report.html" in printed.err


def test_a_real_catalogue_is_written_as_a_world(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is asked for is passed on, and its licence is told."""
    from simulator.shop.world import load_world

    asked: list[Any] = []

    def prepare(name: str, **given: Any) -> Any:
        asked.append((name, given))
        return brands()

    monkeypatch.setattr("simulator.datasets.prepare", prepare)
    commands.world_prepare("msrd", into=tmp_path / "films", source="raw", queries=7, seed=3)
    assert asked == [("msrd", {"source": "raw", "queries": 7, "seed": 3})]
    assert load_world(tmp_path / "films") == brands()
    assert "CC BY-SA 4.0" in capsys.readouterr().err


def test_where_a_result_cannot_be_written_nothing_is_read(tmp_path: Path) -> None:
    """An hour of work would be lost in the end: folders, what is no file, and names in folders that are not there."""
    missing = tmp_path / "missing.csv"
    for path in (tmp_path, Path("/dev/null"), tmp_path / "none" / "report.html"):
        with pytest.raises(UsageError, match="cannot write"):
            commands.backtest(catalog=missing, clicks=missing, report=path)
        with pytest.raises(UsageError, match="cannot write"):
            commands.simulate(world=missing, json=path)


def test_what_no_query_measures_is_no_gain_of_nothing() -> None:
    """A world whose queries are all typed says nothing of those that are never typed."""
    change = {"ndcg@10": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    quality = {
        "seen": {"queries": 2, "excluded": {"ndcg@10": 1}, "difference": change},
        "unseen": {"queries": 2, "excluded": {"ndcg@10": 2}, "difference": change},
    }
    report = {"world": "w", "clicks": 1, "cpu_s": 1.0, "quality": quality, "twin": None}
    table = commands.simulation_table({**report, "curve": [{"lists": 0, "seen": 0.1, "unseen": 0.0}]})
    assert [list(column.cells)[1:] for column in table.columns[1:]] == [["+0.500 (+0.250 to +0.750)"], ["-"]]


def test_a_world_is_not_made_over_the_one_that_gives_its_titles(tmp_path: Path) -> None:
    """It may have been written by hand, and nothing is encoded before that is said."""
    with pytest.raises(UsageError, match="gives the titles"):
        commands.world_make("words", source=tmp_path / "films", into=tmp_path / "other" / ".." / "films")
