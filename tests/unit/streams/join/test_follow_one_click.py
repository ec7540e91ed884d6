"""The way of one click, from the record that a site sends to the pair that a model learns from, in one sitting.

An old fridge stands first, a quiet one fourth; the shopper passes over three, opens the fourth and stays.
"""

import orjson

from contracts.joined import JoinedSearch
from contracts.pairs import PreferencePair
from contracts.topics import PREFERENCE_PAIRS
from streams.agents.spec import Emit, Plan
from streams.join.partition_join import PartitionJoin
from streams.pairs.partition_pairs import PartitionPairs
from tests.support.search_events import T0, Record, click, dwell, impression, log, tick


def test_one_click_becomes_five_pairs() -> None:
    """Three passed over above and two below the click: value 1.5 for the long stay, the ratio undoes the positions."""
    happened = [impression(), click("d", time_ms=400), dwell("d", dwell_ms=42_000, time_ms=900), tick(1_101)]

    join, closed = PartitionJoin(0, window_ms=1_000, lateness_ms=100), Plan()
    for record in log(happened):
        join.take(record, closed)
    (joined,) = [one for one in closed if isinstance(one, Emit)]
    search = JoinedSearch.model_validate_json(joined.value)
    assert [slot.product_id for slot in search.slots if slot.clicked] == ["d"]
    assert search.slots[3].dwell_ms == 42_000

    pairs, made = PartitionPairs(0), Plan()
    pairs.take(Record(0, T0, joined.value, joined.key), made)
    written = [one.value for one in made if isinstance(one, Emit) and one.topic == PREFERENCE_PAIRS]
    found = [PreferencePair.model_validate(orjson.loads(value)) for value in written]
    assert {(p.chosen.product_id, p.rejected.product_id): round(p.weight, 3) for p in found} == {
        ("d", "a"): 1.5,
        ("d", "b"): 1.5,
        ("d", "c"): 1.5,
        ("d", "e"): 1.2,
        ("d", "f"): 1.0,
    }
    assert {pair.event_time for pair in found} == {T0 + 400}
    assert [(origin.topic, origin.offset) for origin in found[0].origins] == [
        ("search-events", 0), ("search-events", 1), ("search-events", 2),
    ]  # fmt: skip
