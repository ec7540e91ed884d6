"""The demo remembers every release, also those that are gone from the topic."""

from simulator.demo.state import ReleaseLog
from tests.support.deployment import NOW_MS, release_value, serving_value


def test_a_tombstone_does_not_make_it_forget() -> None:
    """A release that was learned from a click counts, although its successor has replaced it."""
    log = ReleaseLog()
    log.table.apply(b"query-1", release_value("query", 1))
    log.table.apply(b"query-1", None)
    assert list(log.manifests) == [1]


def test_only_query_releases_are_asked_for_their_clicks() -> None:
    """A product release has a number of its own, which may be the same."""
    log = ReleaseLog()
    log.table.apply(b"product-1", release_value("product", 1))
    assert log.manifests == {}


def test_what_was_in_force_is_counted_once() -> None:
    """Release 0 is built in and counts as none; a record read twice counts once."""
    log = ReleaseLog()
    assert log.in_force() == "nothing yet"
    for step, pair in enumerate(((0, 0), (1, 0), (2, 1), (2, 1))):
        log.table.apply(b"serving", serving_value(*pair, published_at=NOW_MS + step))
    assert (log.query_releases_served(), log.product_releases_served()) == (2, 1)
    assert log.in_force() == "query release 2 on product release 1"


def test_a_pair_of_long_ago_is_not_in_force_again() -> None:
    """A broker that was away may hand over again what came before; the newest pair stays."""
    log = ReleaseLog()
    log.table.apply(b"serving", serving_value(2, 1, published_at=NOW_MS + 1))
    log.table.apply(b"serving", serving_value(1, 0, published_at=NOW_MS))
    assert log.in_force() == "query release 2 on product release 1"
    assert log.query_releases_served() == 1


def test_a_record_that_is_no_release_changes_nothing() -> None:
    """It is named in the log; the demo goes on."""
    log = ReleaseLog()
    log.table.apply(b"query-1", b"junk")
    assert (log.manifests, log.serving) == ({}, [])


def test_readers_never_see_a_change_halfway() -> None:
    """What a reader holds stays as it was when a record comes."""
    log = ReleaseLog()
    log.table.apply(b"serving", serving_value(1, 0, published_at=NOW_MS))
    held, before = log.serving, list(log.serving)
    log.table.apply(b"serving", serving_value(2, 0, published_at=NOW_MS + 1))
    assert held == before
    assert len(log.serving) == 2
