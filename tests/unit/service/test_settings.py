"""Settings: precedence, refusals by name, secrets kept, names on the cluster."""

from pathlib import Path
from typing import Any

import pytest
from redis import ConnectionPool

from contracts.errors import UsageError
from contracts.telemetry import DEFAULT_PORTS, FILTERS_ON, Filter, Process
from service.settings import Settings, load_settings
from tests.support.reference import settings_table


def load(environ: dict[str, str] | None = None, directory: Path = Path("/nonexistent"), **overrides: Any) -> Settings:
    """Load settings from the given places only."""
    return load_settings(overrides, environ or {}, directory)


def refusal(environ: dict[str, str]) -> UsageError:
    """Return the error that an environment is refused with."""
    with pytest.raises(UsageError) as caught:
        load(environ)
    return caught.value


def test_shares_of_the_same_lists_fit_together() -> None:
    """A list is exchanged or interleaved, so both shares together are at most all lists."""
    shares = {"MILLRACE_SWAP_SHARE": "0.8", "MILLRACE_INTERLEAVE_SHARE": "0.3"}
    assert "together exceed 1" in refusal(shares).message
    assert load({**shares, "MILLRACE_INTERLEAVE_SHARE": "0.2"}).interleave_share == 0.2


def test_defaults_are_those_of_the_interface() -> None:
    """Nothing given: the shared defaults hold, and nothing has an address or a key."""
    settings = load()
    assert (settings.partitions, settings.join_window_s, settings.lateness_s) == (4, 600, 10)
    assert (settings.freshness_window_s, settings.refresh_window_s) == (60, 900)
    assert (settings.release_interval_s, settings.product_release_interval_s) == (15, 3600)
    assert settings.data_dir == Path(".millrace")
    assert (settings.kafka_bootstrap, settings.write_key, settings.secret_key, settings.person_key) == (None,) * 4


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    """Each source wins over those before it, setting by setting."""
    (tmp_path / "millrace.toml").write_text("join_window_s = 30\nlateness_s = 3\npartitions = 2\n")
    environ = {"MILLRACE_JOIN_WINDOW_S": "40", "MILLRACE_LATENESS_S": "4"}
    settings = load(environ, tmp_path, join_window_s=50)
    assert (settings.join_window_s, settings.lateness_s, settings.partitions) == (50, 4, 2)


def test_an_override_of_none_means_not_given() -> None:
    """A command-line option left out does not hide the environment."""
    assert load({"MILLRACE_PARTITIONS": "7"}, partitions=None).partitions == 7


def test_an_empty_variable_counts_as_unset() -> None:
    """`NAME=` in a compose file is the default, not an empty address."""
    assert load({"MILLRACE_QDRANT_URL": "", "MILLRACE_PARTITIONS": ""}).qdrant_url is None


def test_variables_of_others_are_ignored() -> None:
    """Only names with our prefix are ours."""
    assert load({"QDRANT_BIN": "/usr/bin/qdrant", "PATH": "/bin"}) == load()


def test_a_misspelt_variable_is_refused_with_the_nearest_name() -> None:
    """A typo never runs for days with the default."""
    error = refusal({"MILLRACE_JION_WINDOW_S": "3"})
    assert error.message == "unknown setting MILLRACE_JION_WINDOW_S; did you mean MILLRACE_JOIN_WINDOW_S?"
    assert "MILLRACE_JOIN_WINDOW_S" in error.fix
    assert error.exit_code == 2


def test_a_misspelt_key_of_the_file_is_refused_too(tmp_path: Path) -> None:
    """The file is held to the same names."""
    (tmp_path / "millrace.toml").write_text("join_windw_s = 3\n")
    with pytest.raises(UsageError, match="did you mean MILLRACE_JOIN_WINDOW_S"):
        load({}, tmp_path)


def test_a_misspelt_override_is_refused_too() -> None:
    """The command line is held to the same names."""
    with pytest.raises(UsageError, match="did you mean MILLRACE_PARTITIONS"):
        load(partition=3)


