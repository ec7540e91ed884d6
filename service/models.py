"""The topic `models` as every process reads it: what is in force, which releases there are, what they are.

One table, fed by a follower. A record that cannot be read is named in the log once and passed over, because one bad
release must not keep the others from being served.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple, get_args

from cachetools import LRUCache
from kafka import KafkaProducer

from contracts import wire
from contracts.decisions import DECISIONS, DECISIONS_KEY, PROMOTION, PROMOTION_KEY, Decisions, Promotion
from contracts.errors import ContractError, DependencyDown, MalformedMessage, TransientError
from contracts.releases import (
    ROLLBACK,
    ROLLBACK_KEY,
    SERVING,
    SERVING_KEY,
    Kind,
    ReleaseManifest,
    Rollback,
    Serving,
    manifest_of,
    release_key,
)
from contracts.topics import MODELS
from service.kafka import OutgoingRecord, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SHOWN_WITHIN_S: Final = 30.0
REMEMBERED_UNREADABLE: Final = 1000
MOST_RELEASES: Final = 2**52
"""A number of which trainers could not go on counting was given by nobody's trainer."""
COMPARED_BYTES: Final = 1000
"""How much of an unreadable record tells whether it was said before."""


class ModelsView(NamedTuple):
    """What `models` holds at one moment; never changes afterwards."""

    serving: Serving | None = None
    manifests: Mapping[str, ReleaseManifest] = {}
    switches: int = 0
    """How often collection or product release in force were seen to change, between two looks too."""
    fence: int = 0
    """The highest that was seen; what comes with a lower one comes from a trainer that was overtaken."""
    rollback: Rollback | None = None
    """The last that was asked for."""
    decisions: Decisions | None = None
    """What was decided on releases."""
    promotion: Promotion | None = None
    """The last that was asked for."""

    def rollback_due(self) -> Rollback | None:
        """The rollback that was asked for and not answered yet."""
        serving, rollback = self.serving, self.rollback
        if serving is None or rollback is None or rollback.requested_at <= serving.rollback_answered:
            return None
        return rollback

    def gone_back_to(self) -> set[int]:
        """The query releases to which a step back may go, or a rollback that waits for its answer."""
        asked, decided = self.rollback_due(), self.decisions
        return {*(() if asked is None else (asked.query_release,)), *(() if decided is None else decided.needed)} - {0}

    def needs(self, kind: Kind, number: int) -> bool:
        """Whether a release is in force or is to be gone back to, or is the quality that belongs to one that is."""
        queries = {one.query_release for one in (self.serving, self.rollback_due()) if one is not None}
        if kind == "query":
            return number in queries
        found = (self.manifests.get(release_key("query", query).decode()) for query in queries)
        in_force = set() if self.serving is None else {self.serving.product_release}
        return number in in_force | {manifest.product_release for manifest in found if manifest is not None}


