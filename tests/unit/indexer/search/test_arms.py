"""Arms: who is in which, what answers them, how their lists are perturbed and what is logged of it."""

from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import models

from contracts.arms import ANCHOR, LIVE, is_anchored
from contracts.errors import DependencyDown
from contracts.events import Exploration, person_id
from indexer.search.arms import Draw, Shares, anchor_of, arm_of, perturbed, team_draft
from indexer.search.exploration import JITTER, Policy, swapped
from indexer.search.retrieval import Hit, Question, mixed
from tests.support.search_fakes import DIM, Search, question_of, request, served
from towers.model import Mix

EVERYBODY = Shares(anchor=1.0)
ALWAYS_SWAPPED = Shares(swap=1.0)
ALWAYS_INTERLEAVED = Shares(interleave=1.0)
SOME = Shares(swap=0.05)


def learned(shares: Shares, **given: object) -> Search:
    """Return a search service with query release 7 and product release 3 in force."""
    search = Search(shares=shares, **given)  # type: ignore[arg-type] # as Search takes them
    search.release = served(7, 3)
    return search


def test_a_share_of_persons_is_in_the_anchor_arm_always_the_same() -> None:
    """A larger share keeps those of a smaller one, so that nobody changes arms needlessly."""
    persons = [f"person-{number}" for number in range(20_000)]
    tenth, fifth = ({one for one in persons if is_anchored(one, share)} for share in (0.1, 0.2))
    assert len(tenth) / len(persons) == pytest.approx(0.1, abs=0.01)
    assert len(fifth) / len(persons) == pytest.approx(0.2, abs=0.01)
    assert tenth < fifth


async def test_the_anchor_arm_answers_by_release_0_over_the_same_collection() -> None:
    """Nothing that was learned of queries or of products moves its list: the text alone is asked for."""
    search = learned(EVERYBODY)
    answer = await search.service.search(request(client_id="c9", explore=False))
    assert (answer.arm, answer.query_release, answer.product_release) == (ANCHOR, 0, 0)
    collection, vector, _, _ = search.store.asked[-1]
    assert collection == "products-r3"
    np.testing.assert_allclose(vector[:-1], search.encoder.encode(["quiet fridge"])[0], atol=1e-6)
    assert vector[-1] == 0.0
    assert search.store.questions[-1].mix == Mix()
    ranking = search.impressions.sent[-1].ranking
    assert (ranking.arm, ranking.query_release, ranking.product_release) == (ANCHOR, 0, 0)


async def test_an_explanation_on_the_anchor_arm_has_no_learned_term() -> None:
    """Its terms are those that ranked the list."""
    search = learned(EVERYBODY)
    answer = await search.service.search(request(client_id="c9", explain=True, k=2))
    for result in answer.results:
        assert result.explanation is not None
        assert [result.explanation[name] for name in ("taste", "memory", "quality")] == [0.0, 0.0, 0.0]


def test_without_a_vector_the_anchor_arm_ranks_by_words_alone() -> None:
    """Where the query could not be encoded, the live arm adds quality to words; the control does not."""
    point = models.ScoredPoint(id=1, version=1, score=2.0, payload={"product_id": "P-1", "quality": 0.7})
    scores = {
        quality: mixed(question_of("fridge", None, quality=quality), {"words": [point]})[0] for quality in (0.0, 1.0)
    }
    assert 10 * (scores[1.0].score - scores[0.0].score) == pytest.approx(0.7)
    assert 10 * scores[0.0].score == pytest.approx(scores[0.0].words)


async def test_the_arm_goes_by_the_stand_in_of_the_client_else_by_the_session() -> None:
    """What is logged is what decides, so anyone can check it; who gives neither id is in no experiment."""
    search = learned(Shares(anchor=0.3))
    for number in range(40):
        by_client = await search.service.search(request(client_id=f"c{number}", session_id="k1"))
        assert (by_client.arm == ANCHOR) == is_anchored(person_id(f"c{number}", b"key"), 0.3)
        by_session = await search.service.search(request(session_id=f"k{number}"))
        assert (by_session.arm == ANCHOR) == is_anchored(f"k{number}", 0.3)
    nobody = learned(EVERYBODY)
    assert (await nobody.service.search(request())).arm == LIVE


