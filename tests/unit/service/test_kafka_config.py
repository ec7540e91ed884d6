"""Arguments of Kafka clients: every name is one the library takes, and the safe choices are made."""

import inspect
import ssl
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from pydantic import SecretStr

from contracts.errors import UsageError
from service.kafka_config import (
    aiokafka_config,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    base_config,
    consumer_config,
    producer_config,
)
from service.settings import Settings


def settings(**fields: Any) -> Settings:
    """Return settings that name a broker."""
    return Settings(**{"kafka_bootstrap": "a:9092, b:9092", **fields})


def test_kafka_python_takes_every_argument() -> None:
    """The library refuses unknown names at the start; none of ours is one."""
    assert set(base_config(settings())) <= set(KafkaAdminClient.DEFAULT_CONFIG)
    assert set(consumer_config(settings(), "trainer")) <= set(KafkaConsumer.DEFAULT_CONFIG)
    assert set(producer_config(settings())) <= set(KafkaProducer.DEFAULT_CONFIG)


def test_aiokafka_takes_every_argument() -> None:
    """The same for the other library."""
    assert set(aiokafka_consumer_config(settings(), "join")) <= set(inspect.signature(AIOKafkaConsumer).parameters)
    assert set(aiokafka_producer_config(settings())) <= set(inspect.signature(AIOKafkaProducer).parameters)


def test_consumers_commit_by_hand_and_start_at_the_beginning() -> None:
    """The offset moves last and only by the loop; a new group misses nothing."""
    for config in (consumer_config(settings(), "trainer"), aiokafka_consumer_config(settings(), "trainer")):
        assert config["enable_auto_commit"] is False
        assert config["auto_offset_reset"] == "earliest"


def test_a_member_carries_the_group_and_its_timeouts() -> None:
    """Heartbeats come often enough for the session timeout."""
    config = consumer_config(settings(topic_prefix="x-", session_timeout_s=6, worker_id="w1"), "join")
    assert config["group_id"] == "x-millrace-join"
    assert config["group_instance_id"] == "w1"
    assert config["session_timeout_ms"] == 6000
    assert config["heartbeat_interval_ms"] == 2000


def test_without_a_group_there_is_no_membership() -> None:
    """A reader that assigns partitions itself joins nothing, even on a named worker."""
    assert not {"group_id", "group_instance_id"} & set(consumer_config(settings(worker_id="w1")))
    assert not {"group_id", "group_instance_id"} & set(aiokafka_consumer_config(settings(worker_id="w1")))


def test_producers_are_idempotent_and_fully_acknowledged() -> None:
    """A record that counts as sent is on every in-sync copy, once."""
    for config in (producer_config(settings()), aiokafka_producer_config(settings())):
        assert (config["acks"], config["enable_idempotence"]) == ("all", True)
        assert config["max_request_size"] > 16 * 1024 * 1024


def test_brokers_are_a_list() -> None:
    """A comma-separated setting is several brokers."""
    assert consumer_config(settings())["bootstrap_servers"] == ["a:9092", "b:9092"]


def test_a_login_is_passed_in_plain_text_to_both_libraries() -> None:
    """The libraries get the password, not its stars."""
    login = settings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="shop",
        kafka_sasl_password=SecretStr("hush"),
    )
    for config in (consumer_config(login), aiokafka_config(login)):
        assert config["security_protocol"] == "SASL_PLAINTEXT"
        assert config["sasl_mechanism"] == "SCRAM-SHA-256"
        assert (config["sasl_plain_username"], config["sasl_plain_password"]) == ("shop", "hush")


def test_ssl_gives_aiokafka_a_context_that_checks_the_broker() -> None:
    """Encryption without checking whom one talks to is none."""
    context = aiokafka_config(settings(kafka_security_protocol="SSL"))["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_without_a_broker_the_setting_is_named() -> None:
    """No client is built against a default address."""
    with pytest.raises(UsageError, match="MILLRACE_KAFKA_BOOTSTRAP is not set"):
        consumer_config(Settings())
