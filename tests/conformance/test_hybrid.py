"""Words beside meaning, in one request: what every vector store must do alike with sparse and dense vectors."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.conformance.conftest import Backend
from towers.lexical import Sparse
from towers.word_index import WordIndex

pytestmark = pytest.mark.qdrant

PRODUCTS = 2_000
DIM = 16
Catalogue = tuple[QdrantClient, str]
RANDOM = np.random.default_rng(7)
DENSE = RANDOM.normal(size=(PRODUCTS, DIM)).astype(np.float32)
QUERY = RANDOM.normal(size=DIM).astype(np.float32)


def _random_words(terms: int) -> Sparse:
    """Terms as frequent as words are, with values between 0.5 and 1.5."""
    indices = np.unique(np.minimum(RANDOM.zipf(1.3, terms), 3_000)).astype(np.uint32)
    return Sparse(indices, RANDOM.uniform(0.5, 1.5, len(indices)).astype(np.float32))


WORDS = [_random_words(12) for _ in range(PRODUCTS)]
ASKED = Sparse(np.array([2, 5, 40, 90, 2_999], np.uint32), np.ones(5, np.float32))


def as_model(vector: Sparse) -> models.SparseVector:
    """A sparse vector as the client takes it."""
    return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


@pytest.fixture(scope="module")
def catalogue(backend: Backend) -> Iterator[Catalogue]:
    """A collection of products with both kinds of vectors and an indexed colour; tests only read it."""
    client, name = backend.client, f"conformance-{uuid.uuid4().hex[:12]}"
    client.create_collection(
        name,
        vectors_config={"product": models.VectorParams(size=DIM, distance=models.Distance.DOT)},
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    if backend.url:
        client.create_payload_index(name, "colour", models.PayloadSchemaType.KEYWORD)
    for begin in range(0, PRODUCTS, 250):
        points = [
            models.PointStruct(
                id=number,
                vector={"product": DENSE[number].tolist(), "words": as_model(WORDS[number])},
                payload={"colour": ("red", "green", "blue")[number % 3]},
            )
            for number in range(begin, begin + 250)
        ]
        client.upsert(name, points, wait=True)
    yield client, name
    client.delete_collection(name)


LEXICAL = WordIndex(WORDS).scores(ASKED)
MEANING = DENSE @ QUERY


def by_meaning(limit: int, chosen: models.Filter | None = None) -> models.Prefetch:
    """The dense arm."""
    return models.Prefetch(query=QUERY.tolist(), using="product", limit=limit, filter=chosen)


def by_words(limit: int, chosen: models.Filter | None = None) -> models.Prefetch:
    """The lexical arm."""
    return models.Prefetch(query=as_model(ASKED), using="words", limit=limit, filter=chosen)


def best(scores: np.ndarray, limit: int) -> list[int]:
    """The products with the highest scores, in order."""
    return [int(place) for place in np.argsort(-scores, kind="stable")[:limit]]


def test_words_are_scored_with_the_stores_idf(catalogue: Catalogue) -> None:
    """A sparse query gives what `towers.lexical` computes, best first, and nothing that shares no term."""
    client, name = catalogue
    hits = client.query_points(name, query=as_model(ASKED), using="words", limit=PRODUCTS).points
    assert {hit.id for hit in hits} == set(np.flatnonzero(LEXICAL).tolist())
    scores = np.array([hit.score for hit in hits])
    assert scores == pytest.approx(LEXICAL[np.array([hit.id for hit in hits], int)], rel=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_sparse_vectors_come_back_as_written(catalogue: Catalogue) -> None:
    """Retrieve and scroll give them, sorted by index, by name or all."""
    client, name = catalogue
    (record,) = client.retrieve(name, [3], with_vectors=["words"])
    assert record.vector == {"words": as_model(WORDS[3])}
    records, _ = client.scroll(name, limit=2, with_vectors=True)
    vectors = [record.vector for record in records if isinstance(record.vector, dict)]
    assert [vector["words"] for vector in vectors] == [as_model(WORDS[0]), as_model(WORDS[1])]
    assert set(vectors[0]) == {"product", "words"}


def test_union_of_two_prefetches_is_rescored_exactly(catalogue: Catalogue) -> None:
    """One batch gives both scores of all that either arm found; what it does not give shares no term."""
    client, name = catalogue
    arms = [by_meaning(50), by_words(50)]
    requests = [
        models.QueryRequest(prefetch=arms, query=QUERY.tolist(), using="product", limit=100),
        models.QueryRequest(prefetch=arms, query=as_model(ASKED), using="words", limit=100),
    ]
    meaning, words = (
        {hit.id: hit.score for hit in found.points} for found in client.query_batch_points(name, requests)
    )
    candidates = {*best(MEANING, 50), *best(LEXICAL, 50)}
    assert set(meaning) == candidates
    assert set(words) == {number for number in candidates if LEXICAL[number] > 0}
    mixed = {number: 10 * meaning[number] + 0.7 * words.get(number, 0.0) for number in meaning}
    assert mixed == pytest.approx({n: 10 * MEANING[n] + 0.7 * LEXICAL[n] for n in candidates}, rel=1e-4)


def test_formula_mixes_two_arms(catalogue: Catalogue) -> None:
    """One query gives the best of 10 * meaning + 0.7 * words over the union; an absent score counts 0."""
    client, name = catalogue
    arms = [by_meaning(50), by_words(50)]
    scored = [
        models.Prefetch(prefetch=arms, query=QUERY.tolist(), using="product", limit=100),
        models.Prefetch(prefetch=arms, query=as_model(ASKED), using="words", limit=100),
    ]
    mix = [models.MultExpression(mult=[10.0, "$score[0]"]), models.MultExpression(mult=[0.7, "$score[1]"])]
    formula = models.FormulaQuery(formula=models.SumExpression(sum=mix), defaults={"$score[1]": 0.0})
    hits = client.query_points(name, prefetch=scored, query=formula, limit=20).points
    candidates = np.array(sorted({*best(MEANING, 50), *best(LEXICAL, 50)}))
    mixed = 10 * MEANING[candidates] + 0.7 * LEXICAL[candidates]
    assert [hit.id for hit in hits] == candidates[best(mixed, 20)].tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(mixed)[::-1][:20].tolist(), rel=1e-4)


def test_each_prefetch_has_its_own_filter(catalogue: Catalogue) -> None:
    """Filters stay inside their arm, also in a nested one."""
    client, name = catalogue
    red, blue = (
        models.Filter(must=[models.FieldCondition(key="colour", match=models.MatchValue(value=colour))])
        for colour in ("red", "blue")
    )
    nested = models.Prefetch(prefetch=by_words(10, blue), query=QUERY.tolist(), using="product", limit=5)
    hits = client.query_points(
        name, prefetch=[by_meaning(5, red), nested], query=QUERY.tolist(), using="product"
    ).points
    numbers = np.arange(PRODUCTS)
    reds = best(np.where(numbers % 3 == 0, MEANING, -np.inf), 5)
    found = best(np.where(numbers % 3 == 2, LEXICAL, -np.inf), 10)
    blues = sorted(found, key=lambda number: -MEANING[number])[:5]
    assert {hit.id for hit in hits} == {*reds, *blues}


def test_ranks_of_two_arms_are_fused(catalogue: Catalogue) -> None:
    """Reciprocal rank fusion adds 1 / (k + rank) over the arms, with a rank from 0."""
    client, name = catalogue
    hits = client.query_points(
        name, prefetch=[by_meaning(30), by_words(30)], query=models.RrfQuery(rrf=models.Rrf(k=60)), limit=60
    ).points
    expected: dict[int, float] = {}
    for ranked in (best(MEANING, 30), best(LEXICAL, 30)):
        for rank, number in enumerate(ranked):
            expected[number] = expected.get(number, 0.0) + 1 / (60 + rank)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)


def test_facet_counts_what_a_filter_leaves(catalogue: Catalogue) -> None:
    """Counts per value, most frequent first, at most as many values as asked for."""
    client, name = catalogue
    even = models.Filter(must=[models.HasIdCondition(has_id=[0, 1, 3, 4, 6])])
    answer = client.facet(name, "colour", facet_filter=even, exact=True, limit=2)
    assert [(hit.value, hit.count) for hit in answer.hits] == [("red", 3), ("green", 2)]
