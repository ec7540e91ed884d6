"""A Kafka that asks who is there and what he may do: SASL on one port, everything allowed on the other.

Users log in by PLAIN with the password `NAME-secret`, or by OAUTHBEARER with an unsigned token that names them. Who may
do what is decided by the broker's own authorizer; nobody may do anything until a rule says so.
"""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

from deploy.local.kafka import Node, broker_argv, kafka_problem, prepare, require_java
from service.kafka import admin
from service.settings import Settings
from tests.support.poll import eventually
from tests.support.ports import free_port

USERS = ("collector", "search", "streams", "trainer", "indexer", "page")
_LOGIN_MODULES = "org.apache.kafka.common.security"


def password(user: str) -> str:
    """Return a user's password."""
    return f"{user}-secret"


def unsigned_token(user: str, *, lifetime_s: float = 3600.0) -> str:
    """Return a token that a broker without keys of a token server takes: JSON without a signature (RFC 7519, 6)."""
    now_s = time.time()
    parts = ({"alg": "none"}, {"sub": user, "iat": now_s, "exp": now_s + lifetime_s})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    return f"{'.'.join(encoded)}."


@dataclass(frozen=True, slots=True)
class SecuredKafka:
    """Addresses of a running broker.

    Args:
        open_bootstrap: where nobody is asked.
        bootstrap: where everybody logs in.
    """

    open_bootstrap: str
    bootstrap: str

    def allow(self, user: str, *rules: tuple[str, str, str, str]) -> None:
        """Allow a user operations: (operation, kind of resource, its name, LITERAL or PREFIXED)."""
        acls = [
            ACL(
                principal=f"User:{user}",
                host="*",
                operation=ACLOperation[operation],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(ResourceType[kind], name, ACLResourcePatternType[pattern]),
            )
            for operation, kind, name, pattern in rules
        ]
        with admin(Settings(kafka_bootstrap=self.open_bootstrap)) as client:
            result: Any = client.create_acls(acls)
        assert not result["failed"], result

    def login(self, user: str) -> dict[str, str]:
        """Return the settings that log a user in by password."""
        return {
            "kafka_bootstrap": self.bootstrap,
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_username": user,
            "kafka_sasl_password": password(user),
        }

    def token_login(self, **source: str) -> dict[str, str]:
        """Return the settings that log in by tokens from a source: its settings without `kafka_sasl_oauth_`."""
        return {
            "kafka_bootstrap": self.bootstrap,
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_mechanism": "OAUTHBEARER",
            **{f"kafka_sasl_oauth_{name}": value for name, value in source.items()},
        }


def _properties(node: Node, port: int) -> dict[str, str]:
    """Return what makes a node ask; the open listener's users are nobody, and nobody may do everything."""
    users = " ".join(f'user_{user}="{password(user)}"' for user in USERS)
    address = f"127.0.0.1:{node.port}"
    return {
        "listeners": f"PLAINTEXT://{address},CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{address},CLIENTS://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.clients.sasl.enabled.mechanisms": "PLAIN,OAUTHBEARER",
        "listener.name.clients.plain.sasl.jaas.config": (f"{_LOGIN_MODULES}.plain.PlainLoginModule required {users};"),
        "listener.name.clients.oauthbearer.sasl.jaas.config": (
            f"{_LOGIN_MODULES}.oauthbearer.OAuthBearerLoginModule required;"
        ),
        "listener.name.clients.oauthbearer.sasl.server.callback.handler.class": (
            f"{_LOGIN_MODULES}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
        ),
    }


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Run a broker as long as the block lasts.

    Args:
        folder: an empty folder for its data.
    """
    port, secured_port, controller_port = free_port(), free_port(), free_port()
    node = Node(1, port, controller_port, folder / "node-1")
    java = require_java()
    prepare([node], java=java, extra=_properties(node, secured_port))
    with (folder / "kafka.log").open("wb") as log:
        process = subprocess.Popen(broker_argv(node, brokers=1, java=java), stdout=log, stderr=log)
    running = SecuredKafka(f"127.0.0.1:{port}", f"127.0.0.1:{secured_port}")
    try:
        settings = Settings(kafka_bootstrap=running.open_bootstrap)
        eventually(lambda: process.poll() is not None or kafka_problem(settings) is None, timeout_s=60.0)
        assert process.poll() is None, (folder / "kafka.log").read_text(encoding="utf-8")
        yield running
    finally:
        process.terminate()
        process.wait(30)