class ModelsTable:
    """The newest value of every key of `models`: fed by a follower's thread, read by any.

    `serving` is the pair with the newest `published_at`: a follower may hand over what was in force long ago. A null
    value never takes it back, for a process that runs could not follow; nor does it take away a release that is needed
    by then, for the trainer that retired it had not seen that. `on_change` is called in the follower's thread after
    each record; the bytes of releases are kept only of the kinds in `bytes_of`.
    """

    def __init__(self, *, on_change: Callable[[], None] = lambda: None, bytes_of: Collection[Kind] = KINDS) -> None:
        self._on_change = on_change
        self._bytes_of = frozenset(bytes_of)
        self._changed = threading.Condition()
        self._view = ModelsView()
        self._values: dict[str, bytes] = {}
        self._numbers: dict[Kind, set[int]] = {kind: set() for kind in KINDS}
        self._unreadable: LRUCache[bytes, tuple[bytes, ContractError]] = LRUCache(REMEMBERED_UNREADABLE)
        self._overtaken: LRUCache[str, int] = LRUCache(REMEMBERED_UNREADABLE)
        self._overwritten: set[str] = set()

    def apply(self, key: bytes, value: bytes | None, _timestamp_ms: int = 0) -> None:
        """Take one record of the topic."""
        try:
            with self._changed:
                self._take(key, value)
                self._unreadable.pop(key, None)
                self._changed.notify_all()
        except ContractError as error:
            self._note_unreadable(key, value or b"", error)
        self._on_change()

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew."""
        with self._changed:
            self._view = ModelsView(switches=self._view.switches)
            self._values.clear()
            self._overwritten.clear()
            self._unreadable.clear()
            for numbers in self._numbers.values():
                numbers.clear()
        self._on_change()

    def look(self) -> ModelsView:
        """Show what the topic holds now."""
        return self._view

    def serving(self) -> Serving | None:
        """Give the releases in force, None before the first."""
        return self._view.serving

    def file_of(self, kind: Kind, number: int) -> bytes | None:
        """Return a release's file; None of number 0, which is built in.

        Raises:
            DependencyDown: it is not there.
        """
        value = self.value(release_key(kind, number).decode()) if number else None
        if number and value is None:
            raise DependencyDown(f"{kind} release {number} is not on {MODELS}", fix="see `millrace releases ls`")
        return value

    def value(self, key: str) -> bytes | None:
        """Give a release's bytes, None if it is unknown or retired."""
        return self._values.get(key)

    def keys(self) -> Sequence[str]:
        """List the releases that are there, sorted."""
        return sorted(self._view.manifests)

    def unreadable(self) -> Mapping[bytes, ContractError]:
        """Name the keys whose newest record cannot be read, and why."""
        with self._changed:
            return {key: error for key, (_, error) in self._unreadable.items()}

    def newest_unreadable(self, kinds: Collection[Kind] = KINDS) -> str | None:
        """Say which record that cannot be read is newer than the pair in force, None if there is none.

        Of an unreadable `serving` a readable one that comes after it takes the place, so it is always newer.
        """
        serving, newest = self._view.serving, 0
        reason = None
        for key, error in self.unreadable().items():
            if key == SERVING_KEY:
                return f"serving cannot be read: {error.message}"
            try:
                kind, number = _release_of(key.decode())
            except ValueError:
                continue
            if serving is not None and kind in kinds and number > max(newest, serving.release_of(kind)):
                newest, reason = number, f"{kind}-{number} cannot be read: {error.message}"
        return reason

    def overwritten(self) -> dict[str, bytes]:
        """Give the releases under whose keys a trainer that was overtaken, or retired them too late, has written since.

        Compaction would keep its record alone, and whoever starts then would find nothing that may be used.
        """
        with self._changed:
            return {key: self._values[key] for key in sorted(self._overwritten) if key in self._values}

    def seen(self, key: str) -> bool:
        """Tell whether a release was ever there, retired ones included."""
        kind, number = _release_of(key)
        return number in self._numbers[kind]

    def highest(self, kind: Kind) -> int:
        """Find the highest number that a release of this kind ever had, 0 if there was none."""
        with self._changed:
            return max(self._numbers[kind], default=0)

    def wait_until(self, holds: Callable[[ModelsView], bool], timeout_s: float) -> bool:
        """Wait until something holds of what the topic shows; tell whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self._view), timeout_s)

    def _take(self, key: bytes, value: bytes | None) -> None:
        if key == SERVING_KEY:
            if value is not None:
                self._take_serving(wire.decode(value, SERVING))
            return
        if key == ROLLBACK_KEY:
            rollback = None if value is None else wire.decode(value, ROLLBACK)
            self._view = self._view._replace(rollback=rollback)
            return
        if key == DECISIONS_KEY:
            decisions, known = None if value is None else wire.decode(value, DECISIONS), self._view.decisions
            if decisions is None or known is None or decisions.number > known.number:
                self._view = self._view._replace(decisions=decisions)
            return
        if key == PROMOTION_KEY:
            self._view = self._view._replace(promotion=None if value is None else wire.decode(value, PROMOTION))
            return
        try:
            name = key.decode()
            kind, number = _release_of(name)
        except ValueError as error:
            if value is None:
                return
            raise MalformedMessage("malformed_key", "neither a release nor a record about releases") from error
        manifest = None if value is None else manifest_of(value)
        if manifest is not None and manifest.fence < self._view.fence:
            self._numbers[kind].add(number)
            self._note_overtaken(name, manifest)
            return
        if value is None and name in self._view.manifests and self._view.needs(kind, number):
            self._overwritten.add(name)
            return
        self._overwritten.discard(name)
        manifests = {known: kept for known, kept in self._view.manifests.items() if known != name}
        self._values.pop(name, None)
        self._numbers[kind].add(number)
        if value is not None and manifest is not None:
            manifests[name] = manifest
            if kind in self._bytes_of:
                self._values[name] = value
        fence = self._view.fence if manifest is None else manifest.fence
        self._view = self._view._replace(manifests=manifests, fence=fence)

    def _take_serving(self, serving: Serving) -> None:
        known = self._view.serving
        if known is None or serving.published_at >= known.published_at:
            in_force = serving.collection, serving.product_release
            switched = known is None or (known.collection, known.product_release) != in_force
            fence = max(self._view.fence, serving.fence)
            self._view = self._view._replace(serving=serving, switches=self._view.switches + switched, fence=fence)

    def _note_overtaken(self, name: str, manifest: ReleaseManifest) -> None:
        """Say once that a release is left out, and what stood under its key stays.

        A record that is read for the second time is not news.
        """
        known = self._view.manifests.get(name)
        if known is not None and known.fence > manifest.fence:
            self._overwritten.add(name)
        if (known is None or known.fence != manifest.fence) and self._overtaken.get(name) != manifest.fence:
            self._overtaken[name] = manifest.fence
            error = f"its trainer was overtaken: its fence is {manifest.fence}, the highest {self._view.fence}"
            get_logger().error("release_refused", release=name, error=error)

    def _note_unreadable(self, key: bytes, value: bytes, error: ContractError) -> None:
        with self._changed:
            known = self._unreadable.get(key)
            self._unreadable[key] = (value[:COMPARED_BYTES], error)
        if known is None or known[0] != value[:COMPARED_BYTES]:
            get_logger().error("release_unreadable", key=key.decode(errors="replace"), error=error.message)


class ModelsWriter:
    """Writes to `models`; every call returns after Kafka's acknowledgement by all in-sync copies."""

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        self._settings = settings
        self._producer = producer

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases in the order given."""
        self._write({key.encode(): value for key, value in values.items()})
        get_logger().info("releases_published", releases=list(values))

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones."""
        self._write({key.encode(): None for key in keys})

    def put_in_force(self, serving: Serving, table: ModelsTable, releases: Mapping[str, bytes]) -> None:
        """Put releases in force, after writing those that come with it.

        Waits until the table shows them, so that every decision goes by the topic alone.
        """
        self._write({**{key.encode(): value for key, value in releases.items()}, SERVING_KEY: wire.encode(serving)})

        def is_shown(view: ModelsView) -> bool:
            return view.serving is not None and view.serving.published_at >= serving.published_at

        if not table.wait_until(is_shown, SHOWN_WITHIN_S):
            raise TransientError(f"{MODELS} does not show the pair that was published")

    def ask_for(self, rollback: Rollback) -> None:
        """Ask the indexer that leads for a rollback."""
        self._write({ROLLBACK_KEY: wire.encode(rollback)})

    def ask_to_promote(self, promotion: Promotion) -> None:
        """Ask the trainer to take a release for one to step back to."""
        self._write({PROMOTION_KEY: wire.encode(promotion)})

    def decide(self, decisions: Decisions) -> None:
        """Write what was decided on releases."""
        self._write({DECISIONS_KEY: wire.encode(decisions)})

    def _write(self, values: Mapping[bytes, bytes | None]) -> None:
        topic = self._settings.topic(MODELS)
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, [OutgoingRecord(topic, value, key=key) for key, value in values.items()])


def _release_of(key: str) -> tuple[Kind, int]:
    prefix, _, digits = key.partition("-")
    for kind in KINDS:
        if kind == prefix and release_key(kind, number := int(digits)).decode() == key and 0 <= number <= MOST_RELEASES:
            return kind, number
    raise ValueError(f"{key} is no release")