def test_an_unknown_name_like_no_other_is_refused_without_a_guess() -> None:
    """Where nothing is near, nothing is suggested."""
    assert refusal({"MILLRACE_XYZZY": "1"}).message == "unknown setting MILLRACE_XYZZY"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MILLRACE_ANCHOR_SHARE", "0.6", "less than or equal to 0.5"),
        ("MILLRACE_INTERLEAVE_SHARE", "0.6", "less than or equal to 0.5"),
        ("MILLRACE_ANCHOR_SHAPE", "0.1", "did you mean MILLRACE_ANCHOR_SHARE"),
        ("MILLRACE_PARTITIONS", "0", "greater than or equal to 1"),
        ("MILLRACE_PARTITIONS", "four", "valid integer"),
        ("MILLRACE_JOIN_WINDOW_S", "nan", "finite"),
        ("MILLRACE_JOIN_WINDOW_S", "0", "greater than 0"),
        ("MILLRACE_SESSION_TIMEOUT_S", "3", "the broker refuses session timeouts under 6 s"),
        ("MILLRACE_LATENESS_S", "600", "MILLRACE_LATENESS_S=600 must be less than MILLRACE_JOIN_WINDOW_S=600"),
        ("MILLRACE_KAFKA_BOOTSTRAP", "broker-without-port", "is not host:port"),
        ("MILLRACE_KAFKA_BOOTSTRAP", "broker:99999", "is not host:port"),
        ("MILLRACE_REDIS_URL", "redis://:hush@redis:99999/0", "is not an address"),
        ("MILLRACE_REDIS_URL", "http://redis:6379", "is not redis://host:port/0"),
        ("MILLRACE_REDIS_URL", "redis:6379", "is not redis://host:port/0"),
        ("MILLRACE_REDIS_URL", "redis://:hush@redis:6379/shop", "is not redis://host:port/0"),
        ("MILLRACE_REDIS_URL", "unix:///run/redis.sock?db=shop", "is not redis://host:port/0"),
        ("MILLRACE_QDRANT_URL", "http://qdrant:port", "is not an address"),
        ("MILLRACE_QDRANT_URL", "qdrant:6333", "is not http://host:port"),
        ("MILLRACE_QDRANT_URL", "https://", "is not http://host:port"),
        ("MILLRACE_QDRANT_URL", "http://shop:hush@qdrant:6333", "MILLRACE_QDRANT_API_KEY"),
        ("MILLRACE_CORS_ORIGINS", "https://a.example,shop.example", "'shop.example' is not https://host"),
        ("MILLRACE_CORS_ORIGINS", "https://a.example/", "'https://a.example/' is not https://host"),
        ("MILLRACE_CORS_ORIGINS", "https://Shop.example", "lower-case"),
        ("MILLRACE_CORS_ORIGINS", "Capacitor://localhost", "lower-case"),
        ("MILLRACE_CORS_ORIGINS", "capacitor://", "'capacitor://' is not https://host"),
        ("MILLRACE_CORS_ORIGINS", "*", "'*' is not https://host"),
        ("MILLRACE_CORS_ORIGINS", "https://*", "'https://*' is not https://host"),
        ("MILLRACE_TOPIC_PREFIX", "my shop/", "only letters, digits"),
        ("MILLRACE_TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.1/8", "10.0.0.1/8 has host bits set"),
        ("MILLRACE_TRUSTED_PROXIES", "balancer", "does not appear to be an IPv4 or IPv6 network"),
        ("MILLRACE_PORT", "70000", "65535"),
        ("MILLRACE_FILTERS", "robots,bots", "there is no filter bots: choose from robots, "),
        ("MILLRACE_LOOK_AHEAD_S", "-1", "greater than or equal to 0"),
        ("MILLRACE_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("MILLRACE_KAFKA_SASL_USERNAME", "shop", "is unused unless"),
        ("MILLRACE_KAFKA_SASL_PASSWORD", "pw", "is unused unless"),
        ("MILLRACE_KAFKA_SASL_OAUTH_TOKEN_FILE", "/token", "is unused unless"),
        ("MILLRACE_KAFKA_SASL_OAUTH_TOKEN_URL", "ftp://id.example/token", "is not https://host/path"),
        ("MILLRACE_REPLICATION_FACTOR", "0", "at least one copy"),
        ("MILLRACE_REPLICATION_FACTOR", "-2", "greater than or equal to -1"),
        ("MILLRACE_KAFKA_SSL_KEYFILE", "/key.pem", "go together"),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: str, says: str) -> None:
    """Each refusal names the setting, what is wrong and the fix, in one line."""
    error = refusal({name: value})
    assert name in error.message
    assert says in error.message
    assert error.fix
    assert "\n" not in error.message
    assert "hush" not in error.message


