"""Arguments of Kafka clients from the settings, for kafka-python and aiokafka, and the tokens of an OAUTHBEARER login.

Consumers never commit on their own: the offset moves last, and only by the loop that made its output durable. Producers
are idempotent and acknowledged by all in-sync copies. No client creates a topic by touching it. Tokens come from a file
that somebody keeps fresh, or by client credentials (RFC 6749, 4.4), once for all clients of a process.
"""

import asyncio
import base64
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import kafka.codec
from typing_extensions import override

from contracts.errors import DependencyDown, MillraceError, UsageError
from service.kafka_records import read_any_header
from service.logging import get_logger
from service.settings import Settings

CLIENT_ID: Final = "millrace"
MAX_REQUEST_BYTES: Final = 17 * 1024 * 1024  # a release of 16 MiB and its envelope; each topic has a limit of its own
REQUEST_TIMEOUT_MS: Final = 15_000
DELIVERY_TIMEOUT_MS: Final = 60_000  # outlives the restart of a broker
RECONNECT_MS: Final = 1_000  # kafka-python's 30 s outlast a session: a broker that is back would have lost its members
CODECS: Final = ("lz4", "snappy", "zstd")
"""What a producer may pack its batches with, besides gzip, which Python has."""

TIMEOUT_S: Final = 5.0
USED_SHARE: Final = 0.8
"""Of a token's life after which a new one is asked for: the old one still serves if that fails."""
UNSTATED_LIFE_S: Final = 60.0
ASK_AGAIN: Final = (408, 429)
CORRECT: Final = "correct MILLRACE_KAFKA_SASL_OAUTH_*"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Reads the token anew each time: whoever writes the file also renews it."""

    path: Path

    def token(self) -> str:
        """Give what the file holds now."""
        try:
            token = self.path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DependencyDown(f"the Kafka token in {self.path} cannot be read: {error}", fix=CORRECT) from error
        if not token:
            raise DependencyDown(f"{self.path} holds no Kafka token", fix="let your token helper write it")
        return token


class ClientCredentials:
    """Asks a token URL, and keeps the token until most of its life is over."""

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
        """Ask for a new token; return it and how many seconds it lives."""
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


TokenSource = TokenFile | ClientCredentials
"""Gives tokens that are valid now, or raises ours; may be asked by several threads at once."""

_client_credentials: Final = lru_cache(maxsize=8)(ClientCredentials)


def token_source(settings: Settings) -> TokenSource:
    """Return the source that the settings name; the same one for all clients of a process."""
    if settings.kafka_sasl_oauth_token_file is not None:
        return TokenFile(settings.kafka_sasl_oauth_token_file)
    url, client_id, secret = settings.require(
        "kafka_sasl_oauth_token_url", "kafka_sasl_oauth_client_id", "kafka_sasl_oauth_client_secret"
    )
    return _client_credentials(url, client_id, secret, scope=settings.kafka_sasl_oauth_scope)


def kafka_python_tokens(source: TokenSource) -> Any:
    """Give a source the form that kafka-python takes."""
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
    """Give a source the form that aiokafka takes."""
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


def _login(settings: Settings, as_provider: Callable[[TokenSource], Any]) -> dict[str, Any]:
    """Ask for a first token, so that a refusal is told as such; inside a client it would be a failed connection."""
    login: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.endswith("SSL"):
        login["ssl_context"] = _certificates(settings)
    if settings.kafka_security_protocol.startswith("SASL_"):
        login["sasl_mechanism"] = settings.kafka_sasl_mechanism
        if settings.kafka_sasl_mechanism == "OAUTHBEARER":
            source = token_source(settings)
            source.token()
            login["sasl_oauth_token_provider"] = as_provider(source)
    if settings.kafka_sasl_password is not None:
        login["sasl_plain_username"] = settings.kafka_sasl_username
        login["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return login


def _certificates(settings: Settings) -> ssl.SSLContext:
    """Read the certificates here: of a file that they cannot use, both libraries say neither which nor why."""
    ca, own = settings.kafka_ssl_cafile, settings.kafka_ssl_certfile
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise _unusable(f"MILLRACE_KAFKA_SSL_CAFILE={ca}", error) from error
    try:
        if own is not None:
            context.load_cert_chain(own, settings.kafka_ssl_keyfile)
    except OSError as error:
        names = f"MILLRACE_KAFKA_SSL_CERTFILE={own} with MILLRACE_KAFKA_SSL_KEYFILE={settings.kafka_ssl_keyfile}"
        raise _unusable(names, error) from error
    # Python 3.13 sets it, kafka-python never does: many private authorities leave out extensions that it asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _unusable(names: str, error: OSError) -> UsageError:
    return UsageError(f"{names} cannot be used: {error.strerror}", fix="name PEM files that this user may read")


def _require_codecs(codecs: ModuleType, library: str) -> None:
    """Refuse to read without one of the codecs: the first batch packed with it would end the process, every time."""
    missing = [name for name in CODECS if not getattr(codecs, f"has_{name}")()]
    if missing:
        raise DependencyDown(
            f"{library} cannot unpack {', '.join(missing)}", fix=f"pip install '{library}[{','.join(missing)}]'"
        )


def base_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments that every kafka-python client takes."""
    _hear_last_answers()
    return {
        "bootstrap_servers": settings.brokers(),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "bootstrap_timeout_ms": max(1, round(settings.dependency_wait_s * 1000)),
        **_login(settings, kafka_python_tokens),
    }


