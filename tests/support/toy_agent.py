"""A toy agent, written by the recipe of CONTRIBUTING.md: it notes how many products each search showed."""

from collections.abc import Sequence
from typing import Final

import orjson
from prometheus_client import Counter
from typing_extensions import override

from contracts.progress import AgentProgress
from contracts.structs import JOINED_SEARCH
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES, TopicSpec
from service.settings import Settings
from streams.agents.spec import AgentSpec, Emit, LogRecord, Plan, RecordRules

LISTS: Final = TopicSpec("toy-lists", key="search_id")
OUTCOMES: Final = Counter("millrace_toy_outcomes", "What became of lists.", ("outcome", "reason"), registry=None)
REASONS: Final[Sequence[str]] = ("empty",)


class ListLengths(RecordRules):
    """Notes the length of each list that showed anything."""

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Note one list."""
        search = JOINED_SEARCH.decode(record.value)
        if not search.slots:
            return "left/empty"
        note = {"search_id": search.search_id, "products": len(search.slots)}
        plan.append(Emit(LISTS.name, search.search_id.encode(), orjson.dumps(note)))
        return "noted"


def _new_state(partition: int, progress: AgentProgress | None, _: Settings) -> ListLengths:
    """Return the state of a partition; it knows its position and its counts only."""
    return ListLengths(partition, progress)


TOY: Final = AgentSpec(
    name="toy",
    source=JOINED_SEARCHES,
    outputs=(LISTS.name, DEAD_LETTERS),
    topics=(LISTS,),
    progress=AgentProgress,
    new_state=_new_state,
    outcomes={"noted": (), "left": REASONS, "dead_lettered": ()},
    ledger=("toy", "read"),
    counter=OUTCOMES,
)
