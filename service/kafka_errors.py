"""What Kafka's errors mean to an operator: one clear line with the fix, for kafka-python and aiokafka alike.

Both libraries have a class of the same name for most broker answers but share none, so errors are told apart by the
names of their classes; that also spares each process the import of the library it does not use. aiokafka puts some
answers into the text of a general error: there the name is looked for in the text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from contracts.errors import DependencyDown, MillraceError, TransientError, UsageError
from service.settings import Settings

_LOGIN: Final = frozenset(
    {
        "SaslAuthenticationFailed",
        "SaslAuthenticationFailedError",
        "AuthenticationFailedError",
        "AuthenticationMethodNotSupported",
        "UnsupportedSaslMechanismError",
        "IllegalSaslStateError",
    }
)
_TLS: Final = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
_LOST_GROUP: Final = frozenset(
    {"CommitFailedError", "IllegalGenerationError", "UnknownMemberIdError", "RebalanceInProgressError"}
)
_SAME_WORKER: Final = frozenset({"FencedInstanceIdError", "FencedInstanceId", "UnreleasedInstanceIdError"})
_TOO_LARGE: Final = frozenset({"MessageSizeTooLargeError", "RecordListTooLargeError", "RecordTooLargeError"})
_CONFIGURATION: Final = frozenset({"KafkaConfigurationError", "IllegalArgumentError", "UnsupportedCodecError"})


@contextmanager
def translate_kafka_errors(settings: Settings) -> Iterator[None]:
    """Turn the Kafka errors of the block into ours, each with its fix."""
    try:
        yield
    except Exception as error:
        translated = expected_kafka_error(error, settings)
        if translated is None:
            raise
        raise translated from error


def expected_kafka_error(error: BaseException, settings: Settings) -> MillraceError | None:
    """Say what an error of a Kafka client means; None if it is not one."""
    if not any(base.__module__.split(".")[0] in {"kafka", "aiokafka"} for base in type(error).__mro__):
        return None
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"UnknownTopicOrPartitionError", "UnknownTopicIdError"}:
        return DependencyDown(
            f"Kafka does not know a topic: {_text(error)}", fix="`millrace up` or a restart of any service creates it"
        )
    if names & _LOST_GROUP:
        return TransientError(f"the group gave its partitions to another worker: {_text(error)}")
    return _refused(names, error, settings) or _no_answer(error, settings)


def _refused(names: set[str], error: BaseException, settings: Settings) -> MillraceError | None:
    if "InvalidSessionTimeoutError" in names:
        return UsageError(
            f"Kafka refuses the session timeout MILLRACE_SESSION_TIMEOUT_S={settings.session_timeout_s:g}",
            fix="set it between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
        )
    if any("AuthorizationFailed" in name for name in (*names, str(error))):
        return UsageError(
            f"Kafka does not allow this: {_text(error)}",
            fix="grant the user that right: docs/operations.md lists what each process needs",
        )
    if names & _LOGIN:
        return UsageError(
            f"Kafka refuses the login: {_text(error)}",
            fix="correct MILLRACE_KAFKA_SECURITY_PROTOCOL and MILLRACE_KAFKA_SASL_*",
        )
    if "InvalidReplicationFactorError" in names:
        return UsageError(
            f"Kafka has fewer brokers than MILLRACE_REPLICATION_FACTOR={settings.replication_factor}",
            fix="lower it, or the brokers' default.replication.factor if it is -1; or start more brokers",
        )
    if names & _SAME_WORKER or any(name in str(error) for name in _SAME_WORKER):
        return UsageError(
            f"another process holds MILLRACE_WORKER_ID={settings.worker_id}",
            fix="give each worker of a group a MILLRACE_WORKER_ID of its own",
        )
    if names & _TOO_LARGE:
        return UsageError(
            f"a record is larger than its topic allows: {_text(error)}", fix="raise the topic's max.message.bytes"
        )
    if names & _CONFIGURATION:
        return UsageError(f"Kafka client settings are refused: {_text(error)}", fix="correct MILLRACE_KAFKA_*")
    return None


def _no_answer(error: BaseException, settings: Settings) -> MillraceError:
    where = "" if settings.kafka_bootstrap is None else f" at {settings.kafka_bootstrap}"
    if any(problem in str(error) for problem in _TLS):
        return UsageError(
            f"no trusted connection to Kafka: {_text(error)}",
            fix="correct MILLRACE_KAFKA_SECURITY_PROTOCOL and MILLRACE_KAFKA_SSL_*",
        )
    if "update metadata" in str(error):
        return DependencyDown(
            f"Kafka{where} does not answer or lacks a topic ({_text(error)})",
            fix="start it (`millrace up` does); if it runs, a restart of any service creates missing topics",
        )
    return DependencyDown(
        f"Kafka does not answer{where} ({_text(error)})",
        fix="start it (`millrace up` does), or correct MILLRACE_KAFKA_BOOTSTRAP and MILLRACE_KAFKA_SECURITY_PROTOCOL",
    )


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
