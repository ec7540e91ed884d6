"""The report of a backtest as one page: no script, no network, nothing but what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

WIDTH, HEIGHT = 720, 240
COLOURS: Final = {"untrained": "#9aa3ad", "trained": "#2f6f4f"}
NAMES: Final = {
    "bm25": "BM25: words alone",
    "base": "the base model, untrained",
    "hybrid": "both together",
    "boring": "hybrid, popularity and the clicks of this very query, counted",
    "millrace": "Millrace",
}


def page(report: Mapping[str, Any]) -> str:
    """Draw what `Backtest.run` found."""
    k, second = report["settings"]["k"], report["halves"]["second"]
    delays = list(second["millrace"])
    top = max((max(point["trained"], point["untrained"]) for point in report["curve"]), default=0.0) or 1.0
    last = max((point["clicks"] for point in report["curve"]), default=0) or 1
    skipped = [f"<li>{count:,} lines: {escape(reason)}</li>" for reason, count in report["skipped"].items()]
    template = Template((files("simulator") / "backtest.html").read_text(encoding="utf-8"))
    return template.substitute(
        verdict=escape(report["verdict"]["words"]),
        clicks=f"{report['clicks']:,}",
        queries=f"{report['queries']:,}",
        products=f"{report['products']:,}",
        k=k,
        methods=_methods(second, delays[0], f"mrr@{k}"),
        delays=_delays(second, delays, f"mrr@{k}"),
        curve="".join(_line(report["curve"], name, last, top) for name in COLOURS),
        last=f"{last:,}",
        top=f"{top:.2f}",
        windows=_windows(report["windows"]),
        skipped="".join(skipped) or "<li>nothing</li>",
        times=escape(report["times"]),
        half_life=f"{report['settings']['half_life_days']:g}",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _methods(methods: Mapping[str, Any], delay: str, metric: str) -> str:
    rows = []
    for name, by_delay in methods.items():
        kinds = by_delay[delay]
        interval = kinds["all"][f"{metric}_interval"]
        band = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
        others = (_number(kinds[kind][metric]) for kind in ("first_time", "repeated"))
        rows.append([NAMES[name], _number(kinds["all"][metric]) + band, *others])
    return _table(["method", "all clicks", "queries typed for the first time", "repeated queries"], rows)


def _delays(methods: Mapping[str, Any], delays: Sequence[str], metric: str) -> str:
    rows = [
        [NAMES[name], *(_number(methods[name][delay]["all"][metric]) for delay in delays)]
        for name in ("boring", "millrace")
    ]
    return _table(["method", *(f"clicks known {delay}" for delay in delays)], rows)


def _windows(windows: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [f"{one['from']} to {one['to']}", f"{one['n']:,}", *(_number(one[name]) for name in NAMES)] for one in windows
    ]
    return _table(["days", "clicks", *NAMES], rows)


def _line(points: Sequence[Mapping[str, Any]], name: str, last: float, top: float) -> str:
    """One curve, from left to right over the clicks seen."""
    places = " ".join(
        f"{WIDTH * point['clicks'] / last:.1f},{HEIGHT * (1 - point[name] / top):.1f}" for point in points
    )
    return f"<polyline points='{places}' fill='none' stroke='{COLOURS[name]}' stroke-width='2' />"
