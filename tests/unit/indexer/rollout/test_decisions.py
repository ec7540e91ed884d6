"""Which step a roll-out takes: tables of states, and walks that end whatever happens on the way."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import wire
from contracts.releases import SERVING, Kind, ReleaseManifest, Serving, withdrawn
from indexer.rollout.decisions import (
    Begin,
    Drop,
    PublishAlias,
    Refresh,
    ReleaseId,
    ReleaseQuery,
    Repair,
    State,
    Step,
    Wait,
    newest_refused,
    next_step,
    pause_s,
)

NOW_MS = 1_795_196_600_000
C0, C1, C2, C3 = (f"products-r{number}" for number in range(4))


def serving(query: int = 0, product: int = 0, *, collection: str = C0, previous: str | None = None) -> Serving:
    """Return releases in force."""
    return Serving(
        query_release=query,
        product_release=product,
        collection=collection,
        published_at=NOW_MS,
        previous_collection=previous,
    )


def state(*releases: ReleaseId, **changes: Any) -> State:
    """Return the state of a deployment that serves release 0 of both towers, changed as told."""
    settled = State(serving=serving(), alias_target=C0, collections={C0: 0}, releases=frozenset(releases))
    return replace(settled, **changes)


Q1: ReleaseId = ("query", 1)
Q2: ReleaseId = ("query", 2)
P1: ReleaseId = ("product", 1)
P2: ReleaseId = ("product", 2)


@pytest.mark.parametrize(
    ("given_state", "expected"),
    [
        pytest.param(State(), Begin(), id="nothing was ever served"),
        pytest.param(State(leads=False), Begin(), id="even an indexer that does not lead may begin"),
        pytest.param(state(), Wait(), id="all is done"),
        pytest.param(state(Q1, repaired=False), Repair(), id="complete before anything else"),
        pytest.param(state(alias_target=None), PublishAlias(), id="alias lost"),
        pytest.param(state(alias_target=C1), PublishAlias(), id="the alias was left behind, or moved by somebody"),
        pytest.param(state(Q1, Q2), ReleaseQuery(2), id="newest query release"),
        pytest.param(state(Q1, Q2, serving=serving(2)), Wait(), id="it is in force"),
        pytest.param(state(Q1, P1), ReleaseQuery(1), id="queries go on during a refresh"),
        pytest.param(state(Q1, P1, P2, serving=serving(1)), Refresh(2), id="newest product release"),
        pytest.param(state(P1, serving=serving(0, 1)), Wait(), id="it is in force too"),
        pytest.param(state(P1, serving=serving(0, 2)), Wait(), id="an older one does not come back"),
        pytest.param(
            state(serving=serving(collection=C3), alias_target=C3, collections={C3: 3, C2: 2, C1: 1}),
            Drop(C1),
            id="old",
        ),
        pytest.param(
            state(serving=serving(collection=C3, previous=C1), alias_target=C3, collections={C3: 3, C2: 2, C1: 1}),
            Drop(C2),
            id="but the one before",
        ),
        pytest.param(state(collections={C0: 0, C1: 1}), Wait(), id="an indexer of another base is filling it"),
        pytest.param(state(Q1, P1, leads=False), Wait(), id="who does not lead moves nothing"),
        pytest.param(state(leads=False, alias_target=C1), Wait(), id="and tidies nothing"),
        pytest.param(state(leads=False, repaired=False), Wait(), id="and repairs nothing"),
    ],
)
def test_the_state_decides_the_step(given_state: State, expected: Step) -> None:
    """Each line of the table is one situation of a deployment."""
    assert next_step(given_state) == expected


def after(step: Step, before: State) -> State:
    """Return the state after a step that succeeded."""
    current = before.serving
    match step:
        case Begin():
            return replace(before, serving=serving(), alias_target=C0, collections={**before.collections, C0: 0})
        case Repair():
            return replace(before, repaired=True)
        case PublishAlias() if current is not None:
            return replace(before, alias_target=current.collection)
        case ReleaseQuery(release) if current is not None:
            return replace(before, serving=current.model_copy(update={"query_release": release}))
        case Refresh(release) if current is not None:
            return replace(before, serving=current.model_copy(update={"product_release": release}), repaired=False)
        case Drop(collection):
            return replace(before, collections={n: c for n, c in before.collections.items() if n != collection})
    raise AssertionError(f"{step} cannot follow {before}")


@given(crashes=st.sets(st.integers(0, 30)), releases=st.integers(1, 3))
def test_whatever_crashes_the_newest_releases_come_into_force(crashes: set[int], releases: int) -> None:
    """A restart repairs and goes on; every walk ends with the newest releases in the one collection."""
    numbers: list[ReleaseId] = [(kind, number) for kind in ("query", "product") for number in range(1, releases + 1)]
    now = State(releases=frozenset(numbers), repaired=False)
    for taken in range(60):
        step = next_step(now)
        if isinstance(step, Wait):
            break
        now = after(step, now)
        if taken in crashes:
            now = replace(now, repaired=False)
    assert now.serving == serving(releases, releases)
    assert now.repaired
    assert (now.alias_target, now.collections) == (C0, {C0: 0})


@given(write_s=st.floats(0, 10), batches_left=st.integers(0, 10_000), time_left_s=st.floats(-100, 10_000))
def test_a_pause_is_never_longer_than_the_write_nor_than_there_is_time(
    write_s: float, batches_left: int, time_left_s: float
) -> None:
    """Half of the store's time is the searches', unless the refresh window would be missed."""
    pause = pause_s(write_s, batches_left, time_left_s)
    assert 0 <= pause <= write_s
    if pause:
        assert batches_left * (write_s + pause) <= time_left_s + 1e-6 * max(1.0, time_left_s)


PARENTS = {1: 0, 5: 1, 6: 5, 10: 6, 11: 10, 12: 5, 13: 12}


def gone(in_force: Serving) -> list[int]:
    """Return which of a few query releases stay away."""
    manifests = [
        ReleaseManifest(
            kind="query", release=number, parent=parent, product_release=0, query_release=number, base_version="b",
            dim=1, created_at=NOW_MS, pairs_trained=0, lists_trained=0, offsets={}, weights_sha256="",
        )
        for number, parent in PARENTS.items()
    ]  # fmt: skip
    return sorted(withdrawn(in_force, manifests) & PARENTS.keys())


@pytest.mark.parametrize("in_force", [0, 5, 12])
def test_only_what_a_rollback_took_back_stays_away(in_force: int) -> None:
    """Also once another base is served and the old one comes back with release 0: what is older may return."""
    assert gone(serving(in_force).model_copy(update={"withdrawn_above": 5, "withdrawn": 10})) == [6, 10, 11]


@pytest.mark.parametrize(("in_force", "expected"), [(5, [6, 10, 11]), (12, [])], ids=["at once", "released since"])
def test_a_record_that_does_not_say_what_was_gone_back_to_withdraws_nothing_in_force(
    in_force: int, expected: list[int]
) -> None:
    """Written by an earlier version after a rollback to 5: what is in force, and what comes of it, stays usable."""
    record = wire.parse(wire.encode(serving(in_force).model_copy(update={"withdrawn": 10})))
    del record["withdrawn_above"]
    assert gone(wire.validate(record, SERVING)) == expected


@pytest.mark.parametrize(
    ("refused", "in_force", "says"),
    [
        pytest.param({}, (0, 0), None, id="nothing was refused"),
        pytest.param({("query", 2): "why"}, (1, 0), "query-2 was refused: why", id="the newest query release"),
        pytest.param({("query", 1): "why"}, (2, 0), None, id="an older one, and a newer one is in force"),
        pytest.param({("query", 1): "why"}, (0, 0), None, id="an older one: the newest is still to be tried"),
        pytest.param({("product", 1): "why"}, (2, 0), "product-1 was refused: why", id="the newest product release"),
        pytest.param({("product", 9): "why"}, (2, 0), None, id="one that was taken back"),
    ],
)
def test_the_newest_release_that_was_refused_is_named(
    refused: dict[tuple[Kind, int], str], in_force: tuple[int, int], says: str | None
) -> None:
    """An indexer that brings nothing newer into force says which release and why."""
    there = [manifest("query", 1), manifest("query", 2), manifest("product", 1)]
    assert newest_refused(serving(*in_force), there, refused) == says


def manifest(kind: Kind, release: int) -> ReleaseManifest:
    """Return the manifest of a release."""
    return ReleaseManifest(
        kind=kind, release=release, product_release=0, query_release=release, base_version="tiny/t1", dim=4,
        created_at=NOW_MS, pairs_trained=0, lists_trained=0, offsets={}, weights_sha256="0" * 64,
    )  # fmt: skip
