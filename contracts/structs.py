"""The contracts once more for the hot path: msgspec structs, made of the pydantic models and several times quicker.

The models decide what is valid; to a type checker the structs are the models. What a struct refuses goes to its model,
which names the reason or accepts it after all, such as a null. Structs refuse unknown fields in the first attempt,
because msgspec skips what it does not know without looking whether it is Unicode.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import FunctionType, GenericAlias, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar, Union, get_args, get_origin

import msgspec
import orjson
from msgspec.structs import force_setattr
from pydantic import AllowInfNan, Strict, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from contracts import events, joined, pairs, training
from contracts.base import NO_NUL, Message, Part, checked_id, checked_visible
from contracts.wire import parse, validate

if TYPE_CHECKING:
    from contracts.events import (
        Cart,
        Click,
        Dwell,
        Exploration,
        Impression,
        Purchase,
        PurchaseItem,
        Ranking,
        ShopEvent,
        Slot,
        Tick,
        View,
        Viewed,
    )
    from contracts.joined import JoinedSearch, JoinedSlot, Origin
    from contracts.pairs import Factors, PairSide, PreferencePair
    from contracts.training import LeftOutSlot, TrainingSearch, TrainingSlot

__all__ = [
    "JOINED_SEARCH", "PREFERENCE_PAIR", "SEARCH_RECORD", "TRAINING_SEARCH", "Cart", "Click", "Dwell", "Exploration",
    "Factors", "Impression", "JoinedSearch", "JoinedSlot", "LeftOutSlot", "Origin", "PairSide", "PreferencePair",
    "Purchase", "PurchaseItem", "Ranking", "Reader", "ShopEvent", "Slot", "Tick", "TrainingSearch", "TrainingSlot",
    "Unknown", "View", "Viewed", "encode", "struct_of",
]  # fmt: skip

M = TypeVar("M")

_WRITTEN: Final = frozenset(
    {
        joined.JoinedSearch, joined.JoinedSlot, joined.Origin, events.Ranking, events.Exploration,
        pairs.PreferencePair, pairs.PairSide, pairs.Factors,
        training.TrainingSearch, training.TrainingSlot, training.LeftOutSlot,
    }
)  # fmt: skip
"""What `encode` writes: every field that is not None, defaults too."""
_BOUNDS: Final = ("ge", "gt", "le", "lt", "min_length", "max_length")
_TEXT_RULES: Final = (checked_id, checked_visible)
_SPACE, _BACKSLASH, _DELETE = b" \\\x7f"
"""As numbers: Python finds a number among bytes several times quicker than a text of one byte."""
_write: Final = msgspec.json.Encoder().encode
_REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Unknown(dict[str, Any]):
    """Fields beyond a message's form; no JSON value has this type, so no field of a sender can pose as them."""


_structs: dict[tuple[type[Part], bool], Any] = {}


def struct_of(model: type[Part], *, exact: bool = False) -> Any:
    """Return the struct that says the same as a model; an exact one refuses fields that the model does not name."""
    if (model, exact) not in _structs:
        _structs[model, exact] = _define(model, exact=exact)
    return _structs[model, exact]


def _define(model: type[Part], *, exact: bool) -> Any:
    fields: list[Any] = [("model_extra", Unknown | None, None)] if issubclass(model, Message) else []
    namespace: dict[str, Any] = {
        name: method for name, method in vars(model).items() if isinstance(method, FunctionType) and name[0] != "_"
    }
    tag = None
    for name, field in model.model_fields.items():
        if name == "type" and field.is_required():
            (tag,) = get_args(field.annotation)
            namespace["type"] = tag
        else:
            kind = _kind(field.annotation, field.metadata, exact=exact)
            fields.append((name, kind) if field.is_required() else (name, kind, _default(model, field)))
    validators = model.__pydantic_decorators__.model_validators.values()
    if checks := [validator.func for validator in validators if validator.info.mode == "after"]:
        namespace["__post_init__"] = checks[0] if len(checks) == 1 else _all_of(checks)
    return msgspec.defstruct(
        model.__name__,
        fields,
        bases=(struct_of(model),) if exact else None,
        namespace=namespace,
        module=__name__,
        tag=tag,
        tag_field=tag and "type",
        kw_only=True,
        frozen=True,
        gc=False,
        omit_defaults=True,
        forbid_unknown_fields=exact,
    )


