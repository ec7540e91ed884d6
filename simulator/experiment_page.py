"""What an experiment found, as one page: tables and curves with their spread, no script, no network."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import Any, Final, NamedTuple, Self

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 720, 260
COLOURS: Final = ("#2f6f4f", "#b4552d", "#30548e", "#8a4f9e", "#9a7b1f", "#59626d", "#20808d", "#c23b5e")
STEPS: Final = 4
"""Lines across a plot."""
LEFT, ABOVE, LINE = 45, 10, 18
"""Beside and above a plot, and from name to name below it."""
DENSITY: Final = 2
"""Pixels of a picture by unit of a plot."""
GREY: Final = "#d5d9de"
LABEL: Final = "Gain in nDCG@10 by lists shown"
SPLITS: Final = {"unseen": "queries that nobody typed", "seen": "queries that shoppers typed"}

Place = tuple[float, float]


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


class _Curves(NamedTuple):
    """What a plot shows: gain over the untrained model by lists shown, a curve a variant, and between which ends."""

    of_variants: list[Sequence[Mapping[str, float]]]
    top: float
    bottom: float
    last: float

    @classmethod
    def of(cls, variants: Mapping[str, Any], split: str) -> Self:
        curves = [one[split]["curve"] for one in variants.values()]
        points = [point for curve in curves for point in curve]
        top = max(0.01, *(point["max"] for point in points))
        bottom = min(0.0, *(point["min"] for point in points))
        return cls(curves, top, bottom, max(point["lists"] for point in points) or 1)

    def shapes(self) -> Iterator[tuple[str, list[Place], list[Place]]]:
        """Of each curve its colour, the band from the lowest to the highest seed, and the median."""
        for number, curve in enumerate(self.of_variants):
            band = [*self._places(curve, "max"), *self._places(curve, "min")[::-1]]
            yield _colour(number), band, self._places(curve, "median")

    def marks(self) -> Iterator[tuple[Place, str, str]]:
        """Lines across and their labels: where, at which gain, after how many lists."""
        for step in range(STEPS + 1):
            part = step / STEPS
            gain = f"{self.bottom + (self.top - self.bottom) * part:+.2f}"
            yield (WIDTH * part, HEIGHT * (1 - part)), gain, f"{self.last * part:,.0f}"

    def _places(self, curve: Sequence[Mapping[str, float]], name: str) -> list[Place]:
        scale = HEIGHT / (self.top - self.bottom)
        return [(WIDTH * point["lists"] / self.last, scale * (self.top - point[name])) for point in curve]


def plot(variants: Mapping[str, Any], split: str) -> str:
    """Gain over the untrained model by lists shown: the median of the seeds in a band from lowest to highest."""
    curves, drawn = _Curves.of(variants, split), []
    for (across, height), gain, lists in curves.marks():
        drawn.append(f"<line x1='0' x2='{WIDTH}' y1='{height:.1f}' y2='{height:.1f}' stroke='{GREY}' />")
        drawn.append(f"<text x='-5' y='{height + 4:.1f}' text-anchor='end'>{gain}</text>")
        drawn.append(f"<text x='{across:.1f}' y='{HEIGHT + 18}' text-anchor='middle'>{lists}</text>")
    for colour, *lines in curves.shapes():
        band, middle = (" ".join(f"{x:.1f},{y:.1f}" for x, y in line) for line in lines)
        drawn.append(f"<polygon points='{band}' fill='{colour}' opacity='.12' />")
        drawn.append(f"<polyline points='{middle}' fill='none' stroke='{colour}' stroke-width='2' />")
    view = f"viewBox='-{LEFT} -{ABOVE} {WIDTH + LEFT + ABOVE + 5} {HEIGHT + 35}'"
    return f"<svg {view} role='img' aria-label='{LABEL}'>{''.join(drawn)}</svg>"


def picture(variants: Mapping[str, Any], split: str) -> bytes:
    """The same plot as PNG, with the variants named below it."""
    curves, names = _Curves.of(variants, split), list(variants)
    size = (DENSITY * (WIDTH + LEFT + 2 * ABOVE), DENSITY * (HEIGHT + 45 + LINE * len(names)))
    drawn = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(drawn, "RGBA"), ImageFont.load_default(DENSITY * 12)

    def at(x: float, y: float) -> Place:
        return DENSITY * (x + LEFT), DENSITY * (y + ABOVE)

    for (across, height), gain, lists in curves.marks():
        draw.line([at(0, height), at(WIDTH, height)], fill=GREY, width=DENSITY)
        draw.text(at(-5, height), gain, fill="black", font=font, anchor="rm")
        draw.text(at(across, HEIGHT + 14), lists, fill="black", font=font, anchor="mm")
    for colour, band, middle in curves.shapes():
        draw.polygon([at(*place) for place in band], fill=f"{colour}1f")
        draw.line([at(*place) for place in middle], fill=colour, width=2 * DENSITY)
    for place, name in enumerate(names):
        x, y = at(0, HEIGHT + 35 + LINE * place)
        draw.rectangle([x, y - 4 * DENSITY, x + 8 * DENSITY, y + 4 * DENSITY], fill=_colour(place))
        draw.text((x + 14 * DENSITY, y), name, fill="black", font=font, anchor="lm")
    file = BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


def pictures(found: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Every plot of `experiment.run`'s summary, with the name of its file."""
    for world, variants in found["worlds"].items():
        name = re.sub(r"[^\w.-]+", "_", world)
        yield from ((f"{name}-{split}.png", picture(variants, split)) for split in SPLITS)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, as they stand in a document."""
    lines = []
    for name, variants in found["worlds"].items():
        head, *body = rows(variants)
        lines += [f"**{name}**", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
        lines.append("")
    return "\n".join(lines)
