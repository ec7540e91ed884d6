"""The real servers of a test session: those that the environment names, else Kafka and Redis started here.

A server that is missing is an error, never a skip: a suite that passes without Kafka has tested nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.local.plan import SERVER_SETTING
from deploy.local.supervisor import LocalMillrace
from service.settings import env_name


@contextmanager
def running_server(name: str, folder: Path, given: Mapping[str, str]) -> Iterator[str]:
    """Give the address of a server for a whole test session.

    Args:
        name: `kafka` or `redis`.
        folder: an empty folder for its data.
        given: the environment before it was cleaned; a server named there is checked and used.

    Raises:
        DependencyDown: it is not installed, does not start, or does not answer.
    """
    variable = env_name(SERVER_SETTING[name])
    named = {variable: given[variable]} if variable in given else {}
    with LocalMillrace(processes=[name], data_dir=folder, environ=named) as running:
        yield running.urls[name]
