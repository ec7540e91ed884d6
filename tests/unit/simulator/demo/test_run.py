"""A demo begins in a deployment of its own and ends cleanly, whoever asks it to."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from contracts.errors import UsageError
from deploy.local.state import DataFolderLock
from deploy.local.up import SIGNALS
from service.settings import Settings, load_settings
from simulator.demo import run
from simulator.demo.run import COMPRESSED, DemoOptions, fresh_deployment, run_demo, until_signalled
from simulator.demo.shopping import LAUNCHES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_work_and_lets_it_clean_up(number: signal.Signals) -> None:
    """What runs is cancelled, its `finally` runs, and the caller learns that it was not finished."""
    cleaned: list[str] = []

    async def work() -> None:
        """Be interrupted."""
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            cleaned.append("yes")

    before = signal.getsignal(number)
    try:
        assert not asyncio.run(until_signalled(work()))
    finally:
        signal.signal(number, before)
    assert cleaned == ["yes"]


def test_work_that_ends_by_itself_is_finished() -> None:
    """No signal, no interruption."""

    async def work() -> None:
        """Do nothing."""

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert asyncio.run(until_signalled(work()))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_demo_starts_from_nothing(tmp_path: Path) -> None:
    """What an earlier demo learned is gone; the deployment beside it is not touched."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old").write_text("learned")
    (tmp_path / "up.env").write_text("kept")
    overrides = fresh_deployment(Settings(data_dir=tmp_path))
    assert overrides["data_dir"] == tmp_path / "demo"
    assert not (tmp_path / "demo").exists()
    assert (tmp_path / "up.env").exists()
    assert "topic_prefix" not in overrides


def test_on_servers_of_others_a_demo_has_names_of_its_own(tmp_path: Path) -> None:
    """Topics and collections of the shop are never mixed with the demo's."""
    overrides = fresh_deployment(Settings(data_dir=tmp_path, kafka_bootstrap="broker:9092"))
    assert overrides["topic_prefix"].startswith("demo-")


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is refused, and the folder of the first is left alone."""
    (tmp_path / "demo").mkdir()
    lock = DataFolderLock.acquire(tmp_path / "demo")
    try:
        with pytest.raises(UsageError, match="running already"):
            fresh_deployment(Settings(data_dir=tmp_path))
        assert (tmp_path / "demo").exists()
    finally:
        lock.release()


@pytest.mark.parametrize("place", ["missing/figures.json", ".", "/dev/full"])
def test_figures_that_cannot_be_written_are_refused_first(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four minutes of work are not thrown away for a wrong path: nothing is built or started before."""
    monkeypatch.setattr(run, "world_of", None)
    with pytest.raises(UsageError, match="--json"):
        run_demo(DemoOptions(json_file=tmp_path / place))


def test_the_compressed_windows_are_accepted(tmp_path: Path) -> None:
    """They pass the checks of every process, as published: 3 s, 1 s and 45 s."""
    settings = load_settings(COMPRESSED, environ={}, directory=tmp_path)
    windows = (settings.join_window_s, settings.lateness_s, settings.product_release_interval_s)
    assert windows == (3.0, 1.0, 45.0)


def test_a_product_release_fits_into_the_default_demo() -> None:
    """Shoppers shop for longer than the interval between product releases."""
    options = DemoOptions()
    assert options.seconds > 2 * COMPRESSED["product_release_interval_s"]
    assert LAUNCHES > 1


def test_a_demo_is_the_same_unless_told_otherwise() -> None:
    """Seed 1, the built-in world, two minutes."""
    assert DemoOptions() == DemoOptions(world=None, seed=1, seconds=120, keep=False, json_file=None)
