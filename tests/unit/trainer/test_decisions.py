"""Decisions at the edge: what is written, what is asked for, and in which order."""

from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from contracts.arms import ArmsProgress, groups_of
from contracts.decisions import DECISIONS_KEY, PROMOTION_KEY, Decisions, HeldOutLook, Promotion
from contracts.releases import ROLLBACK_KEY, Rollback
from contracts.wire import encode
from millrace.watch.observer import releases_report
from service.models import ModelsTable
from tests.support.deployment import NOW_MS, arms_progress, models_table
from trainer.decisions import LOOK_MS, ArmsTable, Decider

WORSE = arms_progress(0, lists=32_000, lift=-200)
BETTER = arms_progress(0, lists=32_000, lift=200)


class Writer:
    """Writes to a table as Kafka and a follower would, unless it is told to lose what it is given."""

    def __init__(self, models: ModelsTable) -> None:
        self.models = models
        self.written: list[str] = []
        self.fails = ""

    def decide(self, decisions: Decisions) -> None:
        """Write decisions."""
        self._write(DECISIONS_KEY, encode(decisions))

    def ask_for(self, rollback: Rollback) -> None:
        """Write a request."""
        self._write(ROLLBACK_KEY, encode(rollback))

    def _write(self, key: bytes, value: bytes) -> None:
        """Hand a record to the table, or fail as Kafka does."""
        if key.decode() == self.fails:
            raise ConnectionError(self.fails)
        self.written.append(key.decode())
        self.models.apply(key, value)


def make(*found: ArmsProgress) -> tuple[Decider, Writer]:
    """Give a decider that sees these counts."""
    models, arms = models_table(), ArmsTable()
    begun = Decisions(began_at=NOW_MS, since={}, collection="products-r1")
    models.apply(DECISIONS_KEY, encode(begun))
    for one in found:
        arms.apply(b"0", encode(one))
    writer = Writer(models)
    return Decider(models, arms, writer=writer, settle_ms=1000), writer


def test_a_step_back_is_written_before_it_is_asked_for_and_once() -> None:
    """Whoever reads the request finds the decision; looking again changes nothing."""
    decider, writer = make(WORSE)
    with capture_logs() as logs:
        decider.look(NOW_MS)
    assert writer.written == ["decisions", "rollback"]
    assert [(line["verdict"], line["subject"]) for line in logs if line["event"] == "decided"] == [("stepped_back", 0)]
    view = writer.models.look()
    assert view.rollback is not None
    assert view.decisions is not None
    assert view.decisions.latest is not None
    assert view.rollback.requested_at == view.decisions.latest.decided_at
    decider.look(NOW_MS + LOOK_MS)
    assert writer.written.count("rollback") == 1


def test_a_request_that_was_lost_is_made_by_whoever_takes_over() -> None:
    """A crash between decision and request leaves it owed."""
    decider, writer = make(WORSE)
    writer.fails = "rollback"
    with pytest.raises(ConnectionError):
        decider.look(NOW_MS)
    assert writer.models.look().rollback is None
    writer.fails = ""
    successor = Decider(writer.models, ArmsTable(), writer=writer, settle_ms=1000)
    successor.look(NOW_MS + 1)
    assert writer.models.look().rollback is not None


def test_it_looks_from_time_to_time_and_writes_what_is_new() -> None:
    """A table of decisions that is the same is not written again."""
    decider, writer = make(BETTER)
    decider.look(NOW_MS)
    decider.look(NOW_MS + LOOK_MS - 1)
    assert writer.written == ["decisions"]
    assert writer.models.look().decisions is not None
    for step in range(1, 5):
        decider.look(NOW_MS + step * LOOK_MS)
    assert writer.written == ["decisions", "decisions"]  # the second says that the next comparison has too little


def test_what_held_out_lists_said_is_noted_once_and_found_by_a_successor() -> None:
    """A look that decides nothing is written too: it is spent."""
    _, writer = make()
    look = HeldOutLook(query_release=2, against=0, began_at=NOW_MS, looked_at=NOW_MS, looks=1, lists=100)
    for turn in range(2):
        decider = Decider(writer.models, ArmsTable(), writer=writer, settle_ms=1000, held_out=lambda: look)
        decider.look(NOW_MS + turn)
        view = writer.models.look()
        assert view.decisions is not None
        assert (view.decisions.held_out, view.decisions.number) == (look, 1)
    assert writer.written == ["decisions"]


def test_what_a_person_promotes_is_told_without_a_comparison() -> None:
    """Neither the log nor the report names arms or held-out lists: none of them was asked."""
    decider, writer = make(WORSE)
    writer.models.apply(PROMOTION_KEY, encode(Promotion(query_release=1, requested_at=NOW_MS)))
    with capture_logs() as logs:
        decider.look(NOW_MS)
    told = [line for line in logs if line["event"] == "decided"] + releases_report(writer.models.look())["decisions"]
    assert [(one["verdict"], one["subject"], one["by"], one["basis"]) for one in told] == [
        ("promoted", 1, "person", None)
    ] * 2


def test_nothing_is_decided_before_anything_serves() -> None:
    """An empty `models` is no reason to write."""
    writer = Writer(ModelsTable())
    Decider(writer.models, ArmsTable(), writer=writer, settle_ms=0).look(NOW_MS)
    assert writer.written == []


@pytest.mark.parametrize(
    ("late", "taken"),
    [({"next_offset": 31_999}, False), ({"next_offset": 31_999, "source_id": "other"}, True), ({}, True)],
    ids=["behind", "of another log", "newer"],
)
def test_counts_never_go_back(late: dict[str, Any], taken: bool) -> None:
    """A worker that was stopped writes once more what others have passed; a topic made anew begins from nothing."""
    arms, second = ArmsTable(), BETTER.model_copy(update=late)
    arms.apply(b"0", encode(WORSE))
    arms.apply(b"0", encode(second))
    arms.apply(b"0", None)
    assert [*arms.look()] == [second if taken else WORSE]
    arms.forget()
    assert [*arms.look()] == []


def test_what_is_no_progress_ends_nothing_and_is_told_once() -> None:
    """Whatever stands on the topic, and however often: what was read before counts, and what can be read after."""
    arms = ArmsTable()
    arms.apply(b"0", encode(WORSE))
    with capture_logs() as logs:
        for value in (b"{", b"", b"[]", b'{"partition":-1}'):
            arms.apply(b"1", value)
        assert [*arms.look()] == [WORSE]
        arms.apply(b"1", encode(BETTER.model_copy(update={"partition": 1})))
        arms.apply(b"1", b"{")
    assert [line["event"] for line in logs] == ["progress_unreadable"] * 2
    other_groups = {"partition": 2, "next_offset": 1, "hold_offset": 1, "groups": {"live": [{}], "anchor": [{}]}}
    arms.apply(b"2", orjson.dumps(other_groups))
    assert groups_of(arms.look(), "live") == groups_of([WORSE, BETTER], "live")
