"""Releases as bytes: they come back whole, and nothing damaged is accepted."""

import numpy as np
import pytest

from contracts.errors import ContractError
from contracts.releases import PROBE_TOLERANCE, Kind, manifest_of
from tests.support.tiny_encoder import TinyEncoder
from towers.features import key_of
from towers.memory import QueryMemory
from towers.model import NATS_PER_COSINE, ProductTower, QueryTower
from towers.release_files import (
    PROBE_TEXTS,
    PROBE_VECTORS,
    Release,
    identity_release,
    pack,
    probe_difference,
    unpack,
    weights_sha256,
)

KINDS: tuple[Kind, Kind] = ("query", "product")


def broken(release: Release, **tensors: np.ndarray) -> bytes:
    """Return a release whose tensors were replaced and whose digest is right all the same."""
    changed = {**release.tensors, **tensors}
    manifest = release.manifest.model_copy(update={"weights_sha256": weights_sha256(changed)})
    return pack(Release(manifest, changed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_returns_from_its_bytes(kind: Kind) -> None:
    """Manifest, weights and probe vectors come back equal; the manifest alone can be read without the weights."""
    release = identity_release(kind, TinyEncoder())
    value = pack(release)
    again = unpack(value)
    assert again.manifest == release.manifest == manifest_of(value)
    assert isinstance(again.tower(), QueryTower if kind == "query" else ProductTower)
    for name, tensor in release.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


def test_packing_twice_gives_the_same_bytes() -> None:
    """A release that is published again after a crash is the same record."""
    assert pack(identity_release("query", TinyEncoder())) == pack(identity_release("query", TinyEncoder()))


def test_release_0_is_the_identity_with_sixteen_probes() -> None:
    """Both towers' release 0 leaves vectors as they are."""
    encoder = TinyEncoder()
    release = identity_release("product", encoder)
    assert len(PROBE_TEXTS) == len(set(PROBE_TEXTS)) == 16
    np.testing.assert_allclose(release.tensors["probe_vectors"][:, :-1], encoder.encode(PROBE_TEXTS), atol=1e-6)
    np.testing.assert_array_equal(release.tensors["probe_vectors"][:, -1], 0.0)
    assert release.manifest.release == release.manifest.product_release == 0


def test_probe_difference_proves_the_encoder() -> None:
    """With the encoder that made it the difference is nil; with another it is far above the tolerance."""
    release = identity_release("query", TinyEncoder())
    other = TinyEncoder()
    other.encode = lambda texts, *, batch_size=64: np.eye(16, dtype=np.float32)[: len(texts)]  # type: ignore[method-assign] # another model of the same width
    assert probe_difference(release, TinyEncoder()) <= PROBE_TOLERANCE < probe_difference(release, other)


def test_a_flipped_bit_is_refused() -> None:
    """Weights that are not those of the manifest are named as such."""
    value = bytearray(pack(identity_release("query", TinyEncoder())))
    value[-1] ^= 1
    with pytest.raises(ContractError) as refused:
        unpack(bytes(value))
    assert refused.value.reason == "wrong_digest"


@pytest.mark.parametrize("value", [b"", b"{}", b"\x00" * 64, pack(identity_release("query", TinyEncoder()))[:-8]])
def test_bytes_that_are_no_release_are_refused(value: bytes) -> None:
    """Anything else on the topic is a contract error, never a crash."""
    with pytest.raises(ContractError):
        unpack(value)


@pytest.mark.parametrize(
    ("tensor", "content", "reason"),
    [
        ("taste", np.zeros((16, 3), dtype=np.float32), "wrong_shape"),
        ("memory", np.zeros((64, 5), dtype=np.float16), "wrong_shape"),
        ("more", np.zeros(1, dtype=np.float32), "wrong_shape"),
        ("taste", np.zeros((16, 16), dtype=np.float64), "wrong_type"),
        ("memory_queries", np.zeros(0, dtype=np.int64), "wrong_type"),
        ("memory_points", np.zeros((1, 2), dtype=np.uint64), "wrong_shape"),
        ("memory_counts", np.ones(1, dtype=np.uint64), "wrong_shape"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(tensor: str, content: np.ndarray, reason: str) -> None:
    """A right digest does not make wrong shapes right."""
    with pytest.raises(ContractError) as refused:
        unpack(broken(identity_release("query", TinyEncoder()), **{tensor: content}))
    assert refused.value.reason == reason


def test_a_release_whose_memory_was_a_vector_of_each_query_is_read_without_it() -> None:
    """An upgrade does not refuse what is in force; the next release remembers again."""
    release = identity_release("query", TinyEncoder(16))
    tensors = {name: tensor for name, tensor in release.tensors.items() if not name.startswith("memory")}
    tensors |= {"memory_queries": np.array([3, 7], np.uint64), "memory": np.ones((2, 16), np.float16)}
    manifest = release.manifest.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    assert len(unpack(pack(Release(manifest, tensors))).query_tower().memory) == 0


def test_a_former_release_that_remembers_a_probe_text_is_not_taken_for_a_misfit() -> None:
    """Its probe's vector had the memory in it, which nobody reads any more; the other probes still have to agree."""
    release = identity_release("query", TinyEncoder(16))
    tensors = {name: tensor.copy() for name, tensor in release.tensors.items() if not name.startswith("memory")}
    tensors |= {
        "memory_queries": np.array([key_of("running shoes")], np.uint64), "memory": np.ones((1, 16), np.float16)
    }  # fmt: skip
    tensors[PROBE_VECTORS][PROBE_TEXTS.index("running shoes")] += 0.1
    former = Release(release.manifest, tensors)
    assert probe_difference(former, TinyEncoder(16)) == 0.0
    tensors[PROBE_VECTORS][0] += 0.2
    assert probe_difference(former, TinyEncoder(16)) == pytest.approx(0.2)


def test_counts_that_do_not_add_up_are_refused() -> None:
    """Else the products of one query would be taken for another's."""
    memory = QueryMemory.of([(3, {"P-1": 1.0})]).tensors() | {"memory_counts": np.array([2], np.uint64)}
    with pytest.raises(ContractError) as refused:
        unpack(broken(identity_release("query", TinyEncoder()), **memory))
    assert refused.value.reason == "wrong_shape"


def test_a_query_release_of_before_is_read_with_the_text_at_its_old_worth() -> None:
    """It has no number for what a unit of cosine is worth."""
    release = identity_release("query", TinyEncoder(16))
    tensors = {name: tensor for name, tensor in release.tensors.items() if name != "text"}
    manifest = release.manifest.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    old = unpack(pack(Release(manifest, tensors)))
    assert old.query_tower().text == NATS_PER_COSINE
    assert probe_difference(old, TinyEncoder(16)) == 0.0
