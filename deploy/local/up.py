"""`up` in the foreground: a deployment that runs until Ctrl-C, SIGTERM or the end of its terminal, then stops cleanly.

Under `nohup` it outlives its terminal. A second signal ends it at once; the kernel then ends what it started.
`python -m deploy.local.up`, which `millrace up --detach` starts, logs each change of state as a line.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from contracts.errors import MillraceError
from deploy.local.supervisor import LocalMillrace
from service import logging
from service.settings import load_settings

NAME: Final = "up"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked for the stop; no handler of ordinary errors may swallow it."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """End the block quietly when a signal asks for it, after everything in it was cleaned up."""
    asked = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        raise Stopped

    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (under_nohup and number is signal.SIGHUP)]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    except Stopped:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_stopped(
    overrides: Mapping[str, Any] | None = None,
    *,
    on_ready: Callable[[LocalMillrace], None] | None = None,
    **options: Any,
) -> None:
    """Run a deployment until a signal stops it."""
    with stopping_on_signals(), LocalMillrace(overrides, **options) as running:
        if on_ready is not None:
            on_ready(running)
        while True:
            time.sleep(1.0)  # not for ever: a signal that comes just before the call is handled after it


def main(argv: list[str] | None = None) -> int:
    """Run until stopped; every expected failure is one log line and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.up", description=__doc__)
    parser.add_argument("--processes", help="comma-separated; all if not given")
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
    logging.get_logger().info("all_ready", ports=running.ports, data_dir=str(running.settings.data_dir))


def _log_change(name: str, state: str, detail: str) -> None:
    fields = {"detail": detail} if detail else {}
    logging.get_logger().info("state_changed", child=name, state=state, **fields)


if __name__ == "__main__":
    sys.exit(main())