def _all_of(checks: list[Callable[[Any], Any]]) -> Callable[[Any], None]:
    def check_all(record: Any) -> None:
        for check in checks:
            check(record)

    return check_all


def _default(model: type[Part], field: FieldInfo) -> Any:
    """Return a field's default; a factory where `encode` must write it, because msgspec leaves plain defaults out."""
    default = field.get_default(call_default_factory=True)
    value = struct_of(type(default))() if isinstance(default, Part) else default
    is_plain = value is None or (model not in _WRITTEN and not isinstance(default, Part))
    return value if is_plain else msgspec.field(default_factory=lambda: value)


def _kind(annotation: Any, marks: Any, *, exact: bool) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], inner[1:], exact=exact)
    if origin in {Union, UnionType}:
        kind: Any = Union[tuple(_kind(one, (), exact=exact) for one in inner)]  # noqa: UP007 - made at run time
    elif origin is tuple:
        kind = GenericAlias(tuple, (_kind(inner[0], (), exact=exact), ...))
    else:
        kind = struct_of(annotation, exact=exact) if _is_part(annotation) else annotation
    bounds = dict(bound for mark in marks for bound in _bounds(mark))
    return Annotated[kind, msgspec.Meta(**bounds)] if bounds else kind


def _bounds(mark: Any) -> Iterator[tuple[str, Any]]:
    """Yield what msgspec checks of a constraint; rules about texts are checked in one go for a whole record."""
    if isinstance(mark, FieldInfo):
        for inner in mark.metadata:
            yield from _bounds(inner)
        return
    bounds = [(name, getattr(mark, name)) for name in _BOUNDS if hasattr(mark, name)]
    about_text = getattr(mark, "pattern", None) == NO_NUL or getattr(mark, "func", None) in _TEXT_RULES
    if not (bounds or about_text or isinstance(mark, Strict | AllowInfNan)):
        raise TypeError(f"no struct can say {mark!r}")
    yield from bounds


class Reader(Generic[M]):
    """Decodes what a contract accepts, several times quicker; the contract has the last word."""

    def __init__(self, contract: TypeAdapter[M], *models: type[Part]) -> None:
        self._contract = contract
        self._members = {model: struct_of(model) for model in models}
        self._exact, self._open = (
            msgspec.json.Decoder(Union[tuple(struct_of(model, exact=exact) for model in models)])  # noqa: UP007
            for exact in (True, False)
        )
        self._ids = {struct_of(model, exact=exact): _ids_of(model) for model in models for exact in (True, False)}

    def decode(self, value: bytes | None) -> M:
        """Decode a message, its unknown fields as `model_extra`; fails as `wire.decode` does."""
        value = value or b""
        quick: M | None = self._attempt(self._exact, value)
        if quick is not None:
            return quick
        decided: M = self._decide(value)
        return decided

    def _decide(self, value: bytes) -> Any:
        """Read what has unknown fields, and let the contract decide about what is unusual or wrong."""
        parsed = parse(value)
        record = self._attempt(self._open, value)
        if record is None:
            model: Any = validate(parsed, self._contract)
            record = msgspec.convert(vars(model), self._members[type(model)], from_attributes=True)
            unknown = model.model_extra
        else:
            known = {*record.__struct_fields__, *(("type",) if hasattr(record, "type") else ())}
            unknown = {name: inner for name, inner in parsed.items() if name not in known and inner is not None}
        if unknown:
            force_setattr(record, "model_extra", Unknown(unknown))
        return record

    def _attempt(self, decoder: "msgspec.json.Decoder[Any]", value: bytes) -> Any:
        try:
            record = decoder.decode(value)
        except _REFUSALS:
            return None
        # JSON escapes all control characters but DEL. In ASCII without escapes, an id can only be wrong by being blank;
        # none is blank if every space of the record is one of its query's.
        has_escapes = _BACKSLASH in value
        is_plain = not has_escapes and value.isascii() and _DELETE not in value
        if is_plain and (_SPACE not in value or value.count(_SPACE) == getattr(record, "query", "").count(" ")):
            return record
        if has_escapes and b"\\u0000" in value:
            return None
        ids = list(filter(None, self._ids[type(record)](record)))
        together = "".join(ids)
        if " " not in together and (is_plain or (together.isascii() and together.isprintable())):
            return record
        return record if all(map(_is_id, ids)) else None


