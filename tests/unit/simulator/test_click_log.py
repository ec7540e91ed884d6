"""Old logs as shops export them: any table or JSON lines, any form of time, every line used or counted."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from simulator.click_log import ClickLog, read_log

PRODUCTS = [
    {"product_id": "P-1", "title": "Quiet fridge", "brand": "Kelto"},
    {"product_id": "P-2", "title": "Red oven, large", "brand": ""},
]
CLICKS = [
    {"time": "2024-01-02T00:00:00Z", "query": "Fridge", "product_id": "P-1"},
    {"time": "2024-01-01T00:00:00+00:00", "query": "red  OVEN!", "product_id": "P-2"},
]
FIRST_MS = 1_704_067_200_000.0
"""The first of January 2024, UTC."""


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Return a file of rows in the form that its name says."""
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "\t" if ".tsv" in path.name else ","
        quoted = [[f'"{value}"' if mark in str(value) else str(value) for value in row.values()] for row in rows]
        text = "\n".join(mark.join(line) for line in [list(rows[0]), *quoted]) + "\n"
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(folder: Path, clicks: Sequence[Mapping[str, Any]], **columns: str) -> ClickLog:
    """Return the log of some clicks on PRODUCTS."""
    catalogue = written(folder / "products.csv", PRODUCTS)
    return read_log(catalogue, written(folder / "clicks.csv", clicks), columns=columns)


def at(time: Any) -> dict[str, Any]:
    """Return a click at a time."""
    return {"time": time, "query": "fridge", "product_id": "P-1"}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_every_form_of_file_gives_the_same_log(ending: str, tmp_path: Path) -> None:
    """CSV, TSV and JSON lines, packed or not: the same products, and the clicks in order of time."""
    catalogue, clicks = (
        written(tmp_path / f"{name}.{ending}", rows) for name, rows in (("products", PRODUCTS), ("clicks", CLICKS))
    )
    log = read_log(catalogue, clicks, columns={})
    assert [(product.product_id, product.title) for product in log.products] == [
        ("P-1", "Quiet fridge"),
        ("P-2", "Red oven, large"),
    ]
    assert [(click.query, click.typed, click.product) for click in log.clicks] == [
        ("red oven", "red  OVEN!", 1),
        ("fridge", "Fridge", 0),
    ]
    assert log.clicks[0].time_ms == FIRST_MS
    assert not log.skipped


@pytest.mark.parametrize(
    ("time", "form"),
    [
        ("2024-01-01T00:00:00Z", "ISO"),
        ("2024-01-01 00:00:00", "ISO"),
        ("2024-01-01", "ISO"),
        ("2024-01-01T05:30:00+05:30", "ISO"),
        (1_704_067_200, "epoch in s"),
        ("1704067200.0", "epoch in s"),
        (1_704_067_200_000, "epoch in ms"),
        (1_704_067_200_000_000, "epoch in us"),
    ],
)
def test_the_form_of_times_is_found_out_and_said(time: Any, form: str, tmp_path: Path) -> None:
    """Dates and epochs in seconds, milli- or microseconds are the same moment."""
    log = read(tmp_path, [at(time)])
    assert log.clicks[0].time_ms == pytest.approx(FIRST_MS)
    assert form in log.times


def test_each_line_is_used_or_counted(tmp_path: Path) -> None:
    """What cannot be used is skipped by its reason, and nothing is dropped silently."""
    bad = [
        at("yesterday"), at(""), at("nan"), at(17), at("0001-01-01T00:00:00"), at("9999-12-31"),
        {**at("2024-01-01"), "query": " ?! "}, {**at("2024-01-01"), "product_id": "P-9"},
    ]  # fmt: skip
    log = read(tmp_path, [*bad, at("2024-01-01")])
    reasons = sorted((count, reason) for reason, count in log.skipped.items())
    assert [count for count, _ in reasons] == [1, 1, 6]
    assert "time" in reasons[-1][1]
    assert len(log.clicks) + log.skipped.total() == 9


