"""Tokens for Kafka's OAUTHBEARER login: out of a file that somebody keeps fresh, or from a token URL.

A token is asked for with the client credentials of RFC 6749, section 4.4, once for all clients of a process, and again
when most of its life is over.
"""

import asyncio
import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote_plus, urlencode

from typing_extensions import override

from contracts.errors import DependencyDown, MillraceError, UsageError
from service.logging import get_logger
from service.settings import Settings

TIMEOUT_S: Final = 5.0
USED_SHARE: Final = 0.8
"""Of a token's life after which a new one is asked for: the old one still serves if that fails."""
UNSTATED_LIFE_S: Final = 60.0
ASK_AGAIN: Final = (408, 429)
CORRECT: Final = "correct MILLRACE_KAFKA_SASL_OAUTH_*"


class TokenSource(Protocol):
    """Gives tokens; may be asked by several threads at once."""

    def token(self) -> str:
        """Return a token that is valid now.

        Raises:
            MillraceError: there is none.
        """


class TokenFile:
    """Reads the token anew each time: whoever writes the file also renews it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self) -> str:
        """Return what the file holds now."""
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DependencyDown(f"the Kafka token in {self._path} cannot be read: {error}", fix=CORRECT) from error
        if not token:
            raise DependencyDown(f"{self._path} holds no Kafka token", fix="let your token helper write it")
        return token


class ClientCredentials:
    """Asks a token URL, and keeps the token while it is fresh.

    Args:
        url: the token URL.
        client_id: who asks.
        secret: its password.
        scope: sent along if there is one.
        monotonic_s: clock that tells how old a token is.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        secret: str,
        *,
        scope: str | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        login = base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()
        form = {"grant_type": "client_credentials", **({"scope": scope} if scope else {})}
        self._request = urllib.request.Request(  # noqa: S310 - settings take http and https only
            url,
            data=urlencode(form).encode(),
            headers={"Authorization": f"Basic {login}", "Accept": "application/json"},
        )
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._token = ""
        self._fresh_until_s = self._valid_until_s = -1.0

    def token(self) -> str:
        """Return the kept token, or a new one; a fresh one that cannot be had leaves the old one in use to its end."""
        with self._lock:
            asked_s = self._monotonic_s()
            if asked_s < self._fresh_until_s:
                return self._token
            try:
                self._token, life_s = self._ask()
            except MillraceError as error:
                if asked_s >= self._valid_until_s:
                    raise
                get_logger().warning("kafka_token_not_renewed", error=error.message, fix=error.fix)
                return self._token
            self._fresh_until_s, self._valid_until_s = asked_s + USED_SHARE * life_s, asked_s + life_s
            return self._token

    def _ask(self) -> tuple[str, float]:
        """Return a new token and how many seconds it lives."""
        url = self._request.full_url
        try:
            with _OPENER.open(self._request, timeout=TIMEOUT_S) as answer:
                said = json.loads(answer.read())
            return str(said["access_token"]), float(said.get("expires_in", UNSTATED_LIFE_S))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(200).decode("utf-8", "replace")
            problem = " ".join(f"{url} gives no Kafka token: HTTP {error.code} {said}".split())
            if error.code < 500 and error.code not in ASK_AGAIN:
                raise UsageError(problem, fix=CORRECT) from error
            raise DependencyDown(problem, fix="look at the log of the token server") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DependencyDown(
                f"{url} gives no Kafka token: {error!r}",
                fix="is the token server up, and is the URL that of its tokens?",
            ) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the secret to another server."""

    @override
    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        """Return nothing, which makes it an error."""


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def token_source(settings: Settings) -> TokenSource:
    """Return the source that the settings name; the same one for all clients of a process."""
    secret = settings.kafka_sasl_oauth_client_secret
    return _source(
        settings.kafka_sasl_oauth_token_file,
        settings.kafka_sasl_oauth_token_url or "",
        settings.kafka_sasl_oauth_client_id or "",
        "" if secret is None else secret.get_secret_value(),
        settings.kafka_sasl_oauth_scope,
    )


@lru_cache(maxsize=8)
def _source(path: Path | None, url: str, client_id: str, secret: str, scope: str | None) -> TokenSource:
    return ClientCredentials(url, client_id, secret, scope=scope) if path is None else TokenFile(path)


def kafka_python_tokens(source: TokenSource) -> Any:
    """Return a source in the form that kafka-python takes."""
    from kafka.errors import KafkaConnectionError
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class Tokens(AbstractTokenProvider):
        """Fails as a connection does, so that the client tries again."""

        def token(self) -> str:
            """Return a token."""
            try:
                return source.token()
            except MillraceError as error:
                raise KafkaConnectionError(error.message) from error

    return Tokens()


def aiokafka_tokens(source: TokenSource) -> Any:
    """Return a source in the form that aiokafka takes."""
    from aiokafka.abc import AbstractTokenProvider
    from aiokafka.errors import KafkaConnectionError

    class Tokens(AbstractTokenProvider):
        """Fails as a connection does: any other error would end the client's own tasks in silence."""

        async def token(self) -> str:
            """Return a token without holding up the event loop."""
            try:
                return await asyncio.to_thread(source.token)
            except MillraceError as error:
                raise KafkaConnectionError(error.message) from error

    _hear_refusals()
    return Tokens()


@cache
def _hear_refusals() -> None:
    """Let aiokafka read what a broker answers to a token: 0.14.0 takes a refusal for a login, and loops for ever."""
    from aiokafka import conn
    from aiokafka.errors import AuthenticationFailedError

    class Login(conn.OAuthAuthenticator):
        """Ends with the broker's words if they are not empty."""

        async def step(self, payload: bytes | None) -> Any:
            """Return the next message of the login."""
            if payload and self._token_sent:
                raise AuthenticationFailedError(payload.decode("utf-8", "replace"))
            return await super().step(payload)

    conn.OAuthAuthenticator = Login
