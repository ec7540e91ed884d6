"""What the demo knows of releases while it runs; fed by a follower's thread, shown by others."""

from contracts.releases import ReleaseManifest, Serving
from service.models import ModelsTable


class ReleaseLog:
    """Every query release published during the demo, the tombstoned ones included, and every switch of `serving`."""

    def __init__(self) -> None:
        self.table = ModelsTable(on_change=self._note, bytes_of=())
        self.manifests: dict[int, ReleaseManifest] = {}
        self.serving: list[Serving] = []

    def _note(self) -> None:
        """Keep what is new; readers hold what was, because nothing is changed in place."""
        view = self.table.look()
        found = {one.release: one for one in view.manifests.values() if one.kind == "query"}
        if found.keys() - self.manifests.keys():
            self.manifests = {**self.manifests, **found}
        if view.serving is not None and view.serving not in self.serving[-1:]:
            self.serving = [*self.serving, view.serving]

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
