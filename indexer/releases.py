"""Whether a release may be used here: whole, finite, and of the same base encoder as ours."""

from collections.abc import Callable
from typing import Final

import numpy as np

from contracts.errors import CheckFailed
from contracts.releases import PROBE_TOLERANCE, Kind, release_key
from towers.heads import ProductHead
from towers.release_files import Encoder, Release, identity_release, probe_difference, unpack

IDENTITY: Final = 0

ValueOf = Callable[[str], bytes | None]
"""Returns the value of a key on `models`, None if there is none."""


def verified_release(kind: Kind, release: int, *, value_of: ValueOf, encoder: Encoder) -> Release:
    """Return a release that may be used with this encoder; release 0 is built in.

    Raises:
        CheckFailed: it is not there, not finite, of another base encoder, or its probe texts come out differently.
        ContractError: its bytes are damaged.
    """
    if release == IDENTITY:
        return identity_release(kind, encoder)
    value = value_of(release_key(kind, release).decode())
    if value is None:
        raise CheckFailed(f"{kind} release {release} is not on the topic")
    found = unpack(value)
    manifest = found.manifest
    if (manifest.kind, manifest.release) != (kind, release):
        raise CheckFailed(f"it calls itself {manifest.kind} release {manifest.release}")
    if (manifest.base_version, manifest.dim) != (encoder.base_version, encoder.dim):
        raise CheckFailed(
            f"it was trained over {manifest.base_version}, this process has {encoder.base_version}",
            fix="give trainer, indexer and search the same MILLRACE_BASE_MODEL",
        )
    if not all(np.isfinite(tensor).all() for tensor in found.tensors.values()):
        raise CheckFailed("it holds weights that are not finite")
    difference = probe_difference(found, encoder)
    if not difference <= PROBE_TOLERANCE:
        raise CheckFailed(
            f"its probe texts differ by {difference:.2e}", fix="install the same versions for every process"
        )
    return found


def product_head(release: Release) -> ProductHead:
    """Return the head of a product release."""
    head = release.head()
    if not isinstance(head, ProductHead):
        raise CheckFailed(f"{release.manifest.kind}-{release.manifest.release} is no product release")
    return head
