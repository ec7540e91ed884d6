"""The releases on `models`: what each was trained on, what it passed, and which are in force."""

from typing import Any

from contracts import wire
from contracts.releases import SERVING, SERVING_KEY, ReleaseManifest, Serving, manifest_of


def _name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


class ReleaseBook:
    """Folds the records of `models` into what is there now.

    Not thread-safe by itself: feed it from one follower, read whole attributes.
    """

    def __init__(self) -> None:
        self.manifests: dict[str, ReleaseManifest] = {}
        self.serving: Serving | None = None

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take one record; a null value removes the release."""
        if key == SERVING_KEY:
            self.serving = wire.decode(value, SERVING) if value else None
        elif value is None:
            self.manifests = {name: kept for name, kept in self.manifests.items() if name != _name(key)}
        else:
            self.manifests = {**self.manifests, _name(key): manifest_of(value)}

    def report(self) -> dict[str, Any]:
        """Return the releases as stable JSON, newest first."""
        manifests = sorted(self.manifests.values(), key=lambda manifest: manifest.created_at, reverse=True)
        serving = self.serving
        return {
            "serving": serving.model_dump(mode="json") if serving else None,
            "releases": [self._row(manifest) for manifest in manifests],
        }

    def _row(self, manifest: ReleaseManifest) -> dict[str, Any]:
        serving = self.serving
        number = None if serving is None else getattr(serving, f"{manifest.kind}_release")
        return {
            "kind": manifest.kind,
            "release": manifest.release,
            "product_release": manifest.product_release,
            "query_release": manifest.query_release,
            "in_force": number == manifest.release,
            "created_at": manifest.created_at,
            "pairs_trained": manifest.pairs_trained,
            "lists_trained": manifest.lists_trained,
            "drift_mean": manifest.drift_mean,
            "checks": [check.model_dump(mode="json") for check in manifest.checks],
        }
