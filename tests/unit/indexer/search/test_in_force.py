"""Which release is in force: verified, swapped whole, refused if it cannot be proven."""

from typing import Any

import pytest
from prometheus_client import REGISTRY
from qdrant_client import models
from structlog.testing import capture_logs

from contracts import wire
from contracts.errors import TransientError
from contracts.releases import SERVING_KEY, Serving, release_key
from indexer.filters import KEYS_VERSION
from indexer.points import Owner
from indexer.qdrant import FILTERED, Form
from indexer.search.in_force import ServingFollower
from service.health import Health
from service.settings import Settings
from tests.support.indexing import NOW_MS, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release, pack, weights_sha256

OWN = Owner("our-cluster", "")


class Following:
    """A follower of `models` without Kafka: records are handed over by the test."""

    def __init__(self) -> None:
        Health("search")
        self.encoder = TinyEncoder()
        self.metadata: dict[str, Any] = {}
        self.width, self.distance = self.encoder.dim + 1, models.Distance.DOT
        self.store_is_down = False
        self.clock_ms = NOW_MS
        self.followed = ServingFollower(
            Settings(kafka_bootstrap="nowhere:1"),
            self.encoder,
            form_of=self._form_of,
            owner=OWN,
            clock_ms=lambda: self.clock_ms,
        )
        self.followed.follower.caught_up.set()
        self._published = NOW_MS

    def _form_of(self, _collection: str) -> Form:
        """Tell how the collection holds products, or do not answer."""
        if self.store_is_down:
            raise TransientError("Qdrant cannot be reached")
        return Form(self.width, self.distance, {FILTERED: KEYS_VERSION, **self.metadata})

    def add(self, release: Release) -> None:
        """Let a release come in."""
        manifest = release.manifest
        self.followed.models.apply(release_key(manifest.kind, manifest.release), pack(release))

    def serve(self, query: int, product: int = 0, *, published_at: int | None = None) -> bool:
        """Let a release come in, and follow it as the thread does."""
        self._published += 1
        record = Serving(
            query_release=query,
            product_release=product,
            collection=f"products-r{product}",
            published_at=published_at or self._published,
        )
        self.followed.models.apply(SERVING_KEY, wire.encode(record))
        return self.followed.follow()

    def releases(self) -> tuple[int, int] | None:
        """Return the releases in force."""
        current = self.followed.current
        return None if current is None else (current.query_release, current.product_release)


@pytest.fixture
def following() -> Following:
    """A follower that has seen release 0 of both towers come into force."""
    it = Following()
    assert it.serve(0)
    assert it.releases() == (0, 0)
    return it


def refusals() -> float:
    """Return how many releases were refused so far."""
    labels = {"tower": "query", "decision": "refused"}
    return REGISTRY.get_sample_value("millrace_releases_total", labels) or 0.0


def click_to_search() -> tuple[float, float]:
    """Return how many clicks were measured so far, and the sum of their seconds."""
    labels, name = {"path": "click_to_search"}, "millrace_freshness_seconds"
    count, total = (REGISTRY.get_sample_value(f"{name}_{what}", labels) or 0.0 for what in ("count", "sum"))
    return count, total


def test_nothing_is_ready_before_the_first_release() -> None:
    """The reason is said."""
    it = Following()
    assert it.followed.current is None
    assert it.followed.not_ready()
    it.serve(0)
    assert it.followed.not_ready() is None


def test_a_proven_release_is_swapped_in_whole(following: Following) -> None:
    """Releases, collection and tower change together; the one before is untouched for those who hold it."""
    before = following.followed.current
    following.add(query_release(3, following.encoder, product_release=2))
    assert following.serve(3, 2)
    after = following.followed.current
    assert after is not None
    assert before is not None
    assert (after.query_release, after.product_release, after.collection) == (3, 2, "products-r2")
    assert (before.query_release, before.product_release, before.collection) == (0, 0, "products-r0")


def broken(encoder: TinyEncoder) -> Release:
    """Return a release whose probe vectors are not those of its head."""
    release = query_release(3, encoder)
    release.tensors["probe_vectors"][2, 1] += 0.01
    digest = weights_sha256(release.tensors)
    return Release(release.manifest.model_copy(update={"weights_sha256": digest}), release.tensors)


def foreign(encoder: TinyEncoder) -> Release:
    """Return a release of another base encoder."""
    release = query_release(3, encoder)
    return Release(release.manifest.model_copy(update={"base_version": "other/t1"}), release.tensors)


