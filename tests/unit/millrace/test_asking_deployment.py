"""What the watching commands print, and which exit code their findings have."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contracts.errors import CheckFailed, DependencyDown, InvariantError, UsageError
from contracts.releases import Serving
from contracts.wire import encode
from millrace import arms, asking, releasing
from millrace.watch.kafka_view import KafkaView, Tail
from service.models import ModelsTable
from tests.support.deployment import NOW_MS, busy_kafka, models_table, process_views, release_value


class Seen:
    """An observer that saw a deployment once."""

    def __init__(self, kafka: KafkaView, models: ModelsTable) -> None:
        self._kafka = kafka
        self.models = models

    def look(self) -> KafkaView:
        """Return what was seen."""
        return self._kafka

    def known_models(self) -> ModelsTable:
        """Return what is known of releases."""
        return self.models


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Give a function that sets what the commands see."""
    monkeypatch.chdir(tmp_path)

    def show(kafka: KafkaView | None = None, models: ModelsTable | None = None) -> None:
        """Let every question be asked of this view."""
        seen = Seen(kafka or busy_kafka(), models or models_table())
        for commands in (asking, arms, releasing):
            monkeypatch.setattr(commands, "observe", lambda question: question(seen))

    show()
    return show


@pytest.mark.usefixtures("deployment")
def test_lag_shows_every_partition_of_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a line per group and partition, with what is held."""
    asking.lag()
    printed = capsys.readouterr().out
    assert sum("search-events" in line for line in printed.splitlines()) == 4
    assert "1,060" in printed
    assert "30" in printed


@pytest.mark.usefixtures("deployment")
def test_lag_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` the totals per group and every partition are on stdout."""
    asking.lag(json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["groups"]["trainer"] == {"records": 40, "held": 0, "worst_partition": 10}


@pytest.mark.usefixtures("deployment")
def test_a_balanced_ledger_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ledgers are shown, with each reason below its sum; nothing is raised."""
    asking.ledger()
    printed = capsys.readouterr().out
    assert "no click" in printed
    assert "balance" in printed


def test_an_unbalanced_ledger_fails_the_command(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One event that nobody accounts for is exit code 3, after the figures were printed."""
    kafka = busy_kafka()
    deployment(replace(kafka, tails={**kafka.tails, 1: Tail(events=18, ticks=1)}))
    with pytest.raises(CheckFailed, match="events"):
        asking.ledger(json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["events"]["balance"], report["searches"]["balance"]) == (1, 0)


GONE = DependencyDown("Kafka does not know t-catalog", fix="create it")


@pytest.mark.usefixtures("deployment")
def test_arms_are_shown_with_what_their_difference_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of each arm, the comparison and what interleaving says; as JSON the same."""
    arms.arms()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("anchor", "live", "clicked", "No interleaved list"))
    arms.arms(json=True)
    report = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in report["arms"]] == ["live", "anchor"]
    assert {row["metric"] for row in report["comparisons"]} == {"clicked", "purchased", "value"}
    assert report["unknown"] == {}


def test_before_a_search_is_closed_arms_say_so(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A table without an arm would look like a mistake."""
    kafka = busy_kafka()
    deployment(replace(kafka, progress={**kafka.progress, "arms": {}}))
    arms.arms()
    assert capsys.readouterr().out.startswith("no search was closed yet\n")


def test_arms_that_are_not_known_are_no_equal_arms(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is told of them, and why; what else is unknown does not matter here."""
    deployment(replace(busy_kafka(), unknown={"arms-progress": GONE}))
    with pytest.raises(DependencyDown):
        arms.arms(json=True)
    assert json.loads(capsys.readouterr().out)["arms"] is None
    deployment(replace(busy_kafka(), unknown={"catalog": GONE}))
    arms.arms()
    assert "live" in capsys.readouterr().out


def test_lag_of_half_a_deployment_shows_that_half(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known is printed, what is not has its reason, and the exit code says that a dependency is down."""
    deployment(replace(busy_kafka(), unknown={"catalog": GONE}))
    with pytest.raises(DependencyDown, match="t-catalog") as caught:
        asking.lag(json=True)
    assert caught.value.exit_code == 4
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["groups"]["indexer"]["records"], report["groups"]["trainer"]["records"]) == (None, 40)
    assert report["unknown"] == {"catalog": "Kafka does not know t-catalog"}
    assert "catalog not known: Kafka does not know t-catalog" in printed.err


def test_a_ledger_that_cannot_be_told_is_no_balanced_one(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The other ledger stands; the command fails, but not as if events had been lost."""
    unreadable = InvariantError("the record 0 of pairs-progress cannot be read")
    deployment(replace(busy_kafka(), unknown={"pairs-progress": unreadable}))
    with pytest.raises(InvariantError):
        asking.ledger()
    printed = capsys.readouterr()
    assert printed.out.count("not known") == 8
    assert "pairs-progress not known: the record 0" in printed.err


def test_an_unbalanced_ledger_beside_an_unknown_one_is_said(deployment: Callable[..., None]) -> None:
    """A loss that is seen is not hidden behind what is not seen."""
    kafka = busy_kafka()
    tails = {**kafka.tails, 1: Tail(events=18, ticks=1)}
    deployment(replace(kafka, tails=tails, unknown={"pairs-progress": GONE}))
    with pytest.raises(CheckFailed, match="events"):
        asking.ledger()


def test_releases_that_are_not_known_are_said(
    deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The list is printed as far as it goes; other parts do not matter here."""
    deployment(replace(busy_kafka(), unknown={"catalog": GONE}))
    releasing.releases_ls(json=True)
    deployment(replace(busy_kafka(), unknown={"models": GONE}))
    with pytest.raises(DependencyDown):
        releasing.releases_ls(json=True)
    assert capsys.readouterr().out.count('"serving"') == 2


@pytest.mark.usefixtures("deployment")
def test_releases_are_listed_with_the_pair_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    """The newest stands first; the ones in force are marked and named above."""
    releasing.releases_ls()
    printed = capsys.readouterr().out
    assert "in force: query release 2, product release 1" in printed
    assert printed.index("query 3") < printed.index("query 2 ")
    assert "0/1" in printed


def test_nothing_in_force_is_said(deployment: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """An empty topic is no error."""
    deployment(models=ModelsTable())
    releasing.releases_ls()
    assert "nothing is in force yet" in capsys.readouterr().out


@pytest.mark.usefixtures("deployment")
def test_a_release_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What it was made of, and each check; one that is not there is said."""
    releasing.releases_show(3)
    printed = capsys.readouterr().out
    assert "overlap@10 0.62 (limit 0.7) FAILED" in printed
    assert re.search(r"created_at .* \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", printed)
    releasing.releases_show(1, product=True, json=True)
    assert json.loads(capsys.readouterr().out)["kind"] == "product"
    with pytest.raises(UsageError, match="query-9 is not on the topic"):
        releasing.releases_show(9)


@pytest.mark.parametrize(("asked", "target"), [(None, 1), (1, 1), (0, 0)])
def test_a_rollback_goes_to_the_release_before_or_to_one_that_is_named(asked: int | None, target: int) -> None:
    """The one before is the one that training went on from."""
    table = models_table()
    table.apply(b"query-2", release_value("query", 2, parent=1))
    assert releasing.rollback_target(table.look(), asked) == target


@pytest.mark.parametrize("asked", [None, 2, 3, 7])
def test_there_is_no_rollback_to_what_is_not_older_or_not_there(asked: int | None) -> None:
    """Nor to the one before, if nobody knows which that was."""
    with pytest.raises(UsageError, match="no release to go back to from 2"):
        releasing.rollback_target(models_table().look(), asked)
    with pytest.raises(UsageError, match="no trained query release is in force"):
        releasing.rollback_target(ModelsTable().look(), asked)


def test_a_rollback_to_what_the_last_one_took_back_is_refused_at_once() -> None:
    """The indexer would refuse it, too."""
    table = models_table()
    serving = Serving(
        query_release=2, product_release=1, collection="c", published_at=NOW_MS + 1, withdrawn=1, withdrawn_above=0
    )
    table.apply(b"serving", encode(serving))
    with pytest.raises(UsageError, match="query release 1 was taken back by the last rollback"):
        releasing.rollback_target(table.look(), 1)


@pytest.mark.parametrize(
    ("left_out", "told"), [({"t/0": ((10, 20),)}, True), ({"t/0": ((15, 20),)}, False), ({}, False)]
)
def test_a_rollback_to_what_an_earlier_one_took_back_says_so(left_out: dict[str, Any], told: bool) -> None:
    """A person may want it all the same; release 0 knows nothing that could be taken back."""
    table = models_table()
    table.apply(b"query-1", release_value("query", 1, offsets={"t/0": 15}))
    table.apply(b"query-2", release_value("query", 2, offsets={"t/0": 30}, left_out=left_out))
    assert [releasing.comes_back(table.look(), query) for query in (1, 0)] == [told, False]


@pytest.mark.usefixtures("deployment")
def test_freshness_needs_to_know_where_the_processes_run() -> None:
    """Without addresses there is nothing to show, and the fix is named."""
    with pytest.raises(DependencyDown, match="where the processes run"):
        asking.freshness()


@pytest.mark.usefixtures("deployment")
def test_freshness_names_who_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that does not answer is named on stderr; stdout stays JSON."""
    monkeypatch.setattr("millrace.asking.look_at_processes", lambda _targets: process_views())
    asking.freshness(json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["click_to_search"]["p50"] is None
    assert "indexer does not answer" in printed.err


def test_freshness_is_shown_in_seconds() -> None:
    """Measured quantiles have a unit, missing ones a dash."""
    report: dict[str, Any] = {
        "click_to_search": {"p50": 12.345, "p99": 20.0, "count": 1_234.0},
        "product_to_search": {"p50": None, "p99": None, "count": 0.0},
    }
    console = Console(width=80)
    with console.capture() as captured:
        console.print(asking.freshness_table(report))
    assert "12.35 s" in captured.get() or "12.34 s" in captured.get()
    assert "1,234" in captured.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lag_fits_its_terminal(width: int) -> None:
    """No line of the table is wider than the terminal, and nothing is cut in it."""
    from millrace.watch.ledger import lag_report

    console = Console(width=width, soft_wrap=True)
    with console.capture() as captured:
        console.print(asking.lag_table(lag_report(busy_kafka())))
    assert "…" not in captured.get()
    assert max(len(line) for line in captured.get().splitlines()) <= width


def test_lag_is_a_line_a_partition_in_80_columns() -> None:
    """Also after millions of records: the longest names are ours, and `preference-pairs-3` is how Kafka says it."""
    row = {"group": "attribution-orphans", "topic": "preference-pairs", "partition": 3}
    figures = {"position": 123_456_789, "end": 123_461_133, "lag": 4_344, "held": 4_344}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(asking.lag_table({"partitions": [{**row, **figures}]}))
    (line,) = (line for line in captured.get().splitlines() if "attribution" in line)
    assert line.split() == [
        "attribution-orphans", "preference-pairs-3", "123,456,789", "123,461,133", "4,344", "4,344",
    ]  # fmt: skip
