"""What a joined search carries beside the shopper's doings, and the closing number beside it.

What a shop adds to its events passes on, but for addresses of persons and what is too much. A closing number is what a
join writes, and nothing else is taken for one.
"""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import wire
from contracts.joined import (
    CLOSING_NUMBER_HEADER,
    MAX_CLOSING_NUMBER,
    UNKNOWN_FIELDS_BYTES,
    ClosingNumber,
    JoinedSearch,
    closing_number_of,
    is_personal,
    passed_on,
)
from contracts.messages import MESSAGE_BY_NAME

OFFSETS = st.integers(0, 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "fields",
    [
        {"email": "x"}, {"E-Mail": 1}, {"userEmail": None}, {"emailAddress": ""}, {"ip": "x"}, {"clientIp": "x"},
        {"client_ip": "x"}, {"IPv6": "x"}, {"remote_addr": "x"}, {"X-Forwarded-For": "x"}, {"phone": 1},
        {"phoneNumber": 1}, {"mobile": "98765"}, {"user_agent": "x"}, {"userAgent": "x"}, {"USER-AGENT": "x"},
        {"contact": {"by": [{"telephone": 1}]}}, {"ref": "ann@example.com"}, {"ref": "to ann@example.com, please"},
        {"url": "https://shop.example/?who=ann%40example.com"}, {"from": "203.0.113.7"}, {"from": ["x, 1.2.3.4"]},
        {"from": "2001:db8::1"}, {"from": "[::1]:443"}, {"from": "::ffff:203.0.113.7"}, {"call": "+91 98765 43210"},
        {"call": "(+44) 20-7946-0958"}, {"ann@example.com": 1}, {"deep": {"203.0.113.7": {"a": 1}}},
    ],
    ids=str,
)  # fmt: skip
def test_an_address_of_a_person_stays_behind(fields: dict[str, Any]) -> None:
    """By its name or by its looks, at any depth; what stands beside it passes on."""
    assert is_personal(fields)
    assert passed_on({**fields, "campaign": "diwali"}) == {"campaign": "diwali"}


@pytest.mark.parametrize(
    "fields",
    [
        {"campaign": "diwali"}, {"ab": {"test": "b", "bucket": 7}}, {"xy": [12, 400]}, {"trip": 1}, {"ship": "free"},
        {"theme": "dark"}, {"version": "120.0.6099.1"},
        {"at": "10:20:30"}, {"when": "2026-11-28T19:25:00+05:30"}, {"ms": "1795196006756"}, {"ean": "0012345678905"},
        {"ratio": "16:9"}, {"path": "a@b"}, {"price": "+5"}, {"hash": "d41d8cd98f00b204e9800998ecf8427e"}, {"n": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_nobodys_address_passes_on(fields: dict[str, Any]) -> None:
    """Campaigns, experiments, coordinates, times, versions and article numbers are what shops add."""
    assert passed_on(fields) == fields


def test_names_of_a_joined_search_are_not_taken_over() -> None:
    """No event can write over what the join says, nor pose as a field that a click does not have."""
    taken = dict.fromkeys(JoinedSearch.model_fields, "x")
    assert passed_on({**taken, "campaign": 1}) == {"campaign": 1}


def test_the_cap_holds_and_the_order_of_fields_does_not_matter() -> None:
    """Fields are taken in the order of their names while they fit; a large one does not keep a small one out."""
    fields = {"c": "x" * 60, "a": "x" * 60, "b": "x" * 400, "d": 1}
    kept = passed_on(fields, limit_bytes=150)
    assert kept == {"a": fields["a"], "c": fields["c"], "d": 1}
    assert orjson.dumps(kept) == orjson.dumps(passed_on(dict(reversed(fields.items())), limit_bytes=150))
    assert len(orjson.dumps(kept)) <= 150


def deep(levels: int) -> Any:
    """Return a list inside a list, so many levels deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(20), deep(300), deep(5_000), "\ud83d", {"\ud83d": 1}, 2**64, "x" * 5_000])
def test_what_json_cannot_carry_or_nobody_can_check_stays_behind(value: Any) -> None:
    """Nesting without end, halves of emoji and giant numbers break neither the rule nor the joined search."""
    assert passed_on({"odd": value, "campaign": 1}) == {"campaign": 1}


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=6))
def test_whatever_passes_on_is_read_again_and_fits(unknown: dict[str, Any]) -> None:
    """A joined search with what passed on is one, with the same unknown fields, within the cap."""
    kept = passed_on(unknown)
    assert all(kept[name] is unknown[name] for name in kept)
    written = orjson.dumps(kept)
    assert len(written) <= UNKNOWN_FIELDS_BYTES
    base = b'{"search_id":"s","search_time":1795196006756,"closed_at":1795196006756,"query":"q","slots":[]'
    joined = wire.decode(base + b"," + written[1:] if kept else base + b"}", MESSAGE_BY_NAME["joined_search"].contract)
    assert set(joined.model_extra) <= set(kept)


@given(
    partition=st.integers(0, 2**31 - 1),
    offset=OFFSETS,
    begun_ms=st.none() | st.integers(0, 2**52),
    number=st.integers(1, MAX_CLOSING_NUMBER),
)
def test_what_a_join_writes_is_read_back(partition: int, offset: int, begun_ms: int | None, number: int) -> None:
    """Every partition, offset and time that Kafka can have fits."""
    join = f"{partition}-{offset}" + ("" if begun_ms is None else f"-{begun_ms}")
    closing = ClosingNumber(join, number)
    assert closing_number_of([("other", None), (CLOSING_NUMBER_HEADER, closing.encode())]) == closing


@given(value=st.none() | st.binary(max_size=60) | st.from_regex(rb"[0-9:-]{0,60}", fullmatch=True))
def test_no_value_breaks_a_reader(value: bytes | None) -> None:
    """Anyone may write the header: it is a number as a join writes it, or none."""
    closing = closing_number_of([(CLOSING_NUMBER_HEADER, value)])
    if closing is not None:
        assert closing.encode() == value
        assert 1 <= closing.number <= MAX_CLOSING_NUMBER


@pytest.mark.parametrize("headers", [[], [("millrace.closed_at_ms", b"2-0:17")]])
def test_a_record_without_the_header_has_no_number(headers: list[tuple[str, bytes | None]]) -> None:
    """Somebody else wrote it."""
    assert closing_number_of(headers) is None
