"""Looks at held-out lists at the edge: when they are read, what is asked, and what happens if something is missing."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from contracts.decisions import DECISIONS_KEY, Decisions
from contracts.errors import DependencyDown
from contracts.releases import SERVING_KEY, Serving
from contracts.structs import JoinedSearch, JoinedSlot, Ranking, encode
from contracts.telemetry import Process
from contracts.topics import HOLDOUT_SEARCHES, PROPENSITIES
from contracts.wire import encode as encode_message
from service.health import Dependency
from service.models import ModelsTable
from tests.conftest import SettingsFactory
from tests.support.indexing import product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, PRODUCTS, QUERIES, SHOWN, START_MS, FakeProducts
from towers.release_files import pack
from trainer.adapters import held_out_looks
from trainer.adapters.held_out_looks import HeldOutLooks, towers_of
from trainer.release import held_out_lists
from trainer.release.looks import APART_MS

ENCODER = TinyEncoder(DIM)
IN_FORCE = 2
Told = Callable[[int, int], None]


class StoppingEncoder(TinyEncoder):
    """An encoder that is told to stop while it encodes; counts how often it is asked."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(DIM)
        self.stop, self.batches, self.entered = stop, 0, threading.Event()

    @override
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Encode texts."""
        self.batches += 1
        self.entered.set()
        self.stop()
        return super().encode(texts, batch_size=batch_size)


def held_out(
    number: int, *, time_ms: int = START_MS, appeal: Mapping[str, float] | None = None, **ranking: Any
) -> bytes:
    """Return a list that live, or every fourth time the anchor, chose; of six products the most appealing is clicked.

    Where nothing is said of their appeal, it is each place in turn.
    """
    rng = np.random.default_rng(number)
    shown = [PRODUCTS[one] for one in rng.permutation(len(PRODUCTS))[:SHOWN].tolist()]
    chosen = shown[number % SHOWN] if appeal is None else max(shown, key=appeal.__getitem__)
    slots = tuple(
        JoinedSlot(product_id=one, position=place, clicked=one == chosen) for place, one in enumerate(shown, start=1)
    )
    is_anchor = number % 4 == 0
    told = {"query_release": 0 if is_anchor else IN_FORCE, "arm": "anchor" if is_anchor else "live", **ranking}
    return encode(
        JoinedSearch(
            search_id=f"s-{number}", search_time=time_ms + number, closed_at=START_MS + 60_000 + number,
            query=QUERIES[number % 40], slots=slots, client_id=f"c{number // 2}", ranking=Ranking(**told),
        )
    )  # fmt: skip


class Topics:
    """What Kafka holds, or how it fails; notes what is read."""

    def __init__(self, lists: int) -> None:
        self.lists = [held_out(number) for number in range(lists)]
        self.read: list[tuple[str, int]] = []
        self.fails: Exception | None = None
        self.given = 0

    def records_of(
        self, _settings: Any, topic: str, *, since_ms: int = 0, tell: Told = lambda *_: None, **_more: Any
    ) -> Iterator[Any]:
        """Give the records of a topic."""
        self.read.append((topic, since_ms))
        if self.fails is not None:
            raise self.fails
        for done, value in enumerate(self.lists if topic == HOLDOUT_SEARCHES else []):
            tell(done, len(self.lists))
            self.given += 1
            yield SimpleNamespace(key=b"", value=value)


class Shop:
    """A trainer's looks, what they see, and the time."""

    def __init__(self, topics: Topics, looks: HeldOutLooks, models: ModelsTable, kafka: Dependency) -> None:
        self.topics, self.looks, self.models, self.kafka = topics, looks, models, kafka
        self.now_ms = START_MS + 2 * APART_MS

    def note(self) -> None:
        """Note the last look, as the decider does."""
        self.decide(held_out=self.looks.last)

    def decide(self, **changes: Any) -> None:
        """Decide something."""
        before = self.models.look().decisions
        assert before is not None
        self.models.apply(
            DECISIONS_KEY, encode_message(before.model_copy(update={"number": before.number + 1, **changes}))
        )

    def end(self) -> None:
        """Let nothing be left to ask: a person promotes what is in force, while the comparison goes on."""
        self.decide(promoted=IN_FORCE)

    def rest(self) -> None:
        """Let as much time pass as it rests."""
        self.now_ms += APART_MS


@pytest.fixture
def shop(settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Shop]:
    """Give a shop in which so many lists were held out, with a release in force and a comparison that goes on."""

    def make(lists: int) -> Shop:
        topics, models, kafka = Topics(lists), ModelsTable(), Dependency(Process.KAFKA)
        monkeypatch.setattr(held_out_looks, "records_of", topics.records_of)
        models.apply(b"query-%d" % IN_FORCE, pack(query_release(IN_FORCE, ENCODER)))
        serving = Serving(query_release=IN_FORCE, product_release=0, collection="c", published_at=START_MS)
        models.apply(SERVING_KEY, encode_message(serving))
        models.apply(DECISIONS_KEY, encode_message(Decisions(began_at=START_MS, since={}, collection="c")))
        looks = HeldOutLooks(
            settings(kafka_bootstrap="127.0.0.1:1"), models, products=FakeProducts(ENCODER), encoder=ENCODER,
            kafka=kafka, clock_ms=lambda: found.now_ms,
        )  # fmt: skip
        found = Shop(topics, looks, models, kafka)
        return found

    return make


