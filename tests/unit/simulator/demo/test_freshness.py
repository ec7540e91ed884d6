"""A click is fresh from the first answer whose release has learned past the click's list."""

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest

from contracts.errors import DependencyDown, MalformedMessage
from service.settings import Settings
from simulator.demo import freshness
from simulator.demo.freshness import (
    ClickFreshness,
    ListPlace,
    ReleaseLog,
    cheapest_query,
    click_to_search_s,
    watch_answers,
)
from tests.support.deployment import NOW_MS, manifest, release_value, serving_value
from tests.support.poll import eventually, eventually_async

EXAMPLE = Path(__file__).parents[3] / "examples" / "v1" / "training_search"
CLICKED_AT = T0 = 1_795_196_000_000


def test_the_first_covering_answer_counts() -> None:
    """Release 1 does not cover the pair at offset 10, release 2 does."""
    manifests = {
        1: manifest("query", 1, offsets=read_to(10)),
        2: manifest("query", 2, offsets=read_to(11)),
    }
    answers = {1: T0 + 5_000, 2: T0 + 20_000}
    assert click_to_search_s([ListPlace(0, 10, T0)], answers, manifests) == [pytest.approx(20.0)]


def test_a_skipped_release_is_covered_by_its_successor() -> None:
    """A release that never answered does not matter; the next one learned from the click as well."""
    manifests = {
        1: manifest("query", 1, offsets=read_to(11)),
        2: manifest("query", 2, offsets=read_to(30)),
    }
    assert click_to_search_s([ListPlace(0, 10, T0)], {2: T0 + 9_000}, manifests) == [pytest.approx(9.0)]


def test_clicks_not_covered_yet_are_left_out() -> None:
    """No release has trained on partition 1: the click is not counted as anything."""
    assert click_to_search_s([ListPlace(1, 0, T0)], {1: T0}, {1: manifest("query", 1, offsets=read_to(99))}) == []


def read_to(offset: int) -> dict[str, int]:
    """Return the offsets of a release that read partition 0 so far."""
    return {"training-searches/0": offset}


def clicked(search_id: str, *product_ids: str) -> bytes:
    """Return a list of three slots of which some were clicked."""
    chosen = {"value": 1.0, "click_time": CLICKED_AT}
    slots = [
        {"product_id": name, "position": place, "showing": 1 / place, **(chosen if name in product_ids else {})}
        for place, name in enumerate(("P-1", "P-4", "P-9"), start=1)
    ]
    stored = orjson.loads(sorted(EXAMPLE.glob("valid-*.json"))[0].read_bytes())
    return orjson.dumps({**stored, "search_id": search_id, "slots": slots})


@pytest.fixture
def releases() -> ReleaseLog:
    """Give what is known of the releases: nothing yet."""
    return ReleaseLog()


@pytest.fixture
def clicks(releases: ReleaseLog) -> ClickFreshness:
    """Give the freshness of clicks that nobody tells of but the test."""
    return ClickFreshness(Settings(kafka_bootstrap="127.0.0.1:1", dependency_wait_s=0.0), releases)


def publish(releases: ReleaseLog, release: int, *, offset: int) -> None:
    """Let a query release be known that was trained up to an offset of partition 0."""
    releases.manifests = {
        **releases.manifests,
        release: manifest("query", release, offsets=read_to(offset)),
    }


def test_a_click_counts_once(clicks: ClickFreshness) -> None:
    """A repeated record is still the same clicks; another search is another."""
    clicks.note_list(clicked("S-1", "P-4", "P-9"), 0, 10)
    clicks.note_list(clicked("S-1", "P-4", "P-9"), 0, 11)
    clicks.note_list(clicked("S-2", "P-4"), 0, 12)
    assert (clicks.lists_seen, clicks.clicks_that_count()) == (3, 3)


def test_time_runs_to_the_first_answer_that_learned(clicks: ClickFreshness, releases: ReleaseLog) -> None:
    """Release 1 does not cover offset 10; release 2 does, and answers now."""
    clicks.note_list(clicked("S-1", "P-4"), 0, 10)
    clicks.note_answer(1)
    clicks.note_answer(2)
    publish(releases, 1, offset=10)
    assert (clicks.learned_s(), clicks.all_learned()) == ([], False)
    publish(releases, 2, offset=11)
    assert clicks.learned_s() == [pytest.approx((clicks.first_answers[2] - CLICKED_AT) / 1000)]
    assert clicks.all_learned()


def test_the_first_list_of_a_click_is_the_one_that_counts(clicks: ClickFreshness, releases: ReleaseLog) -> None:
    """A release that learned from the list has learned from the click, however often the list is written."""
    clicks.note_list(clicked("S-1", "P-4"), 0, 10)
    clicks.note_list(clicked("S-1", "P-4"), 0, 500)
    clicks.note_answer(1)
    publish(releases, 1, offset=11)
    assert len(clicks.learned_s()) == 1


def test_a_foreign_record_is_named(clicks: ClickFreshness) -> None:
    """What is no list is an error, not a click."""
    with pytest.raises(MalformedMessage):
        clicks.note_list(b"{}", 0, 0)


def test_losing_kafka_is_kept_as_the_failure(clicks: ClickFreshness) -> None:
    """The thread does not die in silence: the demo fails with the reason instead of counting too few clicks."""
    clicks.start()
    failure = eventually(lambda: clicks.failure, timeout_s=30)
    assert failure is not None
    assert failure.exit_code == 4
    clicks.stop()


def test_stopping_what_never_began_is_harmless(clicks: ClickFreshness) -> None:
    """A demo that fails early stops cleanly."""
    clicks.stop()


def test_only_the_first_answer_of_a_release_counts(clicks: ClickFreshness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later answers of the same release do not move its first moment."""
    moments = iter((5, 7, 9))
    monkeypatch.setattr(freshness, "epoch_ms", lambda: next(moments))
    for release in (3, 3, 4):
        clicks.note_answer(release)
    assert clicks.first_answers == {3: 5, 4: 9}


async def test_answers_are_noted_until_cancelled(clicks: ClickFreshness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every release that answers is noted; a missed answer is passed over."""
    asked = itertools.count(1)

    async def ask(_client: httpx.AsyncClient, _url: str, *, query: str, k: int) -> Any:
        """Answer with releases one after the other; the second fails."""
        assert (query, k) == ("cheap", 1)
        number = next(asked)
        if number == 2:
            raise DependencyDown("search did not answer")
        return SimpleNamespace(query_release=number)

    monkeypatch.setattr(freshness, "ask", ask)
    monkeypatch.setattr(freshness, "ANSWER_EVERY_S", 0.0)
    async with httpx.AsyncClient() as client:
        watching = asyncio.create_task(watch_answers(client, "http://search", query="cheap", clicks=clicks))

        async def third_answered() -> bool:
            """Return whether the answer after the missed one was noted."""
            return 3 in clicks.first_answers

        await eventually_async(third_answered)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
    assert {1, 3} <= set(clicks.first_answers)
    assert 2 not in clicks.first_answers


def test_the_cheapest_query_is_chosen_by_a_rule() -> None:
    """The shortest, then the first by alphabet, whatever the order."""
    assert cheapest_query(["washing machine", "tv", "ac"]) == "ac"


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
