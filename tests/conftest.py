"""What every test may use: real servers once per session, a name space of its own, settings without surprises.

No MILLRACE_*, terminal, proxy, language or time zone of the developer's shell reaches a test; servers named there are
used by the session's fixtures alone.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from service.kafka import ensure_topics
from service.settings import ENV_PREFIX, Settings, load_settings
from tests.support.servers import running_server

# A slow machine is no failure, and neither what earlier runs left nor a checkout that cannot be written matters.
hypothesis.settings.register_profile(
    "millrace", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("millrace")

SettingsFactory = Callable[..., Settings]

TEST_KEYS = {"write_key": "test-write-key", "secret_key": "test-secret-key", "person_key": "test-person-key"}

TERMINAL = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
"""What rich reads of the terminal: colours, cursor, size."""
GIVEN = {name: value for name, value in os.environ.items() if name.startswith(ENV_PREFIX)}

FOREIGN = {*GIVEN, *TERMINAL, "LANGUAGE"}

# At once, not in a fixture: fixtures of a module or session, and what modules do when imported, see no more of it.
for surrounding in list(os.environ):
    if surrounding in FOREIGN or surrounding.startswith("LC_") or surrounding.lower().endswith("_proxy"):
        del os.environ[surrounding]
os.environ |= {"LANG": "C.UTF-8", "TZ": "UTC"}
time.tzset()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give base models that are translated a folder of this run, which its workers share."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(cache)


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a terminal 120 columns wide and no proxy, whatever tests before it left."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a real Kafka as host:port, the same for the whole session."""
    with running_server("kafka", tmp_path_factory.mktemp("kafka-server"), GIVEN) as address:
        yield address


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a real Redis, the same for the whole session; tests keep apart by their topic prefix."""
    with running_server("redis", tmp_path_factory.mktemp("redis-server"), GIVEN) as address:
        yield address


@pytest.fixture
def topic_prefix() -> str:
    """Give a prefix for topics, groups and collections that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}-"


@pytest.fixture
def settings(topic_prefix: str, tmp_path: Path) -> SettingsFactory:
    """Give a factory of settings with this test's own prefix and data folder, test keys, and no server."""

    def make(**overrides: Any) -> Settings:
        """Return the settings of one process of this test."""
        own = {"topic_prefix": topic_prefix, "data_dir": tmp_path / "data", **TEST_KEYS}
        return load_settings({**own, **overrides}, environ={}, directory=tmp_path)

    return make


@pytest.fixture
def kafka_settings(settings: SettingsFactory, kafka_bootstrap: str) -> SettingsFactory:
    """Give the factory of settings with the session's Kafka filled in."""

    def make(**overrides: Any) -> Settings:
        """Return the settings of one process that speaks to Kafka."""
        return settings(**{"kafka_bootstrap": kafka_bootstrap, **overrides})

    return make


@pytest.fixture
def two_partitions(kafka_settings: SettingsFactory) -> Settings:
    """Give the settings of a deployment whose topics exist, with two partitions each."""
    own = kafka_settings(partitions=2)
    ensure_topics(own)
    return own
