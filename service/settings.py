"""Every setting of every process: one frozen model, read once in `__main__`.

`millrace.toml` < environment (`MILLRACE_*`) < command line. A name that is not ours is refused with the nearest one
that is, because a misspelt window would otherwise run for days with the default. Secrets never appear in a repr, a log
or an error. Core code receives plain values, never this object.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, SecretStr, ValidationError, field_validator, model_validator

from contracts.errors import UsageError
from contracts.releases import ALIAS, collection_name
from contracts.telemetry import DEFAULT_PORTS, FILTERS_ON, Filter, Process
from contracts.topics import GROUP_PREFIX
from service.addresses import origins, qdrant_address, redis_address
from service.kafka_settings import ENV_PREFIX, KafkaSettings, comma_list, env_name
from service.kafka_settings import setting as _setting

__all__ = ["ENV_PREFIX", "Settings", "env_name", "load_settings", "plain"]

SETTINGS_FILE: Final = "millrace.toml"
NONE: Final = "none"
_NEVER_SHOWN: Final = ("redis_url", "qdrant_url")
_UNSET_FIXES: Final = {
    "kafka_bootstrap": "start everything with `millrace up`, or set MILLRACE_KAFKA_BOOTSTRAP=host:port",
    "redis_url": "start everything with `millrace up`, or set MILLRACE_REDIS_URL=redis://host:port/0",
    "qdrant_url": "start everything with `millrace up`, or set MILLRACE_QDRANT_URL=http://host:port",
}

LossName = Literal["softmax", "logistic", "hinge", "squared", "ranknet"]
Debias = Literal["auto", "on", "off"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]


class Settings(KafkaSettings):
    """The settings in force. A field's environment variable is `MILLRACE_` and its name in capitals."""

    redis_url: Annotated[str, AfterValidator(redis_address)] | None = _setting(
        None, "Redis as redis://host:port/db; may be emptied at any time.", repr=False
    )
    qdrant_url: Annotated[str, AfterValidator(qdrant_address)] | None = _setting(
        None, "Vector store as http://host:port.", repr=False
    )
    qdrant_api_key: SecretStr | None = _setting(None, "Key of the vector store where it asks for one.")
    qdrant_take_over: bool = _setting(
        False, "Drop another deployment's collections under our names and fill them anew; set it for one start."
    )
    topic_prefix: str = _setting(
        "", "Put before every topic, group and collection name: several shops or tests on one cluster."
    )
    partitions: int = _setting(
        4, "Of every keyed topic: the most workers that can share a topic.", unit="partitions", ge=1
    )
    replication_factor: int = _setting(
        -1, "Of every partition of the topics that are created; -1: the brokers' default. Use 3.", unit="copies", ge=-1
    )
    session_timeout_s: float = _setting(
        10,
        "A worker silent for so long loses its partitions; 10 s outlives a pause and is short for shoppers.",
        unit="s",
    )
    worker_id: str | None = _setting(
        None, "Name of this worker for static group membership: a restart within the session timeout moves nothing."
    )
    dependency_wait_s: float = _setting(
        30, "How long a start waits for Kafka, Redis and the vector store before it gives up.", unit="s", ge=0
    )
    join_window_s: float = _setting(
        600, "How long after a search its events count; covers a usual visit.", unit="s", gt=0
    )
    lateness_s: float = _setting(
        10, "How much disorder the join waits for; above the usual beacon delay.", unit="s", ge=0
    )
    join_silence_s: float = _setting(
        60,
        "How long lists wait for a join partition that says nothing; longer than a partition takes to change hands.",
        unit="s",
        gt=0,
    )
    look_ahead_s: float = _setting(
        0,
        "How much later the lists close that later_clicks and reformulations may look at; learning waits as long, so "
        "none. 10 catches all reformulations, 300 all later clicks.",
        unit="s",
        ge=0,
        le=600,
    )
    filters: str = _setting(
        ",".join(FILTERS_ON),
        "What keeps lists or products of lists out of learning, comma-separated; none for nothing. "
        "variants, later_clicks and reformulations are off: not shown to help.",
    )
    holdout_share: float = _setting(
        0,
        "Share of shoppers, and of queries, whose lists go to holdout-searches and are never learned from, so that the "
        "trainer and `millrace releases evaluate` can judge releases by them; 0 unless you want that, because each "
        "costs evidence.",
        ge=0,
        le=0.5,
    )
    freshness_window_s: float = _setting(60, "Catalogue change to searchable: the promise boards show.", unit="s", gt=0)
    refresh_window_s: float = _setting(900, "Product release to whole index refreshed.", unit="s", gt=0)
    deletions_kept_s: float = _setting(1_209_600, "How long a deletion keeps older states out.", unit="s", ge=3_600)
    audit_interval_s: float = _setting(
        86_400, "How often the leading indexer compares all of index and catalogue; 0 for never.", unit="s", ge=0
    )
    explore: str = _setting(
        "none",
        "How served lists are perturbed so that more is learned: none, noise:NATS on scores, or draws of quality.",
        pattern=r"^(none|draws|noise:\d+(\.\d+)?)$",
    )
    anchor_share: float = _setting(
        0.1,
        "Share of clients, else sessions, whom release 0 answers: with them live searches are compared. A tenth tells "
        "much and gives up little; 0: nobody.",
        ge=0,
        le=0.5,
    )
    swap_share: float = _setting(
        0.05,
        "Share of live lists whose neighbours are exchanged at random, by which clicks tell what a position is worth; "
        "it costs less than a thousandth of nDCG. 0: none.",
        ge=0,
        le=1,
    )
    interleave_share: float = _setting(
        0,
        "Share of live lists made in turns of the live and the anchor's list: it decides sooner than arms which one "
        "shoppers prefer, and shows more of the worse one. 0: none.",
        ge=0,
        le=0.5,
    )
    list_depth: int = _setting(
        50, "Products that meaning, and words as many, find for a search's pages; more cost time.", ge=10, le=1000
    )
    list_kept_s: float = _setting(
        600,
        "How long a list's pages can be asked for; as long as the join's window: a later one is late.",
        unit="s",
        gt=0,
    )
    hot_for_s: float = _setting(
        2, "How long what was found serves equal searches; short beside freshness. 0: not.", unit="s", ge=0, le=10
    )
    launch_boost_nats: float = _setting(
        0,
        "Added to a product's score on the day of its launch, fading; none: it costs relevance.",
        unit="nats",
        ge=0,
        le=3,
    )
    launch_days: float = _setting(14, "Until nothing of the launch boost is left.", unit="days", gt=0)
    priority_boost_nats: float = _setting(
        0, "Added to the score of a product of `priority` 1; none: it costs relevance.", unit="nats", ge=0, le=3
    )
    hide_no_good_match: bool = _setting(
        False, "Whether a search shows nothing if nothing matches well; off: it errs in one of a hundred."
    )
    propensity_interval_s: float = _setting(300, "Shortest event time between propensity versions.", unit="s", gt=0)
    propensity_half_life_lists: float = _setting(20_000, "Evidence fades to half in so many.", unit="lists", ge=100)
    release_interval_s: float = _setting(
        15, "Shortest time between query releases; shoppers see it within 30 s.", unit="s", gt=0
    )
    product_release_interval_s: float = _setting(
        3600, "Shortest time between product releases; each rewrites the products whose quality moved.", unit="s", gt=0
    )
    half_life_days: float = _setting(
        16, "What was clicked so long ago weighs half as much; shorter where tastes change.", unit="days", gt=0
    )
    loss: LossName = _setting(
        "softmax", "What the trainer solves: softmax (InfoNCE), logistic (DPO), hinge, squared or ranknet."
    )
    debias: Debias = _setting(
        "auto",
        "Whether showings are weighed by the chance of a look: on, off, or auto, which is on until neighbours in "
        "random order prove that less is better.",
    )
    base_model: str = _setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        "Any sentence-transformers model; small enough for a CPU.",
        min_length=1,
    )
    write_key: SecretStr | None = _setting(None, "Browser key: shop events only. No default, on purpose.")
    secret_key: SecretStr | None = _setting(None, "Server key: everything. No default, on purpose.")
    person_key: SecretStr | None = _setting(None, "HMAC-SHA256 key for client and user ids. No default, on purpose.")
    data_dir: Path = _setting(Path(".millrace"), "Checkpoints, embedded stores and logs.")
    agents: str = _setting("", "Agents that a stream worker runs, comma-separated; all of them if unset.")
    cors_origins: Annotated[str, AfterValidator(origins)] = _setting(
        "", "Origins that may call the collector from a browser, comma-separated; none."
    )
    trusted_proxies: str = _setting(
        "",
        "Networks (CIDR, comma-separated) of load balancers before the collector, whose X-Forwarded-For or Forwarded "
        "names the caller; none.",
    )
    host: str = _setting("127.0.0.1", "Address to listen on; loopback unless told otherwise.", min_length=1)
    port: int | None = _setting(None, "Port to listen on; each process has its own default.", ge=0, le=65535)
    scrape: str = _setting(
        "", "Where the page finds the other processes, name=http://host:port, comma-separated; `up` fills it in."
    )
    log_level: LogLevel = _setting("info", "Least level of our own log lines; libraries log from warning.")
    log_format: LogFormat = _setting("auto", "json, console, or auto: console on a terminal, JSON elsewhere.")

    @field_validator("replication_factor")
    @classmethod
    def _is_a_number_of_copies(cls, value: int) -> int:
        if value == 0:
            raise ValueError("at least one copy, or -1 for the brokers' default")
        return value

    @field_validator("topic_prefix")
    @classmethod
    def _fits_into_a_topic_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-zA-Z0-9._-]{0,100}", value):
            raise ValueError("only letters, digits, '.', '_' and '-', at most 100 of them")
        return value

    @field_validator("session_timeout_s")
    @classmethod
    def _is_accepted_by_brokers(cls, value: float) -> float:
        if value < 6:
            raise ValueError("the broker refuses session timeouts under 6 s")
        return value

    @field_validator("filters")
    @classmethod
    def _names_filters(cls, value: str) -> str:
        for name in () if value == NONE else comma_list(value):
            if name not in set(Filter):
                raise ValueError(f"there is no filter {name}: choose from {', '.join(Filter)}, or {NONE}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for network in comma_list(value):
            ip_network(network)
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lateness_s >= self.join_window_s:
            raise ValueError(
                f"MILLRACE_LATENESS_S={self.lateness_s:g} must be less than "
                f"MILLRACE_JOIN_WINDOW_S={self.join_window_s:g}"
            )
        if self.look_ahead_s > self.join_window_s:
            raise ValueError(
                f"MILLRACE_LOOK_AHEAD_S={self.look_ahead_s:g} must not exceed "
                f"MILLRACE_JOIN_WINDOW_S={self.join_window_s:g}: idle partitions would not wait for it"
            )
        if self.interleave_share + self.swap_share > 1:
            raise ValueError("MILLRACE_INTERLEAVE_SHARE and MILLRACE_SWAP_SHARE together exceed 1")
        return self

    def topic(self, name: str) -> str:
        """Name a topic on the cluster."""
        return f"{self.topic_prefix}{name}"

    def group(self, name: str) -> str:
        """Name a consumer group on the cluster, `join` -> `millrace-join`."""
        return f"{self.topic_prefix}{GROUP_PREFIX}{name}"

    def collection(self, product_release: int) -> str:
        """Name the collection that a product release created."""
        return f"{self.topic_prefix}{collection_name(product_release)}"

    def alias(self) -> str:
        """Name the alias under which the collection in force is found."""
        return f"{self.topic_prefix}{ALIAS}"

    def listen_port(self, process: Process | str) -> int:
        """Give the port that a process listens on."""
        return DEFAULT_PORTS[Process(process)] if self.port is None else self.port

    def cors_origin_list(self) -> tuple[str, ...]:
        """List the origins that may call the collector from a browser."""
        return tuple(comma_list(self.cors_origins))

    def trusted_proxy_list(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """List the networks whose word about a caller's address is taken."""
        return tuple(ip_network(network) for network in comma_list(self.trusted_proxies))

    def filter_set(self) -> frozenset[Filter]:
        """Give the filters that are on."""
        return frozenset() if self.filters == NONE else frozenset(map(Filter, comma_list(self.filters)))

    @property
    def join_window_ms(self) -> int:
        """The join window in the wire's unit."""
        return round(self.join_window_s * 1000)

    @property
    def lateness_ms(self) -> int:
        """The lateness in the wire's unit."""
        return round(self.lateness_s * 1000)

    def require(self, *names: str) -> tuple[str, ...]:
        """Give the named settings as plain text, secrets revealed; `UsageError` names the first that is not set."""
        values = []
        for name in names:
            if (value := getattr(self, name)) is None:
                fix = _UNSET_FIXES.get(name, f"start everything with `millrace up`, or set {env_name(name)}")
                raise UsageError(f"{env_name(name)} is not set", fix=fix)
            values.append(plain(value))
        return tuple(values)

    def brokers(self) -> list[str]:
        """List the Kafka brokers; `UsageError` if none is named."""
        return comma_list(*self.require("kafka_bootstrap"))

    def as_environ(self) -> dict[str, str]:
        """Make the environment that gives a child these settings, secrets in plain text; unset ones left out."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {env_name(name): plain(value) for name, value in values.items() if value is not None}


def load_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Settings:
    """Read the settings in force, or raise `UsageError`; an override of None was not given.

    The environment is the process's own and the folder of `millrace.toml` the working one, unless told otherwise.
    """
    from_file = _read_file((Path.cwd() if directory is None else directory) / SETTINGS_FILE)
    from_environ = _read_environ(os.environ if environ is None else environ)
    from_command_line = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name in (*from_file, *from_environ, *from_command_line):
        _refuse_unknown(name)
    try:
        return Settings(**{**from_file, **from_environ, **from_command_line})
    except ValidationError as error:
        raise _usage_error(error) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", fix="correct the line that the message names") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", fix="make it readable or remove it") from None


def _read_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Find our settings; an empty variable counts as unset, as `NAME=` in a compose file means."""
    ours = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX) and value != ""}
    return {name.removeprefix(ENV_PREFIX).lower(): value for name, value in ours.items()}


