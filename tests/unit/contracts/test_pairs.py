"""The id of a preference pair: the same everywhere, for ever."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.pairs import RULE_VERSION, pair_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_a_pair_id_is_the_hash_that_the_interfaces_name() -> None:
    """The id is the sha256 of a JSON array, so that no separator inside an id can confuse two pairs."""
    array = '["s1","P-4","सस्ता","click",1]'
    assert pair_id("s1", "P-4", "सस्ता", source="click") == hashlib.sha256(array.encode()).hexdigest()
    assert len(pair_id("s1", "P-4", "P-1", source="click")) == 64
    assert RULE_VERSION == 1


@pytest.mark.parametrize(
    "other",
    [
        pair_id("s2", "P-4", "P-1", source="click"),
        pair_id("s1", "P-1", "P-4", source="click"),
        pair_id("s1", "P-4", "P-1", source="value"),
        pair_id("s1", "P-4", "P-1", source="click", rule_version=2),
        pair_id("s1,P-4", "", "P-1", source="click"),
    ],
)
def test_whatever_makes_a_pair_another_changes_its_id(other: str) -> None:
    """Search, order of the products, source and rules each belong to the identity."""
    assert other != pair_id("s1", "P-4", "P-1", source="click")


@given(TEXT, TEXT, TEXT)
def test_any_ids_give_the_id_of_their_json_array(search_id: str, chosen: str, rejected: str) -> None:
    """Quotes, control characters and every script go through JSON's own escaping."""
    array = json.dumps([search_id, chosen, rejected, "click", 1], separators=(",", ":"), ensure_ascii=False)
    assert pair_id(search_id, chosen, rejected, source="click") == hashlib.sha256(array.encode()).hexdigest()
