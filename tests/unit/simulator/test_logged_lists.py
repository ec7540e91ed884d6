"""Lists of an old log: read as the stream worker judges lists, and learned as the trainer learns them."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from contracts.errors import UsageError
from simulator.backtest import Backtest
from simulator.click_log import ClickLog, read_log
from simulator.logged_lists import read_lists
from tests.support.tiny_encoder import WORDS, TinyEncoder

START_S = 1_704_067_200
CLICKS_HEAD = "time,query,product_id,search_id,grade"
LISTS_HEAD = "search_id,time,query,product_id,position"
SHOWN = 4


def log_of(folder: Path, clicks: list[str]) -> ClickLog:
    """Return a log of two dozen products."""
    titles = [f"P-{number},{word} model" for number, word in enumerate(WORDS)]
    (folder / "products.csv").write_text("\n".join(["product_id,title", *titles]))
    (folder / "clicks.csv").write_text("\n".join([CLICKS_HEAD, *clicks]))
    return read_log(folder / "products.csv", folder / "clicks.csv", columns={})


def lists_of(folder: Path, rows: list[str]) -> Path:
    """Return the file of lists."""
    path = folder / "lists.csv"
    path.write_text("\n".join([LISTS_HEAD, *rows]))
    return path


def test_a_list_is_rows_and_what_was_clicked_of_it(tmp_path: Path) -> None:
    """Each product counts by its position; the choice is worth its grade, what was passed over nothing."""
    log = log_of(tmp_path, ["2024-01-01T00:00:05Z,red,P-2,s-1,purchase", "2024-01-01T00:00:05Z,red,P-9,s-9,"])
    path = lists_of(tmp_path, [f"s-1,2024-01-01,red,P-{number},{number}" for number in (2, 1, 3)])
    (judged,) = read_lists(path, log, columns={})
    assert [(slot.product_id, slot.position) for slot in judged.slots] == [("P-1", 1), ("P-2", 2), ("P-3", 3)]
    assert [slot.value > 0 for slot in judged.slots] == [False, True, False]
    showings = [slot.showing for slot in judged.slots]
    assert showings == sorted(showings, reverse=True)
    assert len(set(showings)) == 3
    assert judged.closed_at == START_S * 1000 + 600_000
    assert log.skipped == {"clicks: in no list, so that nothing is learned from them": 1}


def test_what_is_not_learned_is_counted(tmp_path: Path) -> None:
    """A click when its list is closed, which would be learned before it is made; one on what is not shown; a row."""
    times = ("2023-12-31T23:59:59Z", "2024-01-01T00:30:00Z", "2024-01-01T00:00:05Z", "2024-01-01T00:10:00Z")
    clicks = [f"{time},red,{product},s-1," for time, product in zip(times, ("P-1", "P-1", "P-9", "P-1"), strict=True)]
    log = log_of(tmp_path, clicks)
    (judged,) = read_lists(
        lists_of(tmp_path, [f"s-1,2024-01-01,red,{one},1" for one in ("P-1", "P-2")]), log, columns={}
    )
    assert [(slot.product_id, slot.click_time) for slot in judged.slots] == [("P-1", START_S * 1000 + 600_000)]
    told = "clicks: not within ten minutes after their list, so that nothing is learned from them"
    assert log.skipped == {
        told: 2,
        "clicks: on what their list does not show, so that nothing is learned from them": 1,
        "lists: another product at the same position": 1,
    }


def test_lists_may_come_as_the_join_writes_them(tmp_path: Path) -> None:
    """They name their outcomes themselves; what the pairs stage keeps out of learning is kept out here, counted."""
    shown = {"type": "joined_search", "search_time": START_S * 1000, "closed_at": START_S * 1000 + 1, "query": "red"}
    slots = [{"product_id": "P-1", "position": 1}, {"product_id": "P-2", "position": 2, "clicked": True}]
    lists = [
        {**shown, "search_id": "s-1", "slots": slots},
        {**shown, "search_id": "s-2", "slots": slots, "synthetic": True},
        {**shown, "search_id": "s-3", "slots": slots, "query": " "},
        {**shown, "search_id": "s-4", "slots": [{"product_id": "P-1"}]},
        {**shown, "search_id": "s-5", "slots": [{"product_id": "gone", "position": 1}]},
    ]
    path = tmp_path / "lists.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lists)))
    log = log_of(tmp_path, ["2024-01-01,red,P-2,s-1,"])
    found = read_lists(path, log, columns={})
    assert [search.search_id for search in found] == ["s-1", "s-5"]
    assert [slot.value > 0 for slot in found[0].slots] == [False, True]
    assert log.skipped.total() == 4
    assert log.skipped["lists: synthetic"] == log.skipped["lists: no query, or no product that counts"] == 1
    assert log.skipped["lists: slots of products that are not in the catalogue"] == 1


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """A bad row costs itself alone, and its reason is told."""
    rows = [",2024-01-01,red,P-1,1", "s-1,soon,red,P-1,1", "s-1,2024-01-01,red,P-1,top", "s-1,2024-01-01,red,P-1,1"]
    log = log_of(tmp_path, ["2024-01-01,red,P-1,s-1,"])
    assert len(read_lists(lists_of(tmp_path, rows), log, columns={})) == 1
    assert log.skipped == {
        "lists: no search_id": 1, "lists: time not understood": 1, "lists: position is no number": 1
    }  # fmt: skip


def test_a_line_that_is_cut_costs_itself_alone(tmp_path: Path) -> None:
    """The last one of an export that was stopped, in either form."""
    rows = lists_of(tmp_path, ["s-1,2024-01-01,red,P-1,1", "s-1,2024-01-01,re"])
    shown = {"type": "joined_search", "search_id": "s-1", "search_time": START_S * 1000, "query": "red"}
    whole = orjson.dumps({**shown, "closed_at": START_S * 1000, "slots": [{"product_id": "P-1", "position": 1}]})
    (tmp_path / "lists.jsonl").write_bytes(whole + b"\n" + whole[:-9])
    for path in (rows, tmp_path / "lists.jsonl"):
        log = log_of(tmp_path, ["2024-01-01,red,P-1,s-1,"])
        assert len(read_lists(path, log, columns={})) == 1
        assert log.skipped["lists: a line that cannot be read"] == 1


def test_a_file_without_lists_is_refused_with_its_fix(tmp_path: Path) -> None:
    """A lacking column is named with those that are there; a file of which nothing can be used tells why."""
    log = log_of(tmp_path, ["2024-01-01,red,P-1,s-1,"])
    (tmp_path / "other.csv").write_text("search_id,time,query,sku,position\ns-1,2024-01-01,red,P-1,1\n")
    with pytest.raises(UsageError, match="no product_id; it has search_id, time, query, sku, position"):
        read_lists(tmp_path / "other.csv", log, columns={})
    assert read_lists(tmp_path / "other.csv", log, columns={"product_id": "sku"})
    with pytest.raises(UsageError, match="1: lists: time not understood; first in line 2: 'soon'"):
        read_lists(
            lists_of(tmp_path, ["s-1,soon,red,P-1,1"]), log_of(tmp_path, ["2024-01-01,red,P-1,s-1,"]), columns={}
        )


def shop(folder: Path, searches: int, *, step_s: float) -> dict[str, Any]:
    """Return the report of a shop whose shoppers want the product of the next word, which no text tells."""
    rng = np.random.default_rng(1)
    clicks, rows = [], []
    for number in range(searches):
        word, time_s = int(rng.integers(len(WORDS))), START_S + number * step_s
        wanted = (word + 1) % len(WORDS)
        others = [int(one) for one in rng.permutation(len(WORDS)) if one not in {word, wanted}][: SHOWN - 2]
        shown = rng.permutation([word, wanted, *others]).tolist()
        rows += [f"s-{number},{time_s},{WORDS[word]},P-{one},{place}" for place, one in enumerate(shown, start=1)]
        clicks.append(f"{time_s + 1},{WORDS[word]},P-{wanted},s-{number},")
    log = log_of(folder, clicks)
    lists = read_lists(lists_of(folder, rows), log, columns={})
    encoder: Any = TinyEncoder()
    return Backtest(log, encoder, cache=None, tell=lambda *_: None, lists=lists).run(["live"])


def test_lists_teach_what_is_wanted(tmp_path: Path) -> None:
    """Of lists at an hour's distance the trainer's learner learns what each query's shoppers choose."""
    report = shop(tmp_path, 800, step_s=3600.0)
    second = {name: report["halves"]["second"][name]["live"]["all"]["mrr@5"] for name in ("hybrid", "millrace")}
    assert report["lists"] == 800
    assert second["millrace"] > second["hybrid"] + 0.2


def test_a_list_that_is_open_teaches_nothing(tmp_path: Path) -> None:
    """All clicks come before the first list is closed: each is predicted by the text alone."""
    report = shop(tmp_path, 300, step_s=1.0)
    whole = {name: report["methods"][name]["live"]["all"]["mrr@5"] for name in ("hybrid", "millrace")}
    assert whole["millrace"] == whole["hybrid"]
