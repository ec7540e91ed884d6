"""Groups on top of plain queries, against grouping the whole result by hand."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from indexer.embedded.grouping import Hit, Key, best_groups, keys_at

keys = st.lists(st.sampled_from(["a", "b", "c", 1, 2]), max_size=2, unique=True).map(tuple)


class Finder:
    """Finds in a fixed ranking, and counts how often it is asked."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self.hits = hits
        self.asked = 0

    def __call__(self, limit: int, among: Sequence[Key] | None) -> Sequence[Hit]:
        """Return the best hits, of some groups only where asked."""
        self.asked += 1
        return [hit for hit in self.hits if among is None or set(hit.keys) & set(among)][:limit]


@given(st.lists(keys, max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_groups_equal_grouping_everything(ranking: list[tuple[Key, ...]], groups: int, size: int) -> None:
    """However few hits are fetched, the groups are those of the whole ranking."""
    hits = [Hit(number, -number, held) for number, held in enumerate(ranking)]
    expected: dict[Key, list[Hit]] = {}
    for hit in hits:
        for key in hit.keys:
            expected.setdefault(key, []).append(hit)
    wanted = {key: held[:size] for key, held in list(expected.items())[:groups]}
    found = best_groups(Finder(hits), groups=groups, size=size)
    assert found == wanted
    assert list(found) == list(wanted)


def test_short_groups_do_not_fetch_everything() -> None:
    """A group that cannot be filled is asked for by its value, not by reading the whole ranking."""
    hits = [Hit(number, -number, (f"g{number % 500}",)) for number in range(1000)]
    finder = Finder(hits)
    found = best_groups(finder, groups=2, size=3)
    assert {key: len(held) for key, held in found.items()} == {"g0": 2, "g1": 2}
    assert finder.asked == 2


def test_keys_are_text_and_integers() -> None:
    """Other values make no group; entries of a list make one each, repeated ones once."""
    assert keys_at({"a": ["x", "x", 2, 2.5, None, True, {}]}, "a[]") == ("x", 2)
    assert keys_at({"a": {"b": "x"}}, "a.b") == ("x",)
    assert keys_at({"a": 1}, "a.b") == keys_at(None, "a") == keys_at({}, "a") == ()