@pytest.mark.parametrize("fields", [{"query": ""}, {"sort": "price"}])
async def test_lists_that_no_query_ranks_are_in_no_experiment(fields: dict[str, object]) -> None:
    """Browsed and sorted lists are the same for all."""
    search = learned(Shares(anchor=1.0, swap=1.0))
    answer = await search.service.search(request(**{"query": "fridge", "client_id": "c9", **fields}))  # type: ignore[arg-type] # as a request takes them
    assert (answer.arm, answer.exploration) == (LIVE, Exploration())


def test_nobody_is_in_the_anchor_arm_before_anything_is_learned() -> None:
    """While release 0 is in force it would be compared with itself."""
    assert arm_of(served(0, 0), "c9", 1.0).arm == LIVE
    assert arm_of(served(1, 1), "c9", 1.0).arm == ANCHOR
    assert arm_of(served(1, 1), "c9", 0.0).arm == LIVE


async def test_the_anchor_arm_is_jittered_and_says_so() -> None:
    """Policy and seed are logged; whoever allows no exploration sees the list as it was ranked."""
    search = learned(EVERYBODY)
    asked = {"client_id": "c9", "k": 12}
    plain = await search.service.search(request(**asked, explore=False))  # type: ignore[arg-type] # as a request takes them
    assert plain.exploration == Exploration()
    jittered = [await search.service.search(request(**asked)) for _ in range(5)]  # type: ignore[arg-type] # as above
    assert {answer.exploration.policy for answer in jittered} == {"jitter"}
    assert len({answer.exploration.seed for answer in jittered}) == 5
    assert len({tuple(one.product_id for one in answer.results) for answer in jittered}) > 1
    assert [sent.ranking.exploration for sent in search.impressions.sent[1:]] == [one.exploration for one in jittered]


def test_live_lists_are_swapped_for_a_share_and_explored_otherwise() -> None:
    """One policy a list, so that what is logged is all that was done."""
    noise, release = Policy.named("noise:0.3"), served(1, 1)
    assert perturbed(release, noise, SOME, Draw(0.04, 8)).exploration == Exploration(policy="swap", seed=8)
    assert perturbed(release, noise, SOME, Draw(0.06, 8)).exploration == Exploration(policy="noise:0.3", seed=8)
    assert perturbed(release, Policy(), SOME, Draw(0.06, 8)).exploration == Exploration()
    assert perturbed(anchor_of(release), noise, ALWAYS_SWAPPED, Draw(0.0, 8)).policy is JITTER


async def test_what_nobody_logs_is_not_explored() -> None:
    """A search without an impression, as an evaluation asks, shows every arm's list as it ranks it."""
    search = learned(Shares(anchor=0.5, swap=1.0))
    sessions = [next(f"k{n}" for n in range(99) if is_anchored(f"k{n}", 0.5) == wanted) for wanted in (True, False)]
    for session in (*sessions, None):
        for _ in range(5):
            answer = await search.service.search(request(session_id=session, impression="none"))
            assert answer.exploration == Exploration()


async def test_a_swapped_list_is_the_ranked_one_with_its_neighbours_exchanged() -> None:
    """The seed of the answer gives the list again; scores stay with their products, positions with the places."""
    search = learned(ALWAYS_SWAPPED)
    ranked = await search.service.search(request(k=12, explore=False))
    by_id = {one.product_id: one.score for one in ranked.results}
    lists = [await search.service.search(request(k=12)) for _ in range(20)]
    for answer in lists:
        assert answer.exploration.policy == "swap"
        expected = swapped([[one.product_id for one in ranked.results]], answer.exploration.seed)[0]
        assert [one.product_id for one in answer.results] == expected
        assert [one.position for one in answer.results] == [*range(1, 13)]
        assert {one.product_id: one.score for one in answer.results} == by_id
    assert len({tuple(one.product_id for one in answer.results) for answer in lists}) > 5


async def test_pages_of_a_swapped_list_go_on_where_the_one_before_ends() -> None:
    """Together they are the list, and both name its one seed."""
    search = learned(ALWAYS_SWAPPED)
    ranked = await search.service.search(request(k=12, explore=False))
    for _ in range(10):
        first = await search.service.search(request(k=5))
        second = await search.service.search(request(k=5, page=2, search_id=first.search_id))
        ids = [one.product_id for one in ranked.results]
        expected = swapped([ids[:5], ids[5:10], ids[10:]], first.exploration.seed)
        assert [one.product_id for one in first.results] == expected[0]
        assert [one.product_id for one in second.results] == expected[1]
        assert second.exploration == first.exploration


