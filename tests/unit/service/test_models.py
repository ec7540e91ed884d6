"""The table of `models`: newest pair, releases by key, what ever was there, and nothing that cannot be read."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from contracts import wire
from contracts.decisions import DECISIONS_KEY, Decisions, Promotion
from contracts.errors import TransientError
from contracts.releases import ROLLBACK_KEY, SERVING_KEY, Kind, Rollback, Serving
from service import models
from service.models import ModelsTable, ModelsWriter
from service.settings import Settings
from tests.support.deployment import NOW_MS, release_value


def serving(query_release: int = 0, *, published_at: int = NOW_MS, product_release: int = 0) -> Serving:
    """Return a pair."""
    collection = f"products-r{product_release}"
    return Serving(
        query_release=query_release, product_release=product_release, collection=collection, published_at=published_at
    )


def table_of(**values: bytes | None) -> ModelsTable:
    """Return a table that has read these records; names have underscores for hyphens."""
    table = ModelsTable()
    for key, value in values.items():
        table.apply(key.replace("_", "-").encode(), value)
    return table


def test_releases_come_and_go_by_key() -> None:
    """A tombstone removes a release, its bytes and its manifest; each record is told."""
    told: list[None] = []
    table = ModelsTable(on_change=lambda: told.append(None))
    value = release_value("query", 3)
    table.apply(b"query-3", value)
    assert table.value("query-3") == value
    assert [manifest.release for manifest in table.look().manifests.values()] == [3]
    table.apply(b"query-3", None)
    assert table.value("query-3") is None
    assert not table.look().manifests
    assert len(told) == 2


def test_numbers_only_grow() -> None:
    """The highest number counts what was retired, too: a number is never given out twice."""
    table = table_of(query_1=release_value("query", 1), query_2=release_value("query", 2), query_9=None)
    assert table.keys() == ["query-1", "query-2"]
    assert table.value("query-2") == release_value("query", 2)
    assert table.seen("query-9")
    assert not table.seen("query-3")
    assert (table.highest("query"), table.highest("product")) == (9, 0)


@pytest.mark.parametrize("number", ["9" * 20, "9007199254740991", "-1", "007", "+7", "7_0", "٧", "9" * 5_000, ""])
def test_a_number_that_no_trainer_gives_is_none(number: str) -> None:
    """A trainer goes on counting from the highest: what somebody else writes must not end it."""
    table = ModelsTable()
    table.apply(f"query-{number}".encode(), None)
    table.apply(f"query-{number}".encode(), release_value("query", 7))
    assert (table.highest("query"), table.keys()) == (0, [])
    assert len(table.unreadable()) == 1


def test_what_an_overtaken_trainer_still_writes_is_left_out_and_said_once() -> None:
    """Under a new key it is no candidate, under one that is there it replaces nothing; its number counts as used."""
    newer, older = release_value("query", 2, fence=3), release_value("query", 2, fence=2)
    with capture_logs() as lines:
        table = table_of(query_1=release_value("query", 1, fence=2), query_2=newer)
        for _ in range(2):
            table.apply(b"query-2", older)
            table.apply(b"product-5", release_value("product", 5, fence=2))
            table.apply(b"query-1", release_value("query", 1, fence=2))
    assert table.keys() == ["query-1", "query-2"]
    assert (table.value("query-2"), table.value("product-5")) == (newer, None)
    assert (table.look().fence, table.highest("product")) == (3, 5)
    assert [line["release"] for line in lines if line["event"] == "release_refused"] == ["query-2", "product-5"]


def test_what_an_overtaken_trainer_has_written_over_is_named_until_it_is_written_again() -> None:
    """A repeat of what was always older, or of the release itself, is nothing of the kind."""
    newer, older = release_value("query", 2, fence=3), release_value("query", 2, fence=2)
    table, seen = table_of(query_1=release_value("query", 1, fence=2), query_2=newer), []
    for value in (newer, older, release_value("query", 2, fence=4)):
        table.apply(b"query-2", value)
        table.apply(b"query-1", release_value("query", 1, fence=2))
        seen.append(table.overwritten())
    assert seen == [{}, {"query-2": newer}, {}]
    table.apply(b"query-2", older)
    table.apply(b"query-2", None)
    assert table.overwritten() == {}


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_in_force_or_asked_back_is_not_retired(asked: bool) -> None:
    """Who wrote the null had not seen it; the release is named until it is written again, and so is its quality."""
    quality, query = release_value("product", 1), release_value("query", 1, product_release=1)
    table = table_of(product_1=quality, query_1=query, query_2=release_value("query", 2))
    table.apply(SERVING_KEY, wire.encode(serving(2 if asked else 1)))
    if asked:
        table.apply(ROLLBACK_KEY, wire.encode(Rollback(query_release=1, requested_at=NOW_MS)))
    for _ in range(2):
        for key in (b"query-1", b"product-1"):
            table.apply(key, None)
    assert table.overwritten() == {"product-1": quality, "query-1": query}
    assert {"product-1", "query-1"} <= set(table.keys())
    table.apply(b"query-1", query)
    assert table.overwritten() == {"product-1": quality}


def test_what_was_retired_before_it_was_asked_back_is_gone() -> None:
    """Whoever carries the rollback out has seen both in this order, and refuses it."""
    table = table_of(serving=wire.encode(serving(2)), query_1=release_value("query", 1), query_2=None)
    table.apply(b"query-1", None)
    table.apply(ROLLBACK_KEY, wire.encode(Rollback(query_release=1, requested_at=NOW_MS)))
    assert (table.keys(), table.overwritten()) == ([], {})


def test_the_fence_in_force_leaves_out_what_comes_later() -> None:
    """Also if the releases that raised it are gone; a topic that was made anew begins without."""
    table = table_of(serving=wire.encode(serving(3).model_copy(update={"fence": 4})))
    table.apply(b"query-5", release_value("query", 5, fence=3))
    table.apply(b"query-6", release_value("query", 6, fence=4))
    assert table.keys() == ["query-6"]
    table.forget()
    table.apply(b"query-1", release_value("query", 1, fence=1))
    assert table.keys() == ["query-1"]


def test_a_product_release_that_comes_into_force_is_a_switch() -> None:
    """In the same collection too: whoever repairs does so once for each; a query release is none."""
    table = ModelsTable()
    for query, product in ((0, 0), (1, 0), (1, 1), (2, 1)):
        record = serving(query, published_at=NOW_MS + query + product, product_release=product)
        table.apply(SERVING_KEY, wire.encode(record.model_copy(update={"collection": "products-r0"})))
    assert table.look().switches == 2


@pytest.mark.parametrize(("kinds", "kept"), [(("query", "product"), 2), (("query",), 1), ((), 0)])
def test_only_the_bytes_that_are_asked_for_are_kept(kinds: tuple[Kind, ...], kept: int) -> None:
    """Whoever only shows releases does not hold their weights; the manifests are there all the same."""
    table = ModelsTable(bytes_of=kinds)
    table.apply(b"query-1", release_value("query", 1))
    table.apply(b"product-1", release_value("product", 1))
    assert sum(table.value(key) is not None for key in ("query-1", "product-1")) == kept
    assert table.keys() == ["product-1", "query-1"]


def test_the_newest_pair_is_in_force_in_whatever_order_it_is_read() -> None:
    """Else a broker that was away would bring back what was in force long ago."""
    table = ModelsTable()
    assert table.serving() is None
    for pair in (serving(5), serving(1, published_at=NOW_MS - 9), serving(2, published_at=NOW_MS - 8)):
        table.apply(SERVING_KEY, wire.encode(pair))
    assert table.serving() == serving(5)


def test_a_null_takes_no_pair_back() -> None:
    """Processes go on with the pair that they have, so nothing else is shown."""
    table = ModelsTable()
    table.apply(SERVING_KEY, wire.encode(serving(5)))
    table.apply(SERVING_KEY, None)
    assert table.serving() == serving(5)


def test_every_switch_of_the_collection_is_counted() -> None:
    """Whoever looks late sees that it went away and came back; a query release or a repeat is no switch."""
    there = serving(2, published_at=NOW_MS + 2, product_release=1)
    back, old = serving(3, published_at=NOW_MS + 3), serving(0)
    table, seen = ModelsTable(), []
    for pair in (old, serving(1, published_at=NOW_MS + 1), there, there, back, old):
        table.apply(SERVING_KEY, wire.encode(pair))
        seen.append(table.look().switches)
    assert seen == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("key", [b"query-x", b"\xff"])
def test_a_null_takes_away_what_could_not_be_read(key: bytes) -> None:
    """A foreign record is unreadable while it stands; removed from the topic, it is nothing."""
    table = table_of()
    table.apply(key, b"junk")
    assert set(table.unreadable()) == {key}
    table.apply(key, None)
    assert not table.unreadable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"query-x", b""), (b"other-1", b""), (b"query-1", b"junk"), (b"serving", b"{}"), (b"serving", b"{"),
        (b"\xff", b""),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_said_once_and_changes_nothing(key: bytes, value: bytes) -> None:
    """Someone else's mistake on the topic ends no process, and the others go on being read."""
    table = table_of(query_2=release_value("query", 2))
    with capture_logs() as lines:
        table.apply(key, value)
        table.apply(key, value)
        table.apply(b"query-3", release_value("query", 3))
    assert [line["event"] for line in lines] == ["release_unreadable"]
    assert table.keys() == ["query-2", "query-3"]
    assert table.serving() is None


