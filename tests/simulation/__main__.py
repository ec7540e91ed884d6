"""Live through days of stream workers and of indexers: `python -m tests.simulation --seed N`, or `--seeds 1000`."""

import argparse
import sys
import time

from tests.simulation import check, check_index
from tests.simulation.index_world import IndexWorld
from tests.simulation.world import World


def main() -> int:
    """Run seeds; return 1 if one found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone, and show its last steps if it finds something")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--steps", type=int, default=60, help="how many of its last steps are shown")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    failed, hours, began_s = [], 0.0, time.process_time()
    for seed in seeds:
        world, index = World(seed, steps=arguments.steps), IndexWorld(seed, steps=arguments.steps)
        world.run()
        index.run()
        hours += world.loop.time() / 3600
        for lived, found in ((world, check.problems(world)), (index, check_index.problems(index))):
            if found:
                failed.append(seed)
                steps = [*lived.steps] if arguments.seed is not None else []
                tell(*steps, f"seed {seed}:", *(f"  {one}" for one in found))
    tell(f"{len(seeds)} seeds, {hours:.0f} hours of a shop, {time.process_time() - began_s:.0f} CPU-s; wrong: {failed}")
    if failed and arguments.seed is None:
        tell(f"look at one: python -m tests.simulation --seed {failed[0]}")
    return bool(failed)


def tell(*lines: str) -> None:
    """Print lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
