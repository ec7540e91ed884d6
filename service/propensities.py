"""The topic `propensities` as it has been read: what holds when, by records in their order."""

from contracts.errors import ContractError
from contracts.outcomes import Cell
from contracts.propensities import CELL_PROPENSITIES, CellPropensities, Propensities, VersionName
from contracts.topics import PROPENSITIES
from contracts.wire import decode
from service.logging import get_logger


class PropensityTable:
    """The versions that the topic holds; fed and asked by one thread."""

    def __init__(self) -> None:
        self.versions: dict[bytes, VersionName] = {}
        """Key -> version, of all that the topic holds: half a month of them."""
        self.lookup = Propensities()
        """The same, to be asked for what holds when."""
        self._newest: dict[Cell, CellPropensities] = {}

    def newest(self) -> dict[Cell, CellPropensities]:
        """Return the last version of each cell."""
        return dict(self._newest)

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew."""
        self.versions.clear()
        self._newest.clear()
        self.lookup = Propensities()

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take one record; what cannot be read is said and left out, for one bad version must not stop learning."""
        old = self.versions.pop(key, None)
        if old is not None:
            self.lookup.drop(old.cell, old.version)
        if value is None:
            return
        try:
            version = decode(value, CELL_PROPENSITIES)
        except ContractError as error:
            log = get_logger(topic=PROPENSITIES)
            log.error("propensities_unreadable", key=key.decode(errors="replace"), error=error.message)
            return
        self.versions[key] = version.name
        last = self._newest.get(version.cell)
        if last is None or last.version <= version.version:
            self._newest[version.cell] = version
        self.lookup.add(version)
