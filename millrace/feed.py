"""One row of a catalogue file as a product message, or what is wrong with it.

A row is a product message already (it has a `type`), or has columns named like the fields of one, or those of a
merchant feed. Values of tables are texts: prices, words for in stock, times and category paths are read here. What the
collector would refuse is refused here too.

Source: Google Merchant Center, product data specification.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from contracts import wire
from contracts.base import YEAR_2000_MS, YEAR_2100_MS
from contracts.catalog import CATALOG_CHANGE, CatalogChange, Product
from contracts.errors import ContractError, MalformedMessage, UsageError
from millrace.tables import Row, time_of
from streams.collector.intake import Arrival, Rejected, decide_product

MERCHANT_COLUMNS: Final[Mapping[str, str]] = {
    "id": "product_id",
    "link": "url",
    "image_link": "image_url",
    "availability": "in_stock",
    "item_group_id": "parent_id",
    "product_type": "category",
    "google_product_category": "category",
}
"""Column of a merchant feed -> field of the message. The shop's own category comes before Google's."""
MERCHANT_ATTRIBUTES: Final[Sequence[str]] = (
    "age_group", "color", "condition", "energy_efficiency_class", "gender", "gtin", "material", "mpn", "pattern",
    "size", "size_system", "size_type",
)  # fmt: skip
"""Columns of a merchant feed that say what a product is like, and so become attributes."""
_ARRIVAL: Final = Arrival(received_at=0, person_key=b"")
"""A product names no person, and its times are the shop's."""
_TYPES: Final = ("product", "product_deleted")
_READ_BESIDE: Final = ("sale_price", "sale_price_effective_date", "schema_version", "type")

