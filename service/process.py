"""How every process starts and ends: settings, logs, signals, exit codes.

A stop is asked for once, by SIGTERM or SIGINT, and the process then has 18 s of the 20 s that its supervisor grants; a
second signal ends it at once. Delivery never depends on a clean end: what is not committed is done again.
"""

import asyncio
import errno
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.telemetry import Process
from service import logging
from service.machine import FULL
from service.settings import Settings, load_settings

STOP_GRACE_S: Final = 18.0
SAME_STOP_S: Final = 1.0  # Ctrl-C reaches a child twice: from the terminal, and from its supervisor
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class Shutdown:
    """A request to stop that threads, event loops and signal handlers share.

    It is a pipe whose reading end stays readable once stop was asked for: unlike the locks of `threading.Event`, a pipe
    can be written by a signal handler that interrupted its own thread in the middle of waiting.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self._requested = False

    def request(self) -> None:
        """Ask everything that waits here to stop; harmless when repeated."""
        if not self._requested:
            self._requested = True
            os.write(self._writing, b"s")

    def is_set(self) -> bool:
        """Tell whether stop was asked for."""
        return self._requested

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until stop is asked for or the time is over; tell whether it was asked for."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))

    async def wait_async(self) -> None:
        """Wait until stop is asked for, while the event loop runs on."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        duplicate = os.dup(self._reading)  # a loop keeps one callback per descriptor, and several may wait
        loop.add_reader(duplicate, asked.set)
        try:
            await asked.wait()
        finally:
            loop.remove_reader(duplicate)
            os.close(duplicate)

    def close(self) -> None:
        """Free the pipe once nothing waits any more."""
        os.close(self._reading)
        os.close(self._writing)


Main = Callable[[Settings, Shutdown], Coroutine[Any, Any, None] | None]
"""What a process does, sync or async, until it is done or `shutdown` is set."""


def run(process: Process, main: Main) -> NoReturn:
    """Run a process to its end and exit; the whole of a `__main__`."""
    sys.exit(execute(process, main))


def execute(process: Process, main: Main) -> int:
    """Run a process to its end and return its exit code; every failure becomes one line in the log."""
    logging.configure(process)
    settings: Settings | None = None
    try:
        settings = load_settings()
        logging.configure(process, settings)
        logging.get_logger().info("started", pid=os.getpid())
        with _stopping_on_signals() as shutdown:
            _call(main, settings, shutdown)
        logging.get_logger().info("ended")
    except Exception as error:  # noqa: BLE001 - the last line of defence: everything ends as one line and an exit code
        return _report(error, process, settings)
    except KeyboardInterrupt:
        return 0
    return 0


def _call(main: Main, settings: Settings, shutdown: Shutdown) -> None:
    outcome = main(settings, shutdown)
    if outcome is None:
        return
    try:
        asyncio.run(outcome)
    except asyncio.CancelledError as error:
        if not shutdown.is_set():
            raise RuntimeError("cancelled although nobody asked for a stop") from error


@contextmanager
def _stopping_on_signals() -> Iterator[Shutdown]:
    shutdown = Shutdown()
    ended = threading.Event()
    first_asked: list[float] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        """Ask for a stop; when asked again later, end at once."""
        now = time.monotonic()
        first_asked.append(now)
        if now - first_asked[0] > SAME_STOP_S:
            os._exit(128 + number)
        shutdown.request()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    watchdog = threading.Thread(target=_end_late_stop, args=(shutdown, ended), name="stop-watchdog", daemon=True)
    watchdog.start()
    try:
        yield shutdown
    finally:
        ended.set()
        shutdown.request()
        watchdog.join()
        for number, handler in before.items():
            signal.signal(number, handler)
        shutdown.close()


def _end_late_stop(shutdown: Shutdown, ended: threading.Event, grace_s: float = STOP_GRACE_S) -> None:
    shutdown.wait()
    if not ended.wait(grace_s):
        logging.get_logger().error(
            "stop_took_too_long", error=f"still running {grace_s:g} s after the stop", exit_code=1
        )
        os._exit(1)


def _report(error: Exception, process: Process, settings: Settings | None) -> int:
    log = logging.get_logger()
    expected = expected_failure(error, process=process, settings=settings)
    if expected is None:
        log.error("crashed", error=repr(error), exit_code=1, exc_info=error)
        return 1
    log.error(
        "stopped", error=expected.message, fix=expected.fix, kind=type(expected).__name__, exit_code=expected.exit_code
    )
    return expected.exit_code


def expected_failure(
    error: BaseException, *, process: Process | str, settings: Settings | None = None
) -> MillraceError | None:
    """Say what a failure means to an operator, or None if nobody foresaw it.

    It may be ours, of a Kafka or Redis client, or of the operating system (port, disk, rights). In a group the first
    that is expected decides, unless an unexpected one stands beside it.
    """
    if isinstance(error, BaseExceptionGroup):
        meanings = [expected_failure(inner, process=process, settings=settings) for inner in error.exceptions]
        return None if None in meanings else meanings[0]
    if isinstance(error, MillraceError):
        return error
    settings = settings or Settings()
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return _expected_os_error(error, process=process, settings=settings)
    libraries = {base.__module__.split(".")[0] for base in type(error).__mro__}
    if libraries & {"kafka", "aiokafka"}:
        from service.kafka_errors import expected_kafka_error

        return expected_kafka_error(error, settings)
    if "redis" in libraries:
        from service.redis import expected_redis_error

        return expected_redis_error(error, settings)
    return None


def listen_error(error: OSError, *, host: str, port: int) -> MillraceError:
    """Say what a refused listening socket means to an operator."""
    if error.errno == errno.EADDRINUSE:
        return DependencyDown(
            f"port {port} is in use", fix="set MILLRACE_PORT to a free one or stop the process that holds it"
        )
    return UsageError(
        f"cannot listen on {host}:{port}: {error.strerror}", fix="correct MILLRACE_HOST and MILLRACE_PORT"
    )


def _expected_os_error(error: OSError, *, process: Process | str, settings: Settings) -> MillraceError | None:
    if error.errno == errno.EADDRINUSE:
        return listen_error(error, host=settings.host, port=settings.listen_port(process))
    where = error.filename or settings.data_dir
    if error.errno in FULL:
        return DependencyDown(
            f"disk full: cannot write {where}", fix="free some space, or set MILLRACE_DATA_DIR to a larger disk"
        )
    if error.errno in _REFUSED and error.filename:
        fix = "grant the right, or name another place (MILLRACE_DATA_DIR, if it is in the data folder)"
        return DependencyDown(f"cannot write {where}: {error.strerror}", fix=fix)
    return None
