"""What an experiment found, as one page: tables and curves with their spread, no script, no network."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

WIDTH, HEIGHT = 720, 260
COLOURS: Final = ("#2f6f4f", "#b4552d", "#30548e", "#8a4f9e", "#9a7b1f", "#59626d", "#20808d", "#c23b5e")
STEPS: Final = 4
"""Lines across a plot."""
SPLITS: Final = {"unseen": "queries that nobody typed", "seen": "queries that shoppers typed"}


def page(found: Mapping[str, Any]) -> str:
    """Draw the summary of `experiment.run`."""
    template = Template((files("simulator") / "experiment.html").read_text(encoding="utf-8"))
    seeds = ", ".join(str(seed) for seed in found["seeds"])
    worlds = "".join(_world(name, variants) for name, variants in found["worlds"].items())
    return template.substitute(title=escape(found["experiment"]), seeds=seeds, cells=found["cells"], worlds=worlds)


def _world(name: str, variants: Mapping[str, Any]) -> str:
    head, *body = rows(variants)
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    table = f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
    marks = "".join(
        f"<span><i style='background:{_colour(place)}'></i>{escape(variant)}</span>"
        for place, variant in enumerate(variants)
    )
    plots = "".join(
        f"<figure>{plot(variants, split)}<figcaption>{words}</figcaption></figure>" for split, words in SPLITS.items()
    )
    return f"<h2>{escape(name)}</h2>{table}<p class='legend'>{marks}</p>{plots}"


def rows(variants: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The table of a world: gain on unseen queries, its interval and lowest point, gain on seen ones, clicks, time."""
    yield ("variant", "unseen gain", "95 % of means", "lowest on the way", "seen gain", "clicks a list", "CPU s")
    for name, one in variants.items():
        gain = one["unseen"]["gain"]
        yield (
            name,
            f"{gain['median']:+.3f} ({gain['min']:+.3f} to {gain['max']:+.3f})",
            f"{gain['low']:+.3f} to {gain['high']:+.3f}",
            f"{one['unseen']['lowest']['min']:+.3f}",
            f"{one['seen']['gain']['median']:+.3f}",
            f"{one['clicks_per_list']['median']:.2f}",
            f"{one['cpu_s']['median']:.0f}",
        )


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def plot(variants: Mapping[str, Any], split: str) -> str:
    """Gain over the untrained model by lists shown: the median of the seeds in a band from lowest to highest."""
    curves = [one[split]["curve"] for one in variants.values()]
    points = [point for curve in curves for point in curve]
    last = max(point["lists"] for point in points) or 1
    top = max(0.01, *(point["max"] for point in points))
    bottom = min(0.0, *(point["min"] for point in points))

    def places(curve: Iterable[Mapping[str, float]], name: str) -> list[str]:
        scale = HEIGHT / (top - bottom)
        return [f"{WIDTH * point['lists'] / last:.1f},{scale * (top - point[name]):.1f}" for point in curve]

    drawn = [_grid(top, bottom, last)]
    for number, curve in enumerate(curves):
        band = " ".join([*places(curve, "max"), *places(reversed(curve), "min")])
        middle, colour = " ".join(places(curve, "median")), _colour(number)
        drawn.append(f"<polygon points='{band}' fill='{colour}' opacity='.12' />")
        drawn.append(f"<polyline points='{middle}' fill='none' stroke='{colour}' stroke-width='2' />")
    label = "Gain in nDCG@10 by lists shown"
    return f"<svg viewBox='-45 -10 {WIDTH + 60} {HEIGHT + 35}' role='img' aria-label='{label}'>{''.join(drawn)}</svg>"


def _grid(top: float, bottom: float, last: int) -> str:
    lines = []
    for step in range(STEPS + 1):
        part = step / STEPS
        height, across = HEIGHT * (1 - part), WIDTH * part
        lines.append(f"<line x1='0' x2='{WIDTH}' y1='{height:.1f}' y2='{height:.1f}' stroke='#d5d9de' />")
        lines.append(
            f"<text x='-5' y='{height + 4:.1f}' text-anchor='end'>{bottom + (top - bottom) * part:+.2f}</text>"
        )
        lines.append(f"<text x='{across:.1f}' y='{HEIGHT + 18}' text-anchor='middle'>{last * part:,.0f}</text>")
    return "".join(lines)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, as they stand in a document."""
    lines = []
    for name, variants in found["worlds"].items():
        head, *body = rows(variants)
        lines += [f"**{name}**", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
        lines.append("")
    return "\n".join(lines)
