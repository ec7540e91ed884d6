"""Live through days of the stream workers: `python -m tests.simulation --seed N`, or `--seeds 1000`."""

import argparse
import sys
import time

from tests.simulation.check import problems
from tests.simulation.world import World


def main() -> int:
    """Run seeds; return 1 if one found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone, and show its last steps if it finds something")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    failed, began_s = [], time.process_time()
    for seed in seeds if arguments.seed is None else [arguments.seed]:
        world = World(seed)
        world.run()
        found = problems(world)
        if not found:
            continue
        failed.append(seed)
        last_steps = "\n".join(world.steps) if arguments.seed is not None else ""
        print(f"{last_steps}\nseed {seed}:", *found, sep="\n  ")  # noqa: T201 - a command
    cpu_s = time.process_time() - began_s
    print(f"{len(failed)} of {len(seeds) if arguments.seed is None else 1} seeds found something: {failed}, {cpu_s:.0f} CPU-s")  # noqa: T201,E501
    if failed and arguments.seed is None:
        print(f"look at one: python -m tests.simulation --seed {failed[0]}")  # noqa: T201
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
