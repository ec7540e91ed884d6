"""Looks at Kafka from outside every consumer group, again and again, and puts what it saw into one document.

Followers keep the progress records and releases current, a consumer without a group reads what the join has not read
yet (so that pending events are counted, not inferred), and one admin client asks for offsets. Half a deployment, a
record that nobody can read or a right that is missing leave their part unknown and everything else known.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import ContractError, DependencyDown, InvariantError, MillraceError
from contracts.progress import PartitionProgress
from contracts.telemetry import FRESHNESS_PATHS, Process
from contracts.topics import CATALOG, GROUP_PREFIX, MODELS, SEARCH_EVENTS
from millrace.watch.facts import COUNTS, UNREAD, KafkaFacts, Tail, TailCounter, catalog_counts
from millrace.watch.ledger import lag_report, ledger_report, unknown_report
from millrace.watch.scrape import ProcessView, freshness_report
from service.follow import PATIENCE_S, TopicFollower
from service.health import Dependency
from service.kafka import (
    Committed,
    OffsetRange,
    Partition,
    admin,
    beginning_and_end_offsets,
    committed_offsets,
    translate_kafka_errors,
)
from service.models import ModelsTable
from service.settings import Settings
from streams import registry
from streams.agents.spec import AgentSpec
from streams.join.spec import JOIN

LOOK_S: Final = 20.0
"""How long one look goes on asking; a question that is under way takes its own time."""

Progress = Mapping[str, Mapping[int, PartitionProgress]]
"""Agent -> partition -> its last progress."""
T = TypeVar("T")


class Observer:
    """A view of one deployment, a context manager. Not thread-safe: one caller at a time.

    Args:
        settings: of the deployment.

    Raises:
        DependencyDown: Kafka does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.models = ModelsTable(bytes_of=())
        self._progress: dict[str, dict[int, PartitionProgress]] = {spec.name: {} for spec in registry.AGENTS}
        self._unreadable: dict[str, dict[bytes, ContractError]] = {}
        self._answers_until_s = 0.0
        kafka = Dependency(Process.KAFKA, patience_s=PATIENCE_S)
        models = TopicFollower(settings, MODELS, self.models.apply, on_new_topic=self.models.forget, kafka=kafka)
        self._followers = {
            **{spec.progress_topic: self._follower(spec, kafka) for spec in registry.AGENTS},
            MODELS: models,
        }
        with ExitStack() as opened:
            self._admin = admin(settings)
            opened.callback(self._admin.close)
            self._tails = TailCounter(settings)
            opened.callback(self._tails.close)
            for follower in self._followers.values():
                follower.start()
                opened.callback(follower.stop)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop following and close every client."""
        self._opened.close()

    def wait_caught_up(self, timeout_s: float) -> None:
        """Wait until the progress records and releases that existed at the start have been read, if there are any.

        Raises:
            DependencyDown: Kafka does not answer.
        """
        deadline = time.monotonic() + timeout_s
        for topic in self._existing(self._followers):
            while not self._followers[topic].caught_up.wait(0.05) and time.monotonic() < deadline:
                if self._followers[topic].failure is not None:
                    break

    def look(self) -> KafkaFacts:
        """Return the facts of this moment.

        Offsets of consumers are taken before the log's ends, so that nothing can seem to be consumed before it exists;
        the unread tail is then counted up to those very ends.

        Raises:
            DependencyDown: Kafka does not answer at all.
        """
        self._answers_until_s = time.monotonic() + LOOK_S
        unknown: dict[str, MillraceError] = {}
        watched = tuple(dict.fromkeys(topic for read in registry.group_topics().values() for topic in read))
        existing = self._existing((*watched, *self._followers))
        for topic in (*watched, *self._followers):
            if topic not in existing:
                name = self._settings.topic(topic)
                fix = "`millrace up` or a restart of any service creates it"
                unknown[topic] = DependencyDown(f"Kafka does not know {name}, or hides it", fix=fix)
            elif (problem := self._not_read(topic)) is not None:
                unknown[topic] = problem
        committed = self._committed(unknown)
        progress = {agent: dict(found) for agent, found in self._progress.items()}
        ends = self._ends([topic for topic in watched if topic in existing], unknown)
        _refuse_positions_behind_the_end(committed, progress, ends, unknown)
        tails = self._unread(progress[JOIN.name], ends, unknown)
        return KafkaFacts(ends=ends, committed=committed, progress=progress, tails=tails, unknown=unknown)

    def _existing(self, topics: Iterable[str]) -> list[str]:
        names = {self._settings.topic(topic): topic for topic in topics}
        with translate_kafka_errors(self._settings):
            found = self._admin.describe_topics(list(names))
        return [names[topic["name"]] for topic in found if topic["partitions"]]

    def _not_read(self, topic: str) -> MillraceError | None:
        """Return why what a followed topic holds is not known."""
        if topic not in self._followers:
            return None
        if (failure := self._followers[topic].failure) is not None:
            return failure
        if (waits := self._followers[topic].not_caught_up()) is not None:
            return DependencyDown(waits, fix="look at the broker with `millrace doctor`")
        unreadable = self.models.unreadable() if topic == MODELS else self._unreadable[topic]
        for key, error in list(unreadable.items()):
            name = key.decode("utf-8", "replace")
            return InvariantError(f"the record {name} of {topic} cannot be read: {error.message}")
        return None

    def _committed(self, unknown: dict[str, MillraceError]) -> dict[str, dict[Partition, Committed]]:
        """Return what each group committed, and whether the indexer's counts beside it can be read."""
        committed = {}
        for group in registry.group_topics():
            question = partial(committed_offsets, self._admin, self._settings, group)
            committed[group] = self._tell(f"{GROUP_PREFIX}{group}", question, unknown) or {}
        for (topic, _), found in committed["indexer"].items():
            if topic == CATALOG:
                self._tell(COUNTS, partial(catalog_counts, found.metadata), unknown)
        return committed

    def _ends(self, topics: list[str], unknown: dict[str, MillraceError]) -> dict[Partition, OffsetRange]:
        """Return what the partitions of these topics hold."""
        ends: dict[Partition, OffsetRange] = {}
        for topic in topics:
            question = partial(beginning_and_end_offsets, self._admin, self._settings, [topic])
            ends |= self._tell(topic, question, unknown) or {}
        return ends

    def _unread(
        self,
        join: Mapping[int, PartitionProgress],
        ends: Mapping[Partition, OffsetRange],
        unknown: dict[str, MillraceError],
    ) -> dict[int, Tail]:
        """Count what the join has not read; from where is not known without its progress."""
        for needed in (SEARCH_EVENTS, JOIN.progress_topic):
            if needed in unknown:
                unknown[UNREAD] = unknown[needed]
                return {}
        search = {number: found for (topic, number), found in ends.items() if topic == SEARCH_EVENTS}
        positions = {n: join[n].next_offset if n in join else found.begin for n, found in search.items()}
        return self._tell(UNREAD, partial(self._tails.count, positions, search), unknown) or {}

    def _tell(self, part: str, question: Callable[[], T], unknown: dict[str, MillraceError]) -> T | None:
        """Return the answer to a question, or note why there is none; a Kafka that hangs is not asked for ever."""
        try:
            if time.monotonic() > self._answers_until_s:
                raise DependencyDown("Kafka answers too slowly", fix="look at the brokers' logs")
            return question()
        except MillraceError as error:
            unknown[part] = error
            return None

    def _follower(self, spec: AgentSpec[Any], kafka: Dependency) -> TopicFollower:
        """Return a follower of an agent's progress that outlives what it cannot read; that is noted while it stands."""
        newest = self._progress[spec.name]
        unreadable = self._unreadable.setdefault(spec.progress_topic, {})
        contract = TypeAdapter(spec.progress)

        def on_record(key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
            unreadable.pop(key, None)
            try:
                progress = wire.decode(value, contract) if value is not None else None
            except ContractError as error:
                unreadable[key] = error
            else:
                if progress is not None:
                    newest[progress.partition] = progress

        topic = spec.progress_topic
        return TopicFollower(self._settings, topic, on_record, on_new_topic=newest.clear, kafka=kafka)


def _refuse_positions_behind_the_end(
    committed: Mapping[str, Mapping[Partition, Committed]],
    progress: Progress,
    ends: Mapping[Partition, OffsetRange],
    unknown: dict[str, MillraceError],
) -> None:
    """Note who says to have read what its topic never held: the topic was made anew, and nothing can be reckoned."""
    said = {
        **{
            (f"{GROUP_PREFIX}{group}", at): found.offset
            for group, own in committed.items()
            for at, found in own.items()
        },
        **{
            (spec.progress_topic, (spec.source, number)): found.next_offset
            for spec in registry.AGENTS
            for number, found in progress[spec.name].items()
        },
    }
    for (who, (topic, number)), offset in said.items():
        held = ends.get((topic, number))
        if held is not None and offset > held.end:
            unknown.setdefault(
                who,
                InvariantError(
                    f"{who} is at {offset} of {topic}-{number}, which ends at {held.end}",
                    fix=f"{topic} was made anew or lost records: docs/operations.md says what to do",
                ),
            )


def snapshot(
    facts: KafkaFacts,
    releases: Mapping[str, Any],
    processes: Mapping[str, ProcessView],
    *,
    at_ms: int,
    promise_s: float,
) -> dict[str, Any]:
    """Return the whole view of one moment.

    Args:
        facts: of Kafka.
        releases: as `ReleaseBook.report` gives them.
        processes: what each process answered.
        at_ms: the moment, epoch ms.
        promise_s: within how many seconds a catalogue change should be searchable.
    """
    return {
        "at": at_ms,
        "lag": lag_report(facts),
        "ledger": ledger_report(facts),
        "freshness_s": freshness_report(processes.values()),
        "promise_s": {"product_to_search": promise_s},
        "releases": dict(releases),
        "unknown": unknown_report(facts),
        "processes": [
            {"name": name, "state": state_of(view), "reasons": list(view.reasons)} for name, view in processes.items()
        ],
    }


def state_of(view: ProcessView) -> str:
    """Return a process's state in one word: ready, waiting or silent."""
    if view.ready is None:
        return "silent"
    return "ready" if view.ready else "waiting"


def status_freshness(report: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Return only the quantiles of both ways, as `status` prints them."""
    return {path: {"p50": report[path]["p50"], "p99": report[path]["p99"]} for path in FRESHNESS_PATHS}
