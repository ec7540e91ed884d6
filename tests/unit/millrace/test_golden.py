"""`millrace golden`: which lines can be used, what an import sends, and what is listed."""

from pathlib import Path

import pytest

from contracts import wire
from contracts.errors import CheckFailed, UsageError
from contracts.golden import MAX_GOLDEN_QUERIES, MAX_JUDGMENTS, GoldenQuery, Judgment
from millrace.golden import (
    GoldenFile,
    golden_report,
    golden_table,
    has_one_grade,
    import_words,
    keys_of,
    plan_import,
    read_file,
    run_import,
)
from service.settings import Settings


def written(path: Path, *lines: str, header: str = "query,product_id,grade") -> Path:
    """Write a CSV file."""
    path.write_text("\n".join((header, *lines)), encoding="utf-8")
    return path


def read(path: Path, columns: dict[str, str] | None = None, author: str = "") -> GoldenFile:
    """Read a file."""
    return read_file(path, columns or {}, {"author": author} if author else {}, lambda _done, _of: None)


def golden(query: str, **grades: int) -> GoldenQuery:
    """Return a golden query of grades by product."""
    return GoldenQuery(
        query=query, judgments=tuple(Judgment(product_id=name, grade=grade) for name, grade in grades.items())
    )


def test_the_judgments_of_a_query_come_together_however_it_is_spelled(tmp_path: Path) -> None:
    """Keyed by the normalised query, in the order of products; a table's other columns are left out."""
    path = written(
        tmp_path / "golden.csv",
        "Quiet  fridge,P-2,0,ann,too loud,x",
        "kettle,P-9,3.0,,,x",
        "quiet FRIDGE!,P-1,4,,,x",
        header="search,sku,grade,author,note,margin",
    )
    found = read(path, {"query": "search", "product_id": "sku"}, author="merch")
    assert (found.bad, found.judgments) == ([], 3)
    assert [(key, query.query) for key, query in found.queries.items()] == [
        (b"quiet fridge", "Quiet  fridge"),
        (b"kettle", "kettle"),
    ]
    assert found.queries[b"quiet fridge"].judgments == (
        Judgment(product_id="P-1", grade=4, author="merch"),
        Judgment(product_id="P-2", grade=0, author="ann", note="too loud"),
    )
    assert found.queries[b"kettle"].judgments == (Judgment(product_id="P-9", grade=3, author="merch"),)


def test_blanks_around_a_field_are_none_of_it(tmp_path: Path) -> None:
    """The judgment of `P-1 ` would be of no product of the catalogue."""
    found = read(written(tmp_path / "golden.csv", " fridge ; P-1 ; 4 ", header="query; product_id ;grade"))
    assert found.queries == {b"fridge": golden("fridge", **{"P-1": 4})}


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        ("fridge,P-2,5", "out_of_range", "grade"),
        ("fridge,P-2,good", "wrong_type", "grade"),
        ("fridge,P-2,2.5", "wrong_type", "grade"),
        ("fridge,P-2,", "missing", "grade"),
        ("fridge,,4", "missing", "product_id"),
        ("FRIDGE,P-1,0", "repeated", "product_id"),
        ("??,P-2,4", "blank", "query"),
        ("fridge,P-2", "columns", None),
    ],
)
def test_a_line_that_is_no_judgment_says_why(tmp_path: Path, line: str, reason: str, field: str | None) -> None:
    """The whole file is read, so that all bad lines are told at once; the others can be used."""
    found = read(written(tmp_path / "golden.csv", "fridge,P-1,4", line, "kettle,P-3,1"))
    assert [(one.line, one.reason, one.field) for one in found.bad] == [(3, reason, field)]
    assert found.bad[0].message
    assert set(found.queries) == {b"fridge", b"kettle"}


def test_a_column_that_is_misspelt_is_told(tmp_path: Path) -> None:
    """It would be left out of every line; a line of JSON names its own."""
    path = written(tmp_path / "golden.csv", "fridge,P-1,4,ann", header="query,product_id,grade,by")
    assert read(path, {"author": "by"}).bad == []
    with pytest.raises(UsageError, match="there is no writer"):
        read(path, {"writer": "by"})
    with pytest.raises(UsageError, match="no column author"):
        read(path, {"author": "from"})
    path.write_text('{"query": "fridge", "product_id": "P-1", "grade": 4}\n', encoding="utf-8")
    assert read(path, {"author": "by"}).bad == []


def test_a_query_has_at_most_200_products(tmp_path: Path) -> None:
    """The lines beyond are bad: nobody would know which of them were left out."""
    lines = [f"fridge,P-{number},{number % 5}" for number in range(MAX_JUDGMENTS + 2)]
    found = read(written(tmp_path / "golden.csv", *lines))
    assert [(one.line, one.reason) for one in found.bad] == [
        (MAX_JUDGMENTS + 2, "too_many"),
        (MAX_JUDGMENTS + 3, "too_many"),
    ]


