"""Every stored example of every version against the contract of today: what was readable stays readable."""

import json
from typing import Any

import pytest

from contracts import wire
from contracts.errors import ContractError, MalformedMessage, UnsupportedSchema
from contracts.messages import MESSAGES, MessageSpec
from tests.support.examples import FOLDER, Example, fields_of, invalid_examples, valid_examples

VALID, INVALID = valid_examples(), invalid_examples()


def contains(whole: Any, part: Any) -> bool:
    """Return whether everything in `part` stands in `whole`; nulls may be left out, and lists keep their length."""
    if isinstance(part, dict):
        return all(value is None or (key in whole and contains(whole[key], value)) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


def with_unknown_fields(value: Any) -> Any:
    """Return JSON with a field that no release knows in every object whose keys are fields."""
    if isinstance(value, dict):
        return {**{key: with_unknown_fields(inner) for key, inner in value.items()}, "from_the_future": "kept"}
    return [with_unknown_fields(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.path)
def test_a_valid_example_is_read_by_the_readers_of_its_topic(example: Example) -> None:
    """Old and new records alike decode, as the message that they are."""
    message = wire.decode(example.text, example.spec.contract)
    assert isinstance(message, example.spec.model)


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.path)
def test_a_round_trip_keeps_every_field_also_unknown_ones(example: Example) -> None:
    """Reading and writing again loses nothing; a second round trip changes no byte."""
    once = wire.encode(wire.decode(example.text, example.spec.contract))
    assert contains(wire.parse(once), example.content)
    assert wire.encode(wire.decode(once, example.spec.contract)) == once


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.path)
def test_a_field_that_a_later_release_adds_is_kept(example: Example) -> None:
    """A reader of today passes on, unread, what a writer of tomorrow adds, at every depth."""
    message = {**example.content, "from_the_future": {"deep": [1, None, "x"]}}
    for name, inner in example.content.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            message[name] = with_unknown_fields(inner)
    kept = wire.parse(wire.encode(wire.validate(message, example.spec.contract)))
    assert contains(kept, message)


@pytest.mark.parametrize("example", INVALID, ids=lambda example: example.path)
def test_an_invalid_example_is_refused_with_its_reason_and_field(example: Example) -> None:
    """The reason is stable, the field is named in the sender's words, and the sentence is for people."""
    with pytest.raises(ContractError) as refused:
        wire.decode(example.text, example.spec.contract)
    assert (refused.value.reason, refused.value.field) == (example.reason, example.field)
    assert str(refused.value)
    kind = UnsupportedSchema if example.reason == "unsupported_schema" else MalformedMessage
    assert type(refused.value) is kind


def verdict(content: Any, spec: MessageSpec) -> Any:
    """Return the message that a topic's readers see, or why they refuse it."""
    try:
        return wire.validate(content, spec.contract)
    except ContractError as refused:
        return refused.reason, refused.field


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.path)
def test_null_means_absent_in_every_field_at_every_depth(example: Example) -> None:
    """An optional field that is null reads as one left out; a needed one is missing, by its path."""
    content = example.content
    for holder, name, needed, path in list(fields_of(example.spec.model, content)):
        before = dict(holder)
        holder[name] = None
        null = verdict(content, example.spec)
        del holder[name]
        assert null == (("missing", path) if needed else verdict(content, example.spec)), path
        holder.clear()
        holder.update(before)


@pytest.mark.parametrize("spec", MESSAGES, ids=lambda spec: spec.name)
def test_every_message_has_valid_and_invalid_examples(spec: MessageSpec) -> None:
    """No message is without something to read and something to refuse."""
    assert [example for example in VALID if example.spec is spec]
    assert [example for example in INVALID if example.spec is spec]


@pytest.mark.parametrize("spec", MESSAGES, ids=lambda spec: spec.name)
def test_required_fields_are_those_of_the_first_release(spec: MessageSpec) -> None:
    """FULL_TRANSITIVE: only optional fields come and go.

    A new required one would make every old record unreadable; one that becomes optional, new records for old readers.
    """
    frozen = json.loads((FOLDER / "v1" / "required.json").read_text(encoding="utf-8"))
    assert required_fields(spec) == frozen[spec.name]


def required_fields(spec: MessageSpec) -> dict[str, list[str]]:
    """Return the required fields of a message and of each of its parts."""
    schema = spec.model.model_json_schema()
    parts = {"": schema, **schema.get("$defs", {})}
    return {name: sorted(part.get("required", [])) for name, part in parts.items() if part.get("type") == "object"}


def test_every_folder_of_examples_is_one_of_a_message() -> None:
    """A renamed message would leave its examples behind unread."""
    names = {spec.name for spec in MESSAGES}
    assert {path.name for path in FOLDER.glob("v*/*") if path.is_dir()} == names
    assert {path.name for path in FOLDER.iterdir()} == {"v1"}