async def test_a_list_in_which_the_query_names_a_product_is_not_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names stands first because it is named, whatever clicks say of the place."""
    search = learned(ALWAYS_SWAPPED)
    found = search.store.best

    async def naming(*args: object, **fields: object) -> object:
        """Name the first product."""
        first, *others = await found(*args, **fields)  # type: ignore[arg-type] # what it is called with
        return [first._replace(pin=1.0), *others]

    monkeypatch.setattr(search.store, "best", naming)
    for _ in range(10):
        answer = await search.service.search(request(k=5))
        assert answer.exploration == Exploration()
        assert answer.results[0].product_id == "P-1"


async def test_diverse_lists_and_those_found_by_words_alone_are_not_perturbed() -> None:
    """Diversity would undo it, and the scores of words alone are not the model's."""
    search = learned(ALWAYS_SWAPPED)
    assert (await search.service.search(request(diversity=0.5))).exploration == Exploration()
    search.encoder.fails = True
    by_words = await search.service.search(request("another"))
    assert (by_words.degraded, by_words.exploration) == ("lexical", Exploration())


def test_a_list_is_perturbed_one_way_at_most() -> None:
    """Interleaved for its share, exchanged for the next; before anything is learned there is no rival."""
    shares, noise = Shares(swap=0.2, interleave=0.1), Policy.named("noise:0.3")

    def policy(chance: float, release: int = 1) -> str:
        """Return what is done to a list."""
        return perturbed(served(release, release), noise, shares, Draw(chance, 8)).policy.name

    assert [policy(chance) for chance in (0.09, 0.11, 0.29, 0.31)] == ["team-draft", "swap", "swap", "noise:0.3"]
    assert [policy(chance, release=0) for chance in (0.09, 0.19, 0.21)] == ["swap", "swap", "noise:0.3"]


def hits(ids: str, *, pinned: str = "") -> list[Hit]:
    """Return a list of one-letter products."""
    return [Hit(1 - at / 10, {"product_id": one}, pin=float(one in pinned)) for at, one in enumerate(ids)]


@pytest.mark.parametrize(("live", "anchor"), [("abcdef", "fbeacd"), ("abc", "abc"), ("abcd", "xy"), ("ab", "wxyz")])
def test_a_team_draft_takes_in_turns_what_is_best_of_each_list(live: str, anchor: str) -> None:
    """Every product once; no team is ever ahead by more than one while both have something to take."""
    for seed in range(50):
        drafted = team_draft(hits(live), hits(anchor), seed)
        taken: set[str] = set()
        for at, hit in enumerate(drafted):
            own = live if hit.team == LIVE else anchor
            assert hit.payload["product_id"] == next(one for one in own if one not in taken)
            taken.add(hit.payload["product_id"])
            turns = [one.team for one in drafted[: at + 1]]
            others = anchor if hit.team == LIVE else live
            if set(others) - taken:
                assert abs(turns.count(LIVE) - turns.count(ANCHOR)) <= 1
        assert taken == {*live, *anchor}


def test_the_lots_of_a_draft_are_fair_and_of_its_seed() -> None:
    """Each team begins half of the lists, and equal lists give each half of the first slots."""
    first = [team_draft(hits("abc"), hits("abc"), seed)[0].team for seed in range(2_000)]
    assert first.count(LIVE) / len(first) == pytest.approx(0.5, abs=0.04)
    assert team_draft(hits("abcd"), hits("dcba"), 7) == team_draft(hits("abcd"), hits("dcba"), 7)


def test_what_the_query_names_is_of_no_team() -> None:
    """It stands first in both lists, and its clicks prefer neither."""
    for seed in range(20):
        drafted = team_draft(hits("zab", pinned="z"), hits("zba", pinned="z"), seed)
        assert drafted[0].payload["product_id"] == "z"
        assert [hit.team is None for hit in drafted] == [True, False, False]


