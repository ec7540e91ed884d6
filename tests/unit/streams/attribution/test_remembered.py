"""What is kept of pairs and lists for a later purchase, and what is not."""

from typing import Any

import msgspec
import orjson
import pytest

from contracts.wire import encode
from streams.agents.spec import Plan, SetAside
from streams.attribution.remembered import (
    HORIZON_MS,
    ChosenProduct,
    ChosenProducts,
    ClicksOfSessions,
    Content,
    KeptPair,
    Remembering,
    SessionClick,
    SessionClicks,
    kept_pair,
    query_hash,
)
from tests.support.pairs import CLICKED_MS, preference_pair
from tests.support.search_events import T0, Record


def run(rules: Remembering, *values: bytes) -> tuple[list[Content], dict[str, int]]:
    """Feed a log; return what is to be remembered, and the counts."""
    plan: Plan = []
    for offset, value in enumerate(values):
        rules.take(Record(offset, T0 + offset, value), plan)
    assert plan == []
    return rules.to_keep, rules.progress().counts


def joined(*slots: dict[str, Any], **fields: Any) -> bytes:
    """Return a joined search of a session."""
    listed = [{"product_id": f"p{number}", "position": number, **slot} for number, slot in enumerate(slots, start=1)]
    message = {"search_id": "s1", "search_time": T0, "closed_at": T0 + 9, "query": "q", "session_id": "k1"}
    return orjson.dumps({**message, "slots": listed, **fields})


def test_of_a_click_pair_is_kept_what_a_value_pair_needs() -> None:
    """With its grade, and until when a purchase belongs to it."""
    pair = preference_pair("s1", chosen="a", rejected="b")
    contents, counts = run(ChosenProducts(0), encode(pair))
    assert contents == [ChosenProduct("s1", "a", 1, CLICKED_MS + HORIZON_MS, kept_pair(pair))]
    assert counts == {"kept": 1}


@pytest.mark.parametrize("source", ["value", "rule", "curated"])
def test_pairs_that_no_click_made_are_left(source: Any) -> None:
    """What attribution itself wrote, for one, raises nothing."""
    assert run(ChosenProducts(0), encode(preference_pair(source=source))) == ([], {"left/other_source": 1})


def test_what_is_kept_of_a_pair_is_small_and_reads_back() -> None:
    """Redis holds a day of pairs."""
    kept = kept_pair(preference_pair(query="quiet fridge"))
    packed = msgspec.msgpack.encode(kept)
    assert len(packed) < 150
    assert msgspec.msgpack.decode(packed, type=KeptPair) == kept


def test_of_a_list_its_clicks_are_kept_for_the_session() -> None:
    """What was put into the cart without a reported click counts as one, at the time of the list."""
    value = joined({}, {"clicked": True, "click_time": T0 + 5}, {"cart_quantity": 1})
    query = query_hash("Q!")
    clicks = (SessionClick(T0 + 5, "p2", "s1", query), SessionClick(T0, "p3", "s1", query))
    assert run(ClicksOfSessions(0), value) == ([SessionClicks("k1", clicks)], {"kept": 1})
    shelf = joined({"clicked": True}, query=" ")
    assert run(ClicksOfSessions(0), shelf)[0] == [SessionClicks("k1", (SessionClick(T0, "p1", "s1", ""),))]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (joined({}), "no_click"),
        (joined({"clicked": True}, session_id=None), "no_session"),
        (joined({"clicked": True}, synthetic=True), "synthetic"),
        (joined({"clicked": True}, consent="denied"), "consent"),
    ],
)
def test_of_other_lists_nothing_is_kept(value: bytes, reason: str) -> None:
    """Each with its reason; a shopper who did not agree is not remembered."""
    assert run(ClicksOfSessions(0), value) == ([], {f"left/{reason}": 1})


def test_what_is_malformed_is_a_dead_letter_and_time_goes_on() -> None:
    """The clock of a partition is that of its newest record, whatever it holds."""
    rules, plan = ChosenProducts(0), Plan()
    rules.take(Record(0, T0 + 7, None), plan)
    assert [type(one) for one in plan] == [SetAside]
    assert (rules.newest_append_ms, rules.progress().counts) == (T0 + 7, {"dead_lettered": 1})
