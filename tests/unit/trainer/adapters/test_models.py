"""The view of `models`: what stands there, what ever stood there, what is in force."""

import pytest

from contracts import wire
from contracts.releases import Kind, Serving
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release, identity_release, pack
from trainer.adapters.models import ModelsTable


def release(kind: Kind, number: int, query_release: int = 0) -> bytes:
    """Return a release's bytes under a number."""
    made = identity_release(kind, TinyEncoder())
    manifest = made.manifest.model_copy(update={"release": number, "query_release": query_release})
    return pack(Release(manifest, made.tensors))


def table_of(**values: bytes | None) -> ModelsTable:
    """Return a table that has read these records; names have underscores for hyphens."""
    table = ModelsTable()
    for key, value in values.items():
        table.on_record(key.replace("_", "-").encode(), value, 0)
    return table


def test_releases_are_found_by_key_and_numbers_only_grow() -> None:
    """The highest number counts what was retired, too: a number is never given out twice."""
    table = table_of(query_1=release("query", 1), query_2=release("query", 2), query_9=None)
    assert table.keys() == ["query-1", "query-2"]
    assert table.value("query-2") == release("query", 2)
    assert table.value("query-9") is None
    assert table.seen("query-9")
    assert not table.seen("query-3")
    assert (table.highest("query"), table.highest("product")) == (9, 0)


def test_the_first_query_release_of_each_product_release_is_known_until_it_is_retired() -> None:
    """What a product release needs for a rollback is read off its manifest."""
    table = table_of(product_1=release("product", 1, query_release=4), product_2=release("product", 2, query_release=7))
    assert table.first_queries() == {1: 4, 2: 7}
    table.on_record(b"product-1", None, 0)
    assert table.first_queries() == {2: 7}


def test_serving_is_the_newest_record_of_its_key() -> None:
    """Before the first there is none."""
    table = ModelsTable()
    assert table.serving() is None
    serving = Serving(query_release=2, product_release=1, collection="products-r1", published_at=1_795_196_006_756)
    table.on_record(b"serving", wire.encode(serving), 0)
    assert table.serving() == serving


def test_a_follower_that_begins_again_brings_no_old_pair_back() -> None:
    """Else a broker that was away would make the trainer forget what it learned since the first pair."""
    first = Serving(query_release=0, product_release=0, collection="products-r0", published_at=1_795_196_006_756)
    newest = first.model_copy(update={"query_release": 9, "published_at": first.published_at + 1})
    table = ModelsTable()
    for serving in (first, newest, first):
        table.on_record(b"serving", wire.encode(serving), 0)
    assert table.serving() == newest


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"query-x", b""), (b"other-1", b""), (b"query-1", b"junk"), (b"serving", b"{}"), (b"\xff", b"")],
)
def test_a_broken_record_changes_nothing(key: bytes, value: bytes) -> None:
    """Someone else's mistake on the topic does not end the trainer."""
    table = table_of(query_2=release("query", 2))
    table.on_record(key, value, 0)
    assert table.keys() == ["query-2"]
    assert table.serving() is None
