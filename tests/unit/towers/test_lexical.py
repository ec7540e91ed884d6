"""Words as sparse vectors: what meets, how much it counts, and what kind of query it is."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import PointPayload, Product
from towers.lexical import (
    AVERAGE_LENGTH,
    BRAND,
    IDENTIFIER,
    IDENTIFIER_PART,
    K1,
    MOST_GRAMS,
    MOST_TERMS,
    B,
    ProductWords,
    QueryKind,
    Sparse,
    identifiers_of,
    product_words,
    read_query,
)
from towers.word_index import WordIndex, idf

TEXT = st.text(alphabet="abkZé12 .,-/", max_size=30)


def product(title: str = "Fridge", **fields: Any) -> Product:
    """A product with these fields."""
    return Product(**{"type": "product", "product_id": "P-1", "version": 1, "title": title, **fields})


def vectors(title: str = "Fridge", **fields: Any) -> ProductWords:
    """Both vectors of a product with these fields."""
    made = product(title, **fields)
    return product_words(made.product_id, made)


def shared(left: Sparse, right: Sparse) -> int:
    """How many terms two vectors have in common."""
    return len(np.intersect1d(left.indices, right.indices))


def finds(query: str, title: str) -> bool:
    """Whether a query and a title have a term in common."""
    asked, written = read_query(query).words, vectors(title).words
    return shared(asked, written) > 0


@pytest.mark.parametrize("query", ["12.5kg", "12.5 kg", "12,5kg", "12,5 KG", "12.50kg", "12.5-kg"])
@pytest.mark.parametrize("title", ["Weight 12.5kg", "Weight 12.5 kg", "Weight 12,5kg", "12,50 kg Weight"])
def test_a_number_and_its_unit_meet_however_written(query: str, title: str) -> None:
    """Decimal comma or point, a space or none, closing zeros: one measure; another number is not met."""
    assert finds(query, title)
    assert not finds("12.6kg", title)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1,500 W", "1500w"),
        ("1.500,5 l", "1500.5l"),
        ("0,125 l", "0.125l"),
        ("1,234,567", "1234567"),
        ("5-star", "5 star"),
    ],
)
def test_numbers_with_thousands_meet(left: str, right: str) -> None:
    """A comma before three digits separates thousands, unless there is nothing before it."""
    assert finds(left, right)
    assert finds(right, left)


SPELLINGS = ["KG-36/B", "kg36b", "KG 36 B", "Kg36-b", "kg_36_b", "ＫＧ－３６Ｂ"]


@pytest.mark.parametrize("query", SPELLINGS)
@pytest.mark.parametrize("written", SPELLINGS)
def test_joined_and_split_identifiers_meet(query: str, written: str) -> None:
    """However query and product write a model number, the product is meant, by its title or by its attribute."""
    title, attributes = f"Kelto {written} fridge", {"model_number": written}
    asked = read_query(query)
    assert asked.kind is QueryKind.IDENTIFIER
    assert asked.pins("P-1", title, {}) == IDENTIFIER_PART
    assert asked.pins("P-1", "Fridge", attributes) == IDENTIFIER
    for owner in (product(title), product(attributes=attributes)):
        assert shared(asked.words, product_words("P-1", owner).words) > 0
    assert not asked.pins("P-1", "Kelto KG-36/C fridge", {})


def test_compounds_meet_their_parts() -> None:
    """`frost-free` is found as two words and as one."""
    assert all(finds(query, "Frost-free fridge") for query in ("frost", "free", "frostfree", "Frost-Free"))


def test_a_product_is_its_id_and_not_what_mentions_it() -> None:
    """A toner that names a printer as compatible is not meant by that printer; nor is a server by its processor."""
    toner = product(
        "Toner", attributes={"model": "TN-2420", "compatible_with": "HL-L2310D", "processor_model": "E5520"}
    )
    assert identifiers_of("SKU/9", toner.title, toner.attributes) == {"sku9": IDENTIFIER, "tn2420": IDENTIFIER}
    assert not read_query("HL-L2310D").pins("SKU/9", toner.title, toner.attributes)
    assert read_query("sku 9").pins("SKU/9", toner.title, toner.attributes) == IDENTIFIER
    printer = vectors("Printer", attributes={"model": "HL-L2310D"}).words
    index = WordIndex([printer, product_words("SKU/9", toner).words])
    first, second = index.scores(read_query("hl-l2310d").words)
    assert first > second > 0


@pytest.mark.parametrize(
    ("attribute", "value", "names"),
    [
        ("ean", "0095205603217, 95205603217", {"0095205603217", "95205603217"}),
        ("GTIN", 95205603217, {"95205603217"}),
        ("part_number", "A;B-12", {"b12"}),
        ("Manufacturer Part Number", "X-1", {"x1"}),
        ("model", "Classic", set()),
        ("model", True, set()),
        ("sku", None, set()),
        ("part", "X-1", set()),
        ("product_name", "X-1", set()),
    ],
)
def test_which_attributes_identify(attribute: str, value: Any, names: set[str]) -> None:
    """The usual names of model and article numbers; a value without a digit is a word like any other."""
    assert set(identifiers_of("P-1", "Fridge", {attribute: value})) - {"p1"} == names


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("T5600", "identifier"), ("p-1", "identifier"), ("0095205603217", "identifier"), ("hp 301 xl", "identifier"),
        ("bosch KGN-36 fridge", "identifier"), ("WM14N fridge with freezer and light", "long"),
        ("12.5 kg", "short"), ("12.5kg", "short"), ("5-star fridge", "short"), ("size 42", "short"), ("", "short"),
        ("65inch tv", "short"), ("2024", "short"), ("mp3 player", "short"), ("fridge", "short"),
        ("quiet fridge for two", "long"),
    ],
)  # fmt: skip
def test_kind_of_a_query(query: str, kind: str) -> None:
    """A model number or an id with two more words at most; else how many words; a measure is no identifier."""
    assert read_query(query).kind == kind


def test_an_id_without_digits_pins_only_if_it_is_the_query() -> None:
    """What a shop calls a product may look like a word."""
    assert read_query("Blue_Fridge").pins("blue-fridge", "Fridge", {}) == IDENTIFIER
    assert read_query("blue fridge").pins("blue-fridge", "Fridge", {}) == IDENTIFIER
    assert not read_query("fridge blue").pins("blue-fridge", "Fridge", {})


def test_values_are_bm25_over_weighted_fields() -> None:
    """Repeats saturate, fields weigh, and length counts as B says, over the whole product."""
    written = vectors("quiet fridge fridge", brand="Kelto").words
    length = 3 + BRAND
    norm = K1 * (1 - B + B * length / AVERAGE_LENGTH)
    index = WordIndex([written])
    (one,), (two,), (brand,) = (index.scores(read_query(word).words) for word in ("quiet", "fridge", "kelto"))
    weight = float(idf(1, np.array(1)))
    assert one == pytest.approx(weight * (K1 + 1) / (1 + norm), rel=1e-5)
    assert two == pytest.approx(weight * 2 * (K1 + 1) / (2 + norm), rel=1e-5)
    assert brand == pytest.approx(weight * BRAND * (K1 + 1) / (BRAND + norm), rel=1e-5)


def test_a_point_has_the_vectors_of_its_product() -> None:
    """What the payload of a point keeps is enough to make them again."""
    made = product("Kelto KG-36 fridge", brand="Kelto", category=("Kitchen",), attributes={"doors": 2, "new": True})
    payload = PointPayload(title=made.title, brand=made.brand, category=made.category, attributes=made.attributes)
    for left, right in zip(product_words("P-1", made), product_words("P-1", payload), strict=True):
        assert np.array_equal(left.indices, right.indices)
        assert np.array_equal(left.values, right.values)


def test_attributes_say_what_they_measure() -> None:
    """A number takes its unit from the attribute's name, a flag its name; what is false or unknown says nothing."""
    written = vectors("Fridge", attributes={"capacity_l": 190.0, "frost_free": True, "wifi": False, "lamp": None}).words
    assert all(shared(read_query(query).words, written) for query in ("190l", "190 l", "frost free"))
    assert not any(shared(read_query(query).words, written) for query in ("wifi", "lamp", "capacity"))


