"""Shoppers, and robots, who make the trouble that filters are for: each kind is a visit of a few lists.

They stand in a table, so that a new kind is a line. A robot that clicks everything is one of `Shoppers` too; these are
for loops whose shoppers are simple.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Trouble = Literal["none", "crawl", "fraud", "ring", "heavy", "again", "later", "hasty", "variants"]
Manner = Literal["own", "all", "nothing", "target", "odd", "same", "one_variant"]
"""What is clicked: as simple shoppers do; everything; nothing, as nothing is looked at; one product wherever it stands;
what nobody else likes; what was clicked in the list before; as simple shoppers do, but of variants the first alone."""
Typed = Literal["new", "same", "target"]
"""Any query; the one before; one whose list has the product that is to be pushed."""


@dataclass(frozen=True, slots=True)
class Step:
    """One list of a visit.

    Args:
        typed: for what.
        manner: what is clicked in it.
        after_ms: since the list before.
    """

    typed: Typed = "new"
    manner: Manner = "own"
    after_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Visits:
    """Visits of one kind.

    Args:
        steps: their lists.
        is_one_client: whether all of them are by one client.
    """

    steps: tuple[Step, ...] = (Step(),)
    is_one_client: bool = False


USUAL: Final = Visits()
"""A simple shopper's: one list."""
TROUBLES: Final[Mapping[Trouble, Visits]] = {
    "crawl": Visits((Step(manner="all", after_ms=1_000),) * 20),
    "fraud": Visits((Step("target", "target", 5_000),) * 20, is_one_client=True),
    "ring": Visits((Step("target", "target"),)),
    "heavy": Visits((Step(manner="odd"),) * 3, is_one_client=True),
    "again": Visits((Step(), Step("same", "same"), Step("same", "same"))),
    "later": Visits((Step(manner="nothing"), Step("same", "own"))),
    "hasty": Visits((Step(manner="nothing"), Step("new", "own", 4_000))),
    "variants": Visits((Step(manner="one_variant"),)),
}
"""`crawl` and `fraud` are one robot each, `ring` does the same from as many addresses as lists; `heavy` is a person of
an odd taste who never stops; `again` looks at the same list three times; `later` looks first and chooses the second
time; `hasty` mistypes, and has not looked; of `variants` people click the one that they like."""
