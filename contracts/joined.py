"""A joined search: one list and, per slot, what the shopper saw and did within the window; and the headers beside it.

Times of stages and the closing number travel in headers, outside the message, so that replays give the same bytes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import orjson
from pydantic import Field

from contracts.base import Count, DurationMs, Id, Label, Message, Part, Position, Query, Time
from contracts.events import Ranking, Slot

MAX_LIST_SLOTS: Final = 2_000
"""Slots of a whole list, all its pages together."""
MAX_JOINED_BYTES: Final = 1_000_000
"""Of a whole list as a record; it may go on to `holdout-searches` as it is, which takes 1 MiB with its headers."""
MAX_ORIGINS: Final = 10_000
UNKNOWN_FIELDS_BYTES: Final = 4_096
"""How much of what a shop adds to its events a joined search carries on."""

CLOSED_AT_HEADER: Final = "millrace.closed_at_ms"
"""When the join wrote a closed search, by the wall clock."""
PAIRED_AT_HEADER: Final = "millrace.paired_at_ms"
"""When the pairs agent wrote a pair, by the wall clock."""
CLOSING_NUMBER_HEADER: Final = "millrace.turn"
WATERMARK_HEADER: Final = "millrace.watermark"
"""How far the join that wrote a record has come: `PARTITION:MS`; of a watermark record also `:open` or `:idle`."""
MAX_CLOSING_NUMBER: Final = 2**53 - 1
REMEMBERED_JOINS: Final = 1_000
"""Joins whose closing numbers are kept; anyone may write the header, so there could be any number."""
_WATERMARK: Final = re.compile(rb"(\d{1,6}):(\d{1,15})(?::(open|idle))?")
_CLOSING_NUMBER: Final = re.compile(rb"(\d{1,10}-\d{1,19}(?:-\d{1,16})?(?:-[0-9a-f-]{36})?):([1-9]\d{0,15})")


class ClosingNumber(NamedTuple):
    """The place of a closed search in the order in which one partition's join closes searches, counted from 1.

    What it sets aside has a number too, counted by outcome. A join that was killed between its output and its progress
    closes the same searches again, in the same order: what comes with a number already seen from that join is a repeat,
    however much was written in between. `join` is its partition, the offset it began at, when Kafka appended the record
    there, and Kafka's id of its progress topic.
    """

    join: str
    number: int

    def encode(self) -> bytes:
        """Return the value of the header.

        >>> ClosingNumber("2-0-1795196006756-09f6b6d4-0d5c-4b0a-9b43-5f1f2a0c8a11", 17).encode()
        b'2-0-1795196006756-09f6b6d4-0d5c-4b0a-9b43-5f1f2a0c8a11:17'
        """
        return f"{self.join}:{self.number}".encode()


class ClosedWatermark(NamedTuple):
    """How far the join of one partition has come: each of its lists with an earlier deadline stands before the record.

    Args:
        join: the partition of `search-events`.
        watermark_ms: in event time, epoch milliseconds.
        idle: of a watermark record, whether that partition was read to its end and holds nothing open; None of a list.
    """

    join: int
    watermark_ms: int
    idle: bool | None = None

    def encode(self) -> bytes:
        """Return the value of the header.

        >>> ClosedWatermark(2, 1795196606757).encode(), ClosedWatermark(2, 1795196606757, idle=True).encode()
        (b'2:1795196606757', b'2:1795196606757:idle')
        """
        mark = "" if self.idle is None else ":idle" if self.idle else ":open"
        return f"{self.join}:{self.watermark_ms}{mark}".encode()


def closed_watermark_of(headers: Iterable[tuple[str, bytes | None]]) -> ClosedWatermark | None:
    """Return the watermark that a record carries; None if it has none that a join could have written.

    >>> closed_watermark_of([("millrace.watermark", b"2:17:open")])
    ClosedWatermark(join=2, watermark_ms=17, idle=False)
    """
    for name, value in headers:
        if name == WATERMARK_HEADER:
            found = _WATERMARK.fullmatch(value or b"")
            if found is None:
                return None
            return ClosedWatermark(int(found[1]), int(found[2]), None if found[3] is None else found[3] == b"idle")
    return None


class ClosedSearches:
    """How far each join was seen to have come; the join seen last comes last, and the first ones are forgotten.

    >>> closed = ClosedSearches()
    >>> [closed.is_repeat(ClosingNumber("2-0", number)) for number in (1, 2, 2, 1, 3)]
    [False, False, True, True, False]
    """

    def __init__(self, newest: Mapping[str, int] | None = None) -> None:
        self.newest = dict(newest or {})
        """Join -> its newest closing number."""

    def is_repeat(self, closing: ClosingNumber | None) -> bool:
        """Note a closing number; tell whether its join had come that far before. What has none is no repeat."""
        if closing is None:
            return False
        newest = self.newest.pop(closing.join, 0)
        self.newest[closing.join] = max(newest, closing.number)
        if len(self.newest) > REMEMBERED_JOINS:
            del self.newest[next(iter(self.newest))]
        return closing.number <= newest


def closing_number_of(headers: Iterable[tuple[str, bytes | None]]) -> ClosingNumber | None:
    """Return a record's closing number; None if the record has none that a join could have written.

    >>> closing_number_of([("millrace.turn", b"2-0:17")])
    ClosingNumber(join='2-0', number=17)
    """
    for name, value in headers:
        if name == CLOSING_NUMBER_HEADER:
            found = _CLOSING_NUMBER.fullmatch(value or b"")
            if found is None or int(found[2]) > MAX_CLOSING_NUMBER:
                return None
            return ClosingNumber(found[1].decode(), int(found[2]))
    return None


class Watermark(Message):
    """How far the join of one partition has come, written about once a second while that moves.

    It stands in every partition of `joined-searches`, belongs to no list and to no ledger, and has no key. Its header
    `millrace.watermark` says the same, so that readers pass over it without decoding.
    """

    type: Literal["watermark"]
    partition: Count
    """Of `search-events`."""
    watermark_ms: Count
    """Every list of that partition with an earlier deadline stands before this record."""
    idle: bool = False
    """Whether nothing is open there: what comes next is shown from now on."""


class Origin(Part):
    """Where a record stands in Kafka."""

    topic: Label
    partition: Count
    offset: Count


class JoinedSlot(Slot):
    """A served slot with its outcome."""

    visible_ms: DurationMs | None = None
    """Longest reported visibility; None where no view event named it."""
    clicked: bool = False
    click_time: Time | None = None
    """Event time of the first click."""
    dwell_ms: DurationMs | None = None
    """Longest reported stay after a click."""
    cart_quantity: Count = 0
    purchase_quantity: Count = 0
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Sum of price times quantity of what was bought; None if a line names no price, or lines differ in currency."""
    currency: Label | None = None
    """Of `value`, if the orders name one."""


