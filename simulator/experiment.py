"""`millrace experiment run`: a seeded grid of worlds and settings through `simulate`, resumed where it was left.

A file says what is varied; every cell (a world, a variant, a seed) is one report in a file of its own, named by the
world and settings that decide it: a cell that is there is not run again. Spread is over seeds; intervals resample
seeds, then queries.
"""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contracts.errors import UsageError
from millrace.output import Tell
from service.machine import write_atomically
from simulator.shop.builtin import world_of
from simulator.shop.click_models import with_clicks
from simulator.shop.world import JUDGMENTS, PRODUCTS, QUERIES
from simulator.shown_lists import SimulateOptions
from simulator.simulate import Simulation
from towers.release_files import Encoder

REPLICATES: Final = 10_000
NORMAL_95: Final = 3.92
"""Width of a 95 % interval in standard errors."""
OPTIONS: Final = TypeAdapter(SimulateOptions)
DECIDED_BY_SEEDS: Final = "seed"
CLICKS: Final = "clicks"
"""The one setting that `simulate` does not have: clicks a list, by how much the world attracts."""
KNOWN: Final = frozenset({field.name for field in fields(SimulateOptions)} - {DECIDED_BY_SEEDS}) | {CLICKS}

Settings = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WorldChoice(_Strict):
    """A world of an experiment: a folder, or the built-in one, of which each seed is another."""

    name: str
    folder: Path | None = None

    def fingerprint(self) -> str:
        """Of what stands in the folder; a file that is not there is told when the world is read."""
        found = [] if self.folder is None else [self.folder / name for name in (PRODUCTS, QUERIES, JUDGMENTS)]
        return hashlib.sha256(b"".join(path.read_bytes() for path in found if path.exists())).hexdigest()


class Plan(_Strict):
    """What an experiment's file says."""

    title: str
    seeds: Annotated[list[int], Field(min_length=1)]
    world: Annotated[list[WorldChoice], Field(min_length=1)] = [WorldChoice(name="built-in")]
    settings: Settings = {}
    """Of every cell."""
    variant: Annotated[list[Settings], Field(min_length=1)] = [{}]
    """What is compared: settings of its own, with a `name`."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Values of settings; each variant is run with every combination."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid."""

    world: WorldChoice
    variant: str
    seed: int
    clicks: float | None
    options: SimulateOptions

    @property
    def file_name(self) -> str:
        """Readable, and another one whenever anything that decides the outcome is."""
        decides = [self.world.fingerprint(), self.clicks, sorted(asdict(self.options).items())]
        mark = hashlib.sha256(orjson.dumps(decides)).hexdigest()[:10]
        readable = re.sub(r"[^\w.=-]+", "_", f"{self.world.name}-{self.variant}-{self.seed}")
        return f"{readable}-{mark}.json"


