"""From evidence to towers and back: what is computed at a cut, of what, and what no stream can do to it."""

from typing import Any

import msgspec
import numpy as np
import pytest

from contracts.pairs import CuratedPair
from contracts.structs import JoinedSearch, JoinedSlot, TrainingSearch
from streams.pairs.training import training_search
from tests.support.tiny_encoder import WORDS, TinyEncoder
from tests.support.trainer import (
    DIM,
    OPEN_GATE,
    PRODUCTS,
    QUERIES,
    START_MS,
    UNTRAINED,
    FakeProducts,
    judged,
    new_learner,
    records,
    same,
    search_number,
    taught,
)
from towers.features import key_of
from towers.lexical import read_query
from towers.model import DEFAULT_MIX, NATS_PER_COSINE, Mix, QueryTower, Rate
from trainer.learner import MEMORY_QUERIES, Learner, Towers, mixed
from trainer.preference.debiasing import Judgement
from trainer.preference.model import OWN_CAP, QUALITY_CAP, rates_of
from trainer.preference.priors import Gain

MIX = Mix(Rate(4.0, 1.0, 10.0), Rate(2.5, 0.5, 10.0), Rate(3.0, -1.0, 20.0))


def liked(towers: Towers, encoder: TinyEncoder) -> float:
    """Return by how much shoppers' favourites lead on average over all queries, in nats."""
    known, vectors, features, _ = FakeProducts(encoder).look(PRODUCTS)
    quality = towers.product.quality(PRODUCTS, features)
    learned = 10 * towers.query.vectors(encoder.encode(QUERIES))[:, :-1] @ vectors.T + quality
    text = 10 * encoder.encode(QUERIES) @ vectors.T
    gained = learned - text
    assert known.all()
    return float(gained[:, ::4].mean() - np.delete(gained, np.s_[::4], axis=1).mean())


def test_what_shoppers_like_leads() -> None:
    """Towers score as the weights do: favourites gain on the others for every query."""
    solved = taught().solve(UNTRAINED)
    assert solved.converged
    assert liked(solved.towers, TinyEncoder(DIM)) > 0.5
    assert liked(UNTRAINED, TinyEncoder(DIM)) == pytest.approx(0.0, abs=1e-5)


def test_the_same_evidence_gives_the_same_bits() -> None:
    """Evidence, catalogue, prior and parent decide; a round trip through the state changes nothing."""
    one = taught()
    other = new_learner()
    other.restore(one.state())
    first = one.solve(UNTRAINED).towers
    assert same(first, other.solve(UNTRAINED).towers)
    assert same(one.solve(first).towers, other.solve(first).towers)


def test_exchanged_neighbours_judge_how_showings_are_weighed() -> None:
    """With the prior, from the lists themselves; a restart knows the judgement, and releases tell it."""
    learner = new_learner()
    for record in records(0, 400):
        assert isinstance(record.content, TrainingSearch)
        exchanged = msgspec.structs.replace(record.content, exchanged=(1, 3))  # type: ignore[type-var] # it is a struct
        learner.evidence.take_list(exchanged, time_ms=record.time_ms)
    assert learner.debiasing() == {"strength": 1.0}
    learner.learn_prior()
    told = learner.debiasing()
    assert told.keys() == {"strength", "exchanges", "loss", "naive", "gain", "error"}
    assert told["exchanges"] == len(learner.evidence.exchanges) > 100
    other = new_learner()
    other.restore(learner.state())
    assert other.debiasing() == told
    assert same(learner.solve(UNTRAINED).towers, other.solve(UNTRAINED).towers)


def test_what_is_solved_follows_the_weighing_in_force() -> None:
    """Once less weighing is proven the evidence is solved without it, also after a restart; not if it is held."""
    learner = taught()
    weighed = learner.solve(UNTRAINED).towers
    learner.preference.judgement = Judgement(900, 40, 0.6, 0.5, Gain(-0.1, 0.01), Gain(-0.05, 0.01))
    naive = learner.solve(UNTRAINED).towers
    assert not same(weighed, naive, nats=0.01)
    held, goes_on = new_learner(debias="on"), new_learner()
    for other, expected in ((held, weighed), (goes_on, naive)):
        other.restore(learner.state())
        if other is held:  # what was learned under another weighing is learned anew
            assert other.preference.prior_due(0.0)
            other.preference.learned = learner.preference.learned
        assert same(other.solve(UNTRAINED).towers, expected)


