"""The trainer as a real process on a real Kafka: lists and pairs in, releases out, crashes in between."""

import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from contracts import wire
from contracts.decisions import DECISIONS_KEY, PROMOTION_KEY, Decisions, Promotion
from contracts.releases import PROBE_TOLERANCE, ROLLBACK, ROLLBACK_KEY, ReleaseManifest, Rollback, SafetyCheck
from contracts.topics import (
    ARMS_PROGRESS,
    CURATED_PAIRS,
    DEAD_LETTERS,
    MODELS,
    PREFERENCE_PAIRS,
    TRAINING_SEARCHES,
)
from deploy.local.supervisor import LocalMillrace
from millrace.golden import run_import
from service.kafka import (
    admin,
    committed_offsets,
)
from service.machine import epoch_ms
from service.settings import Settings
from tests.support.deployment import arms_progress
from tests.support.pairs import preference_pair
from tests.support.poll import eventually
from tests.support.tiny_encoder import write_tiny_model
from tests.support.topics import read_compacted
from tests.support.trainer import PRODUCTS, QUERIES, SCATTERED
from tests.support.trainer_process import START_S, RunningTrainer, Shop, running
from towers.encoder import BaseEncoder, load_encoder
from towers.release_files import probe_difference
from trainer.release.golden import GOLDEN_NDCG

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

SettingsFactory = Callable[..., Settings]
LEARNED: Final = 600
"""Lists after which what was learned has been shown to predict, and is released."""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny encoder that real processes can load."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> BaseEncoder:
    """Give the tiny encoder in this process."""
    return load_encoder(str(tiny_model))


@pytest.fixture
def shop(kafka_settings: SettingsFactory, encoder: BaseEncoder, tiny_model: Path) -> Iterator[Shop]:
    """Give a deployment with its catalogue's vectors on the topic."""
    opened = Shop(
        kafka_settings(
            base_model=str(tiny_model),
            release_interval_s=1,
            product_release_interval_s=2,
            session_timeout_s=6,
            log_format="json",
        ),
        encoder,
    )
    opened.send_vectors()
    yield opened
    opened.close()