def test_another_record_that_cannot_be_read_is_said_too() -> None:
    """Under the same key, with other bytes: it is another mistake."""
    with capture_logs() as lines:
        table_of(query_1=b"junk").apply(b"query-1", b"other junk")
    assert [line["event"] for line in lines] == ["release_unreadable"] * 2


@pytest.mark.parametrize(
    ("unreadable", "kinds", "told"),
    [
        ({"query_4": b"junk"}, ("query", "product"), "query-4 cannot be read: not a release file"),
        ({"query_4": b"junk", "query_5": b"junk"}, ("query",), "query-5 cannot be read: not a release file"),
        ({"product_2": b"junk"}, ("query", "product"), "product-2 cannot be read: not a release file"),
        ({"product_2": b"junk"}, ("query",), None),
        ({"query_2": b"junk", "query_3": b"junk", "product_1": b"junk"}, ("query", "product"), None),
        ({"query_x": b"junk", "other_9": b"junk"}, ("query", "product"), None),
        ({"serving": b"{}", "query_4": b"junk"}, ("query",), "serving cannot be read: query_release: Field required"),
    ],
)
def test_only_what_is_newer_than_the_pair_in_force_is_missed(
    unreadable: dict[str, bytes], kinds: tuple[Kind, ...], told: str | None
) -> None:
    """Old junk, junk under no name of ours and releases of a tower that nobody here reads keep no process down."""
    table = table_of(serving=wire.encode(serving(3, product_release=1)))
    for key, value in unreadable.items():
        table.apply(key.replace("_", "-").encode(), value)
    said = table.newest_unreadable(kinds)
    assert (said is None) if told is None else (said or "").startswith(told)