def test_the_order_of_lists_and_the_parent_change_little() -> None:
    """One optimum: whichever way it is reached, within what the solver's tolerance leaves."""
    forward, backward = taught(), new_learner()
    for record in reversed(records(0, 400)):
        assert isinstance(record.content, TrainingSearch)
        backward.evidence.take_list(record.content, time_ms=record.time_ms)
    one = forward.solve(UNTRAINED).towers
    sample = forward.sample()
    for other in (backward.solve(UNTRAINED).towers, forward.solve(one).towers):
        assert np.abs(10 * (sample.scores(one) - sample.scores(other))).max() < 0.2


def test_the_most_clicked_queries_have_a_memory() -> None:
    """Keys rise, and no more queries than a release has room for."""
    towers = taught(900).solve(UNTRAINED).towers
    keys = towers.query.memory.queries
    assert 0 < len(keys) <= MEMORY_QUERIES
    assert np.all(keys[1:] > keys[:-1])
    assert set(keys.tolist()) <= {key_of(query) for query in QUERIES}


def test_a_learner_whose_gate_is_closed_releases_what_single_queries_remember_alone() -> None:
    """What was not shown to predict for other queries is held back; what shoppers chose for a query counts for it."""
    learner = taught()
    learner.preference.learned = None
    towers = learner.solve(UNTRAINED).towers
    assert len(towers.query.memory) > 0
    assert towers.query.memory.nats.any()
    for_all = (
        towers.query.taste,
        towers.query.common,
        towers.query.mean_query,
        towers.product.own,
        towers.product.words,
    )
    assert [tensor.any() for tensor in for_all] == [False] * 5


def test_what_was_seen_often_is_more_certain() -> None:
    """A product's width shrinks with its evidence, and is never above that of one without."""
    product = taught(900).solve(UNTRAINED).towers.product
    assert 0 < product.own_width.min() < 0.95 * product.unseen_width
    assert product.own_width.max() <= product.unseen_width * 1.001


def test_a_product_that_is_not_in_the_catalogue_is_left_out_until_it_comes() -> None:
    """Its evidence is kept: the catalogue may be late."""
    encoder = TinyEncoder(DIM)
    late = taught(learner=new_learner(products=FakeProducts(encoder, PRODUCTS[:20])))
    assert len(late.solve(UNTRAINED).towers.product.products) <= 20
    late.products = FakeProducts(encoder)
    assert same(late.solve(UNTRAINED).towers, taught().solve(UNTRAINED).towers)


def test_a_curated_text_teaches_and_is_no_product() -> None:
    """A person's pair moves queries toward the text's words; the text has no quality of its own in a release."""
    learner = new_learner()
    learner.preference.learned = OPEN_GATE
    pair = CuratedPair(query="gift", chosen_text="red small", rejected=PRODUCTS[0])
    learner.evidence.take_curated(pair, time_ms=START_MS)
    towers = learner.solve(UNTRAINED).towers
    encoder = TinyEncoder(DIM)
    learned = towers.query.taste_of(encoder.encode(["gift"]))[0]
    chosen, rejected = encoder.encode(["red small", PRODUCTS[0]])
    assert learned @ chosen > learned @ rejected
    assert set(towers.product.products.tolist()) <= {key_of(name) for name in PRODUCTS}
    assert towers.query.memory.nats_of("gift") == {}


def test_a_feature_that_appears_for_the_first_time_begins_at_nothing() -> None:
    """The catalogue grows: its features are counted anew, the parent's words keep their worth."""
    encoder = TinyEncoder(DIM)
    learner = taught(learner=new_learner(products=FakeProducts(encoder)))
    before = learner.solve(UNTRAINED).towers
    grown = (*PRODUCTS, *(f"{name} titanium" for name in PRODUCTS[:5]))
    learner.products = FakeProducts(encoder, grown)
    after = learner.solve(before).towers
    assert key_of("t:titanium") not in before.product.features.keys
    assert key_of("t:titanium") in after.product.features.keys
    assert liked(after, encoder) == pytest.approx(liked(before, encoder), abs=0.2)


