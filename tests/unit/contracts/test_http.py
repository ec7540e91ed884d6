"""Requests over HTTP follow the rules of messages."""

import pytest
from pydantic import ValidationError

from contracts.http import SearchRequest


def test_null_in_a_search_means_absent() -> None:
    """A client that writes every field of its own form gets the defaults, filters included."""
    given = {name: None for name in SearchRequest.model_fields if name != "query"}
    assert SearchRequest.model_validate({"query": "fridge", **given}) == SearchRequest(query="fridge")
    filters = {"brand": None, "price": {"gte": None, "lte": 500}, "attributes": {"colour": None, "new": [True]}}
    read = SearchRequest.model_validate({"query": "fridge", "filters": filters})
    assert (read.filters.brand, read.filters.price and read.filters.price.lte) == (None, 500)
    assert read.filters.attributes == {"new": (True,)}


@pytest.mark.parametrize("name", ["query", "colour"])
def test_what_is_needed_or_unknown_is_still_refused(name: str) -> None:
    """Null does not stand for a query, and a field that nobody knows is a mistake of the client."""
    with pytest.raises(ValidationError):
        SearchRequest.model_validate({"query": "fridge", name: None} if name == "query" else {"query": "", name: 1})


def test_filters_take_what_the_catalogue_takes() -> None:
    """The longest brand and category of a product can be searched for."""
    filters = {"brand": ["b" * 256], "category": "c" * 256}
    assert SearchRequest.model_validate({"query": "", "filters": filters}).filters.category == "c" * 256
