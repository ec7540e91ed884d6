"""Release decisions: when one is due, what its manifest says, which old ones go."""

import pytest

from contracts.releases import Kind, ReleaseManifest, manifest_of
from tests.support.deployment import release_value
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, new_learner, records
from towers.release_files import probe_difference, unpack
from trainer.learner import Learner
from trainer.memory import PendingRelease, TrainingProgress
from trainer.release.planning import Cadence, even_sample, plan_product_release, plan_query_release, retired_keys
from trainer.release.safety import SafetyCaps

NOW_MS = 1_795_196_006_756
CADENCE = Cadence(query_ms=15_000, product_ms=60_000)
PENDING = PendingRelease(product_release=1, query_release=1, step=7)


def taught() -> Learner:
    """Return a learner that has seen some pairs."""
    learner = new_learner()
    learner.learn(records(0, 40))
    return learner


def test_a_query_release_is_due_after_its_interval() -> None:
    """A busy shop gets no more than one per interval."""
    moved = TrainingProgress(step=8, query_decided_step=7, query_decided_ms=NOW_MS)
    assert not CADENCE.query_due(moved, now_ms=NOW_MS + 14_999)
    assert CADENCE.query_due(moved, now_ms=NOW_MS + 15_000)


def test_no_release_is_due_if_nothing_was_learned_since_the_last_decision() -> None:
    """An idle shop gets no releases, however long it is idle."""
    idle = TrainingProgress(step=8, query_decided_step=8, product_decided_step=8)
    assert not CADENCE.query_due(idle, now_ms=NOW_MS)
    assert not CADENCE.product_due(idle, now_ms=NOW_MS)


def test_a_product_release_is_never_due_while_another_is_on_its_way() -> None:
    """One roll-out at a time, however long it takes."""
    moved = TrainingProgress(step=8, product_decided_step=7, product_decided_ms=NOW_MS)
    assert CADENCE.product_due(moved, now_ms=NOW_MS + 60_000)
    assert not CADENCE.product_due(moved.model_copy(update={"pending": PENDING}), now_ms=NOW_MS + 10**9)


def test_a_query_release_says_what_it_was_trained_on() -> None:
    """Numbers, offsets, click times, checks and probes travel with the weights."""
    learner, encoder = taught(), TinyEncoder(DIM)
    plan = plan_query_release(learner, encoder, caps=SafetyCaps(), now_ms=NOW_MS)
    assert plan.refusal is None
    ((key, value),) = plan.values.items()
    manifest = manifest_of(value)
    assert key == "query-1"
    assert (manifest.kind, manifest.release, manifest.product_release, manifest.query_release) == ("query", 1, 0, 1)
    assert manifest.offsets == {"0": 20, "1": 20}
    assert manifest.pairs_trained == manifest.lists_trained == 40
    assert len(manifest.click_times) == 40
    assert len(manifest.probe_texts) == 16
    assert {check.name for check in manifest.checks} >= {"finite", "query_drift_p95", "overlap_at_10", "probe_texts"}
    assert all(check.passed for check in manifest.checks)
    assert probe_difference(unpack(value), encoder) == pytest.approx(0.0, abs=1e-6)


def test_a_product_release_comes_with_its_first_query_release_published_first() -> None:
    """A reader that sees the product release can already load the query head that belongs to it."""
    learner = taught()
    learner.progress.last_query_release, learner.progress.last_product_release = 7, 2
    plan = plan_product_release(learner, TinyEncoder(DIM), caps=SafetyCaps(), now_ms=NOW_MS)
    manifests: dict[str, ReleaseManifest] = {key: manifest_of(value) for key, value in plan.values.items()}
    assert list(manifests) == ["query-8", "product-3"]
    assert manifests["query-8"].product_release == manifests["product-3"].product_release == 3
    assert manifests["product-3"].query_release == 8
    assert manifests["query-8"].click_times == ()


def test_planning_changes_nothing() -> None:
    """A plan that is not carried out leaves no trace."""
    learner = taught()
    before = learner.progress.model_dump_json()
    plan_query_release(learner, TinyEncoder(DIM), caps=SafetyCaps(), now_ms=NOW_MS)
    plan_product_release(learner, TinyEncoder(DIM), caps=SafetyCaps(), now_ms=NOW_MS)
    assert learner.progress.model_dump_json() == before


def test_a_release_that_fails_its_checks_is_held_with_the_reason() -> None:
    """The reason names the check, its value and its limit."""
    plan = plan_query_release(taught(), TinyEncoder(DIM), caps=SafetyCaps(overlap=1.5), now_ms=NOW_MS)
    assert plan.values == {}
    assert plan.towers is None
    assert plan.refusal is not None
    assert plan.refusal.startswith("overlap_at_10")


def test_the_same_state_makes_the_same_bytes() -> None:
    """A release that is made again after a crash is the same record."""
    plans = [plan_query_release(taught(), TinyEncoder(DIM), caps=SafetyCaps(), now_ms=NOW_MS) for _ in range(2)]
    assert plans[0].values == plans[1].values


def manifest(kind: Kind, number: int, *, query_release: int = 0) -> ReleaseManifest:
    """Return the manifest of a release under a number."""
    return manifest_of(release_value(kind, number, query_release=query_release))


@pytest.mark.parametrize(
    ("in_force", "pending", "expected"),
    [
        ((5, 0), None, ["query-1", "query-2"]),
        ((1, 0), None, ["query-2"]),
        ((5, 0), PendingRelease(product_release=9, query_release=2, step=7), ["query-1"]),
        ((0, 0), None, ["query-1", "query-2"]),
    ],
)
def test_old_releases_go_unless_they_are_needed(
    in_force: tuple[int, int], pending: PendingRelease | None, expected: list[str]
) -> None:
    """The newest three stay, and so do the releases in force and a product release on its way."""
    manifests = [manifest("query", number) for number in range(1, 6)]
    assert retired_keys(manifests, in_force=in_force, pending=pending) == expected


def test_the_first_query_release_of_a_kept_product_release_stays() -> None:
    """A rollback to a product release needs a query head that fits it."""
    queries = [manifest("query", number) for number in range(1, 20)]
    products = [manifest("product", number, query_release=3 * number - 2) for number in range(1, 6)]
    retired = retired_keys([*products, *queries], in_force=(19, 5), pending=None)
    assert retired[-2:] == ["product-1", "product-2"]
    kept = {f"{found.kind}-{found.release}" for found in [*queries, *products]} - set(retired)
    assert kept == {
        "product-3",
        "product-4",
        "product-5",
        "query-7",
        "query-10",
        "query-13",
        "query-17",
        "query-18",
        "query-19",
    }


def test_an_even_sample_keeps_both_ends() -> None:
    """Click times of a release span everything it learned from."""
    sample = even_sample(list(range(1000)), 10)
    assert (sample[0], sample[-1], len(sample)) == (0, 999, 10)