_IN_STOCK: Final = frozenset({"in_stock", "limited_availability", "instock", "true", "yes", "available"})
_NOT_IN_STOCK: Final = frozenset({
    "out_of_stock", "outofstock", "preorder", "backorder", "false", "no", "unavailable", "sold_out", "discontinued",
})  # fmt: skip
"""What can only be ordered for later is not in stock."""
_PLAIN_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,9})?")
_PRICE: Final = re.compile(r"([A-Z]{3})?\s*(\d[\d.,]*)\s*([A-Z]{3})?")
_THOUSANDS: Final = ((",", r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?"), (".", r"\d{1,3}(?:\.\d{3})+(?:,\d{1,2}|\.\d{3})"))
"""Mark between thousands -> what numbers with it look like: 1,299.00 and 1,29,900; 1.299,00 and 1.299.000."""


class Fault(NamedTuple):
    """Why a line cannot be used.

    Args:
        line: where it begins in the file, from 1.
        reason: a stable word.
        field: to blame, if any.
        message: what is wrong, for people.
        product_id: whom the line is about, if that can be read.
    """

    line: int
    reason: str
    field: str | None
    message: str
    product_id: str | None


class Form(NamedTuple):
    """What rows of a file mean, beyond the names of their columns.

    Args:
        now_ms: the time of import, epoch ms: the version of rows that have none, and which sale prices hold.
        attributes: columns that become attributes, besides those of merchant feeds.
        defaults: fields that every product has if its row does not say otherwise, e.g. the locale.
    """

    now_ms: int
    attributes: Sequence[str] = ()
    defaults: Mapping[str, Any] = {}


def read_change(row: Row, form: Form) -> CatalogChange | Fault:
    """Make the message of a row.

    >>> fields = {"id": "P-1", "title": "Kettle", "price": "1,299.00 INR", "availability": "in stock", "color": "red"}
    >>> made = read_change(Row(2, fields), Form(now_ms=1795196000000))
    >>> made.product_id, made.price, made.currency, made.in_stock, made.attributes
    ('P-1', 1299.0, 'INR', True, {'color': 'red'})
    >>> read_change(Row(3, {"id": "P-2", "title": "Oven", "price": "cheap"}), Form(now_ms=1795196000000)).message
    "price: 'cheap' is no price, such as 19.99, 1.299,00 or 19.99 EUR"
    """
    try:
        if row.error is not None:
            raise row.error
        fields = dict(row.fields) if _is_message(row.fields) else _message(row.fields, form)
        if not has_version(row):
            fields["version"] = form.now_ms
        decision = decide_product(fields, _ARRIVAL)
        if isinstance(decision, Rejected):
            raise MalformedMessage(decision.reason, decision.message, field=decision.field)
        return wire.validate(fields, CATALOG_CHANGE)
    except ContractError as error:
        told = error.message if error.field is None else error.message.removeprefix(f"{error.field}: ")
        message = f"{error.field}: {told}" if error.field else told
        product_id = None if row.error is not None else _id_of(row.fields)  # its columns may have moved
        return Fault(row.line, error.reason, error.field, message, product_id)


def has_version(row: Row) -> bool:
    """Whether the shop numbers this product's states itself."""
    value = row.fields.get("version")
    return value is not None and value != ""


def lacking_columns(row: Row) -> list[str]:
    """The fields without which a row is no product, for a first row: those that no column gives."""
    names = {MERCHANT_COLUMNS.get(name, name) for name in row.fields}
    return [] if _is_message(row.fields) else [name for name in ("product_id", "title") if name not in names]


def known_columns(form: Form) -> list[str]:
    """The columns of which something comes."""
    return [*Product.model_fields, *MERCHANT_COLUMNS, *MERCHANT_ATTRIBUTES, *_READ_BESIDE, *form.attributes]


def refuse_unknown_fields(names: Sequence[str], form: Form) -> None:
    """Refuse names for columns that are neither fields of a product or merchant feed nor attributes.

    Raises:
        UsageError: one is not, or a default is for no field of a product; the nearest field is told.
    """
    fields = list(Product.model_fields)
    for option, given, known in (("columns", names, known_columns(form)), ("default", form.defaults, fields)):
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                meant = f"; did you mean {nearest[0]}?" if nearest else ""
                fix = f"fields are {', '.join(fields)}; --attributes {name} makes it an attribute"
                raise UsageError(f"--{option}: no field {name}{meant}", fix=fix)


def unused_columns(row: Row, form: Form) -> list[str]:
    """The columns of which nothing comes, for a first row that is no message itself."""
    return [] if _is_message(row.fields) else [name for name in row.fields if name not in known_columns(form)]


def _is_message(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a whole message; in a table, where all is text, it is not."""
    return fields.get("type") in _TYPES and not all(isinstance(value, str) for value in fields.values())


def _id_of(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("product_id", fields.get("id"))
    return str(value).strip() or None if isinstance(value, str | int) else None


def _message(row: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """A product message of columns; what is empty is left out."""
    said = {name: value for name, value in row.items() if value is not None and str(value).strip()}
    fields: dict[str, Any] = {**form.defaults, "type": said["type"] if said.get("type") in _TYPES else "product"}
    for theirs, ours in reversed(list(MERCHANT_COLUMNS.items())):
        if theirs in said and not (theirs == "google_product_category" and str(said[theirs]).isdecimal()):
            fields[ours] = said[theirs]
    fields |= {name: said[name] for name in Product.model_fields if name in said and name != "type"}
    fields |= {name: read_field(name, fields[name]) for name in _READERS if name in fields}
    fields |= _price(said, form.now_ms)
    attributes = {name: said[name] for name in MERCHANT_ATTRIBUTES if name in said}
    attributes |= {name: _plain(said[name]) for name in form.attributes if name in said}
    if attributes and isinstance(given := fields.get("attributes", {}), dict):
        fields["attributes"] = {**attributes, **given}
    ids = ("product_id", "parent_id", "seller_id")
    return fields | {name: str(fields[name]) for name in ids if type(fields.get(name)) is int}


def read_field(name: str, value: Any) -> Any:
    """Read what a table says of a field of the message; what is no text is left as it is.

    Raises:
        MalformedMessage: the text says something else.

    >>> read_field("category", "Appliances > Ovens"), read_field("attributes", '{"noise_db": 34}')
    (['Appliances', 'Ovens'], {'noise_db': 34})
    """
    if name in _NUMBERS_TOO and type(value) in {int, float}:
        value = str(value)
    return _read(name, value, _READERS[name]) if name in _READERS and isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A number if a text writes one, but not 007 or 1e5, which are names."""
    if isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value.strip()):
        return float(value) if "." in value else int(value)
    return value


def _price(said: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Price and, if it stands with it, currency: the sale's while there is one."""
    name = "sale_price" if "sale_price" in said and _on_sale(said, now_ms) else "price"
    value = said.get(name)
    return _read(name, value, _money) if isinstance(value, str) else {} if value is None else {"price": value}


def _on_sale(said: Mapping[str, Any], now_ms: int) -> bool:
    period = str(said.get("sale_price_effective_date", ""))
    begin, _, end = (part.strip() for part in period.partition("/"))
    if not period:
        return True
    times = [_read("sale_price_effective_date", moment, _time) for moment in (begin, end)]
    return bool(times[0] <= now_ms < times[1])


def _read(field: str, text: str, read: Callable[[str], Any]) -> Any:
    """Read a text, or say which field holds something else."""
    try:
        return read(text.strip())
    except ValueError as error:
        raise MalformedMessage("wrong_type", f"{field}: {error}", field=field) from error


def _money(text: str) -> dict[str, Any]:
    found = _PRICE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no price, such as 19.99, 1.299,00 or 19.99 EUR")
    before, digits, after = found.groups()
    currency = before or after
    return {"price": _number(digits), **({"currency": currency} if currency else {})}


def _number(digits: str) -> float:
    """A number with either decimal mark and separators of thousands.

    >>> [_number(digits) for digits in ("499", "499.00", "1,299", "1,29,900.50", "12,99", "1.299,00", "1.299.000")]
    [499.0, 499.0, 1299.0, 129900.5, 12.99, 1299.0, 1299000.0]
    """
    for mark, form in _THOUSANDS:
        if re.fullmatch(form, digits):
            digits = digits.replace(mark, "")
    if not re.fullmatch(r"\d+(?:\.\d+|,\d{1,2})?", digits):
        raise ValueError(f"{digits!r} is no number")
    return float(digits.replace(",", "."))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _stock(text: str) -> bool:
    word = "_".join(text.casefold().replace("_", " ").replace("-", " ").split())
    if word in _IN_STOCK or word in _NOT_IN_STOCK:
        return word in _IN_STOCK
    try:
        return float(word) > 0
    except ValueError:
        raise ValueError(f"{text!r} is neither a number in stock nor in_stock, out_of_stock, yes or no") from None


def _time(text: str) -> int:
    time_ms, _ = time_of(text)
    if time_ms is None or not YEAR_2000_MS <= time_ms <= YEAR_2100_MS:
        raise ValueError(f"{text!r} is no time from 2000 to 2100: ISO 8601, or epoch in s, ms or us")
    return round(time_ms)


def _path(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(">")) if part]


def _object(text: str) -> Any:
    value = wire.parse(text.encode("utf-8", "surrogateescape"))
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "version": _whole_number,
    "in_stock": _stock,
    "launched_at": _time,
    "priority": _ratio,
    "category": _path,
    "attributes": _object,
    "schema_version": _whole_number,
    **dict.fromkeys(("product_id", "parent_id", "seller_id", "title", "brand", "currency"), str),
}
"""What is read of a text; `str` only cuts the blanks around it."""
_NUMBERS_TOO: Final = frozenset({"in_stock", "launched_at"})
"""Of which JSON may hold a number: how many there are, and a time in another unit."""
