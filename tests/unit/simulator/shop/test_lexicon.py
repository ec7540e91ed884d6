"""The words of the built-in world fit together."""

from simulator.shop.lexicon import Family, lexicon


def _traits_of(family: Family) -> set[str]:
    """Return every trait that a family's words can give."""
    kinds = [*family.types, *family.features]
    return {trait for kind in kinds for trait in kind.traits} | {family.sizes.low, family.sizes.high}


def test_every_family_can_serve_its_purposes() -> None:
    """A purpose stands with a family only if some product of it can have a trait that the purpose wants."""
    words = lexicon()
    for family in words.families:
        for use in family.uses:
            wanted = {trait for trait, weight in words.uses[use].traits.items() if weight > 0}
            assert wanted & _traits_of(family), (family.key, use)


def test_every_trait_is_wanted_by_some_purpose() -> None:
    """No family names a trait that the laws do not know."""
    words = lexicon()
    for family in words.families:
        assert _traits_of(family) <= set(words.traits), family.key


def test_there_are_as_many_brands_as_promised() -> None:
    """At least 60 brands, none in two groups, and every family's group has some."""
    words = lexicon()
    names = [name for group in words.brands.values() for name in group]
    assert len(names) == len(set(names)) >= 60
    assert {family.group for family in words.families} == set(words.brands)
