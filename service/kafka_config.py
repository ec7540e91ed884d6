"""Arguments of Kafka clients from the settings, for kafka-python and aiokafka.

Consumers never commit on their own: the offset moves last, and only by the loop that made its output durable. Producers
are idempotent and acknowledged by all in-sync copies. No client creates a topic by touching it.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

import kafka.codec

from contracts.errors import DependencyDown
from service.kafka_oauth import TokenSource, aiokafka_tokens, kafka_python_tokens, token_source
from service.settings import Settings

CLIENT_ID: Final = "millrace"
MAX_REQUEST_BYTES: Final = 17 * 1024 * 1024  # a release of 16 MiB and its envelope; each topic has a limit of its own
REQUEST_TIMEOUT_MS: Final = 15_000
DELIVERY_TIMEOUT_MS: Final = 60_000  # outlives the restart of a broker
RECONNECT_MS: Final = 1_000  # kafka-python's 30 s outlast a session: a broker that is back would have lost its members
CODECS: Final = ("lz4", "snappy", "zstd")
"""What a producer may pack its batches with, besides gzip, which Python has."""


def _login(settings: Settings, as_provider: Callable[[TokenSource], Any]) -> dict[str, Any]:
    """Return how to talk to Kafka and log in; both libraries name these alike, but each has its form of a token source.

    A first token is asked for here, so that a refusal is told as such; inside a client it would be one of many failed
    connections.
    """
    login: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
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


def _require_codecs(codecs: ModuleType, library: str) -> None:
    """Refuse to read without one of the codecs: the first batch packed with it would end the process, again and again.

    Raises:
        DependencyDown: naming what is missing.
    """
    missing = [name for name in CODECS if not getattr(codecs, f"has_{name}")()]
    if missing:
        raise DependencyDown(
            f"{library} cannot unpack {', '.join(missing)}", fix=f"pip install '{library}[{','.join(missing)}]'"
        )


def base_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments that every kafka-python client takes."""
    (bootstrap,) = settings.require("kafka_bootstrap")
    files = {
        "ssl_cafile": settings.kafka_ssl_cafile,
        "ssl_certfile": settings.kafka_ssl_certfile,
        "ssl_keyfile": settings.kafka_ssl_keyfile,
    }
    return {
        "bootstrap_servers": server_list(bootstrap),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "bootstrap_timeout_ms": max(1, round(settings.dependency_wait_s * 1000)),
        **{name: str(path) for name, path in files.items() if path is not None},
        **_login(settings, kafka_python_tokens),
    }


def connected(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a client of kafka-python that has found its cluster.

    One that has not is closed here: the library (3.0.12) forgets it, and each try would keep a thread and three file
    descriptors for good.
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
    """Return the arguments of a `kafka.KafkaConsumer`.

    Args:
        settings: the settings in force.
        group: `join`, `trainer`, ...; None for a consumer that assigns its partitions itself.
    """
    _require_codecs(kafka.codec, "kafka-python")
    config = {
        **base_config(settings),
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    if group is None:
        return config
    return {**config, **_membership(settings, group)}


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaProducer`: idempotent, acknowledged by all in-sync copies."""
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
    (bootstrap,) = settings.require("kafka_bootstrap")
    config = {
        "bootstrap_servers": server_list(bootstrap),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        **_login(settings, aiokafka_tokens),
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        from aiokafka.helpers import create_ssl_context

        config["ssl_context"] = create_ssl_context(
            cafile=settings.kafka_ssl_cafile,
            certfile=settings.kafka_ssl_certfile,
            keyfile=settings.kafka_ssl_keyfile,
        )
    return config


def aiokafka_consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the arguments of an `aiokafka.AIOKafkaConsumer`; `group` as in `consumer_config`."""
    import aiokafka.codec

    _require_codecs(aiokafka.codec, "aiokafka")
    config = {**aiokafka_config(settings), "auto_offset_reset": "earliest", "enable_auto_commit": False}
    if group is None:
        return config
    return {**config, **_membership(settings, group)}


def aiokafka_producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of an `aiokafka.AIOKafkaProducer`: idempotent, acknowledged by all in-sync copies."""
    return {
        **aiokafka_config(settings),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "max_request_size": MAX_REQUEST_BYTES,
    }


def _membership(settings: Settings, group: str) -> dict[str, Any]:
    """Return the arguments of a group's member; both libraries name these alike."""
    session_timeout_ms = round(settings.session_timeout_s * 1000)
    return {
        "group_id": settings.group(group),
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": min(3000, session_timeout_ms // 3),
        "group_instance_id": settings.worker_id,
    }


def server_list(bootstrap: str) -> list[str]:
    """Return the brokers of a comma-separated list."""
    return [server.strip() for server in bootstrap.split(",") if server.strip()]