@pytest.mark.parametrize("query", ["P-1", "usb-c cable", "12.5 kg dog food"])
def test_words_of_a_query_count_as_in_search(query: str) -> None:
    """Its kind, and each product's share of the best match, are those that search computes of what was typed."""
    names = ("P-1", "usb-c cable grey", "usb cable c", "dog food 12.5 kg", "dog food 5 kg 12", "p 1", "oven")
    products = FakeProducts(TinyEncoder(DIM), names)
    learner = new_learner(products=products)
    slots = tuple(JoinedSlot(product_id=name, position=1 + place, clicked=True) for place, name in enumerate(names))
    search = JoinedSearch(search_id="s", search_time=START_MS, closed_at=START_MS, query=f"  {query} ", slots=slots)
    learner.evidence.take_list(judged(search), time_ms=START_MS)
    cells, catalogue, _ = learner._problem()
    assert catalogue.matches is not None
    found = catalogue.matches(cells)
    asked = read_query(query)
    served = MIX.nats(asked.kind, products.word_index().scores(asked.words).tolist())
    assert found.shares * (found.strengths @ rates_of(MIX)) == pytest.approx(served, abs=1e-6)
    assert any(served)


def test_a_few_new_products_do_not_recount_the_features() -> None:
    """A step's cost does not grow with the catalogue: features are counted anew when it has changed by a share."""
    encoder = TinyEncoder(DIM)
    learner = taught()
    learner.solve(UNTRAINED)
    space = learner._space
    learner.products = FakeProducts(encoder, (*PRODUCTS, "red oven"))
    learner.solve(UNTRAINED)
    assert learner._space is space


def test_a_catalogue_of_the_same_size_with_other_products_is_counted_anew() -> None:
    """What has left is no best match, and what terms are worth is what search says, however many products there are."""
    encoder = TinyEncoder(DIM)
    learner = taught()
    learner.solve(UNTRAINED)
    other = FakeProducts(encoder, [f"{name} {WORDS[20]}" for name in PRODUCTS])
    learner.products = other
    learner._problem()
    assert np.array_equal(learner._space.keys, other.feature_space().keys)
    asked = [read_query(text) for text in QUERIES]
    mine, its = learner.words.counts, other.word_index().counts
    assert np.array_equal(mine.terms, its.terms)
    assert np.array_equal(mine.having, its.having)
    learner.products = FakeProducts(encoder)
    cells, catalogue, _ = learner._problem()
    assert catalogue.matches is not None
    catalogue.matches(cells)
    index = learner.products.word_index()
    best = {text: index.scores(one.words).max() for text, one in zip(QUERIES, asked, strict=True)}
    assert learner.words.best == pytest.approx({text: best[text] for text in learner.words.best})


def test_a_restart_after_the_catalogue_has_changed_changes_no_byte() -> None:
    """Too little to count it anew: what was counted goes on, and queries asked later find the catalogue as it is."""
    encoder = TinyEncoder(DIM)
    one = taught(300)
    first = one.solve(UNTRAINED).towers
    grown = FakeProducts(encoder, (*PRODUCTS, f"{WORDS[0]} {WORDS[15]} {WORDS[1]}"))
    query = f"{WORDS[15]} {WORDS[0]} {WORDS[1]}"
    other = new_learner(products=grown)
    other.restore(one.state())
    one.products = grown
    for learner in (one, other):
        slots = tuple(
            JoinedSlot(product_id=name, position=1 + place, clicked=place == 1)
            for place, name in enumerate(PRODUCTS[:5])
        )
        search = JoinedSearch(search_id="new", search_time=START_MS, closed_at=START_MS, query=query, slots=slots)
        learner.evidence.take_list(judged(search), time_ms=START_MS)
    assert same(one.solve(first).towers, other.solve(first).towers)
    for name, value in one.state().items():
        np.testing.assert_array_equal(value, other.state()[name], err_msg=name)
    assert one.words.counts.products == len(PRODUCTS)
    assert one.words.best[query] == pytest.approx(
        grown.word_index().scores(read_query(query).words, one.words.counts).max()
    )


def test_a_persons_text_is_no_best_match() -> None:
    """Products keep the shares that search gives them; the text itself counts as much as the best of them at most."""
    products = FakeProducts(TinyEncoder(DIM), ("zebra pattern cover", "oven"))
    learner = new_learner(products=products)
    learner.evidence.take_curated(
        CuratedPair(query="zebra lamp", chosen="zebra pattern cover", rejected_text="zebra lamp"), time_ms=START_MS
    )
    cells, catalogue, _ = learner._problem()
    assert catalogue.matches is not None
    assert catalogue.matches(cells).shares == pytest.approx([1.0, 1.0])


def opened(learner: Learner) -> bool:
    """Return whether what was learned may be released."""
    learned = learner.preference.learned
    return learned is not None and learned.helps