async def test_an_interleaved_list_says_whose_turn_each_slot_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the answer and in the impression, on every page; releases are those of the live list."""
    search = learned(ALWAYS_INTERLEAVED)
    found = search.store.best

    async def turned(collection: str, question: Question, **fields: object) -> list[Hit]:
        """Find for the anchor the same in the opposite order."""
        best = await found(collection, question, **fields)  # type: ignore[arg-type] # what it is called with
        if question.quality:
            return best
        return [one._replace(score=other.score) for one, other in zip(best[::-1], best, strict=True)]

    monkeypatch.setattr(search.store, "best", turned)
    first = await search.service.search(request(k=4, explain=True))
    second = await search.service.search(request(k=4, explain=True, page=2, search_id=first.search_id))
    assert (first.arm, first.query_release, first.exploration.policy) == ("interleaved", 7, "team-draft")
    ranked = [Hit(0.0, {"product_id": f"P-{number}"}) for number in range(1, 13)]
    drafted = team_draft(ranked, ranked[::-1], first.exploration.seed)
    shown = [(one.product_id, one.team) for answer in (first, second) for one in answer.results]
    assert shown == [(hit.payload["product_id"], hit.team) for hit in drafted[:8]]
    assert {one.team for one in first.results} == {LIVE, ANCHOR}
    slots = [slot for sent in search.impressions.sent for slot in sent.slots]
    assert [(slot.product_id, slot.team) for slot in slots] == shown
    assert {sent.ranking.arm for sent in search.impressions.sent} == {"interleaved"}
    for result in first.results:
        assert result.explanation is not None
        assert (result.explanation["quality"] == 0.0) == (result.team == ANCHOR)


@pytest.mark.parametrize(
    "fields",
    [{"explore": False}, {"diversity": 0.5}, {"group_variants": True}, {"per_seller": 2}, {"impression": "none"}],
)
async def test_lists_that_are_arranged_or_not_to_be_explored_are_not_interleaved(fields: dict[str, object]) -> None:
    """They are live lists, and no slot has a team."""
    answer = await learned(ALWAYS_INTERLEAVED).service.search(request(**fields))  # type: ignore[arg-type] # as a request takes them
    assert (answer.arm, {one.team for one in answer.results}) == (LIVE, {None})


async def test_without_the_rivals_list_the_live_one_is_shown() -> None:
    """Whether the store fails or words answer alone: the shopper loses nothing, and the live arm keeps no bad ones."""
    search = learned(ALWAYS_INTERLEAVED)
    search.encoder.fails = True
    by_words = await search.service.search(request())
    assert (by_words.arm, by_words.degraded) == ("interleaved", "lexical")
    search.encoder.fails = False
    assert (await search.service.search(request("tv"))).arm == "interleaved"
    search.store.down = True
    remembered = await search.service.search(request("tv"))
    assert (remembered.arm, {one.team for one in remembered.results}) == ("interleaved", {None})
    with pytest.raises(DependencyDown):
        await search.service.search(request("radio"))


async def test_what_is_remembered_and_kept_hot_is_so_for_each_arm() -> None:
    """The anchor arm is never given a live list, nor the other way round; an exchange is never given twice."""
    search = learned(Shares(anchor=0.3, swap=1.0), hot_for_s=2)
    anchored, live = (
        next(f"k{n}" for n in range(99) if is_anchored(f"k{n}", 0.3) == wanted) for wanted in (True, False)
    )
    answers = [await search.service.search(request(session_id=session)) for session in (anchored, live, anchored, live)]
    assert [answer.arm for answer in answers] == [ANCHOR, LIVE, ANCHOR, LIVE]
    assert [answer.query_release for answer in answers] == [0, 7, 0, 7]
    assert len(search.store.asked) == 2
    search.store.down = True
    search.clock.now_s += 3
    again = {session: await search.service.search(request(session_id=session)) for session in (anchored, live)}
    assert {answer.degraded for answer in again.values()} == {"remembered"}
    assert [again[session].arm for session in (anchored, live)] == [ANCHOR, LIVE]
    assert again[live].exploration == Exploration()
    only_live = learned(EVERYBODY)
    await only_live.service.search(request())
    only_live.store.down = True
    with pytest.raises(DependencyDown):
        await only_live.service.search(request(session_id="k1"))


async def test_the_pages_of_a_list_keep_its_arm() -> None:
    """Whoever asks for the second, and whatever is in force by then."""
    search = learned(EVERYBODY)
    first = await search.service.search(request(k=5, session_id="k1"))
    search.release = replace(served(8, 3))
    second = await search.service.search(request(k=5, page=2, search_id=first.search_id))
    assert (second.arm, second.query_release, second.exploration) == (ANCHOR, 0, first.exploration)


def test_the_anchor_is_made_once_for_a_release() -> None:
    """Its weights are as large as those of a release."""
    release = served(1, 1)
    assert anchor_of(release) is anchor_of(release)
    assert anchor_of(served(2, 1)).tower.taste.shape == (DIM, DIM)
