"""A supervisor in the foreground: until Ctrl-C, SIGTERM or the end of its terminal, then a clean stop.

A second signal ends it at once; the kernel then ends every child (see launch.py).
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from deploy.local.supervisor import LocalMillrace

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked for the stop; no handler of ordinary errors may swallow it."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """End the block quietly when a signal asks for it, after everything in it was cleaned up."""
    asked = False

    def on_signal(number: int, _frame: object) -> None:
        """Unwind the main thread once; leave at once when asked twice."""
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        raise Stopped

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
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
    """Run a deployment until a signal stops it.

    Args:
        overrides: settings by field name.
        on_ready: called once when all are ready.
        options: further arguments of `LocalMillrace`.

    Raises:
        UsageError: a setting is wrong, or a supervisor already runs on the data folder.
        DependencyDown: something that is needed is missing or does not start.
    """
    with stopping_on_signals(), LocalMillrace(overrides, **options) as running:
        if on_ready is not None:
            on_ready(running)
        while True:
            time.sleep(3600)
