"""The releases that an indexer writes: never weights of its own, only known ones under a new number or fence."""

from collections.abc import Mapping
from typing import Final

from contracts.errors import ContractError
from contracts.releases import ReleaseManifest, Serving, release_key
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable
from towers.release_files import Release, pack, unpack

NUMBERS_LEFT: Final = 3
"""Numbers that a product release of ours leaves to the trainer, which may be publishing just now."""


def quality_again(
    release: Release, query: ReleaseManifest, *, models: ModelsTable, serving: Serving
) -> dict[str, bytes]:
    """Make a product release of older weights, by key; none if they are in force and nothing newer waits.

    Points refuse what is older, so it takes a number that is newer than any.

    Args:
        release: whose weights they are.
        query: the query release that it belongs to.
        models: what else was released.
        serving: what is in force.
    """
    view, wanted = models.look(), release.manifest.release
    newest = max(models.highest("product"), serving.product_release)
    in_force = view.manifests.get(release_key("product", serving.product_release).decode())
    digest = release.manifest.weights_sha256
    is_same = wanted == serving.product_release or (in_force is not None and in_force.weights_sha256 == digest)
    if is_same and newest == serving.product_release:
        return {}
    number = newest + NUMBERS_LEFT
    changes = {"release": number, "product_release": number, "query_release": query.release, "parent": wanted}
    manifest = release.manifest.model_copy(update={**changes, "fence": view.fence, "created_at": epoch_ms()})
    return {release_key("product", number).decode(): pack(Release(manifest, release.tensors))}


def with_fence(releases: Mapping[str, bytes], fence: int) -> dict[str, bytes]:
    """Give releases another fence: a reader takes what has the newest one only. Damaged ones are left out, and said."""
    again = {}
    for key, value in releases.items():
        try:
            release = unpack(value)
        except ContractError as error:
            get_logger().error("release_unreadable", key=key, error=error.message)
            continue
        again[key] = pack(Release(release.manifest.model_copy(update={"fence": fence}), release.tensors))
    return again
