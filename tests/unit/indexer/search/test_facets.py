"""Facets: what is counted over which filters, how values are written, and what is kept for a while."""

from itertools import pairwise
from typing import Any

import pytest

from contracts.http import Filters, PriceRange
from indexer.filters import price_band
from indexer.search import facets as module
from indexer.search.facets import COUNTED_FOR_S, MOST_RANGES, MOST_VALUES, Facet, Facets, counts_of, price_ranges
from tests.support.hand_clock import HandClock
from tests.support.search_fakes import Store


def counted(name: str, *payloads: dict[str, Any]) -> dict[Any, int]:
    """Return the values of a facet of products as they are shown, with their counts."""
    counts = counts_of(Facet.named(name), payloads)
    return {counts.spelled[key]: count for key, count in counts.products.items()}


def test_spellings_of_one_value_are_one_and_shown_as_most_write_it() -> None:
    """Case, accents and width make no other brand."""
    brands = ["Électra", "ELECTRA", "Électra", "ｅｌｅｃｔｒａ", "Kelto", "", None]
    assert counted("brand", *({"brand": brand} for brand in brands)) == {"Électra": 4, "Kelto": 1}


def test_a_product_counts_once_for_a_value() -> None:
    """However often it says it."""
    twice = {"attributes": {"Colour": "Red", "colour": "RED", "material": "red"}}
    assert list(counted("attributes.colour", twice).values()) == [1]


def test_every_level_of_a_path_is_counted() -> None:
    """So that a page can draw the tree; one label below two parents is two."""
    paths = [["Phones", "Cases"], ["Cameras", "Cases"], ["Phones"]]
    assert counted("category", *({"category": path} for path in paths)) == {
        ("Phones",): 2,
        ("Phones", "Cases"): 1,
        ("Cameras",): 1,
        ("Cameras", "Cases"): 1,
    }


def test_an_attribute_is_not_mistaken_for_another_that_begins_alike() -> None:
    """Names are whole."""
    said = {"attributes": {"width": 1, "width_cm": 2, "wid": 3}}
    assert counted("attributes.width", said) == {1: 1}


def test_yes_and_one_are_two_values() -> None:
    """Python takes them to be equal."""
    said = [{"attributes": {"x": value}} for value in (True, 1, 1.0, "1", False)]
    assert sorted(counts_of(Facet.named("attributes.x"), said).products.values()) == [1, 1, 3]


@pytest.mark.parametrize("products", [0, 1, MOST_RANGES, MOST_RANGES + 1, 60])
def test_price_ranges_hold_every_product_once(products: int) -> None:
    """However many bands there are, they become few ranges that rise and do not overlap."""
    bands = {band: band % 7 + 1 for band in range(products)}
    ranges = price_ranges(bands)
    assert len(ranges) == min(products, MOST_RANGES)
    assert sum(one.count for one in ranges) == sum(bands.values())
    bounds = [(one.value.gte or 0.0, one.value.lt) for one in ranges if isinstance(one.value, PriceRange)]
    assert len(bounds) == len(ranges)
    for (_, before), (begins, _) in pairwise(bounds):
        assert before is not None
        assert before <= begins


@pytest.mark.parametrize("price", [0.0, 0.01, 0.99, 1.0, 1.5, 499.99, 500.0, 7e11, 1e12])
def test_the_range_of_a_price_holds_it(price: float) -> None:
    """As a filter takes it."""
    (found,) = price_ranges({price_band(price): 1})
    bounds = found.value
    assert isinstance(bounds, PriceRange)
    assert (bounds.gte or 0.0) <= price
    assert bounds.lt is None or price < bounds.lt


async def test_counts_are_kept_for_some_seconds_and_spellings_longer() -> None:
    """Facets of one field are one count, and whoever asks again waits for none."""
    store, clock = Store(), HandClock()
    store.facets = {"attributes": {'["a","x"]': 3, '["b","y"]': 2, '["a","z"]': 1}}
    store.products = [{"attributes": {"A": "X", "b": "Y"}}]
    facets = Facets(store, monotonic_s=clock)
    names = ["attributes.a", "attributes.b", "attributes.a"]
    for _ in range(2):
        found = await facets.counted("shop", None, names, Filters())
        # Of what was deleted meanwhile nobody knows the spelling.
        assert {name: [(one.value, one.count) for one in values] for name, values in found.items()} == {
            "attributes.a": [("X", 3)],
            "attributes.b": [("Y", 2)],
        }
    assert store.faceted == [("attributes", Filters())]
    # The product that was found for one said the other, too.
    assert [key for key in store.looked_up if key != '["a","z"]'] == ['["a","x"]']
    clock.now_s += COUNTED_FOR_S + 0.1
    await facets.counted("shop", None, names, Filters())
    assert len(store.faceted) == 2
    assert [key for key in store.looked_up if key != '["a","z"]'] == ['["a","x"]']


async def test_counts_that_are_kept_are_bounded_in_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of filters has counts of its own, each of a thousand keys: those of the oldest go."""
    monkeypatch.setattr(module, "CACHED_KEYS", 25)
    store = Store()
    store.facets = {"brand": {f"brand {number}": 1 for number in range(10)}}
    facets = Facets(store)
    for seller in ("a", "b", "c", "c", "b", "a"):
        await facets.counted("shop", None, ["brand"], Filters(seller=(seller,)))
    asked = [filters.seller for _, filters in store.faceted]
    assert asked == [("a",), ("b",), ("c",), ("a",)]


async def test_the_most_frequent_values_are_told() -> None:
    """And only those are looked up."""
    store = Store()
    store.facets = {"brand": {f"brand {number}": 100 - number for number in range(MOST_VALUES + 5)}}
    store.products = [{"brand": f"Brand {number}"} for number in range(MOST_VALUES + 5)]
    found = await Facets(store).counted("shop", None, ["brand"], Filters())
    assert [one.value for one in found["brand"]] == [f"Brand {number}" for number in range(MOST_VALUES)]
    assert len(store.looked_up) == MOST_VALUES
    assert module.MOST_KEYS > MOST_VALUES
