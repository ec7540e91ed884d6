"""Facts are read as they stand; what somebody else wrote in their place is named."""

from dataclasses import replace

import pytest

from contracts.errors import MalformedMessage
from contracts.topics import SEARCH_EVENTS
from millrace.watch.facts import catalog_counts
from tests.support.deployment import busy_facts


def test_partitions_come_in_order() -> None:
    """Whatever order Kafka answers in."""
    facts = busy_facts()
    facts = replace(facts, ends={key: facts.ends[key] for key in sorted(facts.ends, reverse=True)})
    assert [number for number, _ in facts.partitions(SEARCH_EVENTS)] == [0, 1, 2, 3]


def test_an_empty_text_is_no_count_yet() -> None:
    """A group whose offsets were set by a tool has no counts."""
    assert catalog_counts("").catalogue == 0


@pytest.mark.parametrize("text", ["moved by hand", '{"catalogue": -1}'])
def test_a_foreign_text_beside_a_commit_is_named(text: str) -> None:
    """It is a clear error, not a traceback."""
    with pytest.raises(MalformedMessage):
        catalog_counts(text)
