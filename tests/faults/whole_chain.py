"""What a whole deployment holds once it is quiet, compared stage by stage with what its shoppers and its shop sent.

Each stage is asked of another: the collector by what it acknowledged, join and pairs by the oracle, propensities and
arms by what their rules make of the same log in one go, the trainer by the lists that it was told of, the index by the
audit.
"""

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from contracts.releases import manifest_of
from contracts.topics import CATALOG, MODELS, SEARCH_EVENTS, TRAINING_SEARCHES
from millrace.auditing import run_audit
from service.settings import Settings
from streams.agents.spec import AgentSpec
from streams.arms.partition_arms import ARMS_AGENT
from streams.propensity.partition_propensity import PROPENSITY
from tests.faults.comparison import compare
from tests.faults.oracle import PERSON_KEY
from tests.support.in_one_go import written_and_in_one_go
from tests.support.poll import eventually
from tests.support.topics import read_compacted, read_topic

SETTINGS: Final[dict[str, Any]] = {
    "person_key": PERSON_KEY.decode(), "filters": "none", "swap_share": 0.9, "propensity_interval_s": 15.0,
}  # fmt: skip
"""What the oracle knows: its own key, and no filter that needs vectors. Propensities are learned within minutes."""
LEARNED_TIMEOUT_S: Final = 120.0


def differences(settings: Settings, *, events: set[str], products: dict[str, int]) -> Iterator[str]:
    """Say in which stage something was lost, counted twice or made wrong.

    Args:
        settings: of a deployment that runs, in which nothing is pending any more.
        events: ids of what was acknowledged as shop event, each sent once or more.
        products: of each product that was acknowledged the newest version.
    """
    checks: list[tuple[str, Callable[[], None]]] = [
        ("collector", lambda: _check_acknowledged(settings, events, products)),
        ("streams", lambda: print(json.dumps(compare(settings)))),  # noqa: T201 - the run's figures
        *((spec.name, partial(_check_counted, settings, spec)) for spec in (PROPENSITY, ARMS_AGENT)),
        ("trainer", lambda: _check_learned(settings)),
        ("indexer", lambda: _check_index(settings)),
    ]
    for stage, check in checks:
        try:
            check()
        except Exception as error:  # noqa: BLE001 - a check that fails must not hide what the others find
            where = traceback.extract_tb(error.__traceback__)[-1]
            yield f"{stage}: {where.line} {error!r}"


def _check_acknowledged(settings: Settings, events: set[str], products: dict[str, int]) -> None:
    """Hold that whatever was acknowledged stands on its topic."""
    values = [json.loads(record.value) for own in read_topic(settings, SEARCH_EVENTS).values() for record in own]
    missing = events - {value["event_id"] for value in values if "event_id" in value}
    assert not missing, sorted(missing)[:5]
    sent = {key.decode(): json.loads(value)["version"] for (_, key), value in read_compacted(settings, CATALOG).items()}
    wrong = sorted(name for name in sent.keys() | products.keys() if sent.get(name) != products.get(name))
    assert not wrong, [(name, sent.get(name), products.get(name)) for name in wrong[:5]]


def _check_counted(settings: Settings, spec: AgentSpec[Any]) -> None:
    """Hold that an agent has counted each list once, however often it was killed."""
    written, in_one_go = asyncio.run(written_and_in_one_go(settings, spec))
    for number, found in written.items():
        ours, wanted = (one.model_dump(exclude={"source_id"}) for one in (found, in_one_go[number]))
        assert ours == wanted, {name: (ours[name], wanted[name]) for name in ours if ours[name] != wanted[name]}
    assert any(one.counts.get("counted") for one in written.values())


def _check_learned(settings: Settings) -> None:
    """Hold that the newest release has learned each list that learning was told of, once."""
    records = [record for own in read_topic(settings, TRAINING_SEARCHES).values() for record in own]
    lists = {(told["search_id"], told["search_time"]) for told in map(json.loads, (one.value for one in records))}

    def learned() -> int:
        """Return of how many lists the newest query release is."""
        manifests = [
            manifest_of(value) for (_, key), value in read_compacted(settings, MODELS).items() if key[:6] == b"query-"
        ]
        newest = max(manifests, key=lambda one: one.release, default=None)
        return 0 if newest is None else newest.lists_trained

    eventually(lambda: learned() >= len(lists), timeout_s=LEARNED_TIMEOUT_S, interval_s=1, what=f"{len(lists)} lists")
    assert learned() == len(lists), (learned(), len(lists))


def _check_index(settings: Settings) -> None:
    """Hold that catalogue, base vectors and index agree, and numbers computed again with what is stored."""
    report = run_audit(settings, lambda _what, _done, _of: None, sample=32, repair=False, yes=False)
    assert not sum(report["differences"].values()), report["examples"]
    assert not report["pending"], report["pending"]
