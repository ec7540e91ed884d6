"""The built-in world: an electronics and appliance retailer, made from a seed."""

from typing import Final

from simulator.shop.catalogue import CatalogueMaker
from simulator.shop.lexicon import lexicon
from simulator.shop.questions import QuestionMaker
from simulator.shop.utility import Judge
from simulator.shop.world import World

FEWEST_ANSWERS: Final = 5
"""A query that fewer products answer is left out: a search engine has nothing to choose there."""


def builtin_world(seed: int) -> World:
    """Return the built-in world of a seed: the same seed gives the same world to the byte.

    The seed decides which brands are good, what is sold and what is asked; the laws of what shoppers want for a
    purpose are the same in every world.
    """
    words = lexicon()
    made = CatalogueMaker(words, seed).make()
    questions = QuestionMaker(words, seed).make()
    judge = Judge(words, made)
    judged = [(question.query, judge.judge(question.intent)) for question in questions]
    answered = [(query, judgments) for query, judgments in judged if len(judgments) >= FEWEST_ANSWERS]
    return World(
        products=tuple(product.message for product in made),
        queries=tuple(query for query, _ in answered),
        judgments={query.query_id: judgments for query, judgments in answered},
        name=f"built-in, seed {seed}",
    )