def damaged(encoder: TinyEncoder) -> Release:
    """Return a release whose weights are not those of its manifest."""
    release = query_release(3, encoder)
    release.tensors["taste"][0, 0] += 1
    return release


def infinite(encoder: TinyEncoder) -> Release:
    """Return a release with weights that are not finite."""
    return query_release(3, encoder, scale=float("inf"))


@pytest.mark.parametrize("make", [broken, foreign, damaged, infinite])
def test_a_release_that_cannot_be_proven_is_refused_once(following: Following, make: Any) -> None:
    """The one before goes on; it is counted once, and the next sound release is served."""
    before, counted = following.followed.current, refusals()
    following.add(make(following.encoder))
    assert following.serve(3)
    assert following.followed.follow()
    assert following.followed.current is before
    assert refusals() == counted + 1
    following.add(query_release(4, following.encoder))
    following.serve(4)
    assert following.releases() == (4, 0)


def test_a_process_that_refuses_what_is_in_force_is_not_ready(following: Following) -> None:
    """The reason names release and cause; what goes on answering is said, and the next sound release ends it."""
    following.add(foreign(following.encoder))
    following.serve(3)
    reason = following.followed.not_ready() or ""
    assert "query release 3 was refused: it was trained over other/t1" in reason
    assert "0 goes on answering" in reason
    following.add(query_release(4, following.encoder))
    following.serve(4)
    assert following.followed.not_ready() is None


def test_a_process_is_ready_again_once_the_release_before_is_in_force_again(following: Following) -> None:
    """What it serves is then what is wanted."""
    following.add(foreign(following.encoder))
    following.serve(3)
    following.serve(0)
    assert following.followed.not_ready() is None


def test_a_process_that_does_not_follow_any_more_is_not_ready(following: Following) -> None:
    """It would answer from old releases for ever."""
    following.followed.follower.caught_up.clear()
    assert "models" in (following.followed.not_ready() or "")