def test_vectors_are_bounded_and_the_title_stays() -> None:
    """A product with endless attributes keeps what comes first: identifiers, title, brand, category."""
    names = {f"a{number}": f"word{number}x other{number}y" for number in range(900)}
    written = vectors("Quiet refrigerator", attributes={**names, "model": "KG-36"})
    assert (len(written.words.indices), len(written.grams.indices) <= MOST_GRAMS) == (MOST_TERMS, True)
    assert all(shared(read_query(query).words, written.words) for query in ("quiet", "kg36"))


@given(TEXT, TEXT)
def test_vectors_are_what_the_store_takes(title: str, query: str) -> None:
    """Indices rise and do not repeat, values are finite and positive, whatever the text."""
    written = product_words(query, PointPayload(title=title, attributes={"model": title, "note": query}))
    asked = read_query(query)
    for vector in (*written, asked.words, asked.grams):
        assert vector.indices.dtype == np.uint32
        assert vector.values.dtype == np.float32
        assert (np.diff(vector.indices.astype(np.int64)) > 0).all()
        assert np.isfinite(vector.values).all()
        assert (vector.values > 0).all()


@given(TEXT)
def test_case_never_matters(text: str) -> None:
    """A query in capitals is the same query."""
    low, high = read_query(text.lower()), read_query(text.upper())
    assert (low.kind, low.identifiers) == (high.kind, high.identifiers)
    assert np.array_equal(low.words.indices, high.words.indices)