def test_a_record_that_can_be_read_ends_what_was_missed() -> None:
    """The next release in force, the next `serving`, or a null under the same key."""
    table = table_of(serving=wire.encode(serving(3)), query_4=b"junk")
    assert table.newest_unreadable()
    table.apply(SERVING_KEY, wire.encode(serving(5, published_at=NOW_MS + 1)))
    assert table.newest_unreadable() is None
    table.apply(b"query-6", b"junk")
    table.apply(b"query-6", None)
    assert table.newest_unreadable() is None
    table.apply(SERVING_KEY, b"{")
    assert table.newest_unreadable()
    table.apply(SERVING_KEY, wire.encode(serving(5, published_at=NOW_MS + 2)))
    assert table.newest_unreadable() is None


def test_before_the_first_pair_only_serving_itself_is_missed() -> None:
    """Which release is newer than none is not known; that the pair cannot be read is."""
    table = table_of(query_4=b"junk")
    assert table.newest_unreadable() is None
    table.apply(SERVING_KEY, b"{")
    assert (table.newest_unreadable() or "").startswith("serving cannot be read")
    table.forget()
    assert table.newest_unreadable() is None
    assert not table.unreadable()


def test_a_topic_that_was_made_anew_begins_with_nothing() -> None:
    """What stood on the old one is not there any more, and an older pair may come into force."""
    table = table_of(query_2=release_value("query", 2))
    table.apply(SERVING_KEY, wire.encode(serving(2)))
    table.forget()
    assert (table.keys(), table.serving(), table.value("query-2"), table.highest("query")) == ([], None, None, 0)
    table.apply(SERVING_KEY, wire.encode(serving(1, published_at=NOW_MS - 1)))
    assert table.serving() == serving(1, published_at=NOW_MS - 1)


