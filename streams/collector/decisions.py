"""The three things that can become of an item, and the answer made of them."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from contracts.http import IntakeAnswer, ItemResult


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """One Kafka record; `topic` is without the deployment's prefix."""

    topic: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The item may go to Kafka."""

    item_id: str | None
    kind: str
    records: tuple[OutgoingRecord, ...]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The item went to Kafka before."""

    item_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The item is refused; the reason is stable, the message is for people."""

    item_id: str | None
    reason: str
    message: str
    field: str | None = None


Decision = Accepted | Duplicate | Rejected


def set_aside_duplicates(decisions: Iterable[Accepted | Rejected], seen: AbstractSet[str]) -> list[Decision]:
    """Return the decisions with repeats marked: of `seen` ids, and of ids that stand twice in the request.

    Args:
        decisions: in the order of the request.
        seen: ids that Kafka acknowledged before.
    """
    known = set(seen)
    marked: list[Decision] = []
    for decision in decisions:
        if isinstance(decision, Rejected) or decision.item_id is None:
            marked.append(decision)
        elif decision.item_id in known:
            marked.append(Duplicate(decision.item_id, decision.kind))
        else:
            known.add(decision.item_id)
            marked.append(decision)
    return marked


def accepted_of(decisions: Iterable[Decision]) -> list[Accepted]:
    """Return the accepted ones, in order."""
    return [decision for decision in decisions if isinstance(decision, Accepted)]


def answer(decisions: Sequence[Decision]) -> IntakeAnswer:
    """Return the answer to a request whose accepted items Kafka has acknowledged."""
    results = [_result(decision) for decision in decisions]
    statuses = [result.status for result in results]
    return IntakeAnswer(
        accepted=statuses.count("accepted"),
        rejected=statuses.count("rejected"),
        duplicate=statuses.count("duplicate"),
        results=results,
    )


def _result(decision: Decision) -> ItemResult:
    """Return one line of the answer."""
    match decision:
        case Accepted(item_id=item_id):
            return ItemResult(event_id=item_id, status="accepted")
        case Duplicate(item_id=item_id):
            return ItemResult(event_id=item_id, status="duplicate")
        case Rejected(item_id=item_id, reason=reason, message=message, field=field):
            return ItemResult(event_id=item_id, status="rejected", reason=reason, field=field, message=message)
