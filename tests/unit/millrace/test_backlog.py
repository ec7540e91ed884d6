"""How much an import may have standing before what a shop sends next."""

import pytest
from kafka import KafkaAdminClient

from millrace import backlog
from millrace.backlog import AHEAD_S, LEAST, Backlog
from service.kafka import Committed
from service.settings import Settings


class Indexers:
    """Indexers that work off so many records a second, by a hand clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
        self.now = 0.0
        self.rate = rate
        self.sent = 0
        self.most = 0
        monkeypatch.setattr(backlog, "committed_offsets", self.committed)
        client = KafkaAdminClient.__new__(KafkaAdminClient)
        self.backlog = Backlog(Settings(), client, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @property
    def done(self) -> int:
        """How many are worked off."""
        return min(self.sent, int(self.now * self.rate))

    def committed(self, *_asked: object) -> dict[tuple[str, int], Committed]:
        """Tell what was committed of the only partition."""
        return {("catalog", 0): Committed(self.done, "")}

    def send(self, batches: int) -> bool:
        """Send batches as an import does; note how many waited at most once the pace was known."""
        for number in range(batches):
            self.backlog.add([(0, self.sent + place) for place in range(LEAST)])
            self.sent += LEAST
            if number > batches / 2:
                self.most = max(self.most, self.sent - self.done)
            if not self.backlog.wait(None, patience_s=5.0):
                return False
        return True


@pytest.mark.parametrize("rate", [120.0, 3_000.0])
def test_an_import_keeps_ahead_of_the_indexers_by_seconds(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast or slow, what is sent meanwhile waits for little, and the indexers always have something to do."""
    indexers = Indexers(monkeypatch, rate)
    assert indexers.send(200)
    assert indexers.most <= max(LEAST, AHEAD_S * rate) + 2 * LEAST
    assert indexers.done >= 0.8 * rate * indexers.now


def test_indexers_that_stand_still_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some patience whoever waits gives up, and no sooner."""
    indexers = Indexers(monkeypatch, 0.0)
    assert not indexers.send(5)
    assert indexers.sent == 2 * LEAST
    assert indexers.now >= 5.0
