"""Arguments of Kafka clients from the settings, for kafka-python and aiokafka.

Consumers never commit on their own: the offset moves last, and only by the loop that made its output durable. Producers
are idempotent and acknowledged by all in-sync copies. No client creates a topic by touching it.
"""

from typing import Any, Final

from service.settings import Settings

CLIENT_ID: Final = "millrace"
MAX_REQUEST_BYTES: Final = 17 * 1024 * 1024  # a release of 16 MiB and its envelope; each topic has a limit of its own
REQUEST_TIMEOUT_MS: Final = 15_000
DELIVERY_TIMEOUT_MS: Final = 60_000  # outlives the restart of a broker


def _login(settings: Settings) -> dict[str, Any]:
    """Return how to talk to Kafka and log in; both libraries name these alike."""
    login: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
    if settings.kafka_sasl_password is not None:
        login["sasl_mechanism"] = settings.kafka_sasl_mechanism
        login["sasl_plain_username"] = settings.kafka_sasl_username
        login["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return login


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
        "bootstrap_timeout_ms": max(1, round(settings.dependency_wait_s * 1000)),
        **{name: str(path) for name, path in files.items() if path is not None},
        **_login(settings),
    }


def consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaConsumer`.

    Args:
        settings: the settings in force.
        group: `join`, `trainer`, ...; None for a consumer that assigns its partitions itself.
    """
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
        **_login(settings),
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
