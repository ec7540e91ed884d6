"""What the collector asks of its settings before it listens."""

import pytest

from contracts.errors import UsageError
from service.process import Shutdown
from service.settings import Settings
from streams.collector.__main__ import main, read_policy

KEYS = {"write_key": "w", "secret_key": "s", "person_key": "p"}


@pytest.mark.parametrize("missing", ["write_key", "secret_key", "person_key"])
def test_a_missing_key_is_named_with_its_fix(missing: str) -> None:
    """There is no default key: an open collector would let anyone write the shop's history."""
    given = {name: key for name, key in KEYS.items() if name != missing}
    with pytest.raises(UsageError, match=f"MILLRACE_{missing.upper()}") as error:
        read_policy(Settings(**given))
    assert f"MILLRACE_{missing.upper()}" in error.value.fix


def test_the_policy_holds_keys_origins_and_proxies() -> None:
    """Settings become plain values once, at the start."""
    settings = Settings(
        **KEYS, cors_origins="https://a.example, https://b.example", trusted_proxies="10.0.0.0/8, fd00::1"
    )
    policy = read_policy(settings)
    assert (policy.keys.write, policy.keys.secret, policy.person_key) == (b"w", b"s", b"p")
    assert policy.origins == ("https://a.example", "https://b.example")
    assert [str(network) for network in policy.trusted_proxies] == ["10.0.0.0/8", "fd00::1/128"]


@pytest.mark.parametrize("missing", ["kafka_bootstrap", "redis_url"])
def test_a_missing_server_is_named_before_anything_starts(missing: str) -> None:
    """The first thing that is missing ends the start with its name."""
    servers = {"kafka_bootstrap": "127.0.0.1:1", "redis_url": "redis://127.0.0.1:1/0"}
    given = {name: address for name, address in servers.items() if name != missing}
    shutdown = Shutdown()
    with pytest.raises(UsageError, match=f"MILLRACE_{missing.upper()}"):
        _ = main(Settings(**KEYS, **given), shutdown)
    shutdown.close()
