"""Looks at Kafka from outside every consumer group, again and again, and puts what it saw into one document.

Followers keep the progress records and releases current, a consumer without a group reads what the join has not read
yet (so that pending events are counted, not inferred), and one admin client asks for offsets. Half a deployment, a
record that nobody can read or a right that is missing leave their part unknown and everything else known.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, Self, TypeVar

from pydantic import TypeAdapter

from contracts import wire
from contracts.decisions import Decisions
from contracts.errors import ContractError, DependencyDown, InvariantError, MillraceError
from contracts.progress import PartitionProgress
from contracts.releases import OVERLAP, ReleaseManifest, Serving
from contracts.telemetry import Process
from contracts.topics import CATALOG, GROUP_PREFIX, MODELS, SEARCH_EVENTS
from millrace.watch.arms import arms_report
from millrace.watch.kafka_view import COUNTS, UNREAD, KafkaView, Tail, TailCounter, catalog_counts
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
from service.models import ModelsTable, ModelsView
from service.settings import Settings
from streams import registry
from streams.agents.spec import AgentSpec
from streams.join.spec import JOIN

LOOK_S: Final = 20.0
"""How long one look goes on asking; a question that is under way takes its own time."""
LOOK: Final = "look at the broker with `millrace doctor`"

T = TypeVar("T")


class Observer:
    """A view of one deployment, a context manager. Not thread-safe: one caller at a time.

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

    def __exit__(self, *_error: object) -> None:
        self._opened.close()

    def wait_caught_up(self, timeout_s: float) -> None:
        """Wait until the progress records and releases that existed at the start have been read, if there are any."""
        deadline = time.monotonic() + timeout_s
        for topic in self._existing(self._followers):
            while not self._followers[topic].caught_up.wait(0.05) and time.monotonic() < deadline:
                if self._followers[topic].failure is not None:
                    break

    def look(self) -> KafkaView:
        """Take a view of this moment.

        Offsets of consumers are taken before the log's ends, so that nothing can seem to be consumed before it exists;
        the unread tail is then counted up to those very ends.
        """
        self._answers_until_s = time.monotonic() + LOOK_S
        unknown: dict[str, MillraceError] = {}
        watched = tuple(dict.fromkeys(topic for read in registry.group_topics().values() for topic in read))
        existing = self._existing((*watched, *self._followers))
        for topic in (*watched, *self._followers):
            if topic not in existing:
                unknown[topic] = self._missing(topic)
            elif topic in self._followers and (problem := self._not_read(topic)) is not None:
                unknown[topic] = problem
        committed = self._committed(unknown)
        progress = {agent: dict(found) for agent, found in self._progress.items()}
        ends: dict[Partition, OffsetRange] = {}
        for topic in watched:
            if topic in existing:
                question = partial(beginning_and_end_offsets, self._admin, self._settings, [topic])
                ends |= self._tell(topic, question, unknown) or {}
        _refuse_positions_behind_the_end(committed, progress, ends, unknown)
        tails = self._unread(progress[JOIN.name], ends, unknown)
        return KafkaView(ends=ends, committed=committed, progress=progress, tails=tails, unknown=unknown)

    def known_models(self) -> ModelsTable:
        """Give what `models` holds; before it is read, releases that are there would seem to be gone.

        Raises:
            MillraceError: there is no such topic, or it could not be read to its end.
        """
        if not self._existing([MODELS]):
            raise self._missing(MODELS)
        if (waits := self._followers[MODELS].not_caught_up()) is not None:
            raise self._followers[MODELS].failure or DependencyDown(waits, fix=LOOK)
        return self.models

    def _missing(self, topic: str) -> DependencyDown:
        fix = "`millrace up` or a restart of any service creates it"
        return DependencyDown(f"Kafka does not know {self._settings.topic(topic)}, or hides it", fix=fix)

    def _existing(self, topics: Iterable[str]) -> list[str]:
        names = {self._settings.topic(topic): topic for topic in topics}
        with translate_kafka_errors(self._settings):
            found = self._admin.describe_topics(list(names))
        return [names[topic["name"]] for topic in found if topic["partitions"]]

    def _not_read(self, topic: str) -> MillraceError | None:
        if (failure := self._followers[topic].failure) is not None:
            return failure
        if (waits := self._followers[topic].not_caught_up()) is not None:
            return DependencyDown(waits, fix=LOOK)
        unreadable = self.models.unreadable() if topic == MODELS else self._unreadable[topic]
        for key, error in list(unreadable.items()):
            name = key.decode("utf-8", "replace")
            return InvariantError(f"the record {name} of {topic} cannot be read: {error.message}")
        return None

    def _committed(self, unknown: dict[str, MillraceError]) -> dict[str, dict[Partition, Committed]]:
        committed = {}
        for group in registry.group_topics():
            question = partial(committed_offsets, self._admin, self._settings, group)
            committed[group] = self._tell(f"{GROUP_PREFIX}{group}", question, unknown) or {}
        for (topic, _), found in committed["indexer"].items():
            if topic == CATALOG:
                self._tell(COUNTS, partial(catalog_counts, found.metadata), unknown)
        return committed

    def _unread(
        self,
        join: Mapping[int, PartitionProgress],
        ends: Mapping[Partition, OffsetRange],
        unknown: dict[str, MillraceError],
    ) -> dict[int, Tail]:
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
        """Follow an agent's progress, past what cannot be read, which is kept until a record replaces it."""
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
                if progress is not None and progress.supersedes(newest.get(progress.partition)):
                    newest[progress.partition] = progress

        topic = spec.progress_topic
        return TopicFollower(self._settings, topic, on_record, on_new_topic=newest.clear, kafka=kafka)


