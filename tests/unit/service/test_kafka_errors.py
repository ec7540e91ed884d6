"""Kafka's errors, as operators read them."""

import aiokafka.errors
import kafka.errors
import pytest

from contracts.errors import DependencyDown, MillraceError, TransientError, UsageError
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", worker_id="w1", replication_factor=3)


def translated(error: Exception) -> MillraceError:
    """Return what a Kafka error becomes inside the context manager."""
    with pytest.raises(MillraceError) as caught, translate_kafka_errors(SETTINGS):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (kafka.errors.InvalidSessionTimeoutError(), UsageError, "MILLRACE_SESSION_TIMEOUT_S=10"),
        (aiokafka.errors.InvalidSessionTimeoutError(), UsageError, "MILLRACE_SESSION_TIMEOUT_S=10"),
        (kafka.errors.TopicAuthorizationFailedError("catalog"), UsageError, "does not allow"),
        (aiokafka.errors.GroupAuthorizationFailedError("join"), UsageError, "does not allow"),
        (kafka.errors.SaslAuthenticationFailedError(), UsageError, "refuses the login"),
        (aiokafka.errors.AuthenticationFailedError(), UsageError, "refuses the login"),
        (
            kafka.errors.KafkaError("InitProducerIdResponse: [Error 31] ClusterAuthorizationFailedError"),
            UsageError,
            "does not allow",
        ),
        (
            kafka.errors.KafkaConnectionError("Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
            UsageError,
            "no trusted connection to Kafka",
        ),
        (kafka.errors.InvalidReplicationFactorError(), UsageError, "MILLRACE_REPLICATION_FACTOR=3"),
        (kafka.errors.FencedInstanceIdError(), UsageError, "MILLRACE_WORKER_ID=w1"),
        (aiokafka.errors.KafkaError("FencedInstanceIdError()"), UsageError, "MILLRACE_WORKER_ID=w1"),
        (kafka.errors.MessageSizeTooLargeError(), UsageError, "larger than its topic allows"),
        (kafka.errors.KafkaConfigurationError("nope"), UsageError, "settings are refused"),
        (kafka.errors.UnknownTopicOrPartitionError("catalog"), DependencyDown, "does not know a topic"),
        (aiokafka.errors.UnknownTopicOrPartitionError(), DependencyDown, "does not know a topic"),
        (kafka.errors.CommitFailedError(), TransientError, "to another worker"),
        (aiokafka.errors.CommitFailedError(), TransientError, "to another worker"),
        (kafka.errors.KafkaTimeoutError("slow"), DependencyDown, "Kafka does not answer at broker:9092"),
        (kafka.errors.KafkaTimeoutError("Failed to update metadata"), DependencyDown, "or lacks a topic"),
        (aiokafka.errors.KafkaConnectionError("gone"), DependencyDown, "Kafka does not answer at broker:9092"),
        (kafka.errors.NotEnoughReplicasError(), DependencyDown, "NotEnoughReplicasError"),
    ],
)
def test_each_error_says_what_and_how_to_fix_it(error: Exception, kind: type[MillraceError], says: str) -> None:
    """Both libraries' errors become one line of ours, with the setting to blame and a fix."""
    meaning = translated(error)
    assert type(meaning) is kind
    assert says in meaning.message
    assert "\n" not in meaning.message
    if kind is not TransientError:
        assert meaning.fix


def test_other_errors_pass_untouched() -> None:
    """Our own errors and everybody else's are not Kafka's."""
    with pytest.raises(KeyError), translate_kafka_errors(SETTINGS):
        raise KeyError("offsets")
    assert expected_kafka_error(UsageError("no"), SETTINGS) is None


async def test_it_works_around_awaits() -> None:
    """The same context manager serves asyncio code."""
    with pytest.raises(DependencyDown), translate_kafka_errors(SETTINGS):
        await refused()


async def refused() -> None:
    """Fail as aiokafka does when no broker listens."""
    raise aiokafka.errors.KafkaConnectionError("refused")


def test_a_long_error_is_cut() -> None:
    """A dump of a whole request is no line for people."""
    assert len(translated(kafka.errors.KafkaTimeoutError("x" * 5000)).message) < 400


def test_a_retry_that_follows_the_translation_keeps_its_chain() -> None:
    """An error already translated is not translated again."""
    with (
        pytest.raises(DependencyDown, match="slow"),
        translate_kafka_errors(SETTINGS),
        translate_kafka_errors(SETTINGS),
    ):
        raise kafka.errors.KafkaTimeoutError("slow")
