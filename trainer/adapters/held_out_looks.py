"""Asks held-out lists, in a thread of its own, whether what is in force is better than what a step back would go to.

It reads `holdout-searches` when there may be an eighth more lists than before, and looks when they have doubled. What a
look says is kept for the `Decider`, which notes it with its decision; so whoever takes over looks at what comes later.
A look that fails is made again after a rest: nothing is decided meanwhile, and the loop does not wait for it.
"""

import threading
from typing import Final

from contracts.decisions import HeldOutLook
from contracts.errors import MillraceError, UsageError
from contracts.releases import release_key
from contracts.topics import HOLDOUT_SEARCHES, MODELS, PROPENSITIES
from service.health import Dependency
from service.kafka import records_of
from service.logging import get_logger
from service.machine import EpochClock
from service.models import ModelsTable
from service.propensities import PropensityTable
from service.settings import Settings
from towers.release_files import Encoder, unpack
from trainer.learner import Products, Towers
from trainer.release.gate import Facts, question_of
from trainer.release.held_out_lists import held_out_lists, known_slots
from trainer.release.looks import APART_MS, Question, Scored, is_noted, look_at

LOOK_S: Final = 5.0
"""How often it is looked whether there is a question."""
STOP_S: Final = 15.0
"""What a stop waits for at most: for 64 texts, or for the scores of one release. A process has 18 s to stop."""


class _GivenUp(Exception):
    """The process ends before the look does."""


class HeldOutLooks:
    """The looks of one trainer.

    Args:
        settings: of the deployment.
        models: what is in force and what was decided.
        products: the catalogue.
        encoder: of queries.
        kafka: whether it answers; while it does not, nothing is asked.
        clock_ms: epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        models: ModelsTable,
        *,
        products: Products,
        encoder: Encoder,
        kafka: Dependency,
        clock_ms: EpochClock,
    ) -> None:
        self._settings = settings
        self._models = models
        self._products = products
        self._encoder = encoder
        self._kafka = kafka
        self._clock_ms = clock_ms
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="held-out-looks", daemon=True)
        self._read_ms, self._rest_ms = 0, 0
        self._asked: Question | None = None
        self._problem = ""
        self.last: HeldOutLook | None = None
        """What the last look said; None before the first."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def give_up(self) -> None:
        """Make no more looks, and end one in progress at its next step; does not wait for that."""
        self._stop.set()

    def stop(self) -> None:
        """Give up, and wait for it: a thread that encodes while the process ends would abort it."""
        self.give_up()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_S)

    def judged(self) -> set[int]:
        """The releases that are kept while held-out lists are asked about them, and until that is decided."""
        asked = self._asked
        return set() if asked is None else {asked.query_release, asked.against} - {0}

    def look(self) -> None:
        """Look, if there is something to ask, and enough lists may have come to ask it again."""
        now_ms, view = self._clock_ms(), self._models.look()
        if view.serving is None or not self._kafka.is_up:
            return
        asked = question_of(view.decisions, Facts({}, view.serving, [*view.manifests.values()]), now_ms=now_ms)
        if asked is None:
            if self.last is None or is_noted(self.last, view.decisions):
                self._asked = None
            return
        is_same = self._asked is not None and asked.has_lists_of(self._asked)
        if is_same and 0 <= now_ms - self._read_ms < self._rest_ms:
            return
        self._read_ms, self._rest_ms, self._asked = now_ms, APART_MS, asked
        try:
            look = self._answer(asked)
        except _GivenUp:
            return
        except MillraceError as error:
            self._tell_problem(error.message, fix=error.fix)
            return
        except Exception as error:  # noqa: BLE001 - what learns must not end with what judges
            self._tell_problem(repr(error), exc_info=error)
            return
        self._problem, self._rest_ms = "", asked.rest_ms(now_ms)
        if look is not None:
            self.last = look
            get_logger().info("held_out_lists_looked_at", took_ms=self._clock_ms() - now_ms, **look.model_dump())

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(LOOK_S)

    def _answer(self, asked: Question) -> HeldOutLook | None:
        """Read the lists; look at them if that is due."""
        records = records_of(
            self._settings, HOLDOUT_SEARCHES, since_ms=asked.began_at, wait=self._stop.wait, tell=self._go_on
        )
        lists, _ = held_out_lists((record.value for record in records), counts=asked.counts)
        if not asked.is_due(len(lists)):
            return None
        ours, theirs = (towers_of(self._models, one, self._encoder) for one in (asked.query_release, asked.against))
        found = known_slots(lists, self._products, self._encoder, tell=self._go_on)
        propensities = propensities_of(self._settings)
        scores = []
        for towers in (ours, theirs):
            self._go_on()
            scores.append(found.scores(towers))
        self._go_on()
        scored = Scored(found.arrays(propensities.lookup), found.worth, found.ranked_by(), *scores)
        return look_at(asked, scored, now_ms=self._clock_ms())

    def _go_on(self, *_how_far: object) -> None:
        """Come here between any two steps of a look.

        Raises:
            _GivenUp: it must end.
        """
        if self._stop.is_set():
            raise _GivenUp

    def _tell_problem(self, problem: str, **more: object) -> None:
        """Say once why no look is made."""
        if problem != self._problem:
            self._problem = problem
            get_logger().warning("held_out_lists_not_looked_at", error=problem, **more)


def propensities_of(settings: Settings) -> PropensityTable:
    """Read the propensities of every moment.

    Raises:
        DependencyDown: Kafka does not answer, or does not know the topic.
    """
    found = PropensityTable()
    for record in records_of(settings, PROPENSITIES):
        found.apply(record.key or b"", record.value)
    return found


def towers_of(models: ModelsTable, number: int, encoder: Encoder) -> Towers:
    """What a query release ranks with: its own tower, and the quality of products that it was published beside.

    That quality may be up to an hour older than the tower: it was solved with an earlier query release.

    Args:
        models: the releases that are there.
        number: of the query release; 0 is the untrained one.
        encoder: over whose vectors it must be.

    Raises:
        UsageError: it is not there, or of another base model.
        DependencyDown: its product release is not there any more.
    """
    untrained = Towers.untrained(encoder.dim)
    value = query_file(models, number)
    if value is None:
        return untrained
    found = unpack(value)
    if found.manifest.base_version != encoder.base_version:
        raise UsageError(
            f"query release {number} is over {found.manifest.base_version}, not {encoder.base_version}",
            fix="set MILLRACE_BASE_MODEL to the model that both releases are over",
        )
    product = models.file_of("product", found.manifest.product_release)
    return Towers(found.query_tower(), untrained.product if product is None else unpack(product).product_tower())


def query_file(models: ModelsTable, number: int) -> bytes | None:
    """The file of a query release; None of the untrained one, which has none.

    Raises:
        UsageError: it is not there.
    """
    value = models.value(release_key("query", number).decode()) if number else None
    if number and value is None:
        raise UsageError(
            f"query release {number} is not on {MODELS} any more, or never was",
            fix="`millrace releases ls` lists those that are; 0 is untrained",
        )
    return value
