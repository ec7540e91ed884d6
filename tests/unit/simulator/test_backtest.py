"""Backtest: each click is predicted before it is learned, by what was known then, and the verdict is honest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from contracts.outcomes import Grade
from simulator.backtest import FEWEST_JUDGED, FEWEST_QUERIES, Backtest, _interval, _rank, verdict
from simulator.choices import Choices
from simulator.click_log import DAY_MS, Click, ClickLog, read_log
from tests.support.tiny_encoder import WORDS, TinyEncoder

METHODS = {"bm25", "base", "hybrid", "boring", "millrace"}
SLICES = {"all", "first_time", "repeated"}
START_MS = 1_704_067_200_000.0


def silent(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


@pytest.fixture
def catalogue(tmp_path: Path) -> ClickLog:
    """Return a log of two dozen products and one click."""
    (tmp_path / "products.csv").write_text(
        "product_id,title\n" + "".join(f"P-{number},{word} model\n" for number, word in enumerate(WORDS))
    )
    (tmp_path / "clicks.csv").write_text("time,query,product_id\n2024-01-01,red,P-0\n")
    return read_log(tmp_path / "products.csv", tmp_path / "clicks.csv", columns={})


def log_of(catalogue: ClickLog, clicks: Sequence[Click]) -> ClickLog:
    """Return the products with other clicks."""
    return ClickLog(catalogue.products, list(clicks))


def clicks_of(count: int, *, step_ms: float, seed: int = 1) -> list[Click]:
    """Return clicks at equal steps; who types a word wants the product of the next, which no text tells."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, len(WORDS), count).tolist()
    return [
        Click(START_MS + place * step_ms, WORDS[number], WORDS[number], (number + 1) % len(WORDS))
        for place, number in enumerate(numbers)
    ]


def run(log: ClickLog, delays: Sequence[str] = ("live",)) -> dict[str, Any]:
    """Return the report."""
    encoder: Any = TinyEncoder()
    return Backtest(log, encoder, cache=None, tell=silent).run(list(delays))


def test_the_report_has_the_form_that_is_documented(catalogue: ClickLog) -> None:
    """All keys are there for each method, delay and slice, and the whole report is JSON."""
    delays = ["live", "1h", "1d"]
    report = run(log_of(catalogue, clicks_of(60, step_ms=3_600_000.0)), delays)
    needed = {"clicks", "queries", "products", "skipped", "methods", "halves", "windows", "curve", "verdict"}
    assert needed <= report.keys()
    assert (report["clicks"], report["products"]) == (60, len(WORDS))
    for part in (report["methods"], report["halves"]["first"], report["halves"]["second"]):
        assert part.keys() >= METHODS
        for method in METHODS:
            assert set(delays) == part[method].keys()
            for delay in delays:
                assert part[method][delay].keys() >= SLICES
                assert part[method][delay]["all"].keys() >= {"n", "mrr@5", "recall@10", "mrr@5_interval"}
    assert all(window.keys() >= {"from", "to", "n", *METHODS} for window in report["windows"])
    assert sum(window["n"] for window in report["windows"]) == 60
    assert all(point.keys() >= {"clicks", "untrained", "trained"} for point in report["curve"])
    assert report["verdict"].keys() >= {"gain", "low", "high", "words"}
    assert orjson.loads(orjson.dumps(report, option=orjson.OPT_SERIALIZE_NUMPY))["clicks"] == 60


def test_halves_and_slices_share_out_the_clicks(catalogue: ClickLog) -> None:
    """First times and repetitions are all clicks, so are the halves, and the interval holds the mean."""
    report = run(log_of(catalogue, clicks_of(61, step_ms=1_000.0)))
    for method in METHODS:
        counts = {name: one["n"] for name, one in report["methods"][method]["live"].items()}
        assert counts["all"] == 61 == counts["first_time"] + counts["repeated"]
        assert sum(report["halves"][half][method]["live"]["all"]["n"] for half in ("first", "second")) == 61
        whole = report["methods"][method]["live"]["all"]
        low, high = whole["mrr@5_interval"]
        assert low <= whole["mrr@5"] <= high


def test_a_query_is_new_once_however_it_is_spelt(catalogue: ClickLog, tmp_path: Path) -> None:
    """A first time is told by the folded query: other capitals or marks are no new one."""
    typed = ["Red Fridge", "red fridge!", "RED  fridge", "blue fridge"]
    rows = "".join(f"2024-01-01T00:00:0{place},{query},P-0\n" for place, query in enumerate(typed))
    (tmp_path / "spelt.csv").write_text("time,query,product_id\n" + rows)
    log = read_log(tmp_path / "products.csv", tmp_path / "spelt.csv", columns={})
    report = run(log)
    assert report["queries"] == 2
    counts = {name: one["n"] for name, one in report["methods"]["base"]["live"].items()}
    assert (counts["first_time"], counts["repeated"]) == (2, 2)


def test_within_a_delay_nothing_is_known(catalogue: ClickLog) -> None:
    """A log of less than a day, seen a day late, is ranked as if nobody had clicked; live, all of it is known."""
    report = run(log_of(catalogue, clicks_of(700, step_ms=DAY_MS / 800)), ["live", "1d"])["halves"]["second"]
    mrr = {(name, delay): report[name][delay]["all"]["mrr@5"] for name in METHODS for delay in ("live", "1d")}
    assert mrr["boring", "1d"] == mrr["hybrid", "1d"]
    assert mrr["millrace", "1d"] == mrr["hybrid", "1d"]
    assert mrr["boring", "live"] > mrr["boring", "1d"] + 0.2
    assert mrr["millrace", "live"] > mrr["millrace", "1d"] + 0.1


