"""Golden queries as the topic has them: the newest of each key, bounded, and what cannot be read is told."""

from itertools import permutations

import pytest
from structlog.testing import capture_logs

from contracts import wire
from contracts.golden import GoldenQuery, Judgment
from trainer.adapters.golden import GoldenTable


def record(query: str, grade: int = 4) -> tuple[bytes, bytes]:
    """Return a query's record."""
    message = GoldenQuery(query=query, judgments=(Judgment(product_id="P-1", grade=grade),))
    return query.encode(), wire.encode(message)


def test_the_newest_record_of_a_query_holds_and_a_null_removes_it() -> None:
    """A mapping that was looked at never changes: who compares it with the next one sees that something did."""
    table = GoldenTable()
    table.on_record(*record("kettle"), 0)
    table.on_record(*record("fridge"), 0)
    before = table.look()
    table.on_record(*record("fridge", 2), 0)
    table.on_record(b"kettle", None, 0)
    assert {key: query.judgments[0].grade for key, query in table.look().items()} == {"fridge": 2}
    assert set(before) == {"fridge", "kettle"}
    table.forget()
    assert table.look() == {}


@pytest.mark.parametrize("value", [b"{}", b"no json"])
def test_a_record_that_breaks_the_contract_is_told_and_changes_nothing(value: bytes) -> None:
    """One slip must not end the trainer; the query's text, which is nobody's business, is not in the log."""
    table = GoldenTable()
    table.on_record(*record("fridge"), 0)
    with capture_logs() as lines:
        table.on_record(b"fridge", value, 0)
        table.on_record(b"\xff", None, 0)
    assert set(table.look()) == {"fridge"}
    assert [line["event"] for line in lines] == ["golden_query_unreadable"] * 2
    assert "fridge" not in str(lines)


@pytest.mark.parametrize("order", list(permutations(["a", "b", "c"])))
def test_the_same_queries_are_kept_whatever_the_order_of_arrival(order: tuple[str, ...]) -> None:
    """Beyond the bound the rest is told in one warning."""
    table = GoldenTable(most=2)
    with capture_logs() as lines:
        for query in (*order, *order):
            table.on_record(*record(query), 0)
    assert set(table.look()) == {"a", "b"}
    assert [(line["event"], line["most"]) for line in lines] == [("golden_queries_left_out", 2)]


@pytest.mark.parametrize("order", list(permutations(["th\u00e9", "the\u0301", "tea"])))
def test_a_query_is_measured_once_however_its_accents_are_encoded(order: tuple[str, ...]) -> None:
    """Keys of before told them apart: in any order the key of now holds, and what removes another one leaves it."""
    table = GoldenTable(most=2)
    for query in order:
        table.on_record(*record(query), 0)
    assert set(table.look()) == {"th\u00e9", "tea"}
    table.on_record("the\u0301".encode(), None, 0)
    assert set(table.look()) == {"th\u00e9", "tea"}
    alone = GoldenTable()
    alone.on_record(*record("the\u0301"), 0)
    assert len(alone.look()) == 1
