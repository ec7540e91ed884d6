"""The closing screen and the live view: every figure is there, on any terminal and in any log."""

import io
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from simulator.demo import report
from simulator.demo.report import LiveView, closing_screen, facts_table, live_line, live_view, shortfalls
from simulator.shop.site import Delivery
from simulator.shop.traffic import Totals

PART = {
    "queries": 60,
    "before": {"ndcg@10": 0.4123, "recall@10": 0.3, "mrr@10": 0.5},
    "after": {"ndcg@10": 0.4987, "recall@10": 0.35, "mrr@10": 0.55},
    "difference": {
        name: {"mean": 0.0864, "low": 0.0512, "high": 0.1201} for name in ("ndcg@10", "recall@10", "mrr@10")
    },
}
FIGURES: dict[str, Any] = {
    "seed": 1, "world": "built-in", "seconds": 120, "events": {"sent": 12_345, "accepted": 12_340},
    "ledger": {
        "events": {"accepted": 17_340, "joined": 17_000, "late": 0, "pending": 340, "balance": 0},
        "searches": {"closed": 2_000, "paired": 900, "unpaired": {"no_click": 1_090, "bounced": 10}, "balance": 0},
    },
    "releases": {"query": 7, "product": 1},
    "quality": {"unseen": PART, "seen": PART, "by_class": {"unseen": {}, "seen": {}}},
    "freshness_s": {"click_to_search": {"p50": 12.3, "p99": 24.0}, "product_to_search": {"p50": None, "p99": None}},
    "search_ms": {"p50": 14.2, "p99": 41.0},
}  # fmt: skip
LONG = "Polar Frost 190 L Direct Cool Single Door 3 Star Refrigerator with Base Drawer [blue] (2026 edition), silver"
EXAMPLES: list[dict[str, Any]] = [
    {
        "query": "fridge for bachelors [small]", "class": "budget_use_case",
        "before": [{"title": LONG, "grade": 0}], "after": [{"title": LONG, "grade": 4}, {"title": "Arc", "grade": 2}],
    },
    {"query": "nothing found", "class": "plain", "before": [], "after": []},
]  # fmt: skip
LINKS = {"the page": "http://127.0.0.1:8082/", "logs": ".millrace/demo/logs/"}
PROGRESS: dict[str, Any] = {
    "clock": "31 of 120 s", "searches": 812, "clicks": 401, "events": 2_034, "events_per_s": 65.6, "lists": 377,
    "query_releases": 2, "product_releases": 1, "in force": "query release 2 on product release 1",
    "click to search": "12.3 s (median of 99)", "product to search": "not measured yet",
    "quality so far": "nDCG@10 0.441 on 48 unseen queries (+0.021 since the start)",
}  # fmt: skip


XTERM = {"TERM": "xterm-256color"}
DUMB = {"TERM": "dumb"}


def shown(renderable: Any, *, width: int, colours: bool = False) -> str:
    """Return what a terminal of that width shows."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=colours, no_color=not colours, _environ=XTERM).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("colours", [True, False])
def test_the_closing_screen_fits_any_terminal(width: int, colours: bool) -> None:
    """Nothing is wider than the terminal; without colours there is no escape sequence."""
    screen = shown(closing_screen(FIGURES, EXAMPLES, LINKS), width=width, colours=colours)
    if not colours:
        assert "\x1b" not in screen
        assert max(len(line) for line in screen.splitlines()) <= width
    assert "http://127.0.0.1:8082/" in screen


def test_quality_is_shown_with_its_interval() -> None:
    """Before, after, and the bootstrap interval, of unseen queries first."""
    screen = shown(closing_screen(FIGURES, EXAMPLES, LINKS), width=120)
    for figure in ("0.4123", "0.4987", "+0.0864", "+0.0512", "+0.1201"):
        assert figure in screen
    assert screen.index("unseen (60)") < screen.index("seen (60)", screen.index("unseen (60)") + 8)


def test_examples_show_both_lists_and_the_shops_grades() -> None:
    """Titles stand side by side with as many stars as their grade; brackets are text, not markup."""
    screen = shown(closing_screen(FIGURES, EXAMPLES, LINKS), width=300)
    assert "fridge for bachelors [small]" in screen
    assert f"★★★★ {LONG}" in screen
    assert "budget use case" in screen


def test_facts_name_what_was_not_measured() -> None:
    """A missing time is said to be missing; ledgers leave out empty terms but never the balance."""
    facts = shown(facts_table(FIGURES), width=120)
    assert "12.3 s (p50), 24.0 s (p99)" in facts
    assert "not measured (p50)" in facts
    assert "accepted 17,340, joined 17,000, pending 340, balance 0" in facts
    assert "unpaired 1,100" in facts
    assert "late" not in facts


def test_facts_name_what_was_given_up() -> None:
    """Quantiles of those that came say nothing of those that did not."""
    late = {"p50": 1.0, "p99": 2.0, "measured": 3, "missing": 2}
    facts = shown(
        facts_table({**FIGURES, "freshness_s": {"click_to_search": late, "product_to_search": late}}), width=120
    )
    assert facts.count("2.0 s (p99); 2 not seen in time") == 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_a_terminal(width: int) -> None:
    """Every figure of the view is on it."""
    view = shown(live_view(PROGRESS), width=width)
    assert max(len(line) for line in view.splitlines()) <= width
    for figure in ("31 of 120 s", "812 searches", "2,034 events (66/s)", "377 lists", "query release 2 on product"):
        assert figure in view


def test_the_live_line_holds_the_same_in_one_line() -> None:
    """For logs and pipes."""
    line = live_line(PROGRESS)
    assert "\n" not in line
    for figure in ("812 searches", "401 clicks", "377 lists", "12.3 s (median of 99)", "+0.021"):
        assert figure in line


def live(environ: dict[str, str], *, terminal: bool, refreshed: int = 2) -> str:
    """Return what a console gets that is refreshed some times at once."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal, _environ=environ)
    with LiveView(console, lambda: PROGRESS) as view:
        for _ in range(refreshed):
            view.refresh()
    return file.getvalue()


@pytest.mark.parametrize(("environ", "terminal"), [(XTERM, False), (DUMB, False), (DUMB, True)])
def test_what_cannot_be_redrawn_gets_lines_now_and_then(environ: dict[str, str], terminal: bool) -> None:
    """A log, a pipe or a dumb terminal is not flooded: refreshed twice at once, it gets one line."""
    written = live(environ, terminal=terminal)
    assert written.count("812 searches") == 1
    assert "\x1b[?25l" not in written


def test_the_next_line_comes_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time between lines, each refresh gives one."""
    monkeypatch.setattr(report, "LINE_EVERY_S", 0.0)
    assert live(XTERM, terminal=False).count("812 searches") == 2


def test_a_terminal_gets_a_panel_that_leaves_nothing_behind() -> None:
    """The panel is redrawn in place and the cursor comes back."""
    written = live(XTERM, terminal=True, refreshed=1)
    assert "Millrace demo" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_what_went_wrong_is_said() -> None:
    """Failed searches, refused events and lost launches do not hide in the figures; a good run says nothing."""
    delivery = Delivery(accepted=7, rejected=2, failed=1, reasons=Counter(missing=2, http_503=1))
    lines = shortfalls(Totals(search_errors=4, last_error="503", delivery=delivery), ["L-1", "L-2"])
    assert lines == [
        "4 searches failed, the last one with 503",
        "3 events were not accepted: missing 2, http_503 1",
        "never found after their launch: L-1, L-2",
    ]
    assert shortfalls(Totals(delivery=Delivery(accepted=7, duplicate=1)), []) == []
