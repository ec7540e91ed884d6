"""The soak says what does not add up, and a short one of it does."""

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.faults.soak import Shopping, soak, wrong

GOOD: dict[str, dict[str, Any]] = {
    "events": {"balance": 0, "pending": 0, "accepted": 12},
    "searches": {"balance": 0, "pending": 0},
}


@pytest.mark.parametrize(
    ("ledger", "changes", "says"),
    [
        ("events", {"balance": 1}, "events: balance 1, pending 0"),
        ("searches", {"pending": 2}, "searches: balance 0, pending 2"),
        ("events", {"accepted": 9}, "10 events were acknowledged, 9 are on the topics"),
    ],
)
def test_whatever_does_not_add_up_is_said(ledger: str, changes: dict[str, int], says: str) -> None:
    """A term too much, something that never ends, an acknowledged event that is not there."""
    seen = Shopping(acknowledged=10, searches=5)
    assert list(wrong(GOOD, seen)) == []
    assert list(wrong({**GOOD, ledger: {**GOOD[ledger], **changes}}, seen)) == [says]


def test_a_soak_without_shoppers_proves_nothing() -> None:
    """Ledgers of nothing balance too."""
    assert list(wrong(GOOD, Shopping())) == ["nobody shopped: 0 searches answered, 0 events acknowledged"]
    assert list(wrong(GOOD, Shopping(1, searches=1, failures=["401"]))) == ["401"]


@pytest.mark.skipif(os.environ.get("FAULTS") != "long", reason="takes minutes; `make faults` runs it")
@pytest.mark.faults
@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_minutes_of_faults_lose_nothing(tmp_path: Path) -> None:
    """Processes and servers are killed one after the other, and everything adds up."""
    assert soak(minutes=2, every_s=15, seed=2, data_dir=tmp_path, console=Console()) == []
