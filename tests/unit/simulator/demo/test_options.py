"""The demo's fixed choices are settings that processes accept, and leave time for what must be seen."""

from pathlib import Path

from service.settings import load_settings
from simulator.demo.options import COMPRESSED, LAUNCHES, DemoOptions


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
