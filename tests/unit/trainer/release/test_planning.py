"""Release decisions: when one is due, what its manifest says, which old ones go."""

from dataclasses import replace

import numpy as np
import pytest

from contracts.releases import Kind, ReleaseManifest, manifest_of
from tests.support.deployment import release_value
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, START_MS, new_learner, offsets, records
from towers.release_files import probe_difference, unpack
from trainer.learner import Learner, Towers
from trainer.release import planning
from trainer.release.planning import HOUR_MS, Cadence, Earlier, even_sample, plan_release, retired_keys, same_tower
from trainer.state import Progress

CADENCE = Cadence(query_ms=15_000, product_ms=60_000)
UNTRAINED = Towers.untrained(DIM)
EARLIER = Earlier(UNTRAINED, UNTRAINED)


@pytest.fixture(scope="module")
def taught() -> tuple[Learner, Towers]:
    """Give a learner that has seen some lists, and its towers."""
    learner = new_learner()
    for record in records(0, 100):
        learner.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
    learner.progress = Progress(
        offsets=offsets(100), fence=7, lists_trained=100, query_parent=4, product_parent=2,
        last_query_release=8, last_product_release=5,
    )  # fmt: skip
    return learner, learner.solve(UNTRAINED).towers


def plan(
    taught: tuple[Learner, Towers], *, with_products: bool = False, overlap: float = 0.0
) -> planning.PlannedRelease:
    """Plan a release of what was taught."""
    learner, towers = taught
    found = plan_release(
        learner, towers, earlier=EARLIER, with_products=with_products, encoder=TinyEncoder(DIM), now_ms=START_MS,
        overlap=overlap,
    )  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("told", "due"),
    [
        ({"query_decided_ms": START_MS - 15_000}, True),
        ({"query_decided_ms": START_MS - 14_999}, False),
        ({"decided_records": 8}, False),
        ({"decided_records": 8, "products_wait": True}, True),
        ({"decided_records": 8, "products_wait": True, "product_decided_ms": START_MS - 1}, False),
        ({"catch_up": {"training-searches/0": 3}}, False),
    ],
)
def test_a_decision_is_due_after_its_interval_if_there_is_something_to_decide(told: dict[str, int], due: bool) -> None:
    """Never twice on the same evidence, unless products wait for theirs; never while the log is read again."""
    assert CADENCE.due(Progress(records=8, **told), now_ms=START_MS) is due


def test_a_query_release_says_what_it_was_made_of(taught: tuple[Learner, Towers]) -> None:
    """Numbers, cut, fence, prior, gain, click times, checks and probes travel with the weights."""
    found = plan(taught)
    assert found.refusal is None
    ((key, value),) = found.values.items()
    manifest = manifest_of(value)
    assert key == "query-9"
    assert (manifest.kind, manifest.release, manifest.product_release, manifest.parent) == ("query", 9, 2, 4)
    assert (manifest.offsets, manifest.fence, manifest.lists_trained) == (offsets(100), 7, 100)
    assert manifest.prior == taught[0].prior()
    assert (manifest.gain, manifest.gain_error) == (0.5, 0.01)
    assert manifest.debiasing == taught[0].debiasing()
    assert manifest.debiasing["strength"] == 1.0
    assert 20 < len(manifest.click_times) <= 256
    assert all(check.passed for check in manifest.checks)
    assert {check.name for check in manifest.checks} >= {"finite", "overlap_at_10", "share_of_step", "probe_texts"}
    assert probe_difference(unpack(value), TinyEncoder(DIM)) <= 1e-4
    assert same_tower(unpack(value).query_tower(), taught[1].query)


def test_a_product_release_goes_behind_its_query_release(taught: tuple[Learner, Towers]) -> None:
    """Each names the other; the product release names no click times, which its query release carries."""
    found = plan(taught, with_products=True)
    assert list(found.values) == ["query-9", "product-6"]
    query, product = (manifest_of(value) for value in found.values.values())
    assert query.product_release == product.release == product.product_release == 6
    assert (product.query_release, product.parent, product.click_times) == (9, 2, ())
    assert query.click_times
    assert same_tower(unpack(found.values["product-6"]).product_tower(), taught[1].product)


def test_what_changes_nothing_is_not_released(taught: tuple[Learner, Towers]) -> None:
    """The same query side as the parent's is no release."""
    learner, towers = taught
    earlier = Earlier(towers, UNTRAINED)
    encoder = TinyEncoder(DIM)
    assert plan_release(learner, towers, earlier=earlier, with_products=False, encoder=encoder, now_ms=0) is None


@pytest.mark.parametrize("fault", ["nan", "overlap", "bytes"])
def test_a_release_that_fails_a_check_is_refused_with_the_reason(
    taught: tuple[Learner, Towers], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bytes leave; the numbers say why."""
    learner, towers = taught
    if fault == "nan":
        broken = replace(towers.query, common=np.full(DIM, np.inf, dtype=np.float32))
        found = plan((learner, towers._replace(query=broken)))
    elif fault == "overlap":
        found = plan(taught, overlap=2.0)
    else:
        monkeypatch.setattr(planning, "LARGEST_RELEASE_BYTES", 100)
        found = plan(taught, with_products=True)
    assert found.values == {}
    assert found.refusal is not None
    assert {"nan": "finite 0", "overlap": "overlap_at_10", "bytes": "bytes"}[fault] in found.refusal


def manifest(kind: Kind, number: int, *, product_release: int = 0, created_at: int = 0) -> ReleaseManifest:
    """Return a release's manifest."""
    found = manifest_of(release_value(kind, number, product_release=product_release))
    return found.model_copy(update={"created_at": created_at})


def test_old_releases_go_and_what_may_be_needed_stays() -> None:
    """The newest three, one of each of the last 24 hours, those in force, and the products that queries name.

    Queries go first: none that may still be asked for names a product release that is gone.
    """
    now_ms = 100 * HOUR_MS
    found = [manifest("query", number, product_release=number // 4) for number in range(1, 13)]
    found += [manifest("query", 20 + hour, created_at=now_ms - hour * HOUR_MS) for hour in (30, 2, 1)]
    found += [manifest("query", 60 + number, created_at=now_ms) for number in range(4)]
    found += [manifest("product", number) for number in range(6)]
    retired = retired_keys(found, needed={"query": {5}, "product": {0}}, now_ms=now_ms)
    kept = {f"{one.kind}-{one.release}" for one in found} - set(retired)
    assert kept == {
        "query-5", "query-21", "query-22", "query-61", "query-62", "query-63",
        "product-0", "product-1", "product-3", "product-4", "product-5",
    }  # fmt: skip
    assert (retired[0], retired[-1]) == ("query-1", "product-2")


def test_click_times_are_an_even_sample() -> None:
    """First and last are among them, however many there are."""
    sample = even_sample(range(1000, 0, -1), 5)
    assert sample == [1, 251, 501, 750, 1000]
