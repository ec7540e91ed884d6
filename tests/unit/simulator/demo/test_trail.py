"""The trail of a click: its first pair, the release that learned from it, the first answer of that release."""

from pathlib import Path

import orjson
import pytest

from contracts.errors import MalformedMessage
from service.settings import Settings
from simulator.demo.trail import ClickTrail
from tests.support.deployment import manifest
from tests.support.poll import eventually

EXAMPLE = Path(__file__).parents[3] / "examples" / "v1" / "preference_pair"
CLICKED_AT = 1_795_196_000_000


def pair(search_id: str, chosen: str = "P-4", rejected: str = "P-1") -> bytes:
    """Return a pair as it stands on its topic."""
    stored = orjson.loads(sorted(EXAMPLE.glob("valid-*.json"))[0].read_bytes())
    changes = {"search_id": search_id, "event_time": CLICKED_AT}
    products = {"chosen": stored["chosen"] | {"product_id": chosen}}
    products["rejected"] = stored["rejected"] | {"product_id": rejected}
    return orjson.dumps({**stored, **changes, **products})


@pytest.fixture
def trail() -> ClickTrail:
    """Give a trail that nobody feeds but the test."""
    return ClickTrail(Settings(kafka_bootstrap="127.0.0.1:1", dependency_wait_s=0.0))


def test_a_click_counts_once_however_many_pairs_it_gave(trail: ClickTrail) -> None:
    """Two rejected products, or a repeated record, are still one click; another search is another."""
    trail.note_pair(pair("S-1", rejected="P-1"), 0, 10)
    trail.note_pair(pair("S-1", rejected="P-2"), 0, 11)
    trail.note_pair(pair("S-2"), 0, 12)
    assert (trail.pairs_seen, trail.clicks_with_pairs()) == (3, 2)


def test_the_time_runs_from_the_click_to_the_first_answer_that_learned(trail: ClickTrail) -> None:
    """Release 1 does not cover offset 10; release 2 does, and answers now."""
    trail.note_pair(pair("S-1"), 0, 10)
    trail.note_answer(1)
    trail.note_answer(2)
    manifests = {1: manifest("query", 1, offsets={"0": 10}), 2: manifest("query", 2, offsets={"0": 11})}
    (waited_s,) = trail.click_to_search_s(manifests)
    assert waited_s == pytest.approx((trail.answers.seen[2] - CLICKED_AT) / 1000)


def test_the_first_pair_of_a_click_is_the_one_that_counts(trail: ClickTrail) -> None:
    """A release that learned from the first of its pairs has learned from the click."""
    trail.note_pair(pair("S-1"), 0, 10)
    trail.note_pair(pair("S-1", rejected="P-2"), 0, 500)
    trail.note_answer(1)
    assert len(trail.click_to_search_s({1: manifest("query", 1, offsets={"0": 11})})) == 1


def test_a_foreign_record_is_named(trail: ClickTrail) -> None:
    """What is no pair is an error, not a click."""
    with pytest.raises(MalformedMessage):
        trail.note_pair(b"{}", 0, 0)


def test_losing_kafka_is_kept_as_the_failure(trail: ClickTrail) -> None:
    """The thread does not die in silence: the demo fails with the reason instead of counting too few clicks."""
    trail.start()
    failure = eventually(lambda: trail.failure, timeout_s=30)
    assert failure is not None
    assert failure.exit_code == 4
    trail.stop()


def test_stopping_what_never_began_is_harmless(trail: ClickTrail) -> None:
    """A demo that fails early stops cleanly."""
    trail.stop()
