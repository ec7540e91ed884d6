"""What must have come out of a day, said apart from the agents, and what did not.

Lists, outcomes and click pairs are those of `tests/faults/oracle.py`, which shares no code with ours; late values and
sums of arms are worked out here from its lists. What filters, hold-out and propensities make of lists is compared with
the same rules in a calm: each list once, in the order of event time, no restart.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from contracts.joined import WATERMARK_HEADER, ClosedWatermark
from contracts.propensities import CellPropensities, Propensities
from streams.agents.spec import Emit, Plan
from streams.pairs.partition_pairs import PartitionPairs, options_of
from streams.registry import AGENTS
from tests.faults.oracle import Expected, LogEntry, expect
from tests.faults.pair_oracle import VALUE, grade_of, rounded
from tests.simulation.edges import installed
from tests.simulation.kafka import Stored
from tests.simulation.world import LATENESS_S, PARTITIONS, WINDOW_S, World, is_moving

Json = dict[str, Any]
SHOWN: int = 3
"""Differences of a kind that are told one by one."""
OUT_OF_TIME: int = 10
"""Lists a day that may be judged out of event time: what comes hours late, or late from a join that had been idle."""
REMEMBERED_MS: int = 900_000
"""How far behind the newest search a list may be and still count as reformulated."""
NOT_SUMMED = ("join", "pairs", "attribution", "attribution-orphans")
"""Agents whose progress is not a function of the log that they read alone; that of all others is."""


def problems(world: World) -> list[str]:
    """Return everything that is wrong with what came out, in words; an empty list if nothing is."""
    with installed(world):
        return [*world.failures] if world.failures else Check(world).problems()


class _Listed(NamedTuple):
    """A list that counts, and the newest search of its partition when it came."""

    at_ms: int
    newest_ms: int
    query: str
    is_clicked: bool

    def is_left_for(self, other: "_Listed") -> bool:
        """Whether another search shows that this one did not do; what is too far behind the newest is forgotten."""
        known = self.at_ms >= max(self.newest_ms, other.newest_ms) - REMEMBERED_MS
        return known and not self.is_clicked and 0 < other.at_ms - self.at_ms <= 300_000 and other.query != self.query


class Check:
    """Looks at the logs of a day.

    Args:
        world: whose day is over and worked off.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._found: list[str] = []
        self._progress = {spec.name: self._newest(spec) for spec in AGENTS}
        self._lists = {number: self._first_lists(number) for number in range(PARTITIONS)}
        self._expected = {number: self._expect(number) for number in range(PARTITIONS)}

    def problems(self) -> list[str]:
        """Return what is wrong."""
        self._check_join()
        self._check_ledgers()
        self._check_pairs()
        self._check_sums()
        self._check_arms()
        self._check_values()
        return self._found

    def _records(self, topic: str, number: int) -> list[Stored]:
        """Return the records of a partition."""
        return self._world.cluster.logs[topic, number].records

    def _all(self, topic: str) -> Iterable[Stored]:
        """Return the records of a topic."""
        return (record for number in range(PARTITIONS) for record in self._records(topic, number))

    def _newest(self, spec: Any) -> dict[int, Any]:
        """Return the progress that a next owner would begin with."""
        found = {}
        for number in range(PARTITIONS):
            known = [
                spec.progress.model_validate_json(r.value) for r in self._records(spec.progress_topic, number)[-9:]
            ]
            found[number] = max(known, key=lambda one: one.next_offset, default=spec.progress(
                partition=number, next_offset=0, hold_offset=0, **({"watermark_ms": -1} if spec.name == "join" else {})
            ))  # fmt: skip
        return found

    def _first_lists(self, number: int) -> list[Stored]:
        """Return the lists of a partition, each as it was written first."""
        once: dict[Any, Stored] = {}
        for record in self._records("joined-searches", number):
            if not is_moving(record.value):
                search = json.loads(record.value or b"")
                once.setdefault((search["search_id"], search["search_time"]), record)
        return [*once.values()]

    def _expect(self, number: int) -> Expected:
        """Return what the oracle says of a partition of the join."""
        read_to = self._progress["join"][number].next_offset
        log = [LogEntry(r.offset, r.timestamp, r.value or b"") for r in self._records("search-events", number)]
        log = [entry for entry in log if entry.offset < read_to]
        return expect(number, log, window_ms=1000 * WINDOW_S, lateness_ms=1000 * LATENESS_S)

    def _differ(self, what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
        """Tell what is missing, too much, or not the same."""
        wrong = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        told = "; ".join(f"{key}: {found.get(key)} and not {wanted.get(key)}" for key in wrong[:SHOWN])
        if wrong:
            self._found.append(f"{what}: {len(wrong)} of {len(wanted)} wrong: {told[:1500]}")

    def _check_join(self) -> None:
        """Every list exactly as expected, repeats the same bytes; what is set aside, and every count."""
        values: dict[Any, set[bytes]] = defaultdict(set)
        for record in self._all("joined-searches"):
            if not is_moving(record.value):
                search = json.loads(record.value or b"")
                values[search["search_id"], search["search_time"]].add(record.value or b"")
        told = ("origins", "slots", "closed_at", "unlisted", "synthetic")
        found = {key: [{n: json.loads(v).get(n) for n in told} for v in own] for key, own in values.items()}
        searches = {key: one for expected in self._expected.values() for key, one in expected.searches.items()}
        self._differ("joined searches", found, {key: [{n: one[n] for n in told}] for key, one in searches.items()})
        for number, expected in self._expected.items():
            progress = self._progress["join"][number]
            counts = {name: n for name, n in progress.counts.model_dump(exclude={"schema_version"}).items() if n}
            self._differ(
                f"outcomes of join {number}", counts, {n: count for n, count in expected.outcomes.items() if count}
            )
            self._differ(f"closed by join {number}", {"": progress.searches_closed}, {"": len(expected.searches)})
            for topic, outcome in (
                ("late-events", "late"),
                ("orphan-events", "orphan"),
                ("dead-letters", "dead_lettered"),
            ):
                aside = {
                    (headers[b"millrace.stage"], int(headers[b"millrace.origin.offset"])): headers[b"millrace.reason"]
                    for record in self._records(topic, number)
                    if (headers := {name.encode(): value for name, value in record.headers})
                }
                wanted = {
                    (b"join", offset): reason.encode()
                    for offset, (one, reason) in expected.aside.items()
                    if one == outcome
                }
                self._differ(f"{topic} {number}", aside, wanted)

    def _check_ledgers(self) -> None:
        """Each agent has one outcome for each record below its position."""
        for spec in AGENTS:
            for number, progress in self._progress[spec.name].items():
                counts = (
                    progress.counts
                    if isinstance(progress.counts, dict)
                    else progress.counts.model_dump(exclude={"schema_version"})
                )
                numbers = [n for one in counts.values() for n in (one.values() if isinstance(one, dict) else [one])]
                read = [r for r in self._records(spec.source, number) if r.offset < progress.next_offset]
                self._differ(f"ledger of {spec.name} {number}", {"": sum(numbers)}, {"": len(read)})

    def _check_pairs(self) -> None:
        """Pairs, held-out lists and what the learner is told are what they would be without faults."""
        progress = self._progress["pairs"].values()
        out_of_time = [one for one in progress if one.behind_time or one.without_silent or one.for_want_of_room]
        self._world.is_comparable = not out_of_time or not self._world.filtered
        lists = sum(one.behind_time + one.without_silent + one.for_want_of_room for one in out_of_time)
        if lists > OUT_OF_TIME:
            self._found.append(f"{lists} lists were judged before their time")
        calm = [self._calm_pairs(number) for number in self._lists]
        clicks = [r.value for r in self._all("preference-pairs") if b'"source":"value"' not in (r.value or b"")]
        if self._world.is_comparable:
            written = {"preference-pairs": clicks} | {
                topic: [record.value for record in self._all(topic)]
                for topic in ("training-searches", "holdout-searches")
            }
            for topic, values in written.items():
                wanted = Counter(one.value for plan in calm for one in plan if one.topic == topic)
                self._differ(topic, dict.fromkeys(values, 1), wanted)
        contents: dict[str, set[bytes]] = defaultdict(set)
        for record in self._all("preference-pairs"):
            contents[json.loads(record.value or b"")["pair_id"]].add(record.value or b"")
        self._differ("contents of a pair id", {i: len(c) for i, c in contents.items()}, dict.fromkeys(contents, 1))
        repeats = Counter[str]()
        outcomes = Counter[str]()
        for one in progress:
            repeats["repeats"] += one.counts.filtered.get("duplicate", 0)
            own = {"paired": one.counts.paired, "held_out": one.counts.held_out}
            own |= {f"filtered/{reason}": n for reason, n in one.counts.filtered.items() if reason != "duplicate"}
            outcomes.update(own | {f"unpaired/{reason}": n for reason, n in one.counts.unpaired.items()})
        lists = sum(not is_moving(record.value) for record in self._all("joined-searches"))
        self._differ("repeats seen by pairs", repeats, {"repeats": lists - sum(map(len, self._lists.values()))})
        if not self._world.filtered:
            expected = sum((one.search_outcomes for one in self._expected.values()), Counter())
            self._differ("outcomes of pairs", +outcomes, expected)
            wanted_pairs = {i: rounded(pair) for one in self._expected.values() for i, pair in one.pairs.items()}
            found = {pair["pair_id"]: rounded(pair) for pair in map(json.loads, filter(None, clicks))}
            self._differ("pairs", found, wanted_pairs)

    def _calm_pairs(self, number: int) -> list[Emit]:
        """Return what the rules make of the lists of a partition that all lie before them."""
        versions = {r.key: r.value for r in self._records("propensities", 0)}
        known = Propensities(CellPropensities.model_validate_json(value) for value in versions.values() if value)
        options = replace(options_of(self._world.settings), joins=1)
        rules, plan = PartitionPairs(number, options=options, theta=known.theta), Plan()
        written_ms = self._world.epoch_ms()
        for record in self._lists[number]:
            rules.take(Stored(rules.next_offset + 1, written_ms, record.key, record.value, ()), plan)
        end = ClosedWatermark(0, 10**14, idle=False).encode()
        rules.take(Stored(rules.next_offset + 1, written_ms, None, b"", ((WATERMARK_HEADER, end),)), plan)
        return [one for one in plan if isinstance(one, Emit)]

    def _check_sums(self) -> None:
        """What is summed up is what one process would have summed up that nobody ever killed."""
        summed = [spec for spec in AGENTS if spec.name not in NOT_SUMMED]
        for spec in summed:
            for number, progress in self._progress[spec.name].items():
                rules = spec.new_state(number, None, self._world.settings)
                for record in self._records(spec.source, number):
                    if record.offset < progress.next_offset:
                        rules.take(record, [])
                wanted = rules.progress()
                self._differ(f"sums of {spec.name} {number}", progress.model_dump(), wanted.model_dump())

        readers = [spec for spec in summed if spec.source == "joined-searches"]
        repeats = [(spec.name, name) for spec in readers for name, of in spec.outcomes.items() if "duplicate" in [*of]]
        for name, outcome in repeats:
            for number, first in self._lists.items():
                lists = sum(not is_moving(record.value) for record in self._records("joined-searches", number))
                counted = self._progress[name][number].counts.get(f"{outcome}/duplicate", 0)
                self._differ(f"repeats seen by {name} {number}", {"": counted}, {"": lists - len(first)})

    def _check_arms(self) -> None:
        """No list is counted twice in the sums of arms, and none is left out."""
        found, wanted = Counter[str](), Counter[str]()
        for progress in self._progress["arms"].values():
            for counts in (counts for surfaces in progress.arms.values() for counts in surfaces.values()):
                for name in ("searches", "clicked", "purchased", "reformulated"):
                    found[name] += getattr(counts, name)
        searches = {key: one for expected in self._expected.values() for key, one in expected.searches.items()}
        sessions: defaultdict[str, list[_Listed]] = defaultdict(list)
        for number in range(PARTITIONS):
            newest_ms = 0
            for record in self._lists[number]:
                told = json.loads(record.value or b"")
                search = searches[told["search_id"], told["search_time"]]
                if search["synthetic"] or search["denied"] or not search["query"].strip():
                    continue
                grades = [grade_of(slot) for slot in search["slots"] if not slot["sponsored"]]
                bought = any(slot["purchase_quantity"] for slot in search["slots"] if not slot["sponsored"])
                wanted += Counter(searches=1, clicked=int(any(grades)), purchased=int(bought))
                newest_ms = max(newest_ms, search["search_time"])
                listed = _Listed(search["search_time"], newest_ms, search["query"].strip(), any(grades))
                sessions[search["session_id"]].append(listed)
        for session in sessions.values():
            wanted["reformulated"] += sum(any(one.is_left_for(other) for other in session) for one in session)
        self._differ("arms", +found, +wanted)

    def _check_values(self) -> None:
        """Late carts and purchases raise the value of a choice to what they say, each order once."""
        events = {
            (number, record.offset): json.loads(record.value or b"")
            for number, expected in self._expected.items()
            for record in self._records("search-events", number)
            if expected.aside.get(record.offset, ("", ""))[0] in {"late", "orphan"}
        }
        pairs = {p["pair_id"]: p for p in (json.loads(r.value or b"") for r in self._all("preference-pairs"))}
        values = [pair for pair in pairs.values() if pair["source"] == "value"]
        raised_by: dict[Any, set[str]] = defaultdict(set)
        found: Counter[tuple[str, str]] = Counter()
        for pair in values:
            origin = pair["origins"][-1]
            raised_by[_identity(events[origin["partition"], origin["offset"]])].add(pair["pair_id"])
            found[pair["search_id"], pair["chosen"]["product_id"]] += pair["factors"]["value"]
        once = {identity: len(ids) for identity, ids in raised_by.items()}
        self._differ("value pairs of an order", once, dict.fromkeys(once, 1))
        before = {
            (p["search_id"], p["chosen"]["product_id"]): p["chosen"]["grade"]
            for p in pairs.values()
            if p["source"] == "click"
        }
        best: dict[tuple[str, str], int] = {}
        outcomes: Counter[str] = Counter()
        identities = set()
        for event in filter(_tells_value, events.values()):
            place = self._place(event, before)
            if place is None:
                outcomes["unmatched"] += 1
            else:
                outcomes["left/duplicate" if _identity(event) in identities else "attributed"] += 1
                identities.add(_identity(event))
                best[place] = max(best.get(place, 0), 4 if event["type"] == "purchase" else 3)
        wanted = {place: VALUE[top] - VALUE[before[place]] for place, top in best.items() if top > before[place]}
        counted: Counter[str] = Counter()
        for progress in (
            one for name in ("attribution", "attribution-orphans") for one in self._progress[name].values()
        ):
            for name, n in progress.counts.items():
                counted[name.partition("/")[0] if not name.startswith("left/") else name] += n
            counted["pairs"] += progress.pairs
        if self._world.flushed:
            self._differ("values after Redis was emptied", {k: 1 for k in found if k not in wanted}, {})
            return
        self._differ("late values", dict(found), wanted)
        self._differ("attribution", {n: counted[n] for n in (*outcomes, "pairs")}, {**outcomes, "pairs": len(values)})

    def _place(self, event: Json, before: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
        """Return the choice that an event belongs to: in the list that it names, else by a click, the last first."""
        part = event["items"][0] if event["type"] == "purchase" else event
        product, at_ms = part["product_id"], event["event_time"]
        clicks = [
            (slot.get("click_time", search["search_time"]), search["search_id"])
            for expected in self._expected.values()
            for search in expected.searches.values()
            if search["session_id"] == event["session_id"] and not search["synthetic"] and not search["denied"]
            for slot in search["slots"]
            if slot["product_id"] == product and grade_of(slot)
        ]
        earlier = [click for click in clicks if at_ms - 86_400_000 <= click[0] <= at_ms]
        named = [part["search_id"]] if part.get("search_id") else []
        clicked = [search_id for _, search_id in sorted(earlier, reverse=True)]
        places = [(search_id, product) for search_id in [*named, *clicked]]
        return next((place for place in places if place in before), None)


def _identity(event: Json) -> tuple[str, ...]:
    """Return what makes a late event unique: an order counts each product once."""
    if event["type"] == "cart":
        return ("cart", event["event_id"])
    return ("purchase", event["order_id"], event["items"][0]["product_id"])


def _tells_value(event: Json) -> bool:
    """Whether an event tells of a value that counts."""
    return event["type"] in {"cart", "purchase"} and not event.get("synthetic") and event.get("consent") != "denied"
