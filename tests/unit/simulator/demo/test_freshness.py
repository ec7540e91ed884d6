"""A click is fresh from the first answer whose release was trained past the click's pair."""

import pytest

from contracts.releases import ReleaseManifest
from simulator.demo.freshness import FirstAnswers, PairPlace, click_to_search_s

T0 = 1_795_196_000_000


def manifest(release: int, offsets: dict[str, int]) -> ReleaseManifest:
    """Return a query release trained through these offsets."""
    return ReleaseManifest(
        kind="query", release=release, product_release=0, query_release=release, base_version="b", dim=4,
        created_at=T0, pairs_trained=1, lists_trained=1, offsets=offsets, weights_sha256="0",
    )  # fmt: skip


def test_the_first_covering_answer_counts() -> None:
    """Release 1 does not cover the pair at offset 10, release 2 does."""
    manifests = {1: manifest(1, {"0": 10}), 2: manifest(2, {"0": 11})}
    answers = {1: T0 + 5_000, 2: T0 + 20_000}
    assert click_to_search_s([PairPlace(0, 10, T0)], answers, manifests) == [pytest.approx(20.0)]


def test_a_skipped_release_is_covered_by_its_successor() -> None:
    """A release that never answered does not matter; the next one learned from the click as well."""
    manifests = {1: manifest(1, {"0": 11}), 2: manifest(2, {"0": 30})}
    assert click_to_search_s([PairPlace(0, 10, T0)], {2: T0 + 9_000}, manifests) == [pytest.approx(9.0)]


def test_clicks_not_covered_yet_are_left_out() -> None:
    """No release has trained on partition 1: the click is not counted as anything."""
    assert click_to_search_s([PairPlace(1, 0, T0)], {1: T0}, {1: manifest(1, {"0": 99})}) == []


def test_only_the_first_answer_of_a_release_counts() -> None:
    """Later answers of the same release do not move its first moment."""
    answers = FirstAnswers()
    for at_ms in (7, 5, 9):
        answers.note(3, at_ms)
    assert answers.seen == {3: 5}