SASL = {"MILLRACE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}
TOKENS = {**SASL, "MILLRACE_KAFKA_SASL_MECHANISM": "OAUTHBEARER"}
USER = {"MILLRACE_KAFKA_SASL_USERNAME": "shop", "MILLRACE_KAFKA_SASL_PASSWORD": "hush"}
TOKEN_FILE = {"MILLRACE_KAFKA_SASL_OAUTH_TOKEN_FILE": "/run/token"}
CLIENT = {
    "MILLRACE_KAFKA_SASL_OAUTH_TOKEN_URL": "https://id.example/token",
    "MILLRACE_KAFKA_SASL_OAUTH_CLIENT_ID": "millrace",
    "MILLRACE_KAFKA_SASL_OAUTH_CLIENT_SECRET": "hush",
}


@pytest.mark.parametrize("login", [{**SASL, **USER}, {**TOKENS, **TOKEN_FILE}, {**TOKENS, **CLIENT}])
def test_a_whole_login_is_taken(login: dict[str, str]) -> None:
    """A password, a file that holds a token, or a client at a token URL."""
    assert load(login).kafka_security_protocol == "SASL_SSL"
    assert "hush" not in repr(load(login))


@pytest.mark.parametrize(
    ("login", "says"),
    [
        (SASL, "needs MILLRACE_KAFKA_SASL_USERNAME and MILLRACE_KAFKA_SASL_PASSWORD"),
        ({**SASL, **USER, **TOKEN_FILE}, "MILLRACE_KAFKA_SASL_MECHANISM=PLAIN needs"),
        (TOKENS, "needs MILLRACE_KAFKA_SASL_OAUTH_TOKEN_FILE, or MILLRACE_KAFKA_SASL_OAUTH_TOKEN_URL and"),
        ({**TOKENS, **USER}, "and no other login"),
        ({**TOKENS, **TOKEN_FILE, **CLIENT}, "and no other login"),
        ({**TOKENS, "MILLRACE_KAFKA_SASL_OAUTH_TOKEN_URL": "https://id.example/token"}, "_OAUTH_CLIENT_SECRET"),
    ],
)
def test_half_a_login_and_a_double_one_are_refused(login: dict[str, str], says: str) -> None:
    """The process says at its start what is missing, instead of being refused by the broker for ever."""
    assert says in refusal(login).message


def test_a_refused_value_is_shown() -> None:
    """People see what they wrote."""
    assert "MILLRACE_PARTITIONS=0" in refusal({"MILLRACE_PARTITIONS": "0"}).message


def test_secrets_never_show() -> None:
    """Neither repr nor str holds a key, a password or the password inside an address."""
    secrets = {
        "MILLRACE_WRITE_KEY": "hush-1",
        "MILLRACE_SECRET_KEY": "hush-2",
        "MILLRACE_PERSON_KEY": "hush-3",
        "MILLRACE_QDRANT_API_KEY": "hush-4",
        "MILLRACE_REDIS_URL": "redis://:hush-5@localhost:6379/0",
    }
    settings = load(secrets)
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)


