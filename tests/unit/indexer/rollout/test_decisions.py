"""Which step a roll-out takes: tables of states, and walks that end whatever happens on the way."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.releases import Kind, ReleaseManifest, Serving
from indexer.rollout.decisions import (
    Bootstrap,
    Build,
    Check,
    Construction,
    Drop,
    Fill,
    GiveUp,
    PublishAlias,
    ReleaseQuery,
    Repair,
    State,
    Step,
    Switch,
    Wait,
    newest_refused,
    next_step,
    pause_s,
)

NOW_MS = 1_795_196_600_000


def serving(query: int = 0, product: int = 0) -> Serving:
    """Return releases in force."""
    return Serving(query_release=query, product_release=product, collection=f"products-r{product}", published_at=NOW_MS)


def state(**changes: Any) -> State:
    """Return the state of a deployment that serves release 0 of both towers, changed as told."""
    settled = State(serving=serving(), alias_target=0, collections=frozenset({0}))
    return replace(settled, **changes)


BOTH: Mapping[str, Any] = {"product_releases": {1: 4}, "query_releases": {4: 1}}
BUILDING = Construction(1)
FILLED = Construction(1, filled=True)
CHECKED = Construction(1, filled=True, checked=True)


@pytest.mark.parametrize(
    ("given_state", "expected"),
    [
        pytest.param(State(), Bootstrap(), id="nothing was ever served"),
        pytest.param(State(leads=False), Bootstrap(), id="even an indexer that does not lead may begin"),
        pytest.param(state(), Wait(), id="all is done"),
        pytest.param(state(repaired=False, query_releases={1: 0}), Repair(), id="complete before anything else"),
        pytest.param(state(alias_target=None), PublishAlias(0), id="alias lost"),
        pytest.param(state(alias_target=1), PublishAlias(0), id="the alias was left behind, or moved by somebody"),
        pytest.param(state(query_releases={1: 0, 2: 0, 3: 7}), ReleaseQuery(2), id="newest for the release in force"),
        pytest.param(state(serving=serving(2), query_releases={1: 0, 2: 0}), Wait(), id="only newer query releases"),
        pytest.param(
            state(query_releases={1: 0, 2: 0}, refused=frozenset({("query", 2)})), ReleaseQuery(1), id="refused one"
        ),
        pytest.param(state(product_releases={1: 4}), Build(1), id="begins before its query release is there"),
        pytest.param(state(product_releases={1: 4, 2: 9}), Build(2), id="newest product release"),
        pytest.param(state(**BOTH, construction=BUILDING), Fill(), id="fill"),
        pytest.param(
            state(product_releases={1: 4}, query_releases={4: 1, 3: 0}, construction=BUILDING),
            ReleaseQuery(3),
            id="query lane goes on during a roll-out",
        ),
        pytest.param(state(**BOTH, construction=FILLED), Check(), id="check"),
        pytest.param(state(**BOTH, construction=CHECKED), Switch(4), id="switch"),
        pytest.param(
            state(product_releases={1: 4}, query_releases={4: 1, 6: 1, 7: 0}, construction=CHECKED, serving=serving(7)),
            Switch(6),
            id="newest query release of the new pair, smaller than the one in force",
        ),
        pytest.param(
            state(product_releases={1: 4, 2: 5}, query_releases={4: 1}, construction=CHECKED),
            Switch(4),
            id="a newer release does not keep one from ending",
        ),
        pytest.param(
            state(**BOTH, construction=FILLED, refused=frozenset({("product", 1)})), GiveUp(), id="refused on the way"
        ),
        pytest.param(state(construction=BUILDING), GiveUp(), id="taken back on the way"),
        pytest.param(state(collections=frozenset({0, 3})), Drop(3), id="left over from a roll-out given up"),
        pytest.param(
            state(serving=serving(4, 2), alias_target=2, collections=frozenset({0, 1, 2}), previous=1),
            Drop(0),
            id="older than the one before",
        ),
        pytest.param(
            state(serving=serving(4, 3), alias_target=3, collections=frozenset({1, 2, 3}), previous=1),
            Drop(2),
            id="an unfinished one is not the one before",
        ),
        pytest.param(
            state(serving=serving(4, 3), alias_target=3, collections=frozenset({1, 2, 3})), Drop(1), id="unknown before"
        ),
        pytest.param(state(**BOTH, leads=False), Build(1), id="who does not lead writes along"),
        pytest.param(state(**BOTH, leads=False, construction=BUILDING), Wait(), id="and leaves the filling"),
        pytest.param(state(leads=False, construction=BUILDING), GiveUp(), id="until it is over"),
        pytest.param(state(leads=False, alias_target=9, collections=frozenset({7})), Wait(), id="and tidies nothing"),
        pytest.param(state(leads=False, repaired=False), Wait(), id="and repairs nothing after a switch"),
    ],
)
def test_the_state_decides_the_step(given_state: State, expected: Step) -> None:
    """Each line of the table is one situation of a deployment."""
    assert next_step(given_state) == expected


def test_a_release_without_its_query_head_waits_and_says_for_what() -> None:
    """The pair switches as one: a product release alone never comes into force."""
    step = next_step(state(product_releases={1: 4}, construction=CHECKED))
    assert isinstance(step, Wait)
    assert "product-1" in step.reason


def after(step: Step, before: State) -> State:
    """Return the state after a step that succeeded."""
    construction, current = before.construction, before.serving
    changes: dict[str, Any] = {}
    match step:
        case Bootstrap():
            changes = {"serving": serving(), "alias_target": 0, "collections": before.collections | {0}}
        case Repair():
            changes = {"repaired": True}
        case PublishAlias(release):
            changes = {"alias_target": release}
        case ReleaseQuery(release) if current is not None:
            changes = {"serving": serving(release, current.product_release)}
        case Build(release):
            changes = {"construction": Construction(release), "collections": before.collections | {release}}
        case Fill() if construction is not None:
            changes = {"construction": replace(construction, filled=True)}
        case Check() if construction is not None:
            changes = {"construction": replace(construction, checked=True)}
        case Switch(release) if construction is not None and current is not None:
            number = construction.product_release
            changes = {"serving": serving(release, number), "alias_target": number, "construction": None}
            changes |= {"previous": current.product_release, "repaired": False}
        case GiveUp():
            changes = {"construction": None}
        case Drop(release):
            changes = {"collections": before.collections - {release}}
    assert changes, f"{step} cannot follow {before}"
    return replace(before, **changes)


@given(crashes=st.sets(st.integers(0, 30)), releases=st.integers(1, 3))
def test_whatever_crashes_the_newest_pair_comes_into_force(crashes: set[int], releases: int) -> None:
    """A restart forgets only the construction; every walk ends with the newest pair and two collections at most."""
    now = State(
        product_releases={number: 10 * number for number in range(1, releases + 1)},
        query_releases={10 * number: number for number in range(1, releases + 1)},
        repaired=False,
    )
    for taken in range(60):
        step = next_step(now)
        if isinstance(step, Wait):
            break
        now = after(step, now)
        if taken in crashes:
            now = replace(now, construction=None, repaired=False)
    assert now.serving == serving(10 * releases, releases)
    assert now.repaired
    assert now.alias_target == releases
    assert now.collections == {releases, now.previous}


@given(write_s=st.floats(0, 10), batches_left=st.integers(0, 10_000), time_left_s=st.floats(-100, 10_000))
def test_a_pause_is_never_longer_than_the_write_nor_than_there_is_time(
    write_s: float, batches_left: int, time_left_s: float
) -> None:
    """Half of the store's time is the searches', unless the refresh window would be missed."""
    pause = pause_s(write_s, batches_left, time_left_s)
    assert 0 <= pause <= write_s
    if pause:
        assert batches_left * (write_s + pause) <= time_left_s + 1e-6 * max(1.0, time_left_s)


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
