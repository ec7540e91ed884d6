"""What `millrace shop` does, as plain functions for the command line."""

from pathlib import Path

from simulator.shop.builtin import builtin_world
from simulator.shop.folder import export_world, load_world
from simulator.shop.world import World


def export(folder: Path, seed: int = 1) -> World:
    """Write the built-in world of a seed into a folder and return it.

    Raises:
        UsageError: the folder cannot be written.
    """
    world = builtin_world(seed)
    export_world(world, folder)
    return world


def world_of(folder: Path | None, seed: int) -> World:
    """Return the world in a folder, or where none is given the built-in one.

    Raises:
        UsageError: the folder is not a world.
    """
    return builtin_world(seed) if folder is None else load_world(folder)