class Echo:
    """A Kafka that hands back what is produced, unless told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = ModelsTable()
        self.echoes = True
        self.produced: list[tuple[bytes, bytes | None]] = []
        self.writer = ModelsWriter(Settings(topic_prefix="t-"), object())
        monkeypatch.setattr(models, "produce_all", self._produce)
        monkeypatch.setattr(models, "SHOWN_WITHIN_S", 0.05)

    def _produce(self, _producer: object, records: list[Any]) -> None:
        """Note records and hand them over as the follower would."""
        for record in records:
            assert record.topic == "t-models"
            self.produced.append((record.key, record.value))
            if self.echoes:
                self.table.apply(record.key, record.value)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """A Kafka in memory."""
    return Echo(monkeypatch)


def test_releases_are_written_in_order_and_retired_by_nulls(echo: Echo) -> None:
    """A product release is there before the query release that needs it."""
    echo.writer.publish({"product-1": b"p", "query-1": b"q"})
    echo.writer.retire(["query-1"])
    assert echo.produced == [(b"product-1", b"p"), (b"query-1", b"q"), (b"query-1", None)]


def test_a_pair_is_in_force_once_the_topic_shows_it(echo: Echo) -> None:
    """Every decision goes by the topic alone."""
    echo.writer.put_in_force(serving(1), echo.table, {})
    assert echo.table.serving() == serving(1)


def test_what_comes_with_a_pair_is_written_before_it(echo: Echo) -> None:
    """Whoever sees the pair has seen its releases."""
    echo.writer.put_in_force(serving(1), echo.table, {"product-4": release_value("product", 4)})
    assert [key for key, _ in echo.produced] == [b"product-4", SERVING_KEY]


def test_a_rollback_is_due_until_it_is_answered(echo: Echo) -> None:
    """Before anything is in force there is nothing to go back from; a null takes the request back."""
    request = Rollback(query_release=1, requested_at=NOW_MS)
    echo.writer.ask_for(request)
    assert echo.table.look().rollback_due() is None
    echo.table.apply(SERVING_KEY, wire.encode(serving(3)))
    assert echo.table.look().rollback_due() == request
    answered = serving(1, published_at=NOW_MS + 1).model_copy(update={"rollback_answered": NOW_MS})
    echo.table.apply(SERVING_KEY, wire.encode(answered))
    assert echo.table.look().rollback_due() is None
    echo.writer.ask_for(request.model_copy(update={"requested_at": NOW_MS + 1}))
    assert echo.table.look().rollback_due() is not None
    echo.table.apply(ROLLBACK_KEY, None)
    assert echo.table.look().rollback_due() is None


def test_a_pair_that_does_not_appear_is_not_in_force(echo: Echo) -> None:
    """The step is repeated later."""
    echo.echoes = False
    with pytest.raises(TransientError, match="does not show"):
        echo.writer.put_in_force(serving(1), echo.table, {})


def test_a_newer_pair_ends_the_wait_too(echo: Echo) -> None:
    """Another writer was faster: waiting for the older pair would never end."""
    echo.table.apply(SERVING_KEY, wire.encode(serving(9, published_at=NOW_MS + 1)))
    echo.echoes = False
    echo.writer.put_in_force(serving(1), echo.table, {})
    assert echo.table.serving() == serving(9, published_at=NOW_MS + 1)


def test_decisions_never_go_back(echo: Echo) -> None:
    """A stalled trainer writes an older record, or a follower reads one twice: the newer one stays."""
    newer = Decisions(number=7, began_at=NOW_MS, promoted=3)
    echo.writer.decide(newer)
    echo.writer.decide(newer.model_copy(update={"number": 6, "promoted": 1}))
    assert echo.table.look().decisions == newer
    echo.table.apply(DECISIONS_KEY, None)
    assert echo.table.look().decisions is None
    promotion = Promotion(query_release=3, requested_at=NOW_MS)
    echo.writer.ask_to_promote(promotion)
    assert echo.table.look().promotion == promotion
