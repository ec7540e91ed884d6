"""The loop: what becomes a release and when, and what is durable before anything leaves."""

import pytest
from structlog.testing import capture_logs

from contracts.errors import TransientError
from contracts.releases import manifest_of
from tests.support.trainer import (
    DIM,
    START_MS,
    FakeProducts,
    World,
    list_record,
    offsets,
    records,
    search_number,
)


def test_lists_become_a_checkpoint_a_commit_and_a_release() -> None:
    """One round does all of it, and all of it names the same offsets."""
    world = World(100)
    world.run_once()
    assert world.models.order == ["query-1"]
    assert world.source.committed == [offsets(100)]
    manifest = manifest_of(world.models.values["query-1"])
    assert (manifest.offsets, manifest.fence, manifest.lists_trained) == (offsets(100), 1, 100)
    assert manifest.prior["half_life_days"] == 16.0
    assert world.checkpoints.saved[-1].outbox.keys() == {"query-1"}


def test_an_idle_shop_gets_neither_releases_nor_checkpoints() -> None:
    """Nothing to say is not said, and nothing is solved."""
    world = World()
    for _ in range(5):
        world.run_once(after_s=100)
    assert world.models.order == []
    assert world.checkpoints.saved == []


def test_a_solver_out_of_its_budget_is_told_and_what_it_found_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning a solve, with the iterations that it had; a solve that converged says nothing."""
    world = World(400)
    with capture_logs() as quiet:
        world.run_once()
    monkeypatch.setattr(world.loop.learner.preference, "_max_iterations", 2)
    world.send(400, 500)
    with capture_logs() as told:
        world.run_once(after_s=61)
    warned = [[line for line in lines if line["event"] == "solver_out_of_budget"] for lines in (quiet, told)]
    assert [len(lines) for lines in warned] == [0, 1]
    assert warned[1][0]["iterations"] in {2, 4}
    assert world.models.order[-1] == "query-2"


def test_lists_without_a_click_are_no_reason_for_a_release() -> None:
    """Shoppers would see no difference: the weights are untrained, as those in force."""
    world = World()
    unclicked = [search_number(number) for number in range(200)]
    quiet = [one for one in unclicked if not any(slot.value for slot in one.slots)]
    world.source.log = [list_record(search, offset=place) for place, search in enumerate(quiet)]
    world.run_once(after_s=100)
    assert len(quiet) > 10
    assert world.progress.lists_trained == len(quiet)
    assert world.models.order == []


def test_nothing_is_released_without_a_catalogue() -> None:
    """Of what was learned nothing could be said, and shoppers would lose it; once it is there again all goes on."""
    world = World(100)
    world.run_once()
    learner = world.loop.learner
    known, learner.products = learner.products, FakeProducts(world.encoder, ())
    world.send(100, 200)
    world.run_once(after_s=16)
    assert world.models.order == ["query-1"]
    learner.products = known
    world.run_once(after_s=1)
    assert world.models.order == ["query-1", "query-2"]
    assert manifest_of(world.models.values["query-2"]).lists_trained == 200


def test_query_releases_keep_their_interval() -> None:
    """Two releases are never closer than the interval, however many lists come."""
    world = World(100)
    world.run_once()
    world.send(100, 200)
    world.run_once(after_s=14)
    assert world.models.order == ["query-1"]
    world.run_once(after_s=1)
    assert world.models.order == ["query-1", "query-2"]


def test_what_was_counted_is_checkpointed_even_between_releases() -> None:
    """A crash never costs more than the checkpoint interval, and a stop costs nothing."""
    world = World(100)
    world.run_once()
    world.send(100, 150)
    world.run_once(after_s=1)
    saved = len(world.checkpoints.saved)
    world.loop.finish()
    assert len(world.checkpoints.saved) == saved + 1
    assert world.source.committed[-1] == offsets(150)


def test_a_trainer_that_lost_its_group_publishes_nothing() -> None:
    """The commit is refused first; the release never leaves."""
    world = World(100)
    world.source.lost = TransientError("the group moved on")
    with pytest.raises(TransientError):
        world.run_once()
    assert world.models.order == []


def test_a_crash_between_checkpoint_and_publication_publishes_the_same_bytes_later() -> None:
    """The checkpoint carries the release; the next start sends what the topic lacks, once."""
    world = World(100)
    world.source.lost = TransientError("killed here")
    with pytest.raises(TransientError):
        world.run_once()
    world.source.lost = None
    world.start()
    assert world.models.order == ["query-1"]
    assert world.models.values["query-1"] == world.checkpoints.saved[-1].outbox["query-1"]
    world.start()
    assert world.models.order == ["query-1"]


def test_a_crash_loses_no_list_and_counts_none_twice() -> None:
    """What was counted after the last checkpoint is counted again from it, once."""
    world = World(100)
    world.run_once()
    world.send(100, 180)
    world.run_once(after_s=1)
    assert world.progress.lists_trained == 180
    world.start()
    assert world.progress.lists_trained == 100
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 180
    assert manifest_of(world.models.values[world.models.order[-1]]).lists_trained == 180


def test_a_product_release_waits_for_its_interval_and_goes_with_a_query_release() -> None:
    """The interval begins with the learning; what waits is released without another click."""
    world = World(100)
    world.run_once()
    for _ in range(3):
        world.run_once(after_s=15)
    assert world.models.order == ["query-1"]
    world.run_once(after_s=15)
    assert world.models.order == ["query-1", "query-2", "product-1"]
    assert manifest_of(world.models.values["query-2"]).product_release == 1
    assert manifest_of(world.models.values["product-1"]).query_release == 2


def test_nothing_is_released_once_all_that_was_learned_is() -> None:
    """After its last click a shop gets what waits; then nothing for time, a restart or a repeated list."""
    world = World(120)
    for _ in range(20):
        world.run_once(after_s=20)
    order = list(world.models.order)
    world.start()
    repeated = [record._replace(offset=100 + record.offset) for record in records(0, 60)]
    world.source.log += repeated
    for _ in range(5):
        world.run_once(after_s=70)
    assert order[-1] == "product-1"
    assert world.models.order == order
    assert world.progress.lists_trained == 120


def test_a_large_step_is_taken_in_shares_without_another_click() -> None:
    """A release that would change too many answers goes part of the way, and the rest follows."""
    world, serving = World(600, overlap=0.9), list[str]()
    for _ in range(40):
        world.run_once(after_s=15)
        serving = [key for key in world.models.order if key.startswith("query")]
        world.models.serve(len(serving), len(world.models.order) - len(serving))
    manifests = [manifest_of(world.models.values[key]) for key in serving if key in world.models.values]
    shares = [check.value for manifest in manifests for check in manifest.checks if check.name == "share_of_step"]
    assert min(shares) < 1
    assert shares[-1] == 1
    assert len(serving) < 40


def test_a_refused_release_takes_no_number_and_is_tried_again_once_more_is_learned() -> None:
    """A release that fails its checks leaves no gap, no record and no busy loop."""
    world = World(100, overlap=2.0)
    world.run_once()
    decided = world.progress.decided_records
    world.run_once(after_s=20)
    assert world.models.order == []
    assert (world.progress.last_query_release, world.progress.query_decided_ms) == (0, START_MS)
    world.send(100, 120)
    world.run_once(after_s=20)
    assert world.progress.decided_records > decided
    assert world.models.order == []


@pytest.mark.parametrize(("base_version", "dim"), [("other/16/t1", DIM), ("tiny/16/t1", 2 * DIM)])
def test_a_release_over_another_base_model_is_never_gone_on_from(base_version: str, dim: int) -> None:
    """Its weights mean nothing over our vectors: the solve begins at the untrained towers."""
    world = World(100)
    world.run_once()
    world.models.serve(1, 0)
    world.run_once()
    assert world.loop._towers(1, 0).query.taste.any()
    world.loop._made.clear()
    world.encoder.base_version, world.encoder.dim = base_version, dim
    assert not world.loop._towers(1, 0).query.taste.any()


def test_old_releases_are_retired_and_what_is_needed_is_kept() -> None:
    """The topic stays small; what `serving` names is never taken away."""
    world = World(40)
    world.run_once()
    world.models.serve(1, 0)
    for number in range(1, 8):
        world.send(40 * number, 40 * number + 40)
        world.run_once(after_s=16)
    assert "query-1" in world.models.values
    assert world.models.retired[:2] == ["query-2", "query-3"]


def test_a_release_that_is_judged_is_kept_until_that_is_decided() -> None:
    """Held-out lists may find it better, and a promotion needs it, and the state that made it."""
    world = World(40)
    world.run_once()
    world.models.serve(1, 0)
    world.judged = {2}
    for number in range(1, 8):
        world.send(40 * number, 40 * number + 40)
        world.run_once(after_s=16)
    assert "query-2" in world.models.values
    assert world.progress.kept_for == [2]
    world.judged = set()
    world.send(320, 360)
    world.run_once(after_s=16)
    assert "query-2" in world.models.retired


def test_every_list_counts_although_partitions_are_read_one_after_the_other() -> None:
    """A poll hands over partition by partition what a join has closed in another order."""
    world = World()
    world.source.log = sorted(records(0, 60), key=lambda record: record.partition)
    world.run_once()
    assert world.progress.lists_trained == 60
