"""Logging: one line per fact, the same for our code and for libraries."""

import io
import json
import logging
import threading
import warnings
from typing import Any

from pydantic import SecretStr
from typing_extensions import override

from service.logging import configure, get_logger
from service.settings import Settings


def configured(**fields: Any) -> io.StringIO:
    """Configure logging of a process called `trainer` to a text in memory."""
    stream = io.StringIO()
    configure("trainer", Settings(**fields), stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the lines written, each parsed as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_fact_is_one_json_line_with_its_four_fields() -> None:
    """Where nobody watches, machines read: time, level, event, process, then the rest."""
    stream = configured()
    get_logger().info("release published", query_release=17)
    (line,) = lines(stream)
    assert list(line) == ["ts", "level", "process", "event", "query_release"]
    assert (line["level"], line["event"], line["process"]) == ("info", "release published", "trainer")
    assert line["ts"].endswith("Z")


def test_lines_of_libraries_have_the_same_form() -> None:
    """A warning of a client library is one line like ours, and says whose it is."""
    stream = configured()
    logging.getLogger("kafka.net").warning("node %d is gone", 3)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["process"]) == ("node 3 is gone", "warning", "trainer")
    assert line["library"] == "kafka.net"


def test_libraries_are_quiet_below_warning() -> None:
    """What a library tells at info stays out, even where our own level is debug."""
    stream = configured(log_level="debug")
    logging.getLogger("aiokafka").info("heartbeat")
    get_logger().debug("ours")
    assert [line["event"] for line in lines(stream)] == ["ours"]


def test_a_slow_moment_of_a_client_is_no_warning() -> None:
    """kafka-python warns of each step over 0.1 s, which on a busy machine says nothing about the shop."""
    stream = configured()
    logging.getLogger("kafka.net.selector").warning("Task ran for 0.2s")
    logging.getLogger("kafka.net.selector").error("broken")
    assert [line["event"] for line in lines(stream)] == ["broken"]


def test_our_level_is_the_setting() -> None:
    """Below the level nothing is written."""
    stream = configured(log_level="warning")
    get_logger().info("quiet")
    get_logger().warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_an_error_carries_its_traceback_inside_the_line() -> None:
    """A traceback never spreads over lines."""
    stream = configured()
    error = ValueError("broken")
    get_logger().error("crashed", exc_info=error)
    (line,) = lines(stream)
    assert "ValueError: broken" in line["exception"]


def test_a_crashed_thread_is_one_line() -> None:
    """An error that nobody caught in a thread is told like any other fact."""
    stream = configured()
    offsets: dict[str, int] = {}
    thread = threading.Thread(target=lambda: offsets["offsets"], name="heartbeat")
    thread.start()
    thread.join()
    (line,) = lines(stream)
    assert (line["event"], line["thread"], line["error"]) == (
        "thread_crashed",
        "heartbeat",
        "KeyError('offsets')",
    )


def test_secrets_in_a_line_are_stars() -> None:
    """A secret passed to the log by mistake does not show."""
    stream = configured()
    get_logger().info("key", key=SecretStr("hush"))
    assert "hush" not in stream.getvalue()
    assert lines(stream)[0]["key"] == "**********"


def test_numbers_that_json_lacks_do_not_break_the_line() -> None:
    """A loss of NaN is still a line that machines can read."""
    stream = configured()
    get_logger().info("step", loss=float("nan"))
    assert lines(stream)[0]["loss"] is None


def test_warnings_become_lines() -> None:
    """Python's warnings do not end up bare on the terminal."""
    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        configure("trainer", Settings(), stream=stream)
        warnings.warn("old form", stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "old form" in lines(stream)[0]["event"]


def test_the_console_form_is_for_people() -> None:
    """On a terminal a line has columns, not braces."""
    stream = configured(log_format="console")
    get_logger().info("release published", query_release=17)
    text = stream.getvalue()
    assert "release published" in text
    assert "query_release=17" in text
    assert not text.startswith("{")


def test_a_traceback_on_a_terminal_shows_no_local_variable() -> None:
    """What the code held when it failed, keys among it, is not printed."""
    stream = configured(log_format="console")
    key = "hush-hush"
    try:
        raise ZeroDivisionError(f"{len(key)} letters")
    except ZeroDivisionError as error:
        get_logger().error("request failed", exc_info=error)
    assert "ZeroDivisionError: 9 letters" in stream.getvalue()
    assert key not in stream.getvalue()


def test_auto_means_console_on_a_terminal() -> None:
    """Who looks at a terminal gets columns without asking."""

    class Terminal(io.StringIO):
        """A text that says it is a terminal."""

        @override
        def isatty(self) -> bool:
            """Say yes."""
            return True

    stream = Terminal()
    configure("trainer", Settings(), stream=stream)
    get_logger().info("hello")
    assert not stream.getvalue().startswith("{")


def test_fields_given_with_the_logger_are_on_each_line() -> None:
    """A partition's logger names its partition."""
    stream = configured()
    log = get_logger(partition=3)
    log.info("one")
    log.info("two")
    assert [line["partition"] for line in lines(stream)] == [3, 3]