def stream(name: str) -> list[TrainingSearch]:
    """Return a stream of lists that shops do not have."""
    found = []
    for number in range(600):
        usual = search_number(number)
        told = {one: getattr(usual, one) for one in ("search_id", "search_time", "closed_at", "query")}
        slots: list[dict[str, Any]] = [
            {"product_id": slot.product_id, "position": slot.position, "clicked": bool(slot.value)}
            for slot in usual.slots
        ]
        if name == "contradictory":
            slots = [{**slot, "clicked": (number + place) % 2 == 0} for place, slot in enumerate(slots)]
        elif name == "constant":
            slots = [{**slot, "clicked": True} for slot in slots]
        elif name == "single product":
            slots = [{"product_id": PRODUCTS[0], "position": 1, "clicked": number % 2 == 0}]
        elif name == "single query":
            told["query"] = QUERIES[0]
        elif name == "all bounces":
            slots = [{**slot, "clicked": True, "dwell_ms": 100} for slot in slots]
        elif name == "million clicks":
            slots[0] = {"product_id": PRODUCTS[1], "position": 1, "purchase_quantity": 1}
        elif name == "empty texts":
            told["query"] = "-" if number % 2 else ""
        found.append(training_search(JoinedSearch(**told, slots=tuple(JoinedSlot(**slot) for slot in slots))))
    return [search for search in found if search is not None]


@pytest.mark.parametrize(
    "name",
    ["contradictory", "constant", "single product", "single query", "all bounces", "million clicks", "empty texts"],
)
def test_no_stream_breaks_the_model(name: str) -> None:
    """Weights stay finite and within their cap, whatever is clicked, also when the prior is learned of it."""
    learner = new_learner()
    learner.preference.learned = None
    for search in stream(name):
        learner.evidence.take_list(search, time_ms=search.closed_at)
        if learner.prior_due:
            learner.learn_prior()
    towers = learner.solve(UNTRAINED).towers
    quality = towers.product.quality(PRODUCTS, FakeProducts(TinyEncoder(DIM)).look(PRODUCTS).features)
    assert all(np.isfinite(tensor).all() for tower in towers for tensor in tower.tensors().values())
    assert np.abs(quality).max() <= QUALITY_CAP
    assert np.abs(towers.product.own).max(initial=0.0) <= OWN_CAP
    if name in {"single product", "all bounces", "empty texts"}:
        assert not opened(learner)


def test_a_solver_out_of_budget_keeps_the_best_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations are better than none; rates that would fall too low have it search once more."""
    learner = taught()
    monkeypatch.setattr(learner.preference, "_max_iterations", 2)
    solved = learner.solve(UNTRAINED)
    assert solved.iterations in {2, 4}
    assert not solved.converged
    assert liked(solved.towers, TinyEncoder(DIM)) > 0.05


def test_a_mix_of_towers_scores_as_the_mix_of_their_scores() -> None:
    """Weights are linear: half of the step is half of every score's way, memory and other features included."""
    encoder = TinyEncoder(DIM)
    learner = taught(300)
    before = learner.solve(UNTRAINED).towers
    after = taught(900, learner).solve(before).towers
    sample = learner.sample()
    for share in (1.0, 0.25):
        expected = share * sample.scores(after) + (1 - share) * sample.scores(before)
        assert sample.scores(mixed(before, after, share=share)) == pytest.approx(expected, abs=2e-3)
    assert same(mixed(before, after, share=1.0), after)
    assert liked(mixed(UNTRAINED, after, share=0.5), encoder) == pytest.approx(liked(after, encoder) / 2, abs=0.02)


def test_what_words_count_comes_with_the_query_tower() -> None:
    """Learned from clicks with the rest, gone on from, and as stated while the gate is closed."""
    learner = taught(900)
    learner.preference.learned = OPEN_GATE
    tower = learner.solve(UNTRAINED).towers.query
    assert rates_of(tower.mix) != pytest.approx(rates_of(DEFAULT_MIX), abs=0.05)
    assert learner._start(UNTRAINED._replace(query=tower)).rates == pytest.approx([*rates_of(tower.mix), tower.text])
    assert tower.text != pytest.approx(NATS_PER_COSINE, abs=0.05)
    assert QueryTower.from_tensors(tower.tensors()).text == pytest.approx(tower.text)
    assert QueryTower.from_tensors(tower.tensors()).mix == pytest.approx(np.array(tower.mix))
    learner.preference.learned = None
    closed = learner.solve(UNTRAINED).towers.query
    assert (closed.mix, closed.text) == (DEFAULT_MIX, NATS_PER_COSINE)
