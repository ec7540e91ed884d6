"""Collections as they are asked for and as they describe themselves."""

from typing import Any

import pytest

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.errors import ApiError, BadRequest, NotSupported, Unprocessable
from deploy.qdrant_edge.translate_config import CollectionSpec
from tests.unit.deploy.qdrant_edge.conftest import CREATE

ONE_VECTOR = CREATE["vectors"]


def test_spec_survives_being_written_down() -> None:
    """What is kept on disk reads back as the same spec."""
    spec = CollectionSpec.parse({**CREATE, "hnsw_config": {"m": 8}, "on_disk_payload": True})
    assert CollectionSpec.parse(spec.to_json()) == spec
    assert (spec.sizes(), spec.metadata) == ({"product": 2}, {"release": 1})


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


def test_metadata_is_merged_and_null_removes() -> None:
    """A change of metadata keeps the other keys."""
    spec = CollectionSpec.parse({**CREATE, "metadata": {"a": 1, "b": 2}})
    assert spec.with_update({"metadata": {"b": None, "c": 3}}).metadata == {"a": 1, "c": 3}


@pytest.mark.parametrize(
    ("body", "refusal", "names"),
    [
        ([], BadRequest, "object"),
        ({}, NotSupported, "without vectors"),
        ({"vectors": {"product": {"size": 0, "distance": "Cosine"}}}, Unprocessable, "size"),
        ({"vectors": {"product": {"size": 2**40, "distance": "Cosine"}}}, Unprocessable, "size"),
        ({"vectors": {"product": {"size": 2, "distance": "Angle"}}}, BadRequest, "distance"),
        ({"vectors": {"product": {"size": 2}}}, BadRequest, "distance"),
        ({"vectors": {"product": 3}}, BadRequest, "vector params"),
        ({"vectors": {"product": {"size": 2, "distance": "Dot", "fast": True}}}, BadRequest, "fast"),
        ({"vectors": ONE_VECTOR, "colour": "red"}, BadRequest, "colour"),
        ({"vectors": ONE_VECTOR, "metadata": [1]}, BadRequest, "metadata"),
        ({"vectors": ONE_VECTOR, "shard_number": 2}, NotSupported, "shards"),
        ({"vectors": ONE_VECTOR, "replication_factor": 2}, NotSupported, "replication"),
        ({"vectors": ONE_VECTOR, "sharding_method": "custom"}, NotSupported, "custom sharding"),
        ({"vectors": ONE_VECTOR, "sparse_vectors": {"s": {}}}, NotSupported, "sparse"),
        ({"vectors": ONE_VECTOR, "quantization_config": {"scalar": {"type": "int8"}}}, NotSupported, "quantisation"),
        ({"vectors": ONE_VECTOR, "strict_mode_config": {"enabled": True}}, NotSupported, "strict mode"),
        ({"vectors": {"m": {"size": 2, "multivector_config": {"comparator": "m"}}}}, NotSupported, "multivectors"),
        ({"vectors": {"m": {"size": 2, "distance": "Dot", "datatype": "uint8"}}}, NotSupported, "data types"),
    ],
)  # fmt: skip
def test_wrong_collection_is_refused_by_name(body: Any, refusal: type[ApiError], names: str) -> None:
    """What is wrong or beyond us is refused, and the refusal names it."""
    with pytest.raises(refusal, match=names):
        CollectionSpec.parse(body)


def test_living_collection_changes_metadata_only() -> None:
    """Any other change is named as missing."""
    with pytest.raises(NotSupported, match="hnsw_config"):
        CollectionSpec.parse(CREATE).with_update({"hnsw_config": {"m": 8}})


@pytest.mark.parametrize("kind", ["keyword", "integer", "float", "bool", "datetime", "uuid", "text"])
def test_payload_index_comes_and_goes(collection: Collection, kind: str) -> None:
    """An index of each type is made, described and deleted; making it twice is harmless."""
    for _ in range(2):
        collection.create_index({"field_name": "field", "field_schema": kind})
    assert collection.info()["payload_schema"]["field"]["data_type"] == kind
    collection.delete_index("field")
    assert "field" not in collection.info()["payload_schema"]


@pytest.mark.parametrize(
    ("schema", "refusal"),
    [
        ("geo", NotSupported),
        ("colour", BadRequest),
        ({"type": "text", "tokenizer": "word"}, NotSupported),
        ({"type": "float", "lookup": True}, BadRequest),
        ({}, BadRequest),
        (None, BadRequest),
    ],
)
def test_wrong_payload_index_is_refused(shop: Collection, schema: Any, refusal: type[ApiError]) -> None:
    """An index that cannot be made is refused in its own way."""
    with pytest.raises(refusal):
        shop.create_index({"field_name": "field", "field_schema": schema})


def test_index_parameters_are_taken(collection: Collection) -> None:
    """Parameters that the engine knows pass."""
    schema = {"type": "integer", "lookup": True, "range": True}
    collection.create_index({"field_name": "stock", "field_schema": schema})
    assert collection.info()["payload_schema"]["stock"] == {"data_type": "integer", "points": 3}
