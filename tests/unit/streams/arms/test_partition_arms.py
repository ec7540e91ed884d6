"""The arms agent's state: what is counted of a list, under which arm, once whatever happens."""

from itertools import permutations
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.arms import (
    ANCHOR,
    ARMS,
    INTERLEAVED,
    LIVE,
    OTHER,
    UNTRAINED,
    ArmCounts,
    ArmsProgress,
    anonymous_session,
)
from contracts.comparison import GROUPS
from contracts.joined import CLOSING_NUMBER_HEADER, ClosingNumber
from contracts.structs import JOINED_SEARCH
from contracts.wire import encode
from streams.agents.spec import Plan
from streams.arms import reformulations
from streams.arms.partition_arms import MOST_SURFACES, PartitionArms, outcome_of, winner
from tests.support.search_events import T0, Record

Written = tuple[bytes, ClosingNumber | None]


def joined(search_id: str = "s1", *, arm: str = LIVE, release: int = 7, slots: Any = ({},), **fields: Any) -> bytes:
    """Return a joined search; of its slots only what is unusual is given."""
    listed = [{"product_id": f"P-{place}", "position": place, **slot} for place, slot in enumerate(slots, start=1)]
    ranking = {"query_release": release, "product_release": 1, "arm": arm, **fields.pop("ranking", {})}
    message = {"search_id": search_id, "search_time": T0, "closed_at": T0 + 1, "query": "q", "session_id": search_id}
    return orjson.dumps({**message, "slots": listed, "ranking": ranking, **fields})


def run(written: list[Written], arms: PartitionArms | None = None, *, begin: int = 0) -> PartitionArms:
    """Feed records to a partition's state."""
    arms, plan = arms or PartitionArms(0), Plan()
    for offset, (value, number) in enumerate(written, start=begin):
        headers = [(CLOSING_NUMBER_HEADER, number.encode())] if number else []
        arms.take(Record(offset, T0, value, headers=headers), plan)
    return arms


def counts(*values: bytes) -> dict[str, dict[str, ArmCounts]]:
    """Return what is counted of lists."""
    return run([(value, None) for value in values]).progress().arms


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([], {"zero_results": 1}),
        ([{"sponsored": True, "clicked": True}], {"zero_results": 1}),
        ([{}, {}], {"abandoned": 1}),
        ([{}, {"clicked": True}], {"clicked": 1, "value": 1.0, "reciprocal_rank": 0.5}),
        ([{"clicked": True, "dwell_ms": 900}], {"clicked": 1, "value": 0.0, "reciprocal_rank": 1.0}),
        (
            [{"clicked": True, "click_time": T0 + 9}, {"clicked": True, "click_time": T0 + 5, "dwell_ms": 40_000}],
            {"clicked": 1, "value": 2.5, "reciprocal_rank": 0.5},
        ),
        (
            [{"cart_quantity": 3}, {"clicked": True, "cart_quantity": 1, "purchase_quantity": 2}],
            {"clicked": 1, "carted": 1, "purchased": 1, "cart_adds": 2, "value": 14.0, "reciprocal_rank": 0.5},
        ),
    ],
)
def test_a_list_counts_what_became_of_it(slots: list[dict[str, Any]], expected: dict[str, float]) -> None:
    """Once as a search, and in each sum by what the shopper did; the first click is the first in time."""
    if len(slots) == 2 and "cart_quantity" in slots[0]:
        slots[1]["click_time"] = T0 + 1
    (found,) = counts(joined(slots=slots))[LIVE].values()
    assert found == ArmCounts(searches=1, **expected)  # type: ignore[arg-type] # the fields named above


def test_what_the_ranker_said_of_its_list_is_counted() -> None:
    """Whether nothing in it matched well travels from the search to here."""
    found = counts(*(joined(f"s{n}", ranking={"no_good_match": said}) for n, said in enumerate((True, False, None))))
    assert found[LIVE]["unnamed"].no_good_match == 1


def test_each_arm_and_surface_is_counted_apart() -> None:
    """Live lists of release 0 say nothing about learning, and what another engine ranked nothing about arms."""
    found = counts(
        joined("a"),
        joined("b", arm=ANCHOR, release=0, surface="home"),
        joined("c", release=0),
        joined("d", arm=INTERLEAVED),
        joined("e", arm="gold"),
        joined("f", ranking={"ranker": "own 1.2"}),
        joined("g", surface="home"),
    )
    assert {arm: sorted(surfaces) for arm, surfaces in found.items()} == {
        LIVE: ["home", "unnamed"],
        ANCHOR: ["home"],
        UNTRAINED: ["unnamed"],
        INTERLEAVED: ["unnamed"],
        OTHER: ["unnamed"],
    }
    assert found[OTHER]["unnamed"].searches == 2


