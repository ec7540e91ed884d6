"""Names that boards and scripts rely on."""

import pytest

from contracts.errors import (
    CheckFailed,
    ContractError,
    DependencyDown,
    InvariantError,
    MillraceError,
    TransientError,
    UsageError,
)
from contracts.telemetry import DEFAULT_PORTS, Process
from contracts.topics import MAX_ERROR_CHARS, set_aside_headers
from tests.support.reference import all_metrics, metrics_by_name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MillraceError("m"), 1),
        (InvariantError("m"), 1),
        (ContractError("missing", "m"), 1),
        (UsageError("m"), 2),
        (CheckFailed("m"), 3),
        (DependencyDown("m"), 4),
        (TransientError("m"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_the_exit_code_of_the_interfaces(error: MillraceError, code: int) -> None:
    """0 ok, 1 failed, 2 usage, 3 a check failed, 4 a dependency is down."""
    assert error.exit_code == code


def test_metric_names_are_ours_with_units_and_unique() -> None:
    """Prometheus names: prefix, base units, `_total` for counters."""
    names = metrics_by_name()
    assert len(names) == len(all_metrics())
    assert all(name.startswith("millrace_") and name == name.lower() for name in names)
    assert not [name for name in names if name.endswith(("_ms", "_milliseconds", "_count"))]


def test_default_ports_are_those_of_the_interfaces() -> None:
    """Each process has its own."""
    assert DEFAULT_PORTS[Process.COLLECTOR] == 8080
    assert DEFAULT_PORTS[Process.SEARCH] == 8081
    assert DEFAULT_PORTS[Process.PAGE] == 8082
    assert [DEFAULT_PORTS[name] for name in (Process.STREAMS, Process.TRAINER, Process.INDEXER)] == [9101, 9102, 9103]
    assert len(set(DEFAULT_PORTS.values())) == len(DEFAULT_PORTS) == len(Process)


def test_headers_of_a_record_set_aside_say_where_and_why() -> None:
    """The id is made of the origin, a long error is cut, and the clients get names of the one type that they take."""
    headers = dict(set_aside_headers("catalog", 2, 7, stage="indexer", reason="missing", error="x" * 5_000))
    assert headers["millrace.id"] == b"indexer:catalog:2:7"
    assert (headers["millrace.origin.partition"], headers["millrace.origin.offset"]) == (b"2", b"7")
    assert len(headers["millrace.error"]) == MAX_ERROR_CHARS
    assert {type(name) for name in headers} == {str}


def test_an_error_that_quotes_half_a_character_can_be_written() -> None:
    """What a sender broke does not break who sets it aside."""
    headers = dict(set_aside_headers("catalog", 2, 7, stage="indexer", reason="missing", error="field \ud83d"))
    assert headers["millrace.error"] == b"field ?"