def test_it_looks_at_lists_of_the_comparison_and_keeps_what_it_judges(shop: Callable[[int], Shop]) -> None:
    """What was said is told with its numbers; the release that is judged is named as one that must stay."""
    found = shop(1_000)
    with capture_logs() as lines:
        found.looks.look()
    look = found.looks.last
    assert look is not None
    assert (look.query_release, look.against, look.looks, look.lists) == (IN_FORCE, 0, 1, 1_000)
    assert [one.metric for one in look.better_by] == ["clicked", "value"]
    assert [one.metric for one in look.worse_by] == ["clicked", "value"]
    assert found.topics.read == [(HOLDOUT_SEARCHES, START_MS), (PROPENSITIES, 0)]
    assert found.looks.judged() == {IN_FORCE}
    assert [line["lists"] for line in lines if line["event"] == "held_out_lists_looked_at"] == [1_000]


def test_it_looks_again_when_lists_have_doubled_and_reads_after_a_rest(shop: Callable[[int], Shop]) -> None:
    """Nor does a successor, who finds the look noted, look at the same lists again."""
    found = shop(99)
    found.looks.look()
    assert (found.looks.last, len(found.topics.read)) == (None, 1)
    found.topics.lists += [held_out(99)]
    found.looks.look()
    assert len(found.topics.read) == 1, "it rests"
    found.rest()
    found.looks.look()
    assert found.looks.last is not None
    found.note()
    found.topics.lists += [held_out(number) for number in range(100, 199)]
    found.rest()
    found.looks.look()
    assert found.looks.last.looks == 1
    found.topics.lists += [held_out(199)]
    found.rest()
    found.looks.look()
    assert (found.looks.last.looks, found.looks.last.lists) == (2, 200)


def test_lists_that_neither_chose_alone_are_left_out(shop: Callable[[int], Shop]) -> None:
    """Interleaved ones, those of other engines, those of unknown releases, repeats, and what was shown before."""
    found = shop(100)
    found.topics.lists[0] = held_out(0, arm="interleaved")
    found.looks.look()
    for ranking in ({"ranker": "other"}, {"query_release": None}):
        found.topics.lists[0] = held_out(0, **ranking)
        found.rest()
        found.looks.look()
    for other in (found.topics.lists[1], held_out(0, time_ms=START_MS - 1)):
        found.topics.lists[0] = other
        found.rest()
        found.looks.look()
    assert (found.looks.last, len(found.topics.read)) == (None, 5)
    found.topics.lists[0] = held_out(0)
    found.rest()
    found.looks.look()
    assert found.looks.last is not None


def test_beside_a_promoted_release_only_lists_of_the_untrained_one_count(shop: Callable[[int], Shop]) -> None:
    """Both learned ones chose their own lists; a quarter is the anchor's."""
    found = shop(600)
    promoted = IN_FORCE - 1
    found.models.apply(b"query-%d" % promoted, pack(query_release(promoted, ENCODER)))
    found.decide(promoted=promoted)
    found.looks.look()
    look = found.looks.last
    assert look is not None
    assert (look.query_release, look.against, look.lists) == (IN_FORCE, promoted, 150)
    assert found.looks.judged() == {IN_FORCE, promoted}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_release_that_orders_by_what_is_chosen_is_better(shop: Callable[[int], Shop], sign: int) -> None:
    """One that orders the other way round is worse; the other side is the untrained release."""
    found = shop(0)
    found.models.apply(b"product-1", pack(product_release(1, ENCODER)))
    found.models.apply(b"query-%d" % IN_FORCE, pack(query_release(IN_FORCE, ENCODER, product_release=1, scale=0.0)))
    judged = towers_of(found.models, IN_FORCE, ENCODER)
    quality = judged.product.quality(PRODUCTS, FakeProducts(ENCODER).look(PRODUCTS).features)
    appeal = dict(zip(PRODUCTS, (sign * quality).tolist(), strict=True))
    found.topics.lists = [held_out(number, appeal=appeal) for number in range(1_000)]
    found.looks.look()
    look = found.looks.last
    assert look is not None
    assert [np.sign(one.value) for one in (*look.better_by, *look.worse_by)] == [sign] * 4


@pytest.mark.parametrize(
    ("error", "event"),
    [(DependencyDown("Kafka does not know the topic", fix="grant it"), "Kafka does not know the topic"),
     (ValueError("a fault of ours"), "ValueError('a fault of ours')")],
)  # fmt: skip
def test_a_look_that_fails_is_told_once_and_made_after_a_rest(
    shop: Callable[[int], Shop], error: Exception, event: str
) -> None:
    """Whatever it is, the trainer goes on: what learns does not end with what judges."""
    found = shop(600)
    found.topics.fails = error
    with capture_logs() as lines:
        for _ in range(2):
            found.looks.look()
            found.rest()
        found.topics.fails = None
        found.looks.look()
    told = [line for line in lines if line["event"] == "held_out_lists_not_looked_at"]
    assert [line["error"] for line in told] == [event]
    assert found.looks.last is not None


