"""Words in simulations: what search adds to scores, and what it puts first."""

import numpy as np
import pytest

from contracts.catalog import Product
from simulator.words import FIRST_NATS, Words
from towers.lexical import QueryKind
from towers.model import Mix, Rate

PRODUCTS = [
    Product(type="product", product_id=f"P-{number}", version=1, title=title, price=1.0)
    for number, title in enumerate(["quiet fridge", "Kelto KG-36/B fridge", "oven", "quiet oven"])
]
WORDS = Words(PRODUCTS)
NOTHING = np.zeros(4)


def test_words_add_their_share_of_the_best_match() -> None:
    """The best match adds what the mix says, a worse one less, and what shares no word nothing."""
    added = WORDS.ask("quiet fridge").added(NOTHING, Mix(short=Rate(2.0)))
    assert added[0] == added.max() == pytest.approx(2.0)
    assert 0 < added[1] < 2.0
    assert WORDS.ask("toaster").added(NOTHING, Mix()).tolist() == NOTHING.tolist()


@pytest.mark.parametrize(("query", "first"), [("P-2", 2), ("kg 36 b", 1), ("kg36", 1)])
def test_what_a_query_names_goes_first(query: str, first: int) -> None:
    """By its id or model number before any score; by the beginning of one it is found at least."""
    asked = WORDS.ask(query)
    added = asked.added(np.array([9.0, 0.0, 0.0, 9.0]) if query != "kg36" else NOTHING, Mix())
    assert asked.kind is QueryKind.IDENTIFIER
    assert added.argmax() == first
    assert bool(added[first] > FIRST_NATS / 4) is (query != "kg36")


def test_what_many_products_are_called_names_none() -> None:
    """Three cables with a plug may be what is meant by it; of four it is the kind, and scores decide."""
    cables = [
        Product(type="product", product_id=f"C-{number}", version=1, title=f"RJ-45 cable {number}")
        for number in range(4)
    ]
    assert Words(cables[:3]).ask("rj-45").pins.all()
    assert not Words(cables).ask("rj-45").pins.any()


def test_what_does_not_fit_does_not_push_out_what_is_kept() -> None:
    """Going through all queries again and again finds those that came first, however many there are."""
    queries = ["fridge", "quiet", "oven"]
    words = Words(PRODUCTS, kept_bytes=48)
    first = [words.ask(query) for query in queries]
    again = [words.ask(query) for query in queries]
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True, False]
    assert again[2].matches.tolist() == first[2].matches.tolist()