def test_products_without_a_title_or_twice_are_counted(tmp_path: Path) -> None:
    """The first of two products with one id stays."""
    rows = [
        *PRODUCTS,
        {"product_id": "P-1", "title": "Other", "brand": ""},
        {"product_id": "", "title": "x", "brand": ""},
    ]
    catalogue = written(tmp_path / "products.csv", rows)
    log = read_log(catalogue, written(tmp_path / "clicks.csv", CLICKS), columns={})
    assert [product.title for product in log.products] == ["Quiet fridge", "Red oven, large"]
    assert log.skipped.total() == 2


WHOLE = {"product_id": "P-1", "title": "Oven", "brand": "Kelto", "category": "Kitchen > Ovens",
         "attributes": '{"noise_db": 34}'}  # fmt: skip


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
@pytest.mark.parametrize(
    ("wrong", "value"), [("attributes", "quiet"), ("brand", "K" * 10_000), ("category", " > ".join(["Ovens"] * 99))]
)
def test_one_wrong_field_of_a_product_costs_no_other(wrong: str, value: str, ending: str, tmp_path: Path) -> None:
    """It is left out and counted; the fields beside it stay, and attributes are read as JSON."""
    rows = [WHOLE, {**WHOLE, "product_id": "P-2", wrong: value}]
    catalogue = tmp_path / f"products.{ending}"
    if ending == "tsv":
        lines = ["\t".join(['"' + str(one).replace('"', '""') + '"' for one in row.values()]) for row in rows]
        catalogue.write_text("\n".join(["\t".join(WHOLE), *lines]) + "\n")
    else:
        written(catalogue, rows)
    log = read_log(catalogue, written(tmp_path / "clicks.csv", [at("2024-01-01")]), columns={})
    whole, other = (product.model_dump(include={"brand", "category", "attributes"}) for product in log.products)
    assert whole == {"brand": "Kelto", "category": ("Kitchen", "Ovens"), "attributes": {"noise_db": 34}}
    assert other == {**whole, wrong: type(log.products[0]).model_fields[wrong].get_default(call_default_factory=True)}
    assert [reason for reason in log.skipped if wrong in reason] == list(log.skipped)
    assert log.skipped.total() == 1


def graded(*rows: tuple[float, str, str], columns: Sequence[str] = ("session_id",)) -> list[dict[str, Any]]:
    """Return rows of minutes, grades and what names the shopper."""
    return [
        {**at(round(FIRST_MS + 60_000 * minutes)), "grade": grade, **dict.fromkeys(columns, shopper)}
        for minutes, grade, shopper in rows
    ]


@pytest.mark.parametrize("column", ["session_id", "search_id"])
def test_of_a_shoppers_rows_for_a_product_the_highest_grade_counts_once(column: str, tmp_path: Path) -> None:
    """As in a list: a click that became a purchase is one purchase; another shopper's, or a later one, is another."""
    rows = [(0, "click", "a"), (1, "Purchase", "a"), (2, "cart", "a"), (3, "", "b"), (30, "cart", "a")]
    log = read(tmp_path, graded(*rows, columns=[column]))
    assert [click.value for click in log.clicks] == [10.0, 1.0, 4.0]
    assert not log.skipped


def test_rows_that_name_no_shopper_are_choices_of_their_own(tmp_path: Path) -> None:
    """Nothing tells whose they are; a grade that there is not is counted."""
    log = read(tmp_path, graded((0, "click", ""), (1, "purchase", ""), (2, "wish", "")))
    assert [click.value for click in log.clicks] == [1.0, 10.0]
    assert log.skipped.total() == 1


def test_rows_that_are_repeated_count_once(tmp_path: Path) -> None:
    """Whoever is told the first predicts the second; clicks of one day alone may be of many shoppers."""
    moment, day = at("2024-01-01T10:00:00Z"), at("2024-01-01")
    log = read(tmp_path, [moment, {**moment, "product_id": "P-2"}, moment, day, day])
    assert [click.product for click in log.clicks] == [0, 0, 0, 1]
    told = "1: clicks: the same time, query and product as another; first in the click of 2024-01-01 10:00:00: 'fridge'"
    assert log.skipped.told() == [told]


def test_columns_map_our_names_to_the_files(tmp_path: Path) -> None:
    """An export with names of its own is read once it is said what they are called."""
    clicks = [{"ts": "2024-01-01", "q": "fridge", "sku": "P-1"}]
    log = read(tmp_path, clicks, time="ts", query="q", product_id="sku")
    assert [click.query for click in log.clicks] == ["fridge"]