def test_lists_become_releases_of_both_towers(shop: Shop, encoder: BaseEncoder, tmp_path: Path) -> None:
    """Lists become a query and a product release whose probe texts hold here and whose offsets say what they saw."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_raw(PREFERENCE_PAIRS, "bad", b'{"pair_id": "x"}')
        shop.send_raw(PREFERENCE_PAIRS, "s-1", wire.encode(preference_pair()))
        curated = b'{"query": "%s", "chosen_text": "red small oven", "rejected": "%s"}'
        shop.send_raw(CURATED_PAIRS, "q", curated % (QUERIES[0].encode(), PRODUCTS[0].encode()))
        shop.send_lists(0, LEARNED)
        product = shop.wait_for("product")
        query = shop.releases()[f"query-{product.manifest.query_release}"]
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.process.wait(timeout=20) == 0
    assert probe_difference(query, encoder) <= PROBE_TOLERANCE
    assert probe_difference(product, encoder) <= PROBE_TOLERANCE
    assert all(check.passed for check in query.manifest.checks)
    assert query.manifest.fence >= 1
    assert query.manifest.product_release == product.manifest.release == 1
    assert query.manifest.pairs_trained == 2
    towers = query.query_tower(), product.product_tower()
    learned = towers[1].quality(PRODUCTS, [np.zeros(0, dtype=np.uint64)] * len(PRODUCTS))
    assert learned[sorted(SCATTERED)].mean() > learned.mean() + 0.1
    letters = [line for line in trainer.lines() if line["event"] == "dead_letter"]
    assert [(line["reason"], line["topic"]) for line in letters] == [("missing", PREFERENCE_PAIRS)]
    assert len(read_compacted(shop.settings, DEAD_LETTERS)) == 1


def test_live_that_is_worse_than_the_anchor_steps_back_by_itself(shop: Shop, tmp_path: Path) -> None:
    """The decision stands on `models` with its numbers before the rollback is asked for; a person may promote."""
    worse = arms_progress(0, lists=32_000, lift=-200)
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        number = shop.wait_for("query").manifest.release
        shop.serve(number, 0)
        begun = Decisions(number=9, began_at=epoch_ms(), since={}, collection="products-r0")
        shop.send_raw(MODELS, DECISIONS_KEY.decode(), wire.encode(begun))
        asked = Promotion(query_release=number, requested_at=epoch_ms())
        shop.send_raw(MODELS, PROMOTION_KEY.decode(), wire.encode(asked))
        eventually(lambda: shop.decisions().promoted == number, timeout_s=60, what="promoted")
        shop.send_raw(ARMS_PROGRESS, "0", wire.encode(worse))
        value = eventually(lambda: shop.record(ROLLBACK_KEY), timeout_s=60, what="a rollback is asked for")
        assert value is not None
        decisions = shop.decisions()
    decision = decisions.decided[-1]
    assert (decision.verdict, decision.query_release, decision.subject) == ("stepped_back", number, 0)
    assert decision.comparisons[0].high < 0
    assert wire.decode(value, ROLLBACK) == Rollback(query_release=0, requested_at=decision.decided_at)
    assert [line["verdict"] for line in trainer.said("decided")][-1] == "stepped_back"


def test_every_release_is_measured_by_the_golden_set(shop: Shop, tmp_path: Path) -> None:
    """What was imported before and while a trainer runs stands in the manifests, as the check that it makes."""
    path, numbers = tmp_path / "golden.csv", count(LEARNED)
    grades = {name: 4 if number in SCATTERED else 0 for number, name in enumerate(PRODUCTS[:20])}

    def import_first(queries: int) -> None:
        judged = [f"{query},{name},{grade}" for query in QUERIES[:queries] for name, grade in grades.items()]
        path.write_text("\n".join(["query,product_id,grade", *judged]), encoding="utf-8")
        run_import(shop.settings, path, {}, lambda _what, _done, _of: None, replace=True)

    def checks_by(queries: int) -> list[SafetyCheck]:
        manifests = [one.manifest for one in shop.releases().values()]
        found = [one for one in manifests if one.golden and one.golden.judgments == queries * len(grades)]
        return [check for one in found for check in one.checks if check.name == GOLDEN_NDCG]

    import_first(30)
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        before = eventually(lambda: checks_by(30), timeout_s=180, interval_s=0.3, what="a release that 30 measured")
        import_first(5)

        def after() -> list[SafetyCheck]:
            shop.send_lists(number := next(numbers), number + 1)
            return checks_by(5)

        checks = before + eventually(after, timeout_s=60, interval_s=0.5, what="a release that 5 measured")
    assert all(check.passed and check.limit <= check.value <= 1 for check in checks)


def test_sigkill_neither_loses_a_list_nor_counts_one_twice(shop: Shop, tmp_path: Path) -> None:
    """After a SIGKILL in the middle of work the counts of the next trainer are exactly those of the lists sent."""
    with running(shop.settings, tmp_path / "first.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        first = shop.wait_for("query", lists=LEARNED)
        shop.send_lists(LEARNED, LEARNED + 200)
        trainer.process.kill()
        trainer.process.wait(timeout=20)
    with running(shop.settings, tmp_path / "second.log") as trainer:
        trainer.wait_ready()
        second = shop.wait_for("query", lists=LEARNED + 200)
        shop.send_lists(0, 50)  # the stream worker repeats itself after a crash of its own
        shop.send_lists(LEARNED + 200, LEARNED + 300)
        third = shop.wait_for("query", lists=LEARNED + 300)
    assert second.manifest.release > first.manifest.release
    assert second.manifest.lists_trained == LEARNED + 200
    assert third.manifest.lists_trained == LEARNED + 300
    assert third.manifest.fence > first.manifest.fence
    assert trainer.said("checkpoint_loaded")


def test_a_trainer_that_was_succeeded_cannot_publish(shop: Shop, tmp_path: Path) -> None:
    """A trainer that stalls past its session finds the group gone: it stops with one line and publishes nothing."""
    with running(shop.settings, tmp_path / "first.log") as first:
        first.wait_ready()
        with running(shop.settings, tmp_path / "second.log") as second:
            eventually(lambda: _stands_by(second), timeout_s=START_S, what="the second stands by")
            shop.send_lists(0, LEARNED)
            before = shop.wait_for("query", lists=LEARNED).manifest
            first.process.send_signal(signal.SIGSTOP)
            published, known = first.published(), shop.releases().keys()
            second.wait_ready()
            shop.send_lists(LEARNED, LEARNED + 100)
            after = shop.wait_for("query", lists=LEARNED + 100).manifest
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(timeout=60) == 4
            assert second.reasons() == []
            releases = {key: release.manifest for key, release in shop.releases().items()}
    assert first.published() == published
    assert after.fence > before.fence
    assert {key for key, one in releases.items() if one.fence < after.fence} <= known
    ends = [line["kind"] for line in first.lines() if line["level"] == "error" and "kind" in line]
    assert ends == ["TransientError"]


def test_a_trainer_that_lost_its_disk_reads_the_log_again(shop: Shop, tmp_path: Path) -> None:
    """It knows what it knew, counts nothing twice, and goes on from the release in force; numbers and counts go on."""
    with running(shop.settings, tmp_path / "first.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        served = shop.wait_for("query", lists=LEARNED).manifest
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.process.wait(timeout=20) == 0
    shop.serve(served.release, 0)
    shutil.rmtree(shop.settings.data_dir / "trainer")
    shop.send_lists(LEARNED, LEARNED + 60)
    with running(shop.settings, tmp_path / "second.log") as trainer:
        trainer.wait_ready()
        release = shop.wait_for("query", lists=LEARNED + 60)
    (again,) = trainer.said("reading_again")
    assert again["up_to"] == served.offsets
    assert trainer.said("read_again")
    assert release.manifest.lists_trained == LEARNED + 60
    assert release.manifest.parent is not None
    assert release.manifest.parent >= served.release
    lists = [offset for place, offset in release.manifest.offsets.items() if place.startswith(TRAINING_SEARCHES)]
    assert sum(lists) == LEARNED + 60


def test_a_rollback_goes_back_to_what_was_known_then(shop: Shop, tmp_path: Path) -> None:
    """The evidence of the release that is served again is gone on from; what came since is left out."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        good = shop.wait_for("query", lists=LEARNED).manifest
        shop.serve(good.release, good.product_release)  # what is in force is never retired
        eventually(lambda: trainer.said("in_force"), timeout_s=60, what="the good release is in force")
        shop.send_lists(LEARNED, LEARNED + 100)
        newer = shop.wait_for("query", lists=LEARNED + 100).manifest
        shop.serve(good.release, good.product_release, withdrawn=newer.release)
        eventually(lambda: trainer.said("rolled_back"), timeout_s=60, what="rolled back")
        shop.send_lists(LEARNED + 100, LEARNED + 150)

        def goes_on() -> ReleaseManifest | None:
            newest = shop.newest("query")
            return newest.manifest if newest and newest.manifest.lists_trained == good.lists_trained + 50 else None

        eventually(goes_on, timeout_s=60, what="a release of what was known then and what came")
        releases = [release.manifest for release in shop.releases().values()]
        said = trainer.lines()
    events = [line["event"] for line in said]
    made = [line["release"] for line in said[events.index("rolled_back") :] if line["event"] == "release_made"]
    parents = {one.parent for one in releases if one.kind == "query" and one.release in made}
    assert good.release in parents
    assert not [parent for parent in parents if parent is not None and good.release < parent < min(made)]


