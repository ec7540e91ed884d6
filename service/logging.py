"""One line per fact, the same from our code and from every library: JSON for machines, columns on a terminal.

Lines go to standard error, so that standard output stays free for what a command prints. Every line has `ts`, `level`,
`event` and `process`. Libraries speak from warning upwards, and say the same thing at most twice a minute: what they
tell at info is not a fact about the shop.
"""

import logging
import sys
import threading
import time
from typing import Any, Final, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger
from typing_extensions import override

from service.settings import Settings

OUR_LOGGER: Final = "millrace"
REPEAT_S: Final = 30.0
_ERRORS_ONLY: Final = ("kafka.net.selector",)
"""It calls every step of 0.1 s a fault of ours, which on a busy machine any step may be."""
_FIRST_FIELDS: Final = ("ts", "level", "process", "event")


def configure(
    process: str, settings: Settings | None = None, *, stream: TextIO | None = None, silent: tuple[str, ...] = ()
) -> None:
    """Route every log line of this process, ours and the libraries', to one stream in one form.

    Defaults hold if the settings could not be read; the stream is standard error unless one is given. Libraries whose
    names begin as `silent` says are not heard.
    """
    settings = settings or Settings()
    target = sys.stderr if stream is None else stream
    shared = _shared_processors(process)
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(settings, target)],
        )
    )
    handler.addFilter(lambda record: not record.name.startswith(silent))
    handler.addFilter(_RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(OUR_LOGGER).setLevel(settings.log_level.upper())
    for library in _ERRORS_ONLY:
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_crash
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(**fields: object) -> structlog.stdlib.BoundLogger:
    """Give our logger; `fields` are put on each of its lines."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(OUR_LOGGER, **fields))


class _RepeatFilter(logging.Filter):
    """Lets a library say the same thing once in a while: a client that waits for a topic says so ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[tuple[str, str], float] = {}

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        if record.name == OUR_LOGGER:
            return True
        now = time.monotonic()
        said = (record.name, record.getMessage())
        if now - self._said_at.get(said, -REPEAT_S) < REPEAT_S:
            return False
        self._said_at = {line: at for line, at in self._said_at.items() if now - at < REPEAT_S}
        self._said_at[said] = now
        return True


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    error = crash.exc_value or crash.exc_type()
    thread = None if crash.thread is None else crash.thread.name
    get_logger().error("thread_crashed", thread=thread, error=repr(error), exc_info=error)


def _shared_processors(process: str) -> list[Processor]:

    def name_origin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        record = event.get("_record")
        if record is not None and record.name != OUR_LOGGER:
            event["library"] = record.name
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        name_origin,
    ]


def _renderers(settings: Settings, stream: TextIO) -> list[Processor]:
    on_terminal = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    if on_terminal:
        # The default shows local variables, and with them keys and shoppers' data.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=stream.isatty(), exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]


def _to_json(event: EventDict, **_: Any) -> str:
    """Make one line of JSON; what JSON lacks (paths, secrets) appears as its text, and a secret's text is stars."""
    first = {name: event[name] for name in _FIRST_FIELDS if name in event}
    return orjson.dumps({**first, **event}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
