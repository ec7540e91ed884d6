"""The contracts for people and tools outside: JSON Schema 2020-12 of every message, and one AsyncAPI 3.0 document.

Both are made from the models that the services decode with, so they cannot promise anything else. What a schema cannot
say (a position that stands twice, a number too large for a topic) is refused by the models alone.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from contracts import topics
from contracts.base import SCHEMA_VERSION
from contracts.messages import MessageSpec
from contracts.topics import GROUP_PREFIX, TopicSpec
from service.machine import write_atomically
from service.settings import Settings
from streams import registry

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI_FILE: Final = "asyncapi.json"
BINDING_VERSION: Final = "0.5.0"
KEYED: Final = {"kafka": {"key": {"type": "string"}, "bindingVersion": BINDING_VERSION}}
RELEASE: Final = "release"
DEAD_LETTER: Final = "dead_letter"

SENDERS: Final[dict[str, tuple[str, ...]]] = {
    "collector": (topics.SEARCH_EVENTS, topics.CATALOG, topics.CURATED_PAIRS),
    "search": (topics.SEARCH_EVENTS,),
    "trainer": (topics.MODELS, topics.DEAD_LETTERS),
    "indexer": (topics.PRODUCT_VECTORS, topics.MODELS, topics.DEAD_LETTERS),
}
"""Who writes what, beside the agents and the shops.

For anyone are `search-events`, `catalog`, `curated-pairs` and `golden-queries`; `millrace golden` writes the last.
"""

FOLLOWERS: Final[dict[str, tuple[str, ...]]] = {
    "search": (topics.MODELS,),
    "trainer": (
        topics.MODELS,
        topics.PRODUCT_VECTORS,
        topics.ARMS_PROGRESS,
        topics.GOLDEN_QUERIES,
        topics.HOLDOUT_SEARCHES,
        topics.PROPENSITIES,
    ),
    "indexer": (topics.MODELS, topics.PRODUCT_VECTORS),
    "page": (topics.SEARCH_EVENTS, topics.MODELS),
}
"""Who reads a topic without a group: compacted ones from their beginning, and what the join has not read yet.

An agent follows its own progress besides, and the page that of every agent. The trainer reads the last two only where
lists are held out.
"""

Json = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Writes no titles beside fields: they only repeat the names."""

    schema_dialect = DIALECT

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False


def message_schema(spec: MessageSpec) -> Json:
    """Make the JSON Schema of one message, for validating what is about to be sent."""
    schema = spec.model.model_json_schema(mode="validation", schema_generator=_Generator)
    return {"$schema": DIALECT, "$id": f"urn:millrace:v{SCHEMA_VERSION}:{spec.name}", **schema}


def schema_file(spec: MessageSpec) -> str:
    """Name the file of a message's schema."""
    return f"{spec.name}.schema.json"


def asyncapi() -> Json:
    """Make the AsyncAPI document: every topic with its key, partitions and clean-up, its writers and its readers."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Millrace",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": "Kafka topics and messages of Millrace. A deployment puts MILLRACE_TOPIC_PREFIX before each "
            "topic and group. Keys are raw UTF-8 bytes, partitioned by murmur2. Unknown fields are kept.",
        },
        "defaultContentType": "application/json",
        "channels": {spec.name: _channel(spec) for spec in registry.all_topics()},
        "operations": {**_sending(), **_receiving()},
        "components": {
            "messages": {**{spec.name: _message(spec) for spec in registry.all_messages()}, **_messages_without_json()}
        },
    }


def export(folder: Path) -> list[Path]:
    """Write every schema and the AsyncAPI document; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {schema_file(spec): message_schema(spec) for spec in registry.all_messages()} | {
        ASYNCAPI_FILE: asyncapi()
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / name, text.encode())
    return [folder / name for name in documents]


def _channel(topic: TopicSpec) -> Json:
    names = _messages_on(topic.name)
    written = names or any(topic.name in agent.written_topics for agent in registry.AGENTS)
    configuration: Json = {"cleanup.policy": [topic.cleanup], "max.message.bytes": topic.max_message_bytes}
    if topic.cleanup == "delete":
        configuration["retention.ms"] = topic.retention_ms
    binding = {
        "topic": topic.name,
        "partitions": Settings.model_fields["partitions"].default if topic.keyed else 1,
        "topicConfiguration": configuration,
        "bindingVersion": BINDING_VERSION,
    }
    channel: Json = {
        "address": topic.name,
        "description": f"Key: {topic.key}." + ("" if written else " Reserved: nothing writes here yet."),
        "bindings": {"kafka": binding},
    }
    if names:
        channel["messages"] = {name: {"$ref": f"#/components/messages/{name}"} for name in names}
    return channel


def _messages_on(topic: str) -> list[str]:
    if topic == topics.DEAD_LETTERS:
        return [DEAD_LETTER]
    names = [spec.name for spec in registry.all_messages() if topic in spec.topics]
    return [RELEASE if name == "release_manifest" else name for name in names]


def _message(spec: MessageSpec) -> Json:
    summary = (spec.model.__doc__ or "").split("\n")[0]
    return {
        "name": spec.name,
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"./{schema_file(spec)}"},
        "bindings": KEYED,
    }


def _messages_without_json() -> Json:
    """The two messages whose value is not JSON of ours: a release's file, and whatever was set aside."""
    header_names = [str(header) for header in topics.AsideHeader]
    return {
        RELEASE: {
            "name": RELEASE,
            "summary": "A release: safetensors whose metadata entry `manifest` is a release_manifest; null removes it.",
            "contentType": "application/octet-stream",
            "payload": {"type": ["string", "null"], "format": "binary"},
            "bindings": KEYED,
        },
        DEAD_LETTER: {
            "name": DEAD_LETTER,
            "summary": "A record that was set aside, value and key as they came, or empty if they were too large.",
            "contentType": "application/octet-stream",
            "headers": {
                "type": "object",
                "required": header_names,
                "properties": {name: {"type": "string"} for name in header_names},
            },
            "payload": {"type": ["string", "null"], "format": "binary"},
            "bindings": KEYED,
        },
    }


def _sending() -> Json:
    senders = SENDERS | {agent.name: agent.written_topics for agent in registry.AGENTS}
    return {
        f"{sender}-writes-{topic}": {"action": "send", "channel": {"$ref": f"#/channels/{topic}"}}
        for sender, written in senders.items()
        for topic in written
    }


def _receiving() -> Json:
    """An operation for each topic that a consumer group reads, or that a process follows without one."""
    in_groups: Json = {}
    for group, read in registry.group_topics().items():
        named = {"type": "string", "enum": [f"{GROUP_PREFIX}{group}"]}
        binding = {"kafka": {"groupId": named, "bindingVersion": BINDING_VERSION}}
        in_groups |= {f"{group}-reads-{topic}": {**_receive(topic), "bindings": binding} for topic in read}
    agents = {agent.name: (agent.progress_topic, *agent.follows) for agent in registry.AGENTS}
    progress = (agent.progress_topic for agent in registry.AGENTS)
    followers = {**FOLLOWERS, **agents, "page": (*FOLLOWERS["page"], *progress)}
    following = {
        f"{follower}-follows-{topic}": _receive(topic) for follower, read in followers.items() for topic in read
    }
    return {**in_groups, **following}


def _receive(topic: str) -> Json:
    return {"action": "receive", "channel": {"$ref": f"#/channels/{topic}"}}
