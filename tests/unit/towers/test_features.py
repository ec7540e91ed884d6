"""Names of products: folded, kept if they tell products apart, and weighted into unit rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import Product
from towers.features import MAX_VALUE_CHARS, FeatureSpace, fold, key_of, keys_of, product_features, words


def product(**fields: Any) -> Product:
    """Return a product with these fields."""
    return Product(**{"type": "product", "product_id": "P-1", "version": 1, "title": "Fridge", **fields})


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("BOSCH", "bosch"),
        ("Kühlschrank", "kuhlschrank"),
        ("Ku\u0308hlschrank", "kuhlschrank"),
        ("ＡＢ１２", "ab12"),
        ("Straße", "strasse"),
        ("Bosch™", "boschtm"),
        ("İstanbul", "istanbul"),
        ("ﬁne", "fine"),
    ],
)
def test_case_accents_and_width_fold(written: str, folded: str) -> None:
    """Spellings that differ in case, accents, width or ligatures fold to one."""
    assert fold(written) == folded


@given(st.text(max_size=30))
def test_folding_twice_changes_nothing(text: str) -> None:
    """What is folded stays as it is, so that a folded name can be looked up."""
    assert fold(fold(text)) == fold(text)


@given(st.text(alphabet="aäAÄeéÉzZßk12 -", max_size=30))
def test_case_never_matters(text: str) -> None:
    """A text in capitals has the words of the text."""
    assert words(text.upper()) == words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.5kg", ["12.5kg"]),
        ("12,5 kg", ["12,5", "kg"]),
        ("KG-36/B", ["kg-36/b"]),
        ("1.5 Ton, 5-star.", ["1.5", "ton", "5-star"]),
        ("--a--b ... /", ["a", "b"]),
        ("", []),
    ],
)
def test_numbers_keep_their_units(text: str, expected: list[str]) -> None:
    """Marks inside a word join it, marks around it go."""
    assert words(text) == expected


@pytest.mark.parametrize("text", ["कार", "हिन्दी", "ตู้เย็น"])
def test_words_of_scripts_with_vowel_signs_stay_whole(text: str) -> None:
    """A vowel sign is part of its word, as in Hindi and Thai."""
    assert len(words(text)) == 1


def test_vowel_signs_tell_words_apart() -> None:
    """Words of the same consonants with other vowels are not one word."""
    assert words("कार") != words("कर")


def test_the_same_brand_in_two_spellings_is_one_name() -> None:
    """Brand and category are folded and freed of spaces around them."""
    one = product_features(product(brand=" Bosch ", category=("Kitchen ", "Fridges")))
    two = product_features(product(brand="BOSCH", category=("kitchen", "FRIDGES")))
    assert one == two
    assert {"b:bosch", "c:kitchen", "c:kitchen>fridges", "t:fridge"} == one


def test_attributes_become_names_of_name_and_value() -> None:
    """Numbers, booleans and short texts count; nothing, blanks and sentences do not."""
    attributes = {"Doors": 2, "new": True, "note": "x" * (MAX_VALUE_CHARS + 1), "none": None, "blank": " "}
    found = product_features(product(attributes=attributes))
    assert found == {"t:fridge", "a:doors=2", "a:new=true"}


def test_the_longest_value_that_counts_is_kept() -> None:
    """A value of exactly the longest length is a name still."""
    assert f"a:note={'x' * MAX_VALUE_CHARS}" in product_features(product(attributes={"note": "x" * MAX_VALUE_CHARS}))


def keyed(catalogue: list[frozenset[str]]) -> list[np.ndarray]:
    """Return the keys of each product's names."""
    return [keys_of(names) for names in catalogue]


def test_rare_and_common_names_are_dropped() -> None:
    """A name of two products, and one of more than a fifth of the catalogue, tell nothing that can be learned."""
    catalogue = [frozenset({"all"}) for _ in range(20)]
    for name, count in (("two", 2), ("three", 3), ("four", 4), ("five", 5)):
        for place in range(count):
            catalogue[place] = catalogue[place] | {name}
    space = FeatureSpace.of(keyed(catalogue))
    assert dict(zip(space.keys.tolist(), space.idf.tolist(), strict=True)) == pytest.approx(
        {key_of("four"): np.log(20 / 4), key_of("three"): np.log(20 / 3)}
    )


def test_rows_have_length_one_and_rare_names_weigh_more() -> None:
    """Each product's names make a unit row in which the rarer name is the larger; one without names has none."""
    catalogue = keyed([frozenset({"four", "three"})] * 3 + [frozenset({"four"})] + [frozenset[str]()] * 16)
    space = FeatureSpace.of(catalogue)
    matrix = space.matrix([*catalogue, keys_of(["never seen"])]).toarray()
    assert np.linalg.norm(matrix, axis=1) == pytest.approx([1.0] * 4 + [0.0] * 17)
    by_name = {name: matrix[0][np.searchsorted(space.keys, key_of(name))] for name in ("four", "three")}
    length = np.hypot(*np.log([5, 20 / 3]))
    assert by_name == pytest.approx({"four": np.log(5) / length, "three": np.log(20 / 3) / length}, rel=1e-6)


@given(st.lists(st.frozensets(st.sampled_from("abcdefghij")), max_size=40))
def test_any_catalogue_gives_unit_or_empty_rows(catalogue: list[frozenset[str]]) -> None:
    """Whatever the catalogue, none and one without names included, every row is of length 1 or 0."""
    rows = keyed(catalogue)
    matrix = FeatureSpace.of(rows).matrix(rows)
    assert matrix.shape[0] == len(catalogue)
    lengths = np.linalg.norm(matrix.toarray(), axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))


def test_a_product_of_nothing_but_a_title_has_its_words_alone() -> None:
    """No brand, category or attribute leaves no name of that kind."""
    assert product_features(product(title="!!!")) == frozenset()
