"""What nobody reads in a record must not decide what becomes of it."""

from typing import Any

import orjson
import pytest

from streams.agents import joined_search, shop_events
from tests.support.search_events import T0, click

JOINED = {"search_id": "s1", "search_time": T0, "closed_at": T0, "query": "q", "slots": []}


@pytest.mark.parametrize("depth", [10, 900])
@pytest.mark.parametrize(("read", "record"), [(shop_events.decode, click()), (joined_search.decode, JOINED)])
def test_deep_nesting_in_an_unknown_field_stops_nobody(read: Any, record: dict[str, Any], depth: int) -> None:
    """A record that only the contract accepts is taken, however deep a field is that we do not know."""
    nested = b"[" * depth + b"]" * depth
    value = orjson.dumps({**record, "schema_version": 1.0})[:-1] + b',"extra":' + nested + b"}"
    assert read(value).search_id == "s1"
