"""Groups on top of plain queries, against grouping the whole result by hand."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deploy.qdrant_edge.groups import Hit, Key, Page, best_groups, keys_at

keys = st.lists(st.sampled_from(["a", "b", "c", 1, 2]), max_size=2, unique=True).map(tuple)


class Finder:
    """Finds in a fixed ranking, and counts what it gave."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self.hits = hits
        self.given = 0

    def __call__(self, page: Page) -> Sequence[Hit]:
        """Return the best hits of a page, with Qdrant's meaning of `except`: some value is none of these."""
        left = [hit for hit in self.hits if hit.keys and hit.point not in page.seen]
        left = [hit for hit in left if not page.full or set(hit.keys) - set(page.full)]
        found = [hit for hit in left if page.among is None or set(hit.keys) & set(page.among)][: page.limit]
        self.given += len(found)
        return found


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
    """A group that cannot be filled is asked for by its value after a few pages, not by reading the whole ranking."""
    hits = [Hit(number, -number, (f"g{number % 500}",)) for number in range(1000)]
    finder = Finder(hits)
    found = best_groups(finder, groups=2, size=3)
    assert {key: len(held) for key, held in found.items()} == {"g0": 2, "g1": 2}
    assert finder.given < 50


def test_values_that_make_no_group_are_passed_in_few_pages() -> None:
    """A field of prices groups nothing: the request must not hold the store up page by page."""
    hits = [Hit(number, -number, ()) for number in range(2_000)]
    pages: list[Page] = []

    def find(page: Page) -> Sequence[Hit]:
        """Return the best hits of a page."""
        pages.append(page)
        return [hit for hit in hits if hit.point not in page.seen][: page.limit]

    assert best_groups(find, groups=3, size=3) == {}
    assert len(pages) < 15


def test_smaller_is_better_where_scores_are_distances() -> None:
    """Groups and hits come in the order that the scores mean."""
    hits = [Hit(1, 1.0, ("a",)), Hit(2, 2.0, ("b",)), Hit(3, 3.0, ("a",))]
    found = best_groups(Finder(hits), groups=2, size=2, largest_first=False)
    assert {key: [hit.point for hit in held] for key, held in found.items()} == {"a": [1, 3], "b": [2]}
    assert list(found) == ["a", "b"]


def test_keys_are_text_and_integers() -> None:
    """Entries of a list make a group each, repeated ones once; a point with any other value is in no group."""
    assert keys_at({"a": ["x", "x", 2]}, "a[]") == keys_at({"a": ["x", "x", 2]}, "a") == ("x", 2)
    others: list[Any] = [2.5, None, True, {}]
    assert [keys_at({"a": ["x", other]}, "a") for other in others] == [()] * 4
    assert keys_at({"a": {"b": "x"}}, "a.b") == ("x",)
    assert keys_at({"a": [{"b": "x"}, {"b": ["y", 1]}, {}]}, "a[].b") == ("x", "y", 1)
    assert keys_at({"a": ["x", "y"]}, "a[1]") == keys_at({"a.b": "y"}, '"a.b"') == ("y",)
    assert keys_at({"a": [{"b": "x"}]}, "a.b") == keys_at({"a": ["x"]}, "a[3]") == ()
    assert keys_at({"a": 1}, "a.b") == keys_at(None, "a") == keys_at({}, "a") == ()
