"""A grid of simulations: what its file may say, what is run again, and what the seeds say together."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from contracts.errors import UsageError
from simulator import experiment
from simulator.experiment import cells_of, interval, read_plan, run
from simulator.experiment_page import ABOVE, DENSITY, HEIGHT, LEFT, LINE, WIDTH, markdown, page, pictures, plot
from simulator.shop.click_models import with_clicks
from simulator.shop.world import World, export_world
from simulator.simulate import Simulation
from tests.support.markdown import ROOT
from tests.support.tiny_encoder import TinyEncoder
from tests.unit.simulator.test_simulate import world

PLAN = """
title = "Few & small"
seeds = [1, 2]
world = [{{ name = "brands", folder = "brands" }}]
settings = {{ lists = 60, redeploy = 60 }}
{rest}
"""
SHIPPED = sorted((ROOT / "docs" / "experiments").glob("*.toml"))


def silent(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


def brands(*, blue_is_better: bool = True) -> World:
    """Return the world of two brands, each query in one split only, as files want it."""
    made = world(blue_is_better=blue_is_better)
    return replace(made, queries=tuple({query.query: query for query in made.queries}.values()))


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """Return an experiment's file beside the world that it names."""
    export_world(brands(), tmp_path / "brands")
    return written(tmp_path, "[grid]\nexplore = [0.0, 2.0]")


def written(folder: Path, rest: str) -> Path:
    """Write an experiment's file."""
    path = folder / "plan.toml"
    path.write_text(PLAN.format(rest=rest))
    return path


def cell_files(folder: Path) -> set[str]:
    """Return the names of the cells that were run."""
    return {path.name for path in folder.glob("*.json")}


def test_a_grid_has_a_cell_for_every_world_variant_and_seed(tmp_path: Path) -> None:
    """Variants are crossed with the grid, and named by what they change."""
    rest = '[[variant]]\nname = "one"\nweights = "one"\n[[variant]]\nweights = "ratio"\n[grid]\nexplore = [0.0, 0.3]'
    cells = cells_of(read_plan(written(tmp_path, rest)))
    assert [(cell.variant, cell.seed) for cell in cells[:4]] == [
        ("one, explore=0.0", 1), ("one, explore=0.3", 1), ("weights=ratio, explore=0.0", 1),
        ("weights=ratio, explore=0.3", 1),
    ]  # fmt: skip
    assert len(cells) == 8
    assert len({cell.file_name for cell in cells}) == 8
    assert {cell.options.lists for cell in cells} == {60}
    assert cells[1].options.explore == 0.3