def test_a_fault_of_ours_is_said_once_and_keeps_the_process_from_being_ready(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread tries on; what is in force is not served until it succeeds."""

    def fail(*_: object, **__: object) -> Release:
        raise MemoryError("no room for the tower")

    following.add(query_release(3, following.encoder))
    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr("indexer.search.in_force.verified_release", fail)
        with pytest.raises(MemoryError):
            following.serve(3)
        assert not any(following.followed._followed() for _ in range(3))
        assert "no room for the tower" in (following.followed.not_ready() or "")
    assert [line["event"] for line in lines] == ["release_not_followed"]
    assert following.followed._followed()
    assert (following.followed.not_ready(), following.releases()) == (None, (3, 0))


def test_a_release_that_is_gone_is_refused(following: Following) -> None:
    """`serving` alone is not enough."""
    following.add(query_release(3, following.encoder))
    following.followed.models.apply(b"query-3", None)
    following.serve(3)
    assert following.releases() == (0, 0)


def test_a_query_release_fits_every_product_release_of_its_base(following: Following) -> None:
    """Each carries its own part of the score: which product release it was solved with makes no difference."""
    following.add(query_release(3, following.encoder, product_release=9))
    following.serve(3, 2)
    assert following.releases() == (3, 2)


@pytest.mark.parametrize(
    ("metadata", "width", "distance", "says"),
    [
        ({"base_version": "other/t1"}, 17, models.Distance.DOT, "holds vectors of other/t1, not of tiny/16/t1"),
        ({}, 16, models.Distance.COSINE, "holds Cosine of width 16, not Dot of width 17"),
        ({}, 17, models.Distance.COSINE, "holds Cosine of width 17, not Dot of width 17"),
        ({}, None, None, "holds no vectors `product`, not Dot of width 17"),
    ],
)
def test_a_collection_that_cannot_hold_our_vectors_is_refused(
    following: Following, metadata: dict[str, Any], width: int | None, distance: models.Distance | None, says: str
) -> None:
    """Another base, another width or another distance: scores would mean nothing, whatever the releases say."""
    following.metadata, following.width, following.distance = metadata, width, distance  # type: ignore[assignment]
    following.add(query_release(3, following.encoder))
    following.serve(3)
    assert following.releases() == (0, 0)
    assert says in (following.followed.not_ready() or "")


def test_a_collection_of_another_deployment_is_refused_until_it_is_ours(following: Following) -> None:
    """A shop is never shown another's products; once the indexer has taken the collection over, search serves it."""
    following.metadata = {"owner": "another-cluster/"}
    following.add(query_release(3, following.encoder, product_release=2))
    counted = refusals()
    assert not following.serve(3, 2)
    assert not following.followed.follow()
    assert refusals() == counted + 1
    assert following.releases() == (0, 0)
    said = following.followed.not_ready() or ""
    assert "collection products-r2 belongs to another-cluster/, not to our-cluster/" in said
    assert "0 goes on answering" in said
    following.metadata = {"owner": "our-cluster/"}
    assert following.followed.follow()
    assert following.releases() == (3, 2)
    assert following.followed.not_ready() is None


def test_a_search_that_starts_on_anothers_store_serves_nothing() -> None:
    """It says whose collection it found, and what to correct is in the log."""
    it = Following()
    it.metadata = {"owner": "another-cluster/"}
    with capture_logs() as lines:
        assert not it.serve(0)
        assert not it.followed.follow()
    assert it.releases() is None
    assert "belongs to another-cluster/" in (it.followed.not_ready() or "")
    assert ["MILLRACE_QDRANT_URL" in line["fix"] for line in lines if line["event"] == "release_refused"] == [True]


def test_a_store_that_does_not_answer_is_asked_again(following: Following) -> None:
    """The release is neither refused nor swapped in unchecked."""
    following.add(query_release(3, following.encoder))
    following.store_is_down = True
    assert not following.serve(3)
    assert following.releases() == (0, 0)
    following.store_is_down = False
    assert following.followed.follow()
    assert following.releases() == (3, 0)


def test_records_of_long_ago_move_nothing(following: Following) -> None:
    """A follower that begins again hands the old ones over first."""
    following.add(query_release(3, following.encoder))
    following.serve(3)
    following.serve(0, published_at=NOW_MS - 5)
    assert following.releases() == (3, 0)


@pytest.mark.parametrize("key", [SERVING_KEY, b"query-4"])
def test_an_unreadable_record_moves_nothing_and_is_said(following: Following, key: bytes) -> None:
    """Search goes on and is not ready, until what comes after it is in force."""
    following.followed.models.apply(key, b"{")
    assert following.followed.follow()
    assert following.releases() == (0, 0)
    said = following.followed.not_ready() or ""
    assert f"{key.decode()} cannot be read: " in said
    assert said.endswith("; query release 0 goes on answering")
    following.add(query_release(5, following.encoder))
    following.serve(5)
    assert following.followed.not_ready() is None


def test_what_cannot_be_read_and_nobody_here_needs_keeps_search_ready(following: Following) -> None:
    """Product releases come with their collection, and old junk is past."""
    for key in (b"product-9", b"other-1", b"query-x", b"query-0"):
        following.followed.models.apply(key, b"{")
    assert following.followed.not_ready() is None


def test_a_pair_that_cannot_be_read_is_the_reason_before_the_first() -> None:
    """The indexer did publish one."""
    it = Following()
    it.followed.models.apply(SERVING_KEY, b"{")
    assert "serving cannot be read" in (it.followed.not_ready() or "")


def test_a_release_measures_its_clicks_when_it_comes_into_force(following: Following) -> None:
    """Nobody may search before morning: what was clicked in the evening was searchable a minute later all the same."""
    following.add(query_release(3, following.encoder))
    following.clock_ms = NOW_MS + 60_000
    count, total_s = click_to_search()
    following.serve(3)
    assert click_to_search()[0] == count + 1
    assert click_to_search()[1] == pytest.approx(total_s + 60)


def test_a_release_that_comes_back_measures_nothing(following: Following) -> None:
    """After a rollback and back again its clicks are hours old, and were searchable long ago."""
    for number in (3, 4):
        following.add(query_release(number, following.encoder))
        following.serve(number)
    before = click_to_search()
    following.clock_ms = NOW_MS + 3_600_000
    for number in (3, 4):
        following.serve(number)
        assert following.releases() == (number, 0)
    assert click_to_search() == before


def test_the_first_release_of_a_process_measures_no_freshness() -> None:
    """How long the process was away says nothing of the way from click to search."""
    it = Following()
    it.add(query_release(3, it.encoder))
    before = click_to_search()
    it.serve(3)
    assert it.releases() == (3, 0)
    assert click_to_search() == before
