"""The releases on `models` as they are shown: what each was trained on, what it passed, and which are in force."""

from typing import Any

from contracts.releases import ReleaseManifest, Serving
from service.models import ModelsView


def releases_report(view: ModelsView) -> dict[str, Any]:
    """Return the releases as stable JSON, newest first."""
    manifests = sorted(view.manifests.values(), key=lambda manifest: manifest.created_at, reverse=True)
    serving = view.serving
    return {
        "serving": serving.model_dump(mode="json") if serving else None,
        "releases": [_row(manifest, serving) for manifest in manifests],
    }


def _row(manifest: ReleaseManifest, serving: Serving | None) -> dict[str, Any]:
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
