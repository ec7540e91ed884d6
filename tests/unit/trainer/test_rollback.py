"""A rollback takes back what was learned since, whatever is kept of that time, and never more or less."""

from typing import Any

import numpy as np
import pytest

from contracts import wire
from contracts.pairs import CuratedPair
from contracts.releases import ROLLBACK_KEY, Rollback, manifest_of, was_taken_back
from contracts.topics import CURATED_PAIRS
from tests.support.trainer import PRODUCTS, QUERIES, START_MS, World, lose_disk, new_learner, offsets, records
from trainer.records import LogRecord


def rolled_back(world: World) -> None:
    """Release three times and go back to the first release."""
    for number in range(3):
        world.send(100 * number, 100 * number + 100)
        world.run_once(after_s=20)
        world.models.serve(number + 1, 0)
        world.run_once()
    assert world.models.order[:3] == ["query-1", "query-2", "query-3"]
    world.send(300, 400)
    world.models.serve(1, 0)


def test_a_rollback_goes_back_to_the_evidence_of_that_release() -> None:
    """What came between its cut and the rollback is left out; what comes afterwards counts."""
    world = World()
    rolled_back(world)
    world.loop._adopt()
    assert world.progress.lists_trained == 100
    assert world.progress.offsets == offsets(400)
    world.run_once(after_s=20)
    assert len(world.models.order) == 3
    world.send(400, 500)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values["query-4"])
    assert (manifest.release, manifest.parent, manifest.lists_trained) == (4, 1, 200)
    expected = new_learner()
    for record in [*records(0, 100), *records(400, 500)]:
        expected.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
    found = world.loop.learner.evidence.table.cells()
    assert found.clicks.sum() == pytest.approx(expected.evidence.table.cells().clicks.sum())


def test_releases_tell_which_of_those_before_them_were_taken_back() -> None:
    """By what they leave out, however many rollbacks there were: `serving` knows the last alone."""
    world = World()
    rolled_back(world)
    world.run_once(after_s=20)
    values = world.models.values
    for number in (4, 5, 6):
        world.send(100 * number, 100 * number + 100)
        if number == 6:
            world.models.serve(4, 0)
            world.run_once()
            world.send(700, 800)
        world.run_once(after_s=20)
        world.models.serve(number, 0)
        world.run_once()
        values |= world.models.values  # some are retired
    made = {number: manifest_of(values[f"query-{number}"]) for number in range(1, 7)}
    told = {late: [one for one in made if one < late and was_taken_back(made[one], made[late])] for late in made}
    assert told == {1: [], 2: [], 3: [], 4: [2, 3], 5: [2, 3], 6: [2, 3, 5]}


def test_what_is_asked_back_is_not_retired_while_the_request_waits_for_its_answer() -> None:
    """No indexer may lead for a while, and whoever leads then has to find the release; nor does its state go."""
    world = World()
    for number in range(1, 12):
        world.send(100 * number, 100 * number + 100)
        world.run_once(after_s=20)
        world.models.serve(number, 0)
        world.run_once()
        if number == 3:
            world.models.apply(ROLLBACK_KEY, wire.encode(Rollback(query_release=2, requested_at=world.now_ms)))
    assert world.models.look().rollback_due() is not None
    assert "query-3" in world.models.retired
    assert "query-2" not in world.models.retired
    assert 2 in world.progress.kept_for


def test_a_rollback_without_a_checkpoint_reads_the_log_again_up_to_that_cut() -> None:
    """The same evidence as with one, only later."""
    world = World()
    rolled_back(world)
    world.checkpoints.saved.clear()
    world.loop._adopt()
    assert world.catching_up()
    world.run_once(after_s=20)
    assert (world.catching_up(), world.progress.lists_trained) == (False, 100)
    assert world.progress.offsets == offsets(400)
    world.send(400, 500)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 200
    assert manifest_of(world.models.values["query-4"]).parent == 1