def test_who_could_not_be_assigned_is_in_no_arm() -> None:
    """A search without client and session is always answered live: counted there, it would be compared with nobody."""
    nobody = joined("a", session_id=anonymous_session("a"), client_id=None)
    assert list(counts(nobody)) == [OTHER]
    assert list(counts(joined("a", session_id=anonymous_session("b"), client_id=None))) == [LIVE]


def test_surfaces_are_bounded() -> None:
    """Each is a series of metrics, and anyone may name one."""
    found = counts(*(joined(f"s{n}", surface=f"surface {n}") for n in range(3 * MOST_SURFACES)))
    assert len(found[LIVE]) == MOST_SURFACES + 1
    assert found[LIVE]["other"].searches == 2 * MOST_SURFACES
    assert set(found) <= set(ARMS)


def test_a_persons_lists_are_of_one_group() -> None:
    """By client, whatever the session; the groups together are the arm."""
    progress = run([(joined(f"s{n}", client_id="c9", slots=[{"clicked": True}]), None) for n in range(5)]).progress()
    assert sorted(group.searches for group in progress.groups[LIVE]) == [0] * (GROUPS - 1) + [5]
    many = run([(joined(f"s{n}", slots=[{"clicked": n % 2 == 0}]), None) for n in range(200)]).progress()
    totals = [sum(getattr(group, name) for group in many.groups[LIVE]) for name in ("searches", "clicked", "value")]
    assert totals == [200, 100, 100.0]
    assert sum(group.searches > 0 for group in many.groups[LIVE]) > GROUPS / 2


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (joined(synthetic=True), "filtered/synthetic"),
        (joined(consent="denied"), "filtered/consent"),
        (joined(ranking={"sort": "price"}), "filtered/sorted"),
        (joined(query="  "), "browsed"),
        (b"junk", "dead_lettered"),
    ],
)
def test_what_is_no_experiments_is_left_out_for_a_reason(value: bytes, outcome: str) -> None:
    """The same reasons for every arm."""
    arms = run([(value, None)])
    assert arms.progress().counts == {outcome: 1}
    assert arms.progress().arms == {}


@pytest.mark.parametrize(
    ("teams", "clicked", "won"),
    [
        ("la", "1", LIVE),
        ("la", "2", ANCHOR),
        ("lala", "12", None),
        ("lala", "124", ANCHOR),
        ("la", "", None),
        ("l-", "2", None),
    ],
)
def test_an_interleaved_list_is_won_by_the_team_of_which_more_was_chosen(teams: str, clicked: str, won: str) -> None:
    """Slots of no team, as those that a site adds, are nobody's."""
    of = {"l": LIVE, "a": ANCHOR, "-": None}
    slots = [{"team": of[team], "clicked": str(at) in clicked} for at, team in enumerate(teams, start=1)]
    value = joined(arm=INTERLEAVED, slots=slots)
    assert winner(JOINED_SEARCH.decode(value)) == won
    decided = run([(value, None)]).progress().interleaving
    assert (decided.live, decided.anchor, decided.tied) == (won == LIVE, won == ANCHOR, won is None)


values = st.one_of(
    st.builds(
        lambda n, arm, surface, clicked, asked: (
            joined(
                f"s{n}",
                arm=arm,
                surface=surface,
                slots=[{"clicked": clicked, "team": ANCHOR}, {}],
                session_id=f"k{n % 2}",
                search_time=T0 + 100_000 * n,
                query=asked,
            ),
            ClosingNumber("0-0", n),
        ),
        st.integers(1, 12),
        st.sampled_from([*ARMS]),
        st.sampled_from(["search", "home", *(f"s{n}" for n in range(12))]),
        st.booleans(),
        st.sampled_from(["q", "Q.", "r"]),
    ),
    st.integers(1, 12).map(lambda n: (joined(f"s{n}", synthetic=True), ClosingNumber("1-0", n))),
    st.just((b"junk", None)),
    st.just((joined(query=""), None)),
)


@given(log=st.lists(values, min_size=1, max_size=40), stops=st.lists(st.integers(1, 40), max_size=3))
@settings(max_examples=200)
def test_a_restart_anywhere_counts_nothing_twice(log: list[Written], stops: list[int]) -> None:
    """A process that starts from written progress counts as if it had never stopped."""
    whole, arms, read_from = run(log), PartitionArms(0), 0
    for stop in sorted(min(stop, len(log)) for stop in stops):
        run(log[read_from:stop], arms, begin=read_from)
        progress = ArmsProgress.model_validate_json(encode(arms.progress()))
        read_from, arms = max(read_from, progress.hold_offset), PartitionArms(0, progress)
    run(log[read_from:], arms, begin=read_from)
    assert arms.progress() == whole.progress()
    assert sum(whole.progress().counts.values()) == len(log)
    counted = sum(counts.searches for surfaces in whole.progress().arms.values() for counts in surfaces.values())
    assert counted == whole.progress().counts.get("counted", 0)