def test_without_variants_there_is_one(tmp_path: Path) -> None:
    """A file may only repeat the defaults over seeds."""
    assert [cell.variant for cell in cells_of(read_plan(written(tmp_path, "")))] == ["default", "default"]


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("[grid]\nlosses = [1]", "unknown setting 'losses'"),
        ("[grid]\nseed = [1]", "unknown setting 'seed'"),
        ('[grid]\nloss = ["exponential"]', "loss: Input should be"),
        ("[grid]\nclicks = [-1.0]", "clicks: Input should be"),
        ('variants = ["a"]', "variants: Extra inputs"),
        ('[[variant]]\nname = "a"\n[[variant]]\nname = "a"', "two variants are called 'a'"),
        ("[grid]\nredeploy = [0]", "redeploy: Input should be greater"),
        ("[grid]\nswaps = [nan]", "swaps: Input should be"),
        ("[grid]\nexplore = []", "explore: List should have at least 1"),
        ("[grid", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(rest: str, problem: str, tmp_path: Path) -> None:
    """The place and the fault are told."""
    with pytest.raises(UsageError, match=problem):
        cells_of(read_plan(written(tmp_path, rest)))


def test_a_missing_file_or_empty_seeds_are_refused(tmp_path: Path) -> None:
    """Both with the place of the fault."""
    with pytest.raises(UsageError, match=r"missing\.toml"):
        read_plan(tmp_path / "missing.toml")
    (tmp_path / "plan.toml").write_text('title = "a"\nseeds = []')
    with pytest.raises(UsageError, match="seeds: List should have at least 1"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize(("seeds", "problem"), [("[-1]", "seed: Input should be greater"), ("[7, 7]", "two seeds")])
def test_seeds_that_are_none_or_one_are_refused(seeds: str, problem: str, tmp_path: Path) -> None:
    """A seed that counts twice would make the spread smaller than it is; the file may begin with a byte order mark."""
    (tmp_path / "plan.toml").write_text(f'\ufefftitle = "a"\nseeds = {seeds}', encoding="utf-8")
    with pytest.raises(UsageError, match=problem):
        cells_of(read_plan(tmp_path / "plan.toml"))


def test_what_was_run_is_not_run_again(plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that was stopped goes on with the cells that are missing, and says the same in the end."""
    ran: list[int] = []
    simulate = Simulation.run

    def counted(self: Simulation, options: Any) -> dict[str, Any]:
        ran.append(options.seed)
        return simulate(self, options)

    monkeypatch.setattr(Simulation, "run", counted)
    plan, into = read_plan(plan_file), tmp_path / "results" / "few"
    whole = run(plan, TinyEncoder(), into=into, tell=silent)
    assert ran == [1, 1, 2, 2]
    assert cell_files(into) == {cell.file_name for cell in cells_of(plan)}
    lost, torn = sorted(into.glob("*.json"))[:2]
    lost.unlink()
    torn.write_bytes(b"{")
    again = run(plan, TinyEncoder(), into=into, tell=silent)
    assert len(ran) == 6
    assert run(plan, TinyEncoder(), into=into, tell=silent) == again
    assert timeless(again) == timeless(whole)
    assert len(ran) == 6


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """Return a summary without its times."""
    for variants in found["worlds"].values():
        for one in variants.values():
            one.pop("cpu_s")
    return found


def test_a_world_that_changed_is_run_again(plan_file: Path, tmp_path: Path) -> None:
    """A cell is named by what stands in the world's folder, not by where it is."""
    before = {cell.file_name for cell in cells_of(read_plan(plan_file))}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "brands").rename(tmp_path / "elsewhere" / "brands")
    plan = written(tmp_path / "elsewhere", "[grid]\nexplore = [0.0, 2.0]")
    assert {cell.file_name for cell in cells_of(read_plan(plan))} == before
    (tmp_path / "elsewhere" / "brands" / "judgments.jsonl").unlink()
    export_world(brands(blue_is_better=False), tmp_path / "elsewhere" / "brands")
    assert not before & {cell.file_name for cell in cells_of(read_plan(plan))}


def test_one_world_is_encoded_once(plan_file: Path, tmp_path: Path) -> None:
    """Cells of a world share what was encoded, within a run and by the cache beside the world."""
    encoder = TinyEncoder()
    run(read_plan(plan_file), encoder, into=tmp_path / "few", tell=silent)
    assert len(encoder.encoded) == len(set(encoder.encoded))


def test_the_summary_holds_the_spread_over_seeds(plan_file: Path, tmp_path: Path) -> None:
    """Median, least and most of what the cells say, curves as gains from zero, and the price of exploring."""
    plan, into = read_plan(plan_file), tmp_path / "few"
    told: list[tuple[str, int, int]] = []
    found = run(plan, TinyEncoder(), into=into, tell=lambda *one: told.append(one))
    assert (found["experiment"], found["cells"], found["seeds"]) == ("Few & small", 4, [1, 2])
    variants = found["worlds"]["brands"]
    assert list(variants) == ["explore=0.0", "explore=2.0"]
    reports = [orjson.loads((into / cell.file_name).read_bytes()) for cell in cells_of(plan) if cell.options.explore]
    gains = sorted(report["quality"]["unseen"]["difference"]["ndcg@10"]["mean"] for report in reports)
    gain = variants["explore=2.0"]["unseen"]["gain"]
    assert (gain["min"], gain["max"], gain["median"]) == pytest.approx((gains[0], gains[1], sum(gains) / 2))
    assert [point["lists"] for point in variants["explore=2.0"]["unseen"]["curve"]] == [0, 60]
    assert variants["explore=2.0"]["unseen"]["curve"][0]["median"] == 0
    assert variants["explore=2.0"]["utility_lost"]["median"] > variants["explore=0.0"]["utility_lost"]["median"] == 0
    assert [one for one in told if one[0] == "cells"] == [("cells", done, 4) for done in range(5)]


def test_an_interval_resamples_seeds_then_queries() -> None:
    """It is wider than that of the seeds alone and than that of any seed's queries alone, and holds the mean."""
    apart = [{"mean": mean, "low": mean - 0.02, "high": mean + 0.02} for mean in np.linspace(0, 0.2, 9)]
    found = interval(apart)
    assert found["mean"] == pytest.approx(0.1)
    assert found["low"] < found["mean"] < found["high"]
    exact = interval([{**one, "low": one["mean"], "high": one["mean"]} for one in apart])
    assert found["high"] - found["low"] > exact["high"] - exact["low"] > 0.06
    alone = interval(apart[:1])
    assert (alone["low"], alone["high"]) == pytest.approx((-0.02, 0.02), abs=0.002)


@pytest.mark.parametrize("clicks", [0.2, 1.5])
def test_worlds_can_be_made_more_or_less_attractive(clicks: float, built_in: World) -> None:
    """Grades stay, attractions change in proportion until the most there is, and nothing else is another."""
    changed = with_clicks(built_in, clicks)
    assert (changed.products, changed.queries) == (built_in.products, built_in.queries)
    query_id = built_in.queries[0].query_id
    assert changed.grades(query_id) == built_in.grades(query_id)
    ratios = [
        one.click_probability() / built_in.judgment(query_id, product_id).click_probability()
        for product_id, one in changed.judgments[query_id].items()
        if one.click_probability() < 0.9
    ]
    assert np.ptp(ratios) < 0.01
    assert (ratios[0] < 1) == (clicks < 1)


def test_clicks_a_list_are_a_setting_of_the_grid(plan_file: Path, tmp_path: Path) -> None:
    """Asking for fewer clicks gives fewer, of the same lists."""
    plan = read_plan(written(tmp_path, "[grid]\nclicks = [0.1, 0.8]"))
    found = run(plan, TinyEncoder(), into=tmp_path / "few", tell=silent)["worlds"]["brands"]
    few, many = (found[f"clicks={clicks}"]["clicks_per_list"]["median"] for clicks in (0.1, 0.8))
    assert 0 < few < 0.5 < many


def test_the_page_and_the_table_show_every_variant(plan_file: Path, tmp_path: Path) -> None:
    """One file without script or network, its texts escaped; the table stands in a document as it is."""
    found = run(read_plan(plan_file), TinyEncoder(), into=tmp_path / "few", tell=silent)
    shown = page(found)
    assert "Few &amp; small" in shown
    assert shown.count("<svg") == 2
    assert "<script" not in shown
    assert "http" not in shown
    for variant in found["worlds"]["brands"]:
        assert variant in shown
        assert f"| {variant} | " in markdown(found)


def test_a_plot_holds_what_falls_below_zero() -> None:
    """Harm is drawn inside the frame, below the line of zero."""
    curve = [{"lists": 0, "median": 0.0, "min": 0.0, "max": 0.0}, {"lists": 9, "median": -0.2, "min": -0.4, "max": 0.1}]
    drawn = plot({"bad": {"unseen": {"curve": curve}}}, "unseen")
    heights = [float(place.split(",")[1]) for place in drawn.split("points='")[1].split("'")[0].split()]
    assert (min(heights), max(heights)) == (0.0, 260.0)
    assert ">-0.40<" in drawn


def test_the_picture_of_a_plot_shows_the_same_curves() -> None:
    """Each variant in its colour, where its median lies, and in the legend below."""
    rising = [{"lists": lists, "median": gain, "min": gain, "max": gain} for lists, gain in ((0, 0.0), (9, 0.2))]
    level = [{**point, "median": 0.0, "min": 0.0, "max": 0.0} for point in rising]
    variants = {
        name: {split: {"curve": curve} for split in ("seen", "unseen")}
        for name, curve in (("good", rising), ("idle", level))
    }
    drawn = dict(pictures({"worlds": {"brands": variants}}))
    assert list(drawn) == ["brands-unseen.png", "brands-seen.png"]
    shown = Image.open(BytesIO(drawn["brands-seen.png"]))
    shown.load()
    green, red = (47, 111, 79), (180, 85, 45)
    place = DENSITY * (LEFT + WIDTH // 2), DENSITY * (ABOVE + HEIGHT // 2)
    assert (shown.format, shown.getpixel(place)) == ("PNG", green)
    assert shown.getpixel((place[0], DENSITY * (ABOVE + HEIGHT))) == red
    legend = [shown.getpixel((DENSITY * (LEFT + 3), DENSITY * (ABOVE + HEIGHT + 35 + LINE * row))) for row in (0, 1)]
    assert legend == [green, red]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_can_be_run(path: Path) -> None:
    """Its settings exist, and it has at least three seeds."""
    plan = read_plan(path)
    assert len(cells_of(plan)) >= 2 * len(plan.seeds) >= 6


def test_experiments_are_shipped() -> None:
    """The search for them finds some, so that the test above can fail."""
    assert {"losses", "ratio", "sample_efficiency"} <= {path.stem for path in SHIPPED}


def test_a_folder_that_cannot_be_written_is_refused(plan_file: Path, tmp_path: Path) -> None:
    """Before anything is encoded."""
    encoder = TinyEncoder()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make"):
        run(read_plan(plan_file), encoder, into=tmp_path / "file" / "few", tell=silent)
    assert encoder.encoded == []


def test_seeds_of_the_built_in_world_are_worlds_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a folder each seed makes its own world, and its vectors are kept for other experiments."""
    made: list[int] = []

    def small(_folder: Path | None, seed: int) -> World:
        made.append(seed)
        return replace(world(), name=f"built-in, seed {seed}")

    monkeypatch.setattr(experiment, "world_of", small)
    (tmp_path / "plan.toml").write_text('title = "a"\nseeds = [4, 5]\nsettings = { lists = 20, redeploy = 20 }')
    run(read_plan(tmp_path / "plan.toml"), TinyEncoder(), into=tmp_path / "a" / "b", tell=silent)
    assert made == [4, 5]
    assert (tmp_path / "a" / "base-vectors" / "built-in-5" / "base-vectors.safetensors").exists()
