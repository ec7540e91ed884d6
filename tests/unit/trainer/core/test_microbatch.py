"""When a micro-batch is due, by a clock in hand."""

from trainer.core.microbatch import MicroBatcher


def test_a_full_micro_batch_is_due_at_once_in_order_of_arrival() -> None:
    """Size decides first, and nothing is overtaken."""
    batcher = MicroBatcher[int](size=2, max_age_s=10)
    batcher.add([1, 2, 3, 4, 5], now_s=0)
    assert [batcher.take(now_s=0) for _ in range(3)] == [[1, 2], [3, 4], []]
    assert len(batcher) == 1


def test_the_oldest_pair_does_not_wait_longer_than_the_age() -> None:
    """A quiet shop's pairs are trained too; later arrivals do not restart the wait."""
    batcher = MicroBatcher[int](size=10, max_age_s=5)
    batcher.add([1], now_s=0)
    batcher.add([2], now_s=4)
    assert batcher.take(now_s=4.9) == []
    assert batcher.take(now_s=5) == [1, 2]


def test_the_age_counts_anew_from_the_first_pair_after_a_pause() -> None:
    """A pair that arrives after an idle hour is not old."""
    batcher = MicroBatcher[int](size=10, max_age_s=5)
    batcher.add([1], now_s=0)
    batcher.take(now_s=5)
    batcher.add([2], now_s=3600)
    assert batcher.take(now_s=3601) == []


def test_nothing_waiting_is_never_due() -> None:
    """An empty micro-batch does not exist."""
    assert MicroBatcher[int](size=1, max_age_s=0).take(now_s=100) == []
