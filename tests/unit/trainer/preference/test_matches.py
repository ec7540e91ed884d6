"""What the learner knows of words: the very nats that search adds, cell by cell, however the cells lie."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from contracts.catalog import PointPayload
from tests.support.planted_shop import cells_of
from tests.support.tiny_encoder import WORDS
from towers.lexical import Sparse, read_query, word_vector
from towers.model import Mix, Rate
from towers.word_index import WordIndex
from trainer.preference.evidence import Cells
from trainer.preference.matches import WordMatches
from trainer.preference.model import rates_of

TITLES = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[6:10]]
PRODUCTS = [word_vector("", PointPayload.model_construct(title=title)) for title in TITLES]


def matches_of(products: Sequence[Sparse]) -> WordMatches:
    """Return what the words of a catalogue say."""
    index = WordIndex(products)
    return WordMatches(lambda: index, index.counts)


QUERIES = [WORDS[0], f"{WORDS[1]} {WORDS[7]}", f"{WORDS[2]} {WORDS[3]} {WORDS[8]} nonsense", "kg36b", "nonsense", ""]
MIX = Mix(Rate(4.0, 1.0, 10.0), Rate(2.5, 0.5, 10.0), Rate(3.0, -1.0, 20.0))


def every_cell(*, width: int = 0) -> Cells:
    """Return a cell of each query and product, in a grid if they have a width."""
    rows = [(query, product, 1.0, 1.0) for query in range(len(QUERIES)) for product in range(len(TITLES))]
    cells = cells_of(rows)
    return replace(cells, width=width)


@pytest.mark.parametrize("width", [0, len(TITLES)])
def test_a_cell_adds_what_search_adds(width: int) -> None:
    """Shares of the best match, times the rates of the query's kind by the strength of that match."""
    index = WordIndex(PRODUCTS)
    found = matches_of(PRODUCTS).of(every_cell(width=width), QUERIES, PRODUCTS)
    nats = found.shares * np.repeat(found.strengths @ rates_of(MIX), len(TITLES))
    for number, text in enumerate(QUERIES):
        query = read_query(text)
        served = MIX.nats(query.kind, index.scores(query.words).tolist())
        assert nats[number * len(TITLES) :][: len(TITLES)] == pytest.approx(served, abs=1e-6)
    assert nats.any()


def test_a_grid_has_the_same_matches() -> None:
    """Of all pairs of queries and products, without any evidence."""
    matches = matches_of(PRODUCTS)
    cells, grid = matches.of(every_cell(), QUERIES, PRODUCTS), matches.grid(QUERIES, PRODUCTS)
    assert grid.shares.reshape(-1) == pytest.approx(cells.shares)
    assert grid.strengths.tolist() == cells.strengths.tolist()


def test_a_product_that_is_newer_than_the_index_is_at_most_the_best() -> None:
    """It may match better than all that were counted: then it is the best itself."""
    matches = matches_of(PRODUCTS[8:])
    found = matches.of(every_cell(), QUERIES, PRODUCTS)
    assert found.shares.max() == 1.0
    assert found.shares[: len(TITLES)].max() == 1.0


def test_nothing_matches_in_an_empty_catalogue() -> None:
    """Neither cells nor products: nothing fails."""
    assert matches_of([]).of(cells_of([]), [], []).shares.shape == (0,)
    assert matches_of([]).grid(QUERIES, []).shares.shape == (len(QUERIES), 0)


def test_a_query_is_asked_once_however_many_there_are() -> None:
    """Every problem of a cut goes through all queries in turn: none of them is read or looked up twice."""
    index, asked = WordIndex(PRODUCTS), list[int]()

    def given() -> WordIndex:
        asked.append(1)
        return index

    matches = WordMatches(given, index.counts)
    for _ in range(3):
        matches.of(every_cell(), QUERIES, PRODUCTS)
    assert len(asked) == 1
    matches.keep(QUERIES[:2])
    assert set(matches.best) == set(QUERIES[:2])
    matches.recount(WordIndex(PRODUCTS[:3]).counts)
    assert not matches.best