@pytest.mark.parametrize("asked", [True, False])
def test_a_rollback_to_a_release_that_is_retired_just_then_takes_back_no_more_than_another(asked: bool) -> None:
    """The request came first, or what it led to did, and the trainer had seen neither: its null takes nothing away."""
    world = World()
    rolled_back(world)
    world.checkpoints.saved.clear()
    world.models.serve(3, 0)
    if asked:
        request = Rollback(query_release=1, requested_at=START_MS)
        world.models.apply(ROLLBACK_KEY, wire.encode(request))
        world.models.retire(["query-1"])
    world.models.serve(1, 0)
    world.models.retire(["query-1"])
    world.loop._adopt()
    world.run_once(after_s=20)
    assert (world.progress.lists_trained, world.progress.offsets) == (100, offsets(400))
    world.send(400, 500)
    world.run_once(after_s=20)
    assert manifest_of(world.models.values["query-4"]).parent == 1


@pytest.mark.parametrize("state", [True, False])
def test_a_log_that_was_made_anew_is_not_waited_for(state: bool) -> None:
    """Its offsets begin anew: what a release knew of the one before it never comes, with or without a rollback."""
    world = World()
    rolled_back(world)
    world.source.log = records(0, 60)
    if state:
        world.checkpoints.saved.clear()
        world.loop._adopt()
    else:
        lose_disk(world)
    world.run_once(after_s=20)
    assert not world.catching_up()
    world.source.log = records(0, 200)
    world.run_once(after_s=20)
    assert world.progress.lists_trained > 60


def test_a_second_rollback_never_goes_back_to_what_the_first_took_back() -> None:
    """States of releases that were taken back are passed over, however near their number is."""
    world = World()
    rolled_back(world)
    world.loop._adopt()
    world.send(400, 500)
    world.run_once(after_s=20)
    world.models.serve(4, 0)
    world.run_once()
    world.send(500, 600)
    world.run_once(after_s=20)
    world.models.serve(5, 0)
    world.run_once()
    kept = [one for one in world.checkpoints.saved if one.progress.query_parent != 4]
    world.checkpoints.saved = kept
    world.models.serve(4, 0)
    world.run_once()
    assert world.progress.lists_trained == 100


def test_a_rollback_to_the_untrained_release_forgets_everything() -> None:
    """Release 0 knew nothing: learning begins again with what comes."""
    world = World()
    rolled_back(world)
    world.models.serve(0, 0, withdrawn=3)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 0
    world.send(400, 500)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 100


def test_a_rollback_of_what_never_was_seen_in_force_goes_back_too() -> None:
    """The release that training goes on from came into force and was taken back while the trainer looked away."""
    world = World(100)
    world.run_once(after_s=20)
    world.models.serve(1, 0)
    world.run_once()
    world.send(100, 200)
    world.run_once(after_s=20)
    assert (world.progress.query_parent, world.progress.query_release) == (2, 1)
    world.models.serve(1, 0, withdrawn=7)
    world.send(200, 300)
    world.run_once(after_s=20)
    assert world.progress.lists_trained == 100
    world.send(300, 400)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values["query-8"])
    assert (manifest.parent, manifest.lists_trained) == (1, 200)


def test_a_lost_disk_does_not_bring_back_what_was_taken_back() -> None:
    """Nothing was released since the rollback: the log is read again up to that cut, and then from its end."""
    world = World()
    rolled_back(world)
    world.models.serve(1, 0, withdrawn=3)
    lose_disk(world)
    world.run_once(after_s=20)
    assert (world.catching_up(), world.progress.lists_trained) == (False, 100)
    world.send(400, 500)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values[world.models.order[-1]])
    assert (manifest.parent, manifest.lists_trained) == (1, 200)


@pytest.mark.parametrize("saved", [0, 1, 3])
def test_a_release_says_what_was_left_out_for_whoever_loses_state_later(saved: int) -> None:
    """With no state or one of before the rollback, the evidence is that of the release that was made since."""
    world = World()
    rolled_back(world)
    old = world.checkpoints.saved[:saved]
    world.models.serve(1, 0, withdrawn=3)
    world.run_once()
    world.send(400, 500)
    world.run_once(after_s=20)
    manifest = manifest_of(world.models.values["query-4"])
    assert manifest.left_out == {place: ((offsets(100)[place], end),) for place, end in offsets(400).items()}
    expected = world.loop.learner.evidence.table.cells()
    world.models.serve(manifest.release, 0, withdrawn=3, withdrawn_above=1)
    world.checkpoints.saved = old
    world.start()
    world.run_once(after_s=20)
    assert (world.catching_up(), world.progress.lists_trained) == (False, 200)
    assert world.loop.learner.evidence.table.cells().clicks.tolist() == pytest.approx(expected.clicks.tolist())


