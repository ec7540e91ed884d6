"""Tokens for the login to Kafka: asked for once, kept while fresh, kept in use when no newer one can be had."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka.errors
import kafka.errors
import pytest
from aiokafka import conn
from structlog.testing import capture_logs

from contracts.errors import DependencyDown, MillraceError, UsageError
from service.kafka_config import ClientCredentials, TokenFile, aiokafka_tokens, kafka_python_tokens, token_source
from service.settings import Settings
from tests.support.token_server import TokenServer


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """Give a token server."""
    with TokenServer() as running:
        yield running


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def test_a_client_asks_as_the_standard_says(server: TokenServer) -> None:
    """Name and secret go into the header, each encoded as in a form; a scope is sent if there is one."""
    source = ClientCredentials(server.url, "mill:race", "p+/=%", scope="kafka write")
    assert source.token() == "t-1"
    ((authorization, form),) = server.asked
    scheme, _, login = authorization.partition(" ")
    assert (scheme, base64.b64decode(login)) == ("Basic", b"mill%3Arace:p%2B%2F%3D%25")
    assert form == {"grant_type": ["client_credentials"], "scope": ["kafka write"]}


def test_a_token_is_kept_while_it_is_fresh(server: TokenServer) -> None:
    """Every connection of every client asks; the token server is asked when most of a token's life is over."""
    clock = Clock()
    source = ClientCredentials(server.url, "id", "secret", monotonic_s=clock)
    for now_s, token in ((0.0, "t-1"), (79.0, "t-1"), (81.0, "t-2"), (160.0, "t-2"), (162.0, "t-3")):
        clock.now_s = now_s
        assert source.token() == token


def test_the_old_token_serves_to_its_end(server: TokenServer) -> None:
    """A token server that is away for a moment interrupts nothing; one that is away longer is named."""
    clock = Clock()
    source = ClientCredentials(server.url, "id", "secret", monotonic_s=clock)
    source.token()
    server.status, server.body = 503, "overloaded"
    clock.now_s = 90.0
    with capture_logs() as lines:
        assert source.token() == "t-1"
    assert lines[0]["event"] == "kafka_token_not_renewed"
    clock.now_s = 101.0
    with pytest.raises(DependencyDown, match="HTTP 503 overloaded"):
        source.token()


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (401, '{"error":"invalid_client"}', UsageError, "HTTP 401"),
        (400, '{"error":"invalid_scope"}', UsageError, "invalid_scope"),
        (302, "", UsageError, "HTTP 302"),
        (500, "oh no", DependencyDown, "HTTP 500 oh no"),
        (429, "slow down", DependencyDown, "HTTP 429"),
        (200, "<html>", DependencyDown, "gives no Kafka token"),
        (200, "{}", DependencyDown, "access_token"),
        (200, "[]", DependencyDown, "gives no Kafka token"),
        (200, '{"access_token":"t","expires_in":"soon"}', DependencyDown, "gives no Kafka token"),
    ],
)
def test_no_token_is_one_clear_line(
    server: TokenServer, status: int, body: str, kind: type[MillraceError], says: str
) -> None:
    """Who refuses us is not asked again, who is out of order is; nobody carries the secret to another server."""
    server.status, server.body, server.headers = status, body, {"Location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(kind, match=says) as caught:
        ClientCredentials(server.url, "id", "hush").token()
    assert caught.value.fix
    assert "hush" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_token_server_that_is_away_is_named() -> None:
    """Its address is in the line."""
    url = "http://127.0.0.1:1/token"
    with pytest.raises(DependencyDown, match=f"{re.escape(url)} gives no Kafka token"):
        ClientCredentials(url, "id", "secret").token()


def test_a_token_without_a_life_is_asked_for_often(server: TokenServer) -> None:
    """Whoever does not say how long a token lives is asked every minute."""
    clock = Clock()
    server.body = '{"access_token":"t-%d"}'
    source = ClientCredentials(server.url, "id", "secret", monotonic_s=clock)
    source.token()
    clock.now_s = 61.0
    assert source.token() == "t-2"


def test_a_file_is_read_every_time(tmp_path: Path) -> None:
    """Whoever writes it renews it; a newline at its end is no part of the token."""
    source = TokenFile(tmp_path / "token")
    for token in ("first", "second"):
        (tmp_path / "token").write_text(f"{token}\n")
        assert source.token() == token


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_without_a_token_is_one_clear_line(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty and damaged files are named; a helper may yet write them."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DependencyDown, match="token") as caught:
        TokenFile(path).token()
    assert str(path) in caught.value.message


def settings(**source: Any) -> Settings:
    """Return settings that log in by tokens."""
    named = {f"kafka_sasl_oauth_{name}": value for name, value in source.items()}
    login = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}
    return Settings(**{"kafka_bootstrap": "broker:9092", **login, **named})


def test_all_clients_of_a_process_share_a_source(server: TokenServer, tmp_path: Path) -> None:
    """Ten clients ask a token server once, not ten times."""
    client = settings(token_url=server.url, client_id="id", client_secret="secret")
    assert token_source(client) is token_source(client)
    assert token_source(client).token() == token_source(client).token() == "t-1"
    assert isinstance(token_source(settings(token_file=tmp_path / "token")), TokenFile)


async def test_both_libraries_get_tokens_and_failures_of_their_own(tmp_path: Path) -> None:
    """A failure is one of a connection: the client tries again, and no task of it dies in silence."""
    path = tmp_path / "token"
    source = TokenFile(path)
    with pytest.raises(kafka.errors.KafkaConnectionError, match="cannot be read"):
        kafka_python_tokens(source).token()
    with pytest.raises(aiokafka.errors.KafkaConnectionError, match="cannot be read"):
        await aiokafka_tokens(source).token()
    path.write_text("t")
    assert kafka_python_tokens(source).token() == await aiokafka_tokens(source).token() == "t"


async def test_aiokafka_hears_a_refusal(tmp_path: Path) -> None:
    """A broker that does not like a token answers with its reasons; the library alone would go on as if logged in."""
    (tmp_path / "token").write_text("t")
    login = aiokafka_tokens(TokenFile(tmp_path / "token"))
    accepted, refused = (conn.OAuthAuthenticator(sasl_oauth_token_provider=login) for _ in range(2))
    for authenticator in (accepted, refused):
        assert await authenticator.step(None) == (b"n,,\x01auth=Bearer t\x01\x01", True)
    assert await accepted.step(b"") is None
    with pytest.raises(aiokafka.errors.AuthenticationFailedError, match="invalid_token"):
        await refused.step(b'{"status":"invalid_token"}')
