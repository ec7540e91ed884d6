"""What the learner remembers of a query: what was chosen lately leads, through a restart too."""

from contracts.catalog import point_id
from contracts.structs import TrainingSearch, TrainingSlot
from tests.support.trainer import PRODUCTS, QUERIES, START_MS, UNTRAINED, new_learner, same


def test_what_is_chosen_lately_outweighs_what_was_chosen_before() -> None:
    """The same lists, one half of them three days later with other favourites: those lead in what is remembered."""
    query, early, late = QUERIES[0], point_id(PRODUCTS[0]), point_id(PRODUCTS[1])

    def chosen(product: int, number: int, days: int) -> TrainingSearch:
        """Return a list in which one product was chosen."""
        slots = tuple(
            TrainingSlot(product_id=name, position=place + 1, showing=1.0, value=float(place == product))
            for place, name in enumerate(PRODUCTS[:6])
        )
        closed_at = START_MS + days * 86_400_000
        return TrainingSearch(
            search_id=f"s-{number}", search_time=closed_at - 1_000, closed_at=closed_at, query=query, slots=slots
        )

    learner = new_learner()
    for number in range(60):
        search = chosen(0, number, 0) if number < 40 else chosen(1, number, 3)
        learner.evidence.take_list(search, time_ms=search.closed_at)
    nats = learner.solve(UNTRAINED).towers.query.memory.nats_of(query)
    assert nats[late] > nats[early]
    again = new_learner()
    again.restore(learner.state())
    assert same(again.solve(UNTRAINED).towers, learner.solve(UNTRAINED).towers)
    learner.evidence.recent = type(learner.evidence.recent)()
    without = learner.solve(UNTRAINED).towers.query.memory.nats_of(query)
    assert without[late] < without[early]