def test_a_secret_of_the_wrong_type_is_refused_without_showing_it(tmp_path: Path) -> None:
    """A refused secret is named, not printed."""
    (tmp_path / "millrace.toml").write_text("write_key = 271828\n")
    with pytest.raises(UsageError) as caught:
        load({}, tmp_path)
    assert "MILLRACE_WRITE_KEY" in caught.value.message
    assert "271828" not in caught.value.message + caught.value.fix


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """A syntax error names the file and the line."""
    (tmp_path / "millrace.toml").write_text("partitions = \n")
    with pytest.raises(UsageError, match=r"millrace\.toml is not TOML: .*line 1"):
        load({}, tmp_path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """A folder in the file's place is refused like an unreadable file."""
    (tmp_path / "millrace.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load({}, tmp_path)


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after the start."""
    with pytest.raises(ValueError, match="frozen"):
        load().partitions = 9  # type: ignore[misc] # the refusal is what is tested


def test_names_on_the_cluster_carry_the_prefix() -> None:
    """Topics, groups and collections of two shops never meet."""
    settings = load({"MILLRACE_TOPIC_PREFIX": "shop-a."})
    assert settings.topic("catalog") == "shop-a.catalog"
    assert settings.group("join") == "shop-a.millrace-join"
    assert settings.collection(3) == "shop-a.products-r3"
    assert settings.alias() == "shop-a.products"


def test_each_process_has_its_port_until_one_is_set() -> None:
    """The port belongs to the process, the setting to one of them."""
    assert load().listen_port(Process.SEARCH) == DEFAULT_PORTS[Process.SEARCH] == 8081
    assert load({"MILLRACE_PORT": "9999"}).listen_port("search") == 9999


def test_lists_are_split_at_commas() -> None:
    """Blanks around names mean nothing."""
    settings = load({"MILLRACE_CORS_ORIGINS": "https://a.shop,,https://b.shop"})
    assert settings.cors_origin_list() == ("https://a.shop", "https://b.shop")


def test_an_origin_is_whatever_a_page_or_the_web_view_of_an_app_sends() -> None:
    """Apps have schemes of their own, and what has no origin, as a file, sends the word `null`."""
    sent = ("https://a.shop:8443", "http://[::1]:3000", "capacitor://localhost", "ionic://localhost", "null")
    assert load({"MILLRACE_CORS_ORIGINS": ",".join(sent)}).cors_origin_list() == sent


@pytest.mark.parametrize(
    "url",
    ["redis:///0", "redis://", "rediss://h:1/0/", "redis://h?db=3", "redis://h/%31", "unix:///run/redis.sock?db=2"],
)
def test_an_address_that_the_redis_client_takes_is_taken(url: str) -> None:
    """Host, port and database have defaults there, and only a database that is no number is passed over."""
    assert load({"MILLRACE_REDIS_URL": url}).redis_url == url
    ConnectionPool.from_url(url)


def test_filters_are_on_unless_told_otherwise() -> None:
    """All by default; those that are named; none by a word of its own, because an empty variable counts as unset."""
    assert load().filter_set() == frozenset(FILTERS_ON)
    assert load({"MILLRACE_FILTERS": "caps, robots"}).filter_set() == {Filter.CAPS, Filter.ROBOTS}
    assert load({"MILLRACE_FILTERS": "none"}).filter_set() == frozenset()


def test_windows_are_given_in_the_unit_of_the_wire() -> None:
    """Seconds for people, milliseconds for events."""
    settings = load({"MILLRACE_JOIN_WINDOW_S": "2.5", "MILLRACE_LATENESS_S": "0.25"})
    assert (settings.join_window_ms, settings.lateness_ms) == (2500, 250)


def test_required_settings_are_given_in_plain_text() -> None:
    """Who requires a secret needs its text."""
    settings = load({"MILLRACE_KAFKA_BOOTSTRAP": "k:9092", "MILLRACE_WRITE_KEY": "hush"})
    assert settings.require("kafka_bootstrap", "write_key") == ("k:9092", "hush")


def test_a_missing_required_setting_is_named_with_the_fix() -> None:
    """Without an address the process says which one, and what to do."""
    with pytest.raises(UsageError, match="MILLRACE_KAFKA_BOOTSTRAP is not set") as caught:
        load().require("kafka_bootstrap")
    assert "millrace up" in caught.value.fix


def test_the_environment_of_a_child_gives_the_same_settings() -> None:
    """A supervisor can hand its settings, secrets included, to its children."""
    settings = load({"MILLRACE_WRITE_KEY": "hush", "MILLRACE_PARTITIONS": "2", "MILLRACE_DATA_DIR": "/data"})
    assert load(settings.as_environ()) == settings


def test_every_setting_has_a_meaning_and_every_quantity_a_unit() -> None:
    """The table of the documentation has no gap."""
    rows = settings_table()
    assert len(rows) == len(Settings.model_fields)
    assert all(meaning.endswith(".") for _, _, _, meaning in rows)
    assert {unit for name, _, unit, _ in rows if name.endswith("_S")} == {"s"}
    assert ("MILLRACE_PARTITIONS", "4", "partitions") in [row[:3] for row in rows]