class JoinedSearch(Message):
    """What the join emits when a search closes. The same events give the same bytes, `origins` aside."""

    type: Literal["joined_search"] = "joined_search"
    search_id: Id
    search_time: Time
    closed_at: Time
    """The deadline in event time, not the moment of processing: a replay gives the same value."""
    session_id: Id | None = None
    client_id: Id | None = None
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    total_results: Count | None = None
    consent: Literal["granted", "denied", "unknown"] | None = None
    synthetic: bool = False
    query: Query
    layout: Label = "list"
    columns: Annotated[int, Field(ge=1, le=100)] = 1
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    """The first of the pages whose slots are here."""
    first_page_ends: Position | None = None
    """Last position of that page, if further pages are here too: their slots were seen by who asked for them."""
    ranking: Ranking = Ranking()
    slots: Annotated[tuple[JoinedSlot, ...], Field(strict=False, max_length=MAX_LIST_SLOTS)]
    """By position; a product may stand twice, sponsored and organic, each with an outcome of its own."""
    unlisted: Count = 0
    """Events of this search that name a product which the list does not show."""
    origins: Annotated[tuple[Origin, ...], Field(strict=False, max_length=MAX_ORIGINS)] = ()


_DEEPEST: Final = 16
CONTAINERS: Final = frozenset({dict, list})
_PERSONAL_WORDS: Final = frozenset(
    {"email", "mail", "ip", "ipv4", "ipv6", "phone", "mobile", "msisdn", "tel", "telephone", "fax", "whatsapp"}
)
_PERSONAL_NAMES: Final = re.compile("useragent|forwarded|remoteaddr|ipaddr|emailaddr")
_WORD: Final = re.compile("[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_WORD_IN_ANY_CASE: Final = re.compile("[A-Za-z0-9]+")
_E_MAIL_IPV4_OR_PHONE: Final = re.compile(
    r"[^\s@%](?:@|%40)[^\s@%]+\.[^\W\d]{2}|(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])|(?<!\w)\+\d(?:[ ().-]*\d){7}"
)
_MAYBE_IPV6: Final = re.compile("[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def passed_on(unknown: Mapping[str, Any], *, limit_bytes: int = UNKNOWN_FIELDS_BYTES) -> dict[str, Any]:
    """Choose what a joined search carries of the fields that an event has beyond its form (`model_extra`).

    Left out are names that a joined search uses itself, what may hold the address of a person (e-mail, IP address,
    phone, user agent), what JSON cannot carry, and what exceeds the cap. Sorted by name: the same fields always give
    the same bytes.

    >>> passed_on({"campaign": "diwali", "contact": {"e-mail": None}, "ref": "ann@example.com", "clientIp": ""})
    {'campaign': 'diwali'}
    """
    kept: dict[str, Any] = {}
    left_bytes = limit_bytes
    for name in sorted(unknown.keys() - JoinedSearch.model_fields.keys()):
        field = {name: unknown[name]}
        try:
            size = len(orjson.dumps(field))
        except orjson.JSONEncodeError:
            continue
        if size <= left_bytes and not is_personal(field):
            kept |= field
            left_bytes -= size
    return kept


def is_personal(value: Any) -> bool:
    """Whether JSON holds, or by its names may hold, the address of a person; what is nested too deep may.

    >>> is_personal({"ua": {"userAgent": 1}}), is_personal(["::1"]), is_personal({"ship": "zip 12345, 10:20:30"})
    (True, True, False)
    """
    level = [value]
    for _ in range(_DEEPEST):
        if not level:
            return False
        texts = [inner for inner in level if isinstance(inner, str)]
        names = [name for inner in level if isinstance(inner, dict) for name in inner]
        if any(map(_names_address, names)) or any(map(_holds_address, (*names, *texts))):
            return True
        level = [child for inner in level for child in _children(inner)]
    return True


def without_addresses(sent: Mapping[str, Any], form: type[Part], left_out: list[str]) -> dict[str, Any]:
    """Copy parsed JSON without the fields beyond its form that may hold the address of a person.

    A field of the form may hold any text, as a query does. If it holds an object or a list that its form does not know,
    or something else in place of one, it is looked at like the fields beyond the form.

    Args:
        sent: a message or part of one, whether or not it fits its form.
        form: its model.
        left_out: each field that is left out adds its name, at any depth.

    >>> names = []
    >>> without_addresses({"position": 1, "seller": {"mail": 1}, "shelf": 3, "price": ["ann@example.com"]}, Slot, names)
    {'position': 1, 'shelf': 3}
    >>> names
    ['seller', 'price']
    """
    known, parts = _fields_of(form)
    if not parts and sent.keys() <= known and CONTAINERS.isdisjoint(map(type, sent.values())):
        return dict(sent)
    kept: dict[str, Any] = {}
    for name, value in sent.items():
        part = parts.get(name)
        if part is not None and isinstance(value, dict):
            kept[name] = without_addresses(value, part, left_out)
        elif part is not None and isinstance(value, list) and all(isinstance(one, dict) for one in value):
            kept[name] = [without_addresses(one, part, left_out) for one in value]
        elif (name in known and part is None and type(value) not in CONTAINERS) or not is_personal({name: value}):
            kept[name] = value
        else:
            left_out.append(name)
    return kept


@cache
def _fields_of(form: type[Part]) -> tuple[frozenset[str], dict[str, type[Part]]]:
    """Return a form's fields, and those of them that hold a part with a form of its own, or a list of such."""
    return frozenset(form.model_fields), {
        name: kind
        for name, field in form.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, Part)
    }


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _names_address(name: str) -> bool:
    words = [word.lower() for pattern in (_WORD, _WORD_IN_ANY_CASE) for word in pattern.findall(name)]
    return not _PERSONAL_WORDS.isdisjoint(words) or _PERSONAL_NAMES.search("".join(words)) is not None


def _holds_address(text: str) -> bool:
    return _E_MAIL_IPV4_OR_PHONE.search(text) is not None or any(map(_is_ip, _MAYBE_IPV6.findall(text)))


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
