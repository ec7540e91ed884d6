"""Collections as they are asked for and as they describe themselves."""

from typing import Any

import pytest

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.spec import read_spec, sizes_of, to_json, updated
from deploy.qdrant_edge.store import Store
from tests.unit.deploy.qdrant_edge.conftest import CREATE, refused

ONE_VECTOR = CREATE["vectors"]
DOT = {"size": 2, "distance": "Dot"}


def test_spec_survives_being_written_down() -> None:
    """What is kept on disk reads back as the same spec."""
    spec = read_spec({**CREATE, "hnsw_config": {"m": 8}, "on_disk_payload": True, "metadata": {"a": {"b": None}}})
    assert read_spec(to_json(spec)) == spec
    assert (sizes_of(spec), spec.metadata) == ({"product": 2}, {"a": {"b": None}})


def test_description_has_what_was_asked_for_and_defaults(shop: Collection) -> None:
    """The answer holds vectors, metadata, indexes and counts in Qdrant's form."""
    info = shop.info()
    assert info["config"]["params"]["vectors"] == ONE_VECTOR
    assert info["config"]["metadata"] == {"release": 1}
    assert info["config"]["hnsw_config"]["m"] == 16
    assert (info["status"], info["points_count"]) == ("green", 4)
    assert info["payload_schema"] == {
        "brand": {"data_type": "keyword", "points": 4},
        "price": {"data_type": "float", "points": 3},
    }


def test_collection_may_be_sparse_alone(store: Store) -> None:
    """Sparse vectors are described as they were asked for."""
    store.create("words", {"sparse_vectors": {"words": {"modifier": "idf", "index": {"on_disk": False}}}})
    collection = store.collection("words")
    collection.write("upsert", {"points": [{"id": 1, "vector": {"words": {"indices": [7], "values": [1]}}}]})
    params = collection.info()["config"]["params"]
    assert params["vectors"] == {}
    assert params["sparse_vectors"] == {"words": {"modifier": "idf", "index": {"on_disk": False}}}


def test_metadata_is_merged_and_null_removes() -> None:
    """A change of metadata keeps the other keys."""
    spec = read_spec({**CREATE, "metadata": {"a": 1, "b": 2}})
    assert updated(spec, {"metadata": {"b": None, "c": 3}}).metadata == {"a": 1, "c": 3}


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ([], 400, "object"),
        ({}, 501, "without vectors"),
        ({"vectors": {"product": {"size": 0, "distance": "Cosine"}}}, 422, "size"),
        ({"vectors": {"product": {"size": 2**40, "distance": "Cosine"}}}, 422, "size"),
        ({"vectors": {"product": {"size": 2, "distance": "Angle"}}}, 400, "distance"),
        ({"vectors": {"product": {"size": 2}}}, 400, "distance"),
        ({"vectors": {"product": 3}}, 400, "vectors"),
        ({"vectors": {"product": {"size": 2, "distance": "Dot", "fast": True}}}, 400, "fast"),
        ({"vectors": ONE_VECTOR, "colour": "red"}, 400, "colour"),
        ({"vectors": ONE_VECTOR, "metadata": [1]}, 400, "metadata"),
        ({"vectors": ONE_VECTOR, "shard_number": 2}, 501, "shard_number"),
        ({"vectors": ONE_VECTOR, "replication_factor": 2}, 501, "replication_factor"),
        ({"vectors": ONE_VECTOR, "sharding_method": "custom"}, 501, "custom sharding"),
        ({"vectors": ONE_VECTOR, "sparse_vectors": {"s": {"index": {"datatype": "float16"}}}}, 501, "data types"),
        ({"vectors": ONE_VECTOR, "sparse_vectors": {"s": {"modifier": "tf"}}}, 400, "modifier"),
        ({"vectors": ONE_VECTOR, "sparse_vectors": {"product": {}}}, 422, "`product` names"),
        ({"vectors": ONE_VECTOR, "quantization_config": {"scalar": {"type": "int8"}}}, 501, "quantization_config"),
        ({"vectors": ONE_VECTOR, "strict_mode_config": {"enabled": True}}, 501, "strict_mode_config"),
        ({"vectors": {"m": {**DOT, "multivector_config": {"comparator": "max_sim"}}}}, 501, "multivector_config"),
        ({"vectors": {"m": {**DOT, "datatype": "uint8"}}}, 501, "data types"),
        ({"vectors": {"m": {**DOT, "memory": "cold"}}}, 501, "memory"),
        ({"vectors": ONE_VECTOR, "payload": {"memory": "cold"}}, 501, "payload"),
    ],
)  # fmt: skip
def test_wrong_collection_is_refused_by_name(body: Any, status: int, names: str) -> None:
    """What is wrong or beyond us is refused, and the refusal names it."""
    with refused(status, match=names):
        read_spec(body)


def test_living_collection_changes_metadata_only() -> None:
    """Any other change is named as missing."""
    with refused(501, match="hnsw_config"):
        updated(read_spec(CREATE), {"hnsw_config": {"m": 8}})


@pytest.mark.parametrize("kind", ["keyword", "integer", "float", "bool", "datetime", "uuid", "text"])
def test_payload_index_comes_and_goes(collection: Collection, kind: str) -> None:
    """An index of each type is made, described and deleted; making it twice is harmless."""
    for _ in range(2):
        collection.create_index({"field_name": "field", "field_schema": kind})
    assert collection.info()["payload_schema"]["field"]["data_type"] == kind
    collection.delete_index("field")
    assert "field" not in collection.info()["payload_schema"]


@pytest.mark.parametrize(
    ("schema", "status"),
    [
        ("geo", 501),
        ("colour", 400),
        ({"type": "text", "tokenizer": "word"}, 501),
        ({"type": "float", "lookup": True}, 400),
        ({"type": "keyword", "prefix": True}, 501),
        ({"type": "keyword", "memory": "cold"}, 501),
        ({}, 400),
        (None, 400),
    ],
)
def test_wrong_payload_index_is_refused(shop: Collection, schema: Any, status: int) -> None:
    """An index that cannot be made is refused in its own way."""
    with refused(status):
        shop.create_index({"field_name": "field", "field_schema": schema})


def test_index_parameters_are_taken(collection: Collection) -> None:
    """Parameters that the engine knows pass."""
    schema = {"type": "integer", "lookup": True, "range": True}
    collection.create_index({"field_name": "stock", "field_schema": schema})
    assert collection.info()["payload_schema"]["stock"] == {"data_type": "integer", "points": 3}