def _refuse_positions_behind_the_end(
    committed: Mapping[str, Mapping[Partition, Committed]],
    progress: Mapping[str, Mapping[int, PartitionProgress]],
    ends: Mapping[Partition, OffsetRange],
    unknown: dict[str, MillraceError],
) -> None:
    """Note who says to have read what its topic never had: the topic was made anew, and nothing can be reckoned."""
    said = [
        (f"{GROUP_PREFIX}{group}", at, found.offset) for group, own in committed.items() for at, found in own.items()
    ]
    said += [
        (spec.progress_topic, (spec.source, number), found.next_offset)
        for spec in registry.AGENTS
        for number, found in progress[spec.name].items()
    ]
    for who, (topic, number), offset in said:
        found = ends.get((topic, number))
        if found is not None and offset > found.end:
            problem = f"{who} is at {offset} of {topic}-{number}, which ends at {found.end}"
            fix = f"{topic} was made anew or lost records: docs/operations.md says what to do"
            unknown.setdefault(who, InvariantError(problem, fix=fix))


def releases_report(view: ModelsView) -> dict[str, Any]:
    """Put the releases into stable JSON, newest first: what each was trained on and passed, and which are in force."""
    manifests = sorted(view.manifests.values(), key=lambda manifest: manifest.created_at, reverse=True)
    return {
        "serving": view.serving.model_dump(mode="json") if view.serving else None,
        "releases": [_release(manifest, view.serving) for manifest in manifests],
        "promoted": 0 if view.decisions is None else view.decisions.promoted,
        "decisions": [] if view.decisions is None else _decisions(view.decisions),
    }


def _decisions(decisions: Decisions) -> list[dict[str, Any]]:
    """What was decided, newest first; of what moved nothing, only the newest."""
    told = [*decisions.decided]
    if decisions.latest is not None and decisions.latest not in told:
        told.append(decisions.latest)
    return [decision.model_dump(mode="json") for decision in reversed(told)]


def _release(manifest: ReleaseManifest, serving: Serving | None) -> dict[str, Any]:
    in_force = None if serving is None else getattr(serving, f"{manifest.kind}_release")
    return {
        "kind": manifest.kind,
        "release": manifest.release,
        "product_release": manifest.product_release,
        "query_release": manifest.query_release,
        "in_force": in_force == manifest.release,
        "created_at": manifest.created_at,
        "pairs_trained": manifest.pairs_trained,
        "lists_trained": manifest.lists_trained,
        "overlap_at_10": next((check.value for check in manifest.checks if check.name == OVERLAP), None),
        "checks": [check.model_dump(mode="json") for check in manifest.checks],
    }


def snapshot(
    kafka: KafkaView, models: ModelsView, processes: Mapping[str, ProcessView], *, at_ms: int, promise_s: float
) -> dict[str, Any]:
    """Put the whole view of one moment into stable JSON; within `promise_s` a new product should be searchable."""
    return {
        "at": at_ms,
        "lag": lag_report(kafka),
        "ledger": ledger_report(kafka),
        "arms": arms_report(kafka),
        "freshness_s": freshness_report(processes.values()),
        "promise_s": {"product_to_search": promise_s},
        "releases": releases_report(models),
        "unknown": unknown_report(kafka),
        "processes": [
            {"name": name, "state": state_of(view), "reasons": list(view.reasons)} for name, view in processes.items()
        ],
    }


def state_of(view: ProcessView) -> str:
    """Tell a process's state in one word: ready, waiting or silent."""
    if view.ready is None:
        return "silent"
    return "ready" if view.ready else "waiting"
