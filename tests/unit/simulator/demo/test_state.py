"""The demo remembers every release, also those that are gone from the topic."""

import threading

import pytest

from contracts.errors import MalformedMessage
from simulator.demo.state import ReleaseLog
from tests.support.deployment import NOW_MS, release_value, serving_value


def test_a_tombstone_does_not_make_it_forget() -> None:
    """A release that was learned from a click counts, although its successor has replaced it."""
    log = ReleaseLog()
    log.apply(b"query-1", release_value("query", 1), NOW_MS)
    log.apply(b"query-1", None, NOW_MS)
    assert list(log.manifests) == [1]


def test_query_and_product_releases_are_kept_apart() -> None:
    """Their numbers are counted apart, so they may be equal."""
    log = ReleaseLog()
    log.apply(b"query-1", release_value("query", 1), NOW_MS)
    log.apply(b"product-1", release_value("product", 1), NOW_MS)
    assert (list(log.manifests), list(log.products)) == ([1], [1])


def test_what_was_in_force_is_counted_once() -> None:
    """Release 0 is built in and counts as none; a record read twice counts once."""
    log = ReleaseLog()
    assert log.in_force() == "nothing yet"
    for pair in ((0, 0), (1, 0), (2, 1), (2, 1)):
        log.apply(b"serving", serving_value(*pair), NOW_MS)
    assert (log.query_releases_served(), log.product_releases_served()) == (2, 1)
    assert log.in_force() == "query release 2 on product release 1"


def test_a_foreign_record_is_named() -> None:
    """What is no release is an error, not a release that nobody sees."""
    with pytest.raises(MalformedMessage):
        ReleaseLog().apply(b"query-1", b"junk", NOW_MS)


def test_readers_never_see_a_change_halfway() -> None:
    """What a reader holds stays as it was when a record comes."""
    log = ReleaseLog()
    log.apply(b"serving", serving_value(1, 0), NOW_MS)
    before, held = log.serving, list(log.serving)
    thread = threading.Thread(target=log.apply, args=(b"serving", serving_value(2, 0), NOW_MS))
    thread.start()
    thread.join()
    assert before == held
    assert len(log.serving) == 2