def test_vectors_are_alike_in_every_process() -> None:
    """Hash seeds of the interpreter decide nothing, not even what a bound cuts off."""
    code = (
        "from contracts.catalog import PointPayload as P; from towers.lexical import *;"
        "p = P(title=' '.join(f'kg-{n}/b word{n}' for n in range(90)), attributes={'model': 'a-12-b 34-cd 5600-x'});"
        "print([v.tolist() for s in product_words('P-1', p) for v in s], read_query('kg 36 b').words.indices.tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


IDENTIFIERS = st.from_regex(r"[a-z]{2,3}[0-9]{3,6}[a-z]?", fullmatch=True)


@given(IDENTIFIERS, st.data())
def test_one_typo_leaves_a_gram_in_common(name: str, data: st.DataObject) -> None:
    """A letter changed, left out, put in, or two exchanged: the grams still meet, at full weight."""
    place = data.draw(st.integers(0, len(name) - 1))
    other = data.draw(st.sampled_from("abcxyz0189"))
    mistyped = data.draw(
        st.sampled_from([
            name[:place] + other + name[place + 1 :],
            name[:place] + name[place + 1 :],
            name[:place] + other + name[place:],
            name[:place] + name[place : place + 2][::-1] + name[place + 2 :],
        ])
    )  # fmt: skip
    grams = vectors("Fridge", attributes={"model": name}).grams
    common = np.isin(grams.indices, read_query(mistyped).grams.indices)
    assert (grams.values[common] == 1.0).any()


@pytest.mark.parametrize(
    ("query", "title"), [("kgn3", "Kelto KGN-36 fridge"), ("refrig", "Refrigerator"), ("refirgerator", "Refrigerator")]
)
def test_beginnings_and_mistyped_words_meet(query: str, title: str) -> None:
    """An identifier is found from three letters on, a word by its beginning or with one typo in it."""
    assert shared(read_query(query).grams, vectors(title).grams) > 0
    assert shared(read_query("toaster").grams, vectors(title).grams) == 0


def test_idf_is_the_stores_formula() -> None:
    """The logarithm of one plus the odds against having the term, each count moved by a half."""
    assert idf(20_000, np.array([7]))[0] == pytest.approx(math.log(1 + (20_000 - 7 + 0.5) / (7 + 0.5)))
    assert (idf(3, np.array([0, 1, 2, 3])) > 0).all()


def test_rare_words_are_worth_more() -> None:
    """The only product with a rare word matches better than all do by a common one; unknown words add nothing."""
    titles = ("fridge quiet", "fridge white", "fridge black", "fridge")
    index = WordIndex([vectors(title).words for title in titles])
    rare, common, both = (index.scores(read_query(text).words) for text in ("quiet", "fridge", "quiet toaster"))
    assert rare.argmax() == 0
    assert rare[0] > common.max() > 0
    assert both.tolist() == rare.tolist()


def test_nothing_is_scored_in_an_empty_catalogue() -> None:
    """No products, or no words: no scores, and no fault."""
    assert WordIndex([]).scores(read_query("fridge").words).tolist() == []
    assert WordIndex([vectors().words]).scores(read_query("").words).tolist() == [0.0]