def test_ranges_of_a_log_that_was_made_anew_mean_nothing() -> None:
    """Its offsets begin anew: what was left out of the one before does not hide its records."""
    world = World()
    rolled_back(world)
    world.run_once()
    assert world.progress.left_out
    world.loop.finish()
    world.source.log = records(0, 60)
    world.start()
    assert world.progress.left_out == {}
    world.run_once(after_s=20)
    assert world.progress.offsets == offsets(60)


@pytest.mark.parametrize("sent", [0, 60, 400])
def test_a_release_hides_no_record_of_a_log_that_was_made_anew(sent: int) -> None:
    """What it left out lay in the log before, whether the new one still is empty at the start or nearly as long."""
    world = World()
    rolled_back(world)
    world.run_once()
    world.send(400, 500)
    world.run_once(after_s=20)
    world.models.serve(4, 0, withdrawn=3, withdrawn_above=1)
    world.source.log = records(0, sent)
    assert lose_disk(world).left_out == {}
    world.source.log = records(0, 400)
    world.run_once(after_s=20)
    assert (world.progress.lists_trained, world.progress.offsets) == (400, offsets(400))


def test_a_rollback_hides_no_record_of_a_log_that_was_made_anew() -> None:
    """Nor does the state that it goes back to: all that comes to the new log from then on is learned."""
    world = World()
    rolled_back(world)
    world.run_once()
    world.send(400, 500)
    world.run_once(after_s=20)
    world.models.serve(4, 0, withdrawn=3, withdrawn_above=1)
    world.send(500, 600)
    world.run_once(after_s=20)
    world.models.serve(5, 0, withdrawn=3, withdrawn_above=1)
    world.run_once()
    world.source.log = records(0, 60)
    world.models.serve(4, 0, withdrawn=5)
    world.start()
    world.source.log = records(0, 400)
    world.run_once(after_s=20)
    assert world.progress.offsets == offsets(400)
    assert world.progress.lists_trained == 200 + 300  # the first hundred are in that state already


def curated_record(offset: int, query: str, **told: Any) -> LogRecord:
    """Return the record of a pair, written one second after the one before it."""
    pair = CuratedPair(query=query, chosen=PRODUCTS[1], rejected=PRODUCTS[0], **told)
    return LogRecord(CURATED_PAIRS, 0, offset, START_MS + 1000 * offset, pair)


@pytest.mark.parametrize("kept", ["state", "no state", "no disk"])
def test_a_rule_that_was_ended_does_not_come_back_with_a_rollback(kept: str) -> None:
    """What else came on `curated-pairs` since that cut is left out like clicks, rules as well as pairs of people."""
    world = World()
    world.source.begins[f"{CURATED_PAIRS}/0"] = 0
    world.source.log += [curated_record(number, QUERIES[number], source="rule") for number in range(2)]
    rolled_back(world)
    world.source.log += [
        curated_record(2, QUERIES[0], source="rule", expires_at=START_MS),
        curated_record(3, QUERIES[2], source="rule"),
        curated_record(4, QUERIES[3]),
    ]
    world.run_once()
    if kept == "no state":
        world.checkpoints.saved.clear()
    world.models.serve(1, 0, withdrawn=3)
    if kept == "no disk":
        lose_disk(world)
    for _ in range(3):
        world.run_once(after_s=20)
    learner = world.loop.learner
    assert (learner.progress.lists_trained, world.progress.offsets[f"{CURATED_PAIRS}/0"]) == (100, 5)
    learner.evidence.encode_queries(learner.encode)
    counted = learner.evidence.rule_cells(np.ones(len(learner.evidence.products), dtype=bool))
    assert [learner.evidence.queries.texts[number] for number in counted.queries.tolist()] == [QUERIES[1]]
    assert world.progress.pairs_trained == 2
