"""Where product writes go now: the collection in force, and the one that a roll-out is filling."""

import threading
from dataclasses import dataclass, field

from towers.heads import ProductHead


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A collection and the product head whose vectors it holds; a head of None is the identity."""

    collection: str
    product_release: int
    head: ProductHead | None


@dataclass(slots=True)
class Targets:
    """The collections that a catalogue change is written to. Safe for several threads.

    A roll-out announces its collection here before it looks at the products; the catalogue lane notes a change among the
    products before it looks here. So every change reaches the new collection on at least one of the two ways.
    """

    in_force: Target | None = None
    building: Target | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> list[Target]:
        """Return the collections to write to."""
        with self._lock:
            return [target for target in (self.in_force, self.building) if target is not None]

    def build(self, target: Target) -> None:
        """Write to a further collection from now on."""
        with self._lock:
            self.building = target

    def abandon(self) -> None:
        """Stop writing to the collection that was being filled."""
        with self._lock:
            self.building = None

    def switch(self, target: Target) -> None:
        """Bring a collection into force."""
        with self._lock:
            self.in_force = target
            if self.building is not None and self.building.collection == target.collection:
                self.building = None