def _refuse_unknown(name: str) -> None:
    if name in Settings.model_fields:
        return
    nearest = difflib.get_close_matches(name.lower(), Settings.model_fields, n=1)
    if not nearest:
        raise UsageError(f"unknown setting {env_name(name)}", fix="remove it; docs/settings.md lists every setting")
    suggestion = env_name(nearest[0])
    raise UsageError(f"unknown setting {env_name(name)}; did you mean {suggestion}?", fix=f"rename it to {suggestion}")


def _usage_error(error: ValidationError) -> UsageError:
    """Name each wrong setting in one line, with its value unless that is a secret."""
    problems, fixes = [], []
    for problem in error.errors(include_url=False):
        text = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            problems.append(text)
            continue
        name = str(problem["loc"][0])
        shown = "" if _is_secret(name) else f"={problem['input']}"
        problems.append(f"{env_name(name)}{shown}: {text}")
        fixes.append(f"{env_name(name)}: {Settings.model_fields[name].description}")
    return UsageError("; ".join(problems), fix="; ".join(fixes) or "correct the settings that the message names")


def _is_secret(name: str) -> bool:
    return name in _NEVER_SHOWN or "SecretStr" in str(Settings.model_fields[name].annotation)


def plain(value: object) -> str:
    """Write a setting as it stands in an environment, a secret in plain text."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