def test_json_lines_are_read_as_well_and_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    """Null is absent, so that the default holds; what a column is called is said in the error of the first line."""
    path = tmp_path / "golden.jsonl"
    path.write_text('{"query": "fridge", "product_id": "P-1", "grade": 4, "shop": 7}\n', encoding="utf-8")
    assert read(path).queries == {b"fridge": golden("fridge", **{"P-1": 4})}
    path.write_text('{"query": "fridge", "product_id": "P-1", "grade": 4, "author": null}\n', encoding="utf-8")
    (judgment,) = read(path, author="merch").queries[b"fridge"].judgments
    assert judgment.author == "merch"
    path.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no judgment"):
        read(path)
    with pytest.raises(UsageError, match="no column grade"):
        read(written(tmp_path / "golden.csv", "fridge,P-1", header="query,product_id"))


KNOWN = {
    b"fridge": golden("fridge", a=4, b=0),
    b"kettle": golden("kettle", c=3, d=1),
    b"oven": golden("oven", e=2),
    b"broken": None,
}


def test_an_import_sends_what_is_new_or_has_changed() -> None:
    """A query gets the judgments of the file alone; those that are gone by it are counted, and other queries stay."""
    wanted = {
        b"fridge": golden("fridge", a=4, b=0),
        b"kettle": golden("kettle", c=2),
        b"mixer": golden("mixer", f=1),
        b"broken": golden("broken", g=1),
    }
    plan = plan_import(KNOWN, wanted, replace=False)
    assert plan.queries == {"new": 1, "changed": 2, "unchanged": 1, "removed": 0}
    assert plan.judgments_removed == 1
    assert plan.values == {key: wire.encode(query) for key, query in wanted.items() if key != b"fridge"}
    replaced = plan_import(KNOWN, wanted, replace=True)
    assert replaced.values == plan.values | {b"oven": None}
    assert (replaced.queries["removed"], replaced.judgments_removed) == (1, 2)
    assert plan_import(wanted, wanted, replace=True).values == {}


def test_a_query_that_was_kept_under_another_form_of_its_accents_is_the_same_query() -> None:
    """It is sent under the key of now and removed under the former one; a list shows it once."""
    former, key = "the\u0301".encode(), "th\u00e9".encode()
    known = {former: golden("the\u0301", a=4, b=1)}
    wanted = {key: golden("th\u00e9", a=4)}
    plan = plan_import(known, wanted, replace=True)
    assert plan.queries == {"new": 0, "changed": 1, "unchanged": 0, "removed": 0}
    assert list(plan.values.items()) == [(former, None), (key, wire.encode(wanted[key]))]
    assert plan.judgments_removed == 1
    both = plan_import(known | wanted, wanted, replace=False)
    assert (both.queries["unchanged"], both.values, both.judgments_removed) == (1, {former: None}, 0)
    assert [one["judgments"] for one in golden_report(known | wanted)["queries"]] == [1]
    assert [one["judgments"] for one in golden_report(known)["queries"]] == [2]
    assert keys_of(known | wanted, "The\u0301!") == {former, key}
    assert keys_of({b"\xff": None}, "?!") == set()
    assert keys_of({b"?!": None}, "?!") == {b"?!"}


def test_more_queries_than_a_trainer_takes_are_refused() -> None:
    """Those on the topic count, unless they are replaced."""
    wanted = {f"q{number}".encode(): golden("q", a=1) for number in range(MAX_GOLDEN_QUERIES)}
    with pytest.raises(CheckFailed, match="2,004 golden queries"):
        plan_import(KNOWN, wanted, replace=False)
    assert plan_import(KNOWN, wanted, replace=True).queries["new"] == MAX_GOLDEN_QUERIES


def test_without_kafka_a_dry_run_checks_the_file_alone(tmp_path: Path) -> None:
    """Nothing is compared, and the report says so; queries of one grade are counted."""
    path = written(tmp_path / "golden.csv", "fridge,P-1,4", "fridge,P-2,0", "kettle,P-3,3")
    report = run_import(Settings(), path, {}, lambda _what, _done, _of: None, dry_run=True)
    assert (report["lines"], report["used"], report["compared"], report["one_grade"]) == (3, 3, False, 1)
    assert import_words(report) == "3 lines: 3 judgments, 0 bad; nothing was compared or sent."


def test_a_list_says_what_nothing_can_be_measured_by() -> None:
    """A query of one grade is marked, and what cannot be read is named."""
    report = golden_report(KNOWN)
    assert [(one["query"], one["judgments"], one["one_grade"]) for one in report["queries"]] == [
        ("fridge", 2, False),
        ("kettle", 2, False),
        ("oven", 1, True),
    ]
    assert report["queries"][0]["grades"] == {"0": 1, "1": 0, "2": 0, "3": 0, "4": 1}
    assert report["malformed"] == ["broken"]
    assert golden_table(report).row_count == 3
    assert has_one_grade(golden("oven", a=0, b=0))