def test_a_kafka_that_restarts_is_waited_for(
    settings: SettingsFactory, encoder: BaseEncoder, tiny_model: Path, tmp_path: Path
) -> None:
    """Not ready meanwhile, one line for the outage and one for its end; the same process then learns what comes."""
    with LocalMillrace(processes=["kafka"], data_dir=tmp_path / "kafka", environ={}) as servers:
        bootstrap = servers.env["MILLRACE_KAFKA_BOOTSTRAP"]
        own = settings(
            kafka_bootstrap=bootstrap,
            base_model=str(tiny_model),
            release_interval_s=1,
            session_timeout_s=60,
            log_format="json",
        )
        shop = Shop(own, encoder)
        shop.send_vectors()
        shop.close()
        with running(own, tmp_path / "trainer.log") as trainer:
            trainer.wait_ready()
            servers.stop("kafka")
            eventually(trainer.reasons, timeout_s=60, what="not ready without Kafka")
            servers.start("kafka")
            eventually(lambda: trainer.reasons() == [], timeout_s=120, what="ready again")
            shop = Shop(own, encoder)
            shop.send_lists(0, LEARNED)
            assert shop.wait_for("query", lists=LEARNED).manifest.lists_trained == LEARNED
            shop.close()
    told = [line["event"] for line in trainer.lines() if line.get("dependency") == "kafka"]
    assert told == ["dependency_down", "dependency_back"]


def _stands_by(trainer: RunningTrainer) -> bool:
    """Return whether a trainer waits for another to go."""
    return any("standing by" in reason for reason in trainer.reasons() or [])


def test_the_offsets_in_kafka_are_those_of_the_checkpoint(shop: Shop, tmp_path: Path) -> None:
    """What the group committed is what the newest manifest says was trained, so that lag can be read from outside."""
    with running(shop.settings, tmp_path / "trainer.log") as trainer:
        trainer.wait_ready()
        shop.send_lists(0, LEARNED)
        release = shop.wait_for("query", lists=LEARNED)
    with admin(shop.settings) as client:
        committed = committed_offsets(client, shop.settings, "trainer")
    prefix = shop.settings.topic_prefix
    by_place = {f"{topic.removeprefix(prefix)}/{number}": found.offset for (topic, number), found in committed.items()}
    assert by_place == release.manifest.offsets
