"""How to reach Kafka and log in to it: the settings that every process needs first, and how a setting is declared."""

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

ENV_PREFIX: Final = "MILLRACE_"
_PASSWORD: Final = ("kafka_sasl_username", "kafka_sasl_password")
_TOKEN_FILE: Final = ("kafka_sasl_oauth_token_file",)
_CLIENT: Final = ("kafka_sasl_oauth_token_url", "kafka_sasl_oauth_client_id", "kafka_sasl_oauth_client_secret")

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


def setting(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """Make a field of its default and its meaning with the reason for the default."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit}, **limits)


def env_name(field: str) -> str:
    """Return a setting's environment variable.

    >>> env_name("join_window_s")
    'MILLRACE_JOIN_WINDOW_S'
    """
    return ENV_PREFIX + field.upper()


def comma_list(value: str) -> list[str]:
    """Split what is given as a comma-separated list.

    >>> comma_list("a, b,")
    ['a', 'b']
    """
    return [part.strip() for part in value.split(",") if part.strip()]


class KafkaSettings(BaseModel):
    """Brokers and login. A field's environment variable is `MILLRACE_` and its name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    kafka_bootstrap: str | None = setting(
        None, "Kafka brokers as host:port, comma-separated; no default, so that nothing joins a cluster by accident."
    )
    kafka_security_protocol: SecurityProtocol = setting("PLAINTEXT", "How to talk to Kafka; plain on one machine.")
    kafka_sasl_mechanism: SaslMechanism = setting("PLAIN", "How to log in where the protocol is SASL_*.")
    kafka_sasl_username: str | None = setting(None, "Login name where the mechanism is PLAIN or SCRAM.")
    kafka_sasl_password: SecretStr | None = setting(None, "Login password where the mechanism is PLAIN or SCRAM.")
    kafka_sasl_oauth_token_url: str | None = setting(
        None, "Where OAUTHBEARER gets its tokens (client credentials), as https://host/path."
    )
    kafka_sasl_oauth_client_id: str | None = setting(None, "Client id at the token URL.")
    kafka_sasl_oauth_client_secret: SecretStr | None = setting(None, "Client secret at the token URL.")
    kafka_sasl_oauth_scope: str | None = setting(None, "Scope asked for at the token URL, where it wants one.")
    kafka_sasl_oauth_token_file: Path | None = setting(
        None, "File that holds an OAUTHBEARER token instead; read again at every login."
    )
    kafka_ssl_cafile: Path | None = setting(None, "CA certificates (PEM) for SSL; the system's where unset.")
    kafka_ssl_certfile: Path | None = setting(None, "Client certificate (PEM) where the brokers ask for one.")
    kafka_ssl_keyfile: Path | None = setting(None, "Private key (PEM) of the client certificate.")

    @field_validator("kafka_bootstrap")
    @classmethod
    def _names_hosts_and_ports(cls, value: str | None) -> str | None:
        for server in [] if value is None else comma_list(value) or [""]:
            host, _, port = server.rpartition(":")
            if not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535:
                raise ValueError(f"{server!r} is not host:port")
        return value

    @field_validator("kafka_sasl_oauth_token_url")
    @classmethod
    def _is_a_web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+\S*", value):
            raise ValueError("is not https://host/path")
        return value

    @model_validator(mode="after")
    def _log_in(self) -> Self:
        if problem := self._login_problem():
            raise ValueError(problem)
        if (self.kafka_ssl_certfile is None) != (self.kafka_ssl_keyfile is None):
            raise ValueError("MILLRACE_KAFKA_SSL_CERTFILE and MILLRACE_KAFKA_SSL_KEYFILE go together")
        return self

    def _login_problem(self) -> str | None:
        """Say what is missing for the login to Kafka, or given and of no use."""
        given = tuple(name for name in (*_PASSWORD, *_TOKEN_FILE, *_CLIENT) if getattr(self, name) is not None)
        if not self.kafka_security_protocol.startswith("SASL_"):
            unused = ", ".join(map(env_name, given))
            return f"{unused} is unused unless MILLRACE_KAFKA_SECURITY_PROTOCOL is SASL_*" if given else None
        ways = (_TOKEN_FILE, _CLIENT) if self.kafka_sasl_mechanism == "OAUTHBEARER" else (_PASSWORD,)
        if given in ways:
            return None
        needed = ", or ".join(" and ".join(map(env_name, way)) for way in ways)
        return f"MILLRACE_KAFKA_SASL_MECHANISM={self.kafka_sasl_mechanism} needs {needed}, and no other login"