def test_a_missing_column_names_the_fix(tmp_path: Path) -> None:
    """The error says which column is missing, which there are, and how to map one."""
    with pytest.raises(UsageError) as error:
        read(tmp_path, [{"ts": "2024-01-01", "query": "fridge", "product_id": "P-1"}])
    told = f"{error.value} {error.value.fix}"
    assert "time" in told
    assert "ts" in told
    assert "--columns time=" in told


def test_a_log_of_which_nothing_can_be_used_is_an_error(tmp_path: Path) -> None:
    """No click, no product, or no file: each is told with what to do."""
    with pytest.raises(UsageError):
        read(tmp_path, [at("never")])
    with pytest.raises(UsageError):
        read_log(tmp_path / "missing.csv", tmp_path / "clicks.csv", columns={})
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"product_id,title\n" * 50)[:-12])
    with pytest.raises(UsageError):
        read_log(broken, tmp_path / "clicks.csv", columns={})


def test_what_cannot_be_used_is_told_with_the_first_of_its_kind(tmp_path: Path) -> None:
    """An id that pandas made a number with a point is seen at once, in the error and in what is skipped."""
    bad = {**at("2024-01-01"), "product_id": "1.0"}
    told = "1: clicks: product not in the catalogue; first in line 3: '1.0'"
    assert read(tmp_path, [at("2024-01-01"), bad]).skipped.told() == [told]
    with pytest.raises(UsageError, match=r"holds no click that can be used\n  1: clicks: .*; first in line 2: '1\.0'"):
        read(tmp_path, [bad])


def test_rows_whose_fields_moved_or_whose_letters_are_lost_are_counted(tmp_path: Path) -> None:
    """They count as far as they go, but whoever reads the verdict learns of them."""
    catalogue = tmp_path / "products.csv"
    catalogue.write_bytes("product_id,title,brand\nP-1,Kühlschrank,Kelto\nP-2,oven\n".encode("latin-1"))
    log = read_log(catalogue, written(tmp_path / "clicks.csv", CLICKS), columns={})
    assert [product.product_id for product in log.products] == ["P-1", "P-2"]
    assert [told.split(";")[-1] for told in log.skipped.told()] == [
        " first in line 2: 'K\ufffdhlschrank'", " first in line 3: '2 fields, and the header has 3'",
    ]  # fmt: skip


def test_columns_that_are_not_there_are_told(tmp_path: Path) -> None:
    """A name that is misspelt must not look like a log without sessions."""
    log = read(tmp_path, graded((0, "click", "a")), session_id="visit", grade="grade")
    assert log.unseen == {"visit"}
    with pytest.raises(UsageError, match="there is no sesion_id") as error:
        read(tmp_path, CLICKS, sesion_id="session_id")
    assert "session_id, position" in error.value.fix


def test_clicks_of_one_moment_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Sorting by time moves no click past another of the same time."""
    clicks = [{**at("2024-01-01"), "query": f"q{number}"} for number in range(9)]
    assert [click.query for click in read(tmp_path, clicks).clicks] == [f"q{number}" for number in range(9)]


def test_spellings_of_one_query_are_one(tmp_path: Path) -> None:
    """Case, marks and spaces do not make another query."""
    clicks = [{**at("2024-01-01"), "query": typed} for typed in ("Red Fridge", " red   fridge", "RED FRIDGE!")]
    assert {click.query for click in read(tmp_path, clicks).clicks} == {"red fridge"}


def test_numbers_for_ids_separators_in_texts_and_a_column_of_our_name_mislead_nobody(tmp_path: Path) -> None:
    """An id 0 is an id, U+2028 ends no line, and a column that was named wins over one that is called like ours."""
    products, clicks = tmp_path / "products.jsonl", tmp_path / "clicks.jsonl"
    products.write_text('{"product_id":0,"title":"quiet\u2028fridge"}\n', encoding="utf-8")
    clicks.write_text('{"ts":1795196006,"time":"never","query":"fridge","product_id":0}\n', encoding="utf-8")
    log = read_log(products, clicks, columns={"time": "ts"})
    assert ([product.product_id for product in log.products], len(log.clicks)) == (["0"], 1)
