"""A Kafka that asks who is there: every way to log in, with both clients, and each process with no right too many."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaConsumer, KafkaProducer
from structlog.testing import capture_logs
from typing_extensions import override

from contracts.errors import UsageError
from contracts.telemetry import Process
from contracts.topics import CATALOG
from service.kafka import (
    OutgoingRecord,
    admin,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    consumer_config,
    ensure_topics,
    keep_joining,
    produce_all,
    producer_config,
    translate_kafka_errors,
)
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.e2e.shop_site import ShopSite, product
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.qdrant_process import QdrantProcess
from tests.support.reference import rights
from tests.support.secured_kafka import SecuredKafka, password, secured_kafka, unsigned_token
from tests.support.token_server import TokenServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 180.0
"""Long, for a machine that does other things, too."""
USER = "trainer"
"""Of the tests that are about the login alone; may write to `catalog` and read it."""


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """Give a Kafka that asks, to all tests of this module."""
    with secured_kafka(tmp_path_factory.mktemp("secured-kafka")) as running:
        yield running


@pytest.fixture
def shop(kafka: SecuredKafka, settings: SettingsFactory) -> SettingsFactory:
    """Give a factory of settings of a shop whose topics exist; the user may use its catalogue."""
    ensure_topics(settings(kafka_bootstrap=kafka.open_bootstrap, partitions=1))

    def make(**login: Any) -> Settings:
        """Return the settings of one process of the shop."""
        return settings(**{"partitions": 1, "dependency_wait_s": 10, **login})

    prefix = settings().topic_prefix
    kafka.allow(
        USER,
        ("DESCRIBE", "TOPIC", prefix, "PREFIXED"),
        *((operation, "TOPIC", f"{prefix}{CATALOG}", "LITERAL") for operation in ("READ", "WRITE")),
        ("READ", "GROUP", prefix, "PREFIXED"),
    )
    wait_for_rights(make(**kafka.login(USER)))
    return make


def wait_for_rights(settings: Settings) -> None:
    """Wait until a user sees the topics: brokers learn of rights a moment after they were granted."""

    def seen() -> bool:
        """Return whether the topics are there for this user."""
        with admin(settings) as client:
            return any(name.startswith(settings.topic_prefix) for name in client.list_topics())

    eventually(seen, timeout_s=30)


def with_kafka_python(settings: Settings, value: bytes) -> list[bytes]:
    """Write a record and read the topic in a group."""
    name = settings.topic(CATALOG)
    with translate_kafka_errors(settings), KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, [OutgoingRecord(name, value, b"k")])
    with KafkaConsumer(name, **consumer_config(settings, f"python-{value.decode()}")) as consumer:
        found: list[bytes] = []

        def complete() -> bool:
            """Return whether the value has come."""
            keep_joining(consumer)
            found.extend(record.value for records in consumer.poll(200).values() for record in records)
            return value in found

        eventually(complete, timeout_s=30)
    return found


def with_aiokafka(settings: Settings, value: bytes) -> list[bytes]:
    """Do the same with the other library."""

    async def both() -> list[bytes]:
        """Write and read."""
        name = settings.topic(CATALOG)
        async with AIOKafkaProducer(**aiokafka_producer_config(settings)) as producer:
            await producer.send_and_wait(name, value, key=b"k")
        found: list[bytes] = []
        group = aiokafka_consumer_config(settings, f"aio-{value.decode()}")
        async with AIOKafkaConsumer(name, **group) as consumer, asyncio.timeout(30):
            while value not in found:
                fetched = await consumer.getmany(timeout_ms=200)
                found += [record.value for records in fetched.values() for record in records]
        return found

    return asyncio.run(both())


CLIENTS = pytest.mark.parametrize("client", [with_kafka_python, with_aiokafka])
Client = Callable[[Settings, bytes], list[bytes]]


@CLIENTS
def test_a_password_opens(client: Client, kafka: SecuredKafka, shop: SettingsFactory) -> None:
    """SASL/PLAIN, for producers and members of a group alike."""
    assert b"by-password" in client(shop(**kafka.login(USER)), b"by-password")


@CLIENTS
def test_a_token_out_of_a_file_opens(
    client: Client, kafka: SecuredKafka, shop: SettingsFactory, tmp_path: Path
) -> None:
    """SASL/OAUTHBEARER with a token that a helper keeps in a file."""
    (tmp_path / "token").write_text(f"{unsigned_token(USER)}\n")
    login = kafka.token_login(token_file=str(tmp_path / "token"))
    assert b"by-file" in client(shop(**login), b"by-file")


@CLIENTS
def test_a_token_from_a_token_url_opens(client: Client, kafka: SecuredKafka, shop: SettingsFactory) -> None:
    """SASL/OAUTHBEARER with client credentials; all clients of the process share the token."""
    with TokenServer() as tokens:
        tokens.body = f'{{"access_token":"{unsigned_token(USER)}","expires_in":3600}}'
        login = kafka.token_login(token_url=tokens.url, client_id=USER, client_secret=password(USER))
        assert b"by-url" in client(shop(**login), b"by-url")
        assert len(tokens.asked) == 1


class ShortTokens(TokenServer):
    """A token server whose tokens live for two seconds."""

    @override
    def answer(self) -> str:
        """Return a token that is about to end."""
        return f'{{"access_token":"{unsigned_token(USER, lifetime_s=2)}","expires_in":2}}'


@CLIENTS
def test_work_goes_on_over_the_end_of_tokens(client: Client, kafka: SecuredKafka, shop: SettingsFactory) -> None:
    """The broker ends each connection with its token; both clients come back with the next one."""
    with ShortTokens() as tokens:
        login = kafka.token_login(token_url=tokens.url, client_id=USER, client_secret=password(USER))
        goes_on = writes_on if client is with_kafka_python else writes_on_with_aiokafka
        goes_on(shop(**login), lambda: len(tokens.asked) >= 4)


def writes_on(settings: Settings, done: Callable[[], bool]) -> None:
    """Write one record after the other with one producer."""
    with KafkaProducer(**producer_config(settings)) as producer:
        record = [OutgoingRecord(settings.topic(CATALOG), b"{}", b"k")]
        eventually(lambda: produce_all(producer, record) and done(), timeout_s=60, interval_s=0.1)


def writes_on_with_aiokafka(settings: Settings, done: Callable[[], bool]) -> None:
    """Do the same with the other library."""

    async def write() -> None:
        """Write until it is done."""
        async with AIOKafkaProducer(**aiokafka_producer_config(settings)) as producer, asyncio.timeout(60):
            while not done():
                await producer.send_and_wait(settings.topic(CATALOG), b"{}", key=b"k")
                await asyncio.sleep(0.1)

    asyncio.run(write())


def test_a_refused_login_is_told_as_such(kafka: SecuredKafka, shop: SettingsFactory, tmp_path: Path) -> None:
    """A wrong password and a token that has ended are settings to correct, not a Kafka that is away."""
    (tmp_path / "token").write_text(unsigned_token(USER, lifetime_s=-60))
    for login in (
        {**kafka.login(USER), "kafka_sasl_password": "wrong"},
        kafka.token_login(token_file=str(tmp_path / "token")),
    ):
        with pytest.raises(UsageError, match="Kafka refuses the login") as caught:
            ensure_topics(shop(**login))
        assert "MILLRACE_KAFKA_SASL_" in caught.value.fix


def test_without_the_right_to_see_configurations_a_process_starts(kafka: SecuredKafka, shop: SettingsFactory) -> None:
    """It says which right is missing, and goes on."""
    with capture_logs() as lines:
        ensure_topics(shop(**kafka.login(USER)))
    (line,) = [line for line in lines if line["event"] == "topic_differs"]
    assert "DescribeConfigs" in line["fix"]


def test_a_right_that_is_missing_is_named(kafka: SecuredKafka, shop: SettingsFactory) -> None:
    """Both clients say what Kafka does not allow."""
    login = shop(**kafka.login("search"))
    with pytest.raises(UsageError, match="Kafka does not allow this"):
        ensure_topics(login)
    with pytest.raises(UsageError, match="Kafka does not allow this"):
        with_kafka_python(login, b"no")


class Running:
    """The processes of a deployment, each under a login of its own."""

    def __init__(self, kafka: SecuredKafka, shop: SettingsFactory, folder: Path, **common: Any) -> None:
        self._kafka = kafka
        self._shop = shop
        self._folder = folder
        self._common = common
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}

    def start(self, name: str, module: str) -> None:
        """Start a process that may do what the documentation says it must be allowed, and nothing else."""
        settings = self._shop(**{**self._kafka.login(name), **self._common, "port": free_port()})
        own, prefix = rights()[name], settings.topic_prefix
        self._kafka.allow(
            name,
            ("DESCRIBE", "TOPIC", prefix, "PREFIXED"),
            *(("READ", "TOPIC", settings.topic(topic), "LITERAL") for topic in own.reads),
            *(("WRITE", "TOPIC", settings.topic(topic), "LITERAL") for topic in own.writes),
            *(("READ", "GROUP", f"{prefix}{group}", "LITERAL") for group in own.groups),
            *([("DESCRIBE", "GROUP", prefix, "PREFIXED")] if name == Process.PAGE else []),
        )
        wait_for_rights(settings)
        with (self._folder / f"{name}.log").open("wb") as log:
            environ = {**os.environ, **settings.as_environ()}
            command = [sys.executable, "-m", module]
            self._processes[name] = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=ROOT)
        self.urls[name] = f"http://127.0.0.1:{settings.port}"

    def wait_ready(self, name: str) -> None:
        """Wait until a process is ready; what it says instead is in the failure."""
        said = ["nothing"]

        def ready() -> bool:
            """Return whether it is ready; that it ended is a failure, not a wait."""
            assert self._processes[name].poll() is None, self.log(name)
            try:
                answer = httpx.get(f"{self.urls[name]}/ready", timeout=5)
            except httpx.TransportError:
                return False
            said.append(answer.text)
            return answer.is_success

        try:
            eventually(ready, timeout_s=READY_TIMEOUT_S, what=f"{name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{said[-1]}\n{self.log(name)}") from error

    def log(self, name: str) -> str:
        """Return what a process logged."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def end(self) -> None:
        """Leave no process behind."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


@pytest.mark.timeout(900)
def test_each_process_works_with_the_rights_that_are_documented(
    kafka: SecuredKafka,
    settings: SettingsFactory,
    redis_url: str,
    qdrant: QdrantProcess,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    """From a product and a click to the release that learned from it, with a user for each process."""
    ensure_topics(settings(kafka_bootstrap=kafka.open_bootstrap, partitions=1))
    windows = {"join_window_s": 2, "lateness_s": 0.5, "release_interval_s": 2}
    servers = {"redis_url": redis_url, "qdrant_url": qdrant.url, "base_model": str(model_folder), "partitions": 1}
    running = Running(kafka, settings, tmp_path, **windows, **servers)
    try:
        for name, module in (
            ("indexer", "indexer"), ("trainer", "trainer"), ("streams", "streams"),
            ("collector", "streams.collector"), ("search", "indexer.search"), ("page", "millrace.page"),
        ):  # fmt: skip
            running.start(name, module)
            running.wait_ready(name)
        write, secret = settings().require("write_key", "secret_key")
        site = ShopSite(running.urls["collector"], running.urls["search"], write_key=write, secret_key=secret)
        site.products([product(number, f"{colour} fridge") for number, colour in enumerate(("red", "blue", "small"))])
        eventually(lambda: site.search("fridge")["total"] == 3, timeout_s=60, what="three products")

        sessions = (f"k{number}" for number in count())

        def learned() -> bool:
            """Click what is last, as another shopper each time, and return whether a release has come of it."""
            session = next(sessions)
            answer = site.search("fridge", impression="server", session=session)
            site.click(answer, answer["results"][-1]["product_id"], session)
            return bool(answer["query_release"] >= 1)

        eventually(learned, timeout_s=90, interval_s=0.5, what="a release that learned from clicks")
        view = eventually(lambda: httpx.get(f"{running.urls['page']}/api/snapshot").json(), what="the page's view")
        assert view["trouble"] is None
        site.close()
    finally:
        running.end()