@pytest.mark.parametrize(("minutes", "known"), [(61, True), (59, False)])
def test_a_click_knows_those_that_are_older_than_the_delay(minutes: int, known: bool, catalogue: ClickLog) -> None:
    """Clicks of an hour and a minute ago count with an hour's delay, those of 59 minutes ago do not."""
    found = []
    for product in (0, 1):
        times = (START_MS, START_MS + minutes * 60_000)
        log = log_of(catalogue, [Click(time_ms, "fridge freezer", "fridge freezer", product) for time_ms in times])
        report = run(log, ["1h"])["methods"]
        found.append(report["boring"]["1h"]["repeated"]["mrr@5"])
        assert known or found[-1] == report["hybrid"]["1h"]["repeated"]["mrr@5"]
    assert sorted(found) == ([1, 1] if known else [0.5, 1])


def test_later_clicks_change_no_earlier_prediction(catalogue: ClickLog) -> None:
    """With another future the figures of the past are the same: nothing is learned before it is predicted."""
    past = clicks_of(120, step_ms=DAY_MS / 20)
    gap_ms = 40 * DAY_MS
    futures = [
        [
            Click(click.time_ms + gap_ms, click.query, click.typed, product)
            for click, product in zip(past, order, strict=True)
        ]
        for order in ([0] * 120, [click.product for click in past])
    ]
    one, two = (run(log_of(catalogue, [*past, *future]))["windows"] for future in futures)
    assert one[0] == two[0]
    assert one[-1] != two[-1]


def test_the_first_click_is_predicted_from_the_text_alone(catalogue: ClickLog) -> None:
    """Before anything was clicked the model and counting rank as the hybrid does."""
    methods = run(log_of(catalogue, clicks_of(1, step_ms=1.0)))["methods"]
    figures = {name: methods[name]["live"]["all"]["mrr@5"] for name in METHODS}
    assert figures["millrace"] == figures["hybrid"]
    assert figures["boring"] == figures["hybrid"]


def test_clicks_teach_the_model(catalogue: ClickLog) -> None:
    """Where queries want what their text does not say, the second half is ranked better than by the base."""
    report = run(log_of(catalogue, clicks_of(700, step_ms=DAY_MS / 100)))
    second = report["halves"]["second"]
    assert second["millrace"]["live"]["all"]["mrr@5"] > second["base"]["live"]["all"]["mrr@5"] + 0.1


def test_what_became_of_a_click_is_what_it_is_worth() -> None:
    """The evidence holds the values of the trainer's lists: a purchase counts ten clicks, one in the cart four."""
    choices = Choices(3, seed=1)
    for product, grade in enumerate((Grade.CLICK, Grade.CART, Grade.PURCHASE)):
        choices.add(0, Click(START_MS, "fridge", "fridge", product, grade))
    assert choices.cells().clicks.tolist() == [1.0, 4.0, 10.0]


def test_the_same_log_gives_the_same_report(catalogue: ClickLog) -> None:
    """Everything but time and memory is equal."""
    log = log_of(catalogue, clicks_of(150, step_ms=DAY_MS / 50))
    one, two = run(log), run(log)
    for name in ("cpu_s", "peak_rss_mb"):
        one.pop(name, None)
        two.pop(name, None)
    assert one == two


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([3.0, 2.0, 1.0], [1, 2, 3]),
        ([1.0, 1.0, 1.0], [2, 2, 2]),
        ([5.0, 2.0, 2.0, 1.0], [1, 2.5, 2.5, 4]),
        ([0.0], [1]),
    ],
)
def test_equal_scores_share_the_mean_of_their_ranks(scores: list[float], ranks: list[float]) -> None:
    """A method that cannot tell products apart gets neither luck nor harm by their order."""
    assert [_rank(np.array(scores), product) for product in range(len(scores))] == ranks


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.01, 0.05, "Yes"), (-0.01, 0.05, "No"), (0.0, 0.05, "No"), (-0.05, -0.01, "No"), (0.0, 0.0, "No")],
)
def test_the_verdict_is_no_unless_the_gain_is_certain(low: float, high: float, answer: str) -> None:
    """Only an interval wholly above 0 says yes; it is one sentence with its figures."""
    words = verdict((low + high) / 2, low, high, FEWEST_JUDGED, FEWEST_QUERIES)
    assert words.startswith(f"{answer}:")
    assert f"{low:+.3f}" in words
    assert f"{high:+.3f}" in words
    assert "\n" not in words


def test_of_few_clicks_nothing_is_certain() -> None:
    """Some clicks of one person are alike: an interval without width proves nothing."""
    assert verdict(0.5, 0.5, 0.5, FEWEST_JUDGED - 1, FEWEST_QUERIES).startswith("No: 99 clicks")
    assert verdict(0.5, 0.5, 0.5, FEWEST_JUDGED, FEWEST_QUERIES - 1).startswith("No: 19 queries")


def test_a_choice_that_is_repeated_makes_nothing_more_certain() -> None:
    """Thirty queries say thirty things, whether each is asked once or ten times."""
    values, queries = np.random.default_rng(1).standard_normal(30), np.arange(30)
    once = _interval(values, queries, np.random.default_rng(2))
    often = _interval(np.repeat(values, 10), np.repeat(queries, 10), np.random.default_rng(2))
    np.testing.assert_allclose(often, once)