def test_another_question_does_not_wait_for_the_rest_of_the_one_before(shop: Callable[[int], Shop]) -> None:
    """The rest is as long as the comparison is old: after a promotion it would last for hours."""
    found = shop(99)
    found.now_ms = START_MS + 800 * APART_MS
    found.looks.look()
    found.rest()
    found.looks.look()
    assert len(found.topics.read) == 1, "it rests"
    began_at = found.now_ms - APART_MS
    found.decide(began_at=began_at)
    found.looks.look()
    assert found.topics.read[1:] == [(HOLDOUT_SEARCHES, began_at)]


def test_after_a_failure_it_rests_no_longer_than_at_first(shop: Callable[[int], Shop]) -> None:
    """Nothing was read, so nothing has to have come meanwhile."""
    found = shop(600)
    found.now_ms = START_MS + 800 * APART_MS
    found.topics.fails = DependencyDown("Kafka does not answer", fix="start it")
    found.looks.look()
    found.topics.fails = None
    found.now_ms += APART_MS - 1
    found.looks.look()
    assert found.looks.last is None
    found.now_ms += 1
    found.looks.look()
    assert found.looks.last is not None


def test_what_was_judged_is_let_go_when_nothing_is_asked_and_the_look_was_noted(shop: Callable[[int], Shop]) -> None:
    """Before, a step back may still go to what it was compared with."""
    found = shop(600)
    found.looks.look()
    last = found.looks.last
    assert last is not None
    found.end()
    found.looks.look()
    assert found.looks.judged() == {IN_FORCE}
    found.note()
    found.looks.look()
    assert found.looks.judged() == set()


def test_what_was_judged_is_let_go_when_its_comparison_is_over(shop: Callable[[int], Shop]) -> None:
    """Then nobody notes the look any more."""
    found = shop(600)
    found.looks.look()
    assert found.looks.last is not None
    found.decide(promoted=IN_FORCE, began_at=found.now_ms)
    found.looks.look()
    assert found.looks.judged() == set()


def test_nothing_is_read_while_there_is_nothing_to_ask_or_kafka_is_down(shop: Callable[[int], Shop]) -> None:
    """The followers say when it is back."""
    found = shop(600)
    found.kafka.failed("gone")
    found.looks.look()
    found.kafka.answered()
    untrained = Serving(query_release=0, product_release=0, collection="c", published_at=START_MS + 1)
    found.models.apply(SERVING_KEY, encode_message(untrained))
    found.looks.look()
    assert found.topics.read == []
    assert found.looks.judged() == set()


def test_a_release_that_cannot_be_read_any_more_is_told(
    shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was retired between the question and the look."""
    found = shop(600)
    monkeypatch.setattr(found.models, "value", lambda _key: None)
    with capture_logs() as lines:
        found.looks.look()
    assert [line["error"] for line in lines] == [f"query release {IN_FORCE} is not on models any more, or never was"]
    assert found.looks.last is None


def test_without_a_known_product_nothing_is_said(shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue was not read, or is another one."""
    found = shop(600)
    monkeypatch.setattr(found.looks, "_products", FakeProducts(ENCODER, ["other"]))
    with capture_logs() as lines:
        found.looks.look()
    assert "has a vector" in lines[0]["error"]


def test_a_look_is_given_up_between_records_without_a_word(shop: Callable[[int], Shop]) -> None:
    """The process is asked to stop while it reads."""
    found = shop(600)
    found.looks.give_up()
    with capture_logs() as lines:
        found.looks.look()
    assert (lines, found.looks.last, found.topics.given) == ([], None, 0)


def test_a_look_is_given_up_between_batches_of_texts(
    shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is asked to stop while queries are encoded; of three batches it ends the first."""
    found = shop(600)
    encoder = StoppingEncoder(found.looks.give_up)
    monkeypatch.setattr(held_out_lists, "ENCODED_AT_ONCE", 16)
    monkeypatch.setattr(found.looks, "_encoder", encoder)
    with capture_logs() as lines:
        found.looks.look()
    assert (lines, found.looks.last, encoder.batches) == ([], None, 1)


def test_a_stop_waits_until_the_look_was_given_up(shop: Callable[[int], Shop], monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is left that encodes while the process ends."""
    found = shop(600)
    encoder = StoppingEncoder(found.looks.give_up)
    monkeypatch.setattr(found.looks, "_encoder", encoder)
    found.looks.start()
    assert encoder.entered.wait(30)
    found.looks.stop()
    assert "held-out-looks" not in [thread.name for thread in threading.enumerate()]
    assert found.looks.last is None