def _ids_of(model: type[Part]) -> Callable[[Any], list[str | None]]:
    """List the ids of a record, which have more rules than msgspec checks."""
    own = [attrgetter(name) for name in _id_names(model)]
    parts: dict[str, Any] = {
        n: field.annotation for n, field in model.model_fields.items() if _is_part(field.annotation)
    }
    own += [attrgetter(f"{name}.{inner}") for name, part in parts.items() for inner in _id_names(part)]
    lists = [
        (attrgetter(name), [attrgetter(inner) for inner in _id_names(get_args(field.annotation)[0])])
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is tuple and _is_part(get_args(field.annotation)[0])
    ]

    def ids(record: Any) -> list[str | None]:
        found = [get(record) for get in own]
        for parts, getters in lists:
            for get in getters:
                found += map(get, parts(record))
        return found

    return ids


def _id_names(model: type[Part]) -> list[str]:
    return [name for name, field in model.model_fields.items() if _is_checked(field.annotation, field.metadata)]


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Part)


def _is_checked(annotation: Any, marks: Any) -> bool:
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _is_checked(inner[0], inner[1:])
    if get_origin(annotation) in {Union, UnionType}:
        return any(_is_checked(one, ()) for one in inner)
    return any(getattr(mark, "func", None) in _TEXT_RULES for mark in marks)


def _is_id(text: str) -> bool:
    try:
        checked_id(text)
    except PydanticCustomError:
        return False
    return True


def encode(record: Any, unknown: Mapping[str, Any] | None = None) -> bytes:
    """Return a message that we write as JSON: the fields that are not None, in order, then fields beyond its form.

    >>> encode(struct_of(events.Ranking)(arm="anchor"), {"shard": 3})
    b'{"ranker":"millrace","arm":"anchor","exploration":{"policy":"none","seed":0},"shard":3}'
    """
    value = _write(record)
    return value[:-1] + b"," + orjson.dumps(unknown)[1:] if unknown else value


_EVENTS: Final = get_args(events.ShopEvent)
if not TYPE_CHECKING:
    ShopEvent = Union[tuple(map(struct_of, _EVENTS))]  # noqa: UP007 - made at run time
    for _model in (*_EVENTS, events.Slot, events.Viewed, events.PurchaseItem, events.Tick, *_WRITTEN):
        globals()[_model.__name__] = struct_of(_model)

SEARCH_RECORD: Final = Reader(events.SEARCH_RECORD, *_EVENTS, events.Tick)
"""Reads `search-events`."""
JOINED_SEARCH: Final = Reader(TypeAdapter(joined.JoinedSearch), joined.JoinedSearch)
"""Reads `joined-searches`."""
PREFERENCE_PAIR: Final = Reader(TypeAdapter(pairs.PreferencePair), pairs.PreferencePair)
"""Reads `preference-pairs`."""
TRAINING_SEARCH: Final = Reader(TypeAdapter(training.TrainingSearch), training.TrainingSearch)
"""Reads `training-searches`."""
