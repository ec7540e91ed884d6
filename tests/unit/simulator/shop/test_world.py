"""What a world says about one product and one query."""

from simulator.shop.world import Judgment, World, attraction_of


def test_absent_judgments_are_grade_zero(small: World) -> None:
    """A product that nobody judged for a query has grade 0 and attracts nobody."""
    assert small.judgment("Q-1", "P-11") == Judgment(0, 0.0)
    assert small.judgment("Q-unknown", "P-0").click_probability() == 0.0


def test_attraction_follows_the_grade_where_it_is_not_given(small: World) -> None:
    """Without an attraction the grade's gain decides, and a given one is taken as it is."""
    assert small.judgment("Q-1", "P-2").click_probability() == attraction_of(3.0)
    assert small.judgment("Q-1", "P-1").click_probability() == 0.05


def test_splits_keep_the_order_of_the_world(small: World) -> None:
    """Each split holds its own queries, in the world's order."""
    assert [query.query_id for query in small.of_split("train")] == ["Q-1", "Q-2"]
    assert [query.query_id for query in small.of_split("test")] == ["Q-3", "Q-4"]
