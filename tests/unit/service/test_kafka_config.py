"""Arguments of Kafka clients: every name is one the library takes, and the safe choices are made."""

import gc
import inspect
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import aiokafka.abc
import aiokafka.codec
import kafka.codec
import kafka.errors
import kafka.net.manager
import kafka.net.sasl.oauth
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from pydantic import SecretStr

from contracts.errors import DependencyDown, UsageError
from service.kafka_config import (
    CODECS,
    aiokafka_config,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    base_config,
    connected,
    consumer_config,
    producer_config,
)
from service.settings import Settings
from tests.support.poll import eventually


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


def test_a_member_is_back_at_a_broker_before_its_session_ends() -> None:
    """The pause between two attempts to connect is short beside the shortest session: an outage costs no membership."""
    config = consumer_config(settings(session_timeout_s=6), "trainer")
    assert 3 * config["reconnect_backoff_max_ms"] <= config["session_timeout_ms"]


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


def test_a_login_by_token_gives_each_library_its_form(tmp_path: Path) -> None:
    """Both take the provider by the same name, and refuse any other's form."""
    (tmp_path / "token").write_text("t")
    login = settings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_sasl_oauth_token_file=tmp_path / "token",
    )
    for config, form in (
        (consumer_config(login), kafka.net.sasl.oauth.AbstractTokenProvider),
        (aiokafka_consumer_config(login), aiokafka.abc.AbstractTokenProvider),
    ):
        assert config["sasl_mechanism"] == "OAUTHBEARER"
        assert isinstance(config["sasl_oauth_token_provider"], form)


def test_a_token_that_cannot_be_had_is_told_before_any_client_is_built(tmp_path: Path) -> None:
    """Inside a client it would be one of many failed connections."""
    login = settings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_sasl_oauth_token_file=tmp_path / "token",
    )
    with pytest.raises(DependencyDown, match="token cannot be read"):
        consumer_config(login)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("codecs", "library", "config"),
    [(kafka.codec, "kafka-python", consumer_config), (aiokafka.codec, "aiokafka", aiokafka_consumer_config)],
)
def test_a_codec_that_is_missing_is_told_at_the_start(
    codec: str, codecs: Any, library: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear line, instead of an end with every batch that is packed with it."""
    config(settings())
    monkeypatch.setattr(codecs, f"has_{codec}", lambda: False)
    with pytest.raises(DependencyDown, match=f"{library} cannot unpack {codec}") as caught:
        config(settings())
    assert caught.value.fix == f"pip install '{library}[{codec}]'"


def test_ssl_gives_both_libraries_a_context_that_checks_the_broker() -> None:
    """Encryption without checking whom one talks to is none."""
    secured = settings(kafka_security_protocol="SSL")
    for config in (base_config(secured), aiokafka_config(secured)):
        assert config["ssl_context"].verify_mode is ssl.CERT_REQUIRED
        assert config["ssl_context"].check_hostname


def test_private_authorities_are_taken_on_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.13 on its default refuses certificates that lack extensions; those of many private ones do."""
    create = ssl.create_default_context

    def strict(**given: Any) -> ssl.SSLContext:
        """Make a context as Python 3.13 does."""
        context = create(**given)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    secured = settings(kafka_security_protocol="SSL")
    for config in (base_config(secured), aiokafka_config(secured)):
        assert not config["ssl_context"].verify_flags & ssl.VERIFY_X509_STRICT


@pytest.mark.parametrize("named", ["kafka_ssl_cafile", "kafka_ssl_certfile"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, named: str, content: str | None) -> None:
    """A typing error in a path, or the wrong file, is the setting's fault and no crash."""
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    given = {named: path} if named == "kafka_ssl_cafile" else {named: path, "kafka_ssl_keyfile": path}
    secured = settings(kafka_security_protocol="SSL", **given)
    for config in (base_config, aiokafka_config):
        with pytest.raises(UsageError, match=rf"{named.upper()}={path} .*cannot be used: \S") as refused:
            config(secured)
        assert refused.value.fix


def test_without_a_broker_the_setting_is_named() -> None:
    """No client is built against a default address."""
    with pytest.raises(UsageError, match="MILLRACE_KAFKA_BOOTSTRAP is not set"):
        consumer_config(Settings())


@pytest.mark.parametrize("name", ["KafkaTCPTransport", "KafkaSSLTransport"])
def test_the_last_answer_of_a_broker_that_closes_is_heard(name: str) -> None:
    """Whoever reads late finds the answer and the end together: the one is handed on before the other is told."""
    base_config(settings())
    kind = getattr(kafka.net.manager, name)
    transport = kind.__new__(kind)
    transport._closed = False
    transport._sock, broker = socket.socketpair()
    transport._sock.setblocking(False)
    with transport._sock, broker:
        broker.sendall(b"refused")
        broker.shutdown(socket.SHUT_WR)
        assert transport._sock_recv() == (b"refused", None)
        received, error = transport._sock_recv()
    assert (received, type(error)) == (b"", kafka.errors.KafkaConnectionError)


@pytest.mark.parametrize("kind", [KafkaAdminClient, KafkaConsumer])
def test_a_client_that_finds_no_cluster_leaves_nothing_behind(kind: Any) -> None:
    """Whoever tries again for a day must not run out of threads and file descriptors."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = settings(kafka_bootstrap=f"127.0.0.1:{silent.getsockname()[1]}", dependency_wait_s=0.1)
        gc.collect()
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(kafka.errors.KafkaTimeoutError):
                connected(kind, base_config(nowhere))

        def back() -> bool:
            """As many as before, once what was closed has ended."""
            gc.collect()
            return threading.active_count() <= threads and len(os.listdir("/proc/self/fd")) <= files

        eventually(back)
