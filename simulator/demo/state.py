"""What the demo knows while it runs, gathered by several threads and shown by one."""

import threading
from dataclasses import dataclass, field

from contracts.releases import SERVING, SERVING_KEY, ReleaseManifest, Serving, manifest_of
from contracts.wire import decode


@dataclass(slots=True)
class ReleaseLog:
    """Every release published during the demo, the tombstoned ones included, and every switch of `serving`."""

    manifests: dict[int, ReleaseManifest] = field(default_factory=dict)
    products: dict[int, ReleaseManifest] = field(default_factory=dict)
    serving: list[Serving] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of `models`.

        Raises:
            MalformedMessage: it is neither a release nor `serving`.
        """
        if value is None:
            return
        with self._lock:
            if key == SERVING_KEY:
                self.serving = [*self.serving, decode(value, SERVING)]
                return
            manifest = manifest_of(value)
            if manifest.kind == "query":
                self.manifests = {**self.manifests, manifest.release: manifest}
            else:
                self.products = {**self.products, manifest.release: manifest}

    def in_force(self) -> str:
        """Return the pair in force, in words."""
        if not self.serving:
            return "nothing yet"
        last = self.serving[-1]
        return f"query release {last.query_release} on product release {last.product_release}"

    def product_releases_served(self) -> int:
        """Return how many product releases went through the whole index and came into force."""
        return len({entry.product_release for entry in self.serving} - {0})

    def query_releases_served(self) -> int:
        """Return how many query releases came into force."""
        return len({entry.query_release for entry in self.serving} - {0})