def asked(number: int, at_s: float, query: str = "fridge", **fields: Any) -> bytes:
    """Return a list of one session, of which nothing was chosen unless said."""
    return joined(f"s{number}", search_time=T0 + round(1000 * at_s), query=query, **{"session_id": "k", **fields})


def reformulated(*values: bytes) -> dict[str, int]:
    """Return how many lists of each arm were reformulated, having seen that their order does not matter."""
    found = [
        {arm: sum(one.reformulated for one in surfaces.values()) for arm, surfaces in counts(*order).items()}
        for order in permutations(values)
    ]
    assert found[1:] == found[:-1]
    return {arm: n for arm, n in found[0].items() if n}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([asked(1, 0), asked(2, 300, "quiet fridge")], {LIVE: 1}),
        ([asked(1, 0), asked(2, 300.001, "quiet fridge")], {}),
        ([asked(1, 0), asked(2, 0, "quiet fridge")], {}),
        ([asked(1, 0), asked(2, 60, " FRIDGE!")], {}),
        ([asked(1, 0, slots=[{"clicked": True}]), asked(2, 60, "quiet fridge")], {}),
        ([asked(1, 0, slots=[{"sponsored": True, "clicked": True}]), asked(2, 60, "quiet fridge")], {LIVE: 1}),
        ([asked(1, 0), asked(2, 60, "quiet fridge", session_id="other")], {}),
        ([asked(1, 0), asked(2, 60, "")], {}),
        ([asked(1, 0), asked(2, 60, "quiet fridge", synthetic=True)], {}),
        ([asked(1, 0, arm=ANCHOR), asked(2, 60, "quiet fridge")], {ANCHOR: 1}),
        ([asked(1, 0), asked(2, 60, "quiet fridge"), asked(3, 90, "small fridge")], {LIVE: 2}),
        ([asked(1, 0), asked(2, 60), asked(3, 90, "small fridge"), asked(4, 95, "oven")], {LIVE: 3}),
    ],
)
def test_a_search_is_reformulated_by_another_query_soon_after(values: list[bytes], expected: dict[str, int]) -> None:
    """In the same session within five minutes, once for its own arm, if nothing was chosen; joins come in any order."""
    assert reformulated(*values) == expected


def test_a_restart_knows_the_sessions_that_are_not_over() -> None:
    """It reads the log again from the oldest list that may still be reformulated, and no further back."""
    log: list[Written] = [(asked(n, 2_000 * n, session_id=f"k{n}"), None) for n in range(3)]
    log += [(asked(3, 4_000 - 890), None), (asked(4, 4_000, "oven"), None), (asked(5, 4_020, "stove"), None)]
    before = run(log[:5]).progress()
    assert before.hold_offset == 2
    after = run(log[5:], run(log[2:5], PartitionArms(0, before), begin=2), begin=5).progress()
    assert after == run(log).progress()
    assert after.arms[LIVE]["unnamed"].reformulated == 1


def test_what_is_remembered_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest leave; a list that comes too late to be remembered tells nothing."""
    monkeypatch.setattr(reformulations, "REMEMBERED_LISTS", 3)
    log: list[Written] = [(asked(n, n, session_id=f"k{n}"), None) for n in range(1, 6)]
    late: Written = (asked(0, 0.5, "oven", session_id="k3"), None)
    progress = run([*log, late]).progress()
    assert (progress.hold_offset, progress.arms[LIVE]["unnamed"].reformulated) == (2, 0)


def test_what_a_killed_join_writes_again_counts_once() -> None:
    """It is told by its closing number, whatever was written in between."""
    one, two = ((joined(f"s{n}"), ClosingNumber("0-0", n)) for n in (1, 2))
    progress = run([one, two, one, two]).progress()
    assert progress.counts == {"counted": 2, "filtered/duplicate": 2}
    assert progress.arms[LIVE]["unnamed"].searches == 2


def test_progress_is_small_enough_to_be_written_every_second() -> None:
    """All arms, as many surfaces as there may be, and a year of busy lists."""
    arms = run([(joined(f"s{n}", arm=ARMS[n % 5], surface=f"surface {n % 30}"), None) for n in range(300)])
    for sums in arms.arms.values():
        for group in sums.groups:
            group.searches, group.clicked, group.value = 10**9, 10**8, 1e9 + 0.5
    assert len(encode(arms.progress())) < 40_000


def test_a_list_without_a_click_has_no_rank() -> None:
    """Its reciprocal rank is 0, as of a list whose right answer is missing."""
    assert outcome_of(JOINED_SEARCH.decode(joined(slots=[{}, {}]))).reciprocal_rank == 0.0
