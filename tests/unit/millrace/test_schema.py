"""The published schemas: as the models are now, valid by their own standards, and of one mind with the models."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from contracts.messages import MESSAGE_BY_NAME, MESSAGES, MessageSpec
from millrace.schema import ASYNCAPI_FILE, asyncapi, export, message_schema
from streams.registry import all_topics, group_topics
from tests.support.examples import Example, fields_of, invalid_examples, valid_examples

COMMITTED = Path(__file__).parents[3] / "docs" / "schemas"
REFUSED_BY_SCHEMA = [example for example in invalid_examples() if example.is_json]


def complaints(example: Example, content: Any = None) -> list[str]:
    """Return what JSON Schema says against an example, or against other content of its kind."""
    validator = Draft202012Validator(message_schema(example.spec))
    return [error.message for error in validator.iter_errors(content or example.content)]


def references(value: Any) -> Iterator[str]:
    """Yield every `$ref` in a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_committed_files_are_what_the_models_say_now(tmp_path: Path) -> None:
    """After a change of a contract, `millrace schema export` must be run and its difference read."""
    written = {path.name: path.read_text(encoding="utf-8") for path in export(tmp_path)}
    committed = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.glob("*.json")}
    assert committed.keys() == written.keys(), "run `millrace schema export`"
    assert committed == written, "run `millrace schema export` and read the difference"


@pytest.mark.parametrize("spec", MESSAGES, ids=lambda spec: spec.name)
def test_a_schema_is_valid_json_schema_and_describes_its_message(spec: MessageSpec) -> None:
    """Draft 2020-12, open for unknown fields, with a sentence and an identity."""
    schema = message_schema(spec)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:millrace:v1:{spec.name}"
    assert schema["additionalProperties"] is True
    assert schema["description"]


@pytest.mark.parametrize("example", valid_examples(), ids=lambda example: example.path)
def test_a_schema_accepts_every_valid_example(example: Example) -> None:
    """Who validates before sending is never refused what the services take."""
    assert complaints(example) == []


@pytest.mark.parametrize("example", REFUSED_BY_SCHEMA, ids=lambda example: example.path)
def test_a_schema_refuses_what_the_model_refuses_as_far_as_it_can(example: Example) -> None:
    """The examples that only the model knows are marked as such, and no others are."""
    assert bool(complaints(example)) is not example.only_the_model_knows


@pytest.mark.parametrize("example", valid_examples(), ids=lambda example: example.path)
def test_a_schema_lets_every_optional_field_be_null_and_no_other(example: Example) -> None:
    """At every depth: null in a field that may be left out is as good as leaving it out."""
    content = example.content
    for holder, name, needed, path in list(fields_of(example.spec.model, content)):
        before = dict(holder)
        holder[name] = None
        null = bool(complaints(example, content))
        del holder[name]
        assert null == (needed or bool(complaints(example, content))), path
        holder.clear()
        holder.update(before)


def test_every_topic_is_a_channel_with_its_kafka_binding() -> None:
    """Name, partitions and clean-up are those that the services create."""
    channels = asyncapi()["channels"]
    assert set(channels) == {topic.name for topic in all_topics()}
    for topic in all_topics():
        binding = channels[topic.name]["bindings"]["kafka"]
        assert (channels[topic.name]["address"], binding["topic"]) == (topic.name, topic.name)
        assert binding["partitions"] == (4 if topic.keyed else 1)
        assert binding["topicConfiguration"]["cleanup.policy"] == [topic.cleanup]
        assert binding["topicConfiguration"]["max.message.bytes"] == topic.max_message_bytes
        assert binding["bindingVersion"] == "0.5.0"


def test_every_group_is_an_operation_with_its_name() -> None:
    """Who looks for lag finds group and topic."""
    operations = asyncapi()["operations"]
    for group, read in group_topics().items():
        for topic in read:
            operation = operations[f"{group}-reads-{topic}"]
            assert operation["action"] == "receive"
            assert operation["bindings"]["kafka"]["groupId"]["enum"] == [f"millrace-{group}"]
    assert {operation["action"] for operation in operations.values()} == {"send", "receive"}


def test_every_reference_leads_somewhere() -> None:
    """References inside the document and to the schemas beside it resolve, and every message is used."""
    document = asyncapi()
    for reference in references(document):
        if reference.startswith("./"):
            assert (COMMITTED / reference).is_file(), reference
            continue
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
    used = {name for channel in document["channels"].values() for name in channel.get("messages", {})}
    assert used == set(document["components"]["messages"]) - {"release_manifest"}


def test_the_document_has_the_form_of_asyncapi_3() -> None:
    """The fields that the specification requires, and keys of components in its alphabet."""
    document = json.loads((COMMITTED / ASYNCAPI_FILE).read_text(encoding="utf-8"))
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in document["components"]["messages"])
    for operation in document["operations"].values():
        assert {"action", "channel"} <= set(operation)
    assert set(MESSAGE_BY_NAME) <= set(document["components"]["messages"])
