"""`python -m deploy.local`: the supervisor in the foreground, one log line per fact; `up --detach` runs this."""

import argparse
import sys
from typing import Final

from contracts.errors import MillraceError
from deploy.local.foreground import run_until_stopped
from deploy.local.supervisor import LocalMillrace
from service import logging
from service.settings import load_settings

NAME: Final = "up"


def main(argv: list[str] | None = None) -> int:
    """Run until stopped; every expected failure is one log line and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--processes", help="comma-separated; all where not given")
    parser.add_argument("--brokers", type=int, default=1, help="Kafka nodes, 1 or 3")
    arguments = parser.parse_args(argv)
    names = arguments.processes.split(",") if arguments.processes else None
    logging.configure(NAME)
    try:
        logging.configure(NAME, load_settings())
        run_until_stopped(on_ready=_log_ready, on_progress=_log_change, processes=names, brokers=arguments.brokers)
    except MillraceError as error:
        logging.get_logger().error("stopped", error=error.message, fix=error.fix, exit_code=error.exit_code)
        return error.exit_code
    return 0


def _log_ready(running: LocalMillrace) -> None:
    """Say that everything runs, and where."""
    logging.get_logger().info("all ready", ports=running.ports, data_dir=str(running.settings.data_dir))


def _log_change(name: str, state: str, detail: str) -> None:
    """Say what became of one process."""
    fields = {"detail": detail} if detail else {}
    logging.get_logger().info("state changed", child=name, state=state, **fields)


if __name__ == "__main__":
    sys.exit(main())