@cache
def _hear_last_answers() -> None:
    """Let kafka-python hand on what came right before the end of a connection: 3.0.12 drops it if it reads late.

    A broker that refuses a login says why and closes at once.
    """
    from kafka.net import manager

    def patient(transport: Any) -> Any:
        class Patient(transport):
            """Tells of the end when there is nothing left to hand on."""

            def _sock_recv(self) -> tuple[bytes, Any]:
                received, error = super()._sock_recv()
                return received, None if received else error

        return Patient

    manager.KafkaTCPTransport = patient(manager.KafkaTCPTransport)
    manager.KafkaSSLTransport = patient(manager.KafkaSSLTransport)


def connected(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a client of kafka-python that has found its cluster, and close one that has not.

    The library (3.0.12) forgets it: each try would keep a thread and three file descriptors for good.
    """
    client = kind.__new__(kind)
    try:
        client.__init__(**config)
    except BaseException:
        if (net := getattr(client, "_net", None)) is not None:
            client._manager.close()
            net.close()
        raise
    return client


def consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaConsumer`; without a group it assigns its partitions itself."""
    _require_codecs(kafka.codec, "kafka-python")
    read_any_header()
    return {
        **base_config(settings),
        **_membership(settings, group),
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaProducer`."""
    return {
        **base_config(settings),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "max_request_size": MAX_REQUEST_BYTES,
        "max_block_ms": 2 * REQUEST_TIMEOUT_MS,
        "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


def aiokafka_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments that every aiokafka client takes."""
    return {
        "bootstrap_servers": settings.brokers(),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        **_login(settings, aiokafka_tokens),
    }


def aiokafka_consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the same for an `aiokafka.AIOKafkaConsumer`."""
    import aiokafka.codec

    _require_codecs(aiokafka.codec, "aiokafka")
    reading = {"auto_offset_reset": "earliest", "enable_auto_commit": False}
    return {**aiokafka_config(settings), **_membership(settings, group), **reading}


def aiokafka_producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of an `aiokafka.AIOKafkaProducer`."""
    return {
        **aiokafka_config(settings),
        "acks": "all",
        "enable_idempotence": True,
        "max_request_size": MAX_REQUEST_BYTES,
    }


def _membership(settings: Settings, group: str | None) -> dict[str, Any]:
    if group is None:
        return {}
    session_timeout_ms = round(settings.session_timeout_s * 1000)
    return {
        "group_id": settings.group(group),
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": min(3000, session_timeout_ms // 3),
        "group_instance_id": settings.worker_id,
    }
