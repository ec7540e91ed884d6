"""What ends a deployment that runs in the foreground."""

import os
import signal
from collections.abc import Iterator

import pytest

from deploy.local.up import stopping_on_signals


@pytest.fixture
def nohup() -> Iterator[None]:
    """Ignore the end of the terminal, as `nohup` has what it starts do."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def survived() -> list[str]:
    """Say what a deployment goes on after: the end of its terminal, then a stop."""
    after = []
    with stopping_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        after.append("terminal")
        os.kill(os.getpid(), signal.SIGTERM)
        after.append("stop")
    return after


def test_the_end_of_its_terminal_ends_a_deployment() -> None:
    """Nothing runs on unseen."""
    assert survived() == []


@pytest.mark.usefixtures("nohup")
def test_a_deployment_that_nohup_started_survives_its_terminal() -> None:
    """Who starts it so wants it to run on; the other signals end it."""
    assert survived() == ["terminal"]