def read_plan(path: Path) -> Plan:
    """Read an experiment's file; folders in it are relative to the file.

    Raises:
        UsageError: it cannot be read, or says something that no experiment knows.
    """
    try:
        plan = Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", fix="docs/experiments holds examples") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}", fix="docs/experiments holds examples") from error
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise UsageError(f"{path}, {place}: {wrong['msg']}", fix="docs/experiments holds examples") from error
    for world in plan.world:
        world.folder = None if world.folder is None else path.parent / world.folder
    return plan


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell, those of one world and seed together: they share what was encoded.

    Raises:
        UsageError: a setting is unknown or impossible, or two variants have one name.
    """
    variants = list(_variants(plan))
    named = {"variants": [name for name, _ in variants], "worlds": [one.name for one in plan.world]}
    for kind, names in {**named, "seeds": list(map(str, plan.seeds))}.items():
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"two {kind} are called {twice[0]!r}", fix="give each a name of its own")
    return [
        _cell(world, name, seed, {**plan.settings, **settings})
        for world in plan.world
        for seed in plan.seeds
        for name, settings in variants
    ]


def _variants(plan: Plan) -> Iterator[tuple[str, Settings]]:
    for variant in plan.variant:
        own = {name: value for name, value in variant.items() if name != "name"}
        shown = ", ".join(f"{name}={value}" for name, value in own.items())
        for values in itertools.product(*plan.grid.values()):
            point = dict(zip(plan.grid, values, strict=True))
            parts = [str(variant.get("name", shown)), *(f"{name}={value}" for name, value in point.items())]
            yield ", ".join(part for part in parts if part) or "default", {**own, **point}


def _cell(world: WorldChoice, variant: str, seed: int, settings: Settings) -> Cell:
    if unknown := sorted(settings.keys() - KNOWN):
        fix = f"one of {', '.join(sorted(KNOWN))}"
        raise UsageError(f"variant {variant!r}: unknown setting {unknown[0]!r}", fix=fix)
    given = {name: value for name, value in settings.items() if name != CLICKS}
    try:
        options = OPTIONS.validate_python({**given, "seed": seed})
        clicks = TypeAdapter(Annotated[float, Field(gt=0, le=5)] | None).validate_python(settings.get(CLICKS))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = wrong["loc"][0] if wrong["loc"] else CLICKS
        raise UsageError(f"variant {variant!r}: {place}: {wrong['msg']}", fix="millrace simulate --help") from error
    return Cell(world, variant, seed, clicks, options)


def run(plan: Plan, encoder: Encoder, *, into: Path, tell: Tell) -> dict[str, Any]:
    """Run what is not there yet, and return the summary of the whole grid.

    Args:
        plan: what to run.
        encoder: the base encoder.
        into: folder of the cells; beside it are the base vectors of built-in worlds, which other experiments share.
        tell: told how it goes.
    """
    cells = cells_of(plan)
    reports, shared = [], _Worlds(encoder, cache=into.parent / "base-vectors", tell=tell)
    _make(into)
    for number, cell in enumerate(cells):
        tell("cells", number, len(cells))
        path = into / cell.file_name
        report = _known(path)
        if report is None:
            report = shared.simulation(cell).run(cell.options)
            write_atomically(path, orjson.dumps(report, option=orjson.OPT_INDENT_2))
        reports.append(report)
    tell("cells", len(cells), len(cells))
    return {"experiment": plan.title, "seeds": plan.seeds, "cells": len(cells), "worlds": summary(cells, reports)}


def _known(path: Path) -> dict[str, Any] | None:
    """The report of a cell that was run before; None if there is none that can be read."""
    try:
        report: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return report


class _Worlds:
    """The simulation of a cell; that of the last world is kept, since its neighbours need it too."""

    def __init__(self, encoder: Encoder, *, cache: Path, tell: Tell) -> None:
        self._encoder, self._cache, self._tell = encoder, cache, tell
        self._last: tuple[object, Simulation] | None = None

    def simulation(self, cell: Cell) -> Simulation:
        key = (cell.world.folder, cell.world.folder is None and cell.seed, cell.clicks)
        if self._last is None or self._last[0] != key:
            world = world_of(cell.world.folder, cell.seed)
            if cell.clicks is not None:
                world = with_clicks(world, cell.clicks)
            cache = cell.world.folder or _make(self._cache / f"built-in-{cell.seed}")
            self._last = (key, Simulation(world, self._encoder, cache=cache, tell=self._tell))
        return self._last[1]


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}", fix="name a folder you may write") from error
    return folder


def summary(cells: Sequence[Cell], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the seeds say together, by world and variant."""
    grouped: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell, report in zip(cells, reports, strict=True):
        grouped.setdefault(cell.world.name, {}).setdefault(cell.variant, []).append(report)
    return {
        world: {variant: _together(found) for variant, found in variants.items()} for world, variants in grouped.items()
    }


def _together(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seeds": len(reports),
        "lists": reports[0]["lists"],
        "clicks_per_list": spread([report["clicks"] / max(report["lists"], 1) for report in reports]),
        "cpu_s": spread([report["cpu_s"] for report in reports]),
        "utility_lost": spread([report["exploration"]["utility_lost"] for report in reports]),
    }
    for split in ("seen", "unseen"):
        changes = [report["quality"][split]["difference"]["ndcg@10"] for report in reports]
        found[split] = {
            "before": spread([report["quality"][split]["before"]["ndcg@10"] for report in reports]),
            "after": spread([report["quality"][split]["after"]["ndcg@10"] for report in reports]),
            "gain": {**spread([change["mean"] for change in changes]), **interval(changes)},
            "lowest": spread([min(_gains(report, split)) for report in reports]),
            "curve": [
                {"lists": lists, **spread([_gains(report, split)[place] for report in reports])}
                for place, lists in enumerate(_points(reports))
            ],
        }
    return found


def _points(reports: Sequence[Mapping[str, Any]]) -> list[int]:
    return [point["lists"] for point in reports[0]["curve"]]


def _gains(report: Mapping[str, Any], split: str) -> list[float]:
    """Of each point of a curve, over the first."""
    return [point[split] - report["curve"][0][split] for point in report["curve"]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and what lies furthest from it.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": median(values), "min": min(values), "max": max(values)}


def interval(changes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over seeds and its 95 % interval by resampling seeds, then queries.

    A report holds no single queries: a seed's mean is drawn from the normal law that its own bootstrap interval has.

    Args:
        changes: `mean`, `low` and `high` of each seed.
    """
    means = np.array([change["mean"] for change in changes])
    errors = np.array([(change["high"] - change["low"]) / NORMAL_95 for change in changes])
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, len(means), (REPLICATES, len(means)))
    drawn = (means[seeds] + errors[seeds] * rng.standard_normal(seeds.shape)).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(means.mean()), "low": float(low), "high": float(high)}
