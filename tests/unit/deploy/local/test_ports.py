"""Choosing ports: the default where it is free, else another, never one that is taken."""

import socket

import pytest

from contracts.errors import DependencyDown
from deploy.local import ports


def test_a_free_default_is_taken() -> None:
    """People find a process where they expect it."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    assert ports.choose_port(free) == free


def test_a_busy_default_gives_another_free_port() -> None:
    """A port that another process holds is passed over, for one outside the range of outgoing connections."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        chosen = ports.choose_port(held.getsockname()[1])
    assert chosen in ports.OTHERS
    assert ports.is_free(chosen)


def test_a_port_promised_to_another_process_is_not_given_twice() -> None:
    """A port that was chosen but is not listened on yet counts as taken."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    assert ports.choose_port(free, [free]) != free


def test_no_free_port_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is free the error says so instead of trying for ever."""
    monkeypatch.setattr(ports, "is_free", lambda port, host: False)
    with pytest.raises(DependencyDown, match="no free port"):
        ports.choose_port(9092)
