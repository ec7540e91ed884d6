"""The closing number beside a joined search: what a join writes is read back, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.joined import CLOSING_NUMBER_HEADER, MAX_CLOSING_NUMBER, ClosingNumber, closing_number_of

OFFSETS = st.integers(0, 2**63 - 1)


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
