"""One row becomes a product message or a fault that says which field is wrong and why."""

from typing import Any

import pytest

from contracts.catalog import Product, ProductDeleted
from millrace.feed import Fault, Form, lacking_columns, read_change, unused_columns
from millrace.tables import Row

NOW_MS = 1_795_196_000_000
MERCHANT = {
    "id": "P-1", "title": " Quiet fridge ", "description": "190 l", "link": "https://a.shop/p-1",
    "image_link": "https://a.shop/p-1.jpg", "availability": "in stock", "price": "13,990.00 INR", "brand": "Kelto",
    "google_product_category": "Home > Appliances", "product_type": "Appliances > Refrigerators",
    "item_group_id": "V-1", "condition": "new", "color": "white", "mpn": "KG-36", "size": "", "shipping": "x",
}  # fmt: skip


def product(fields: dict[str, Any], **form: Any) -> Product:
    """Return the product of a row."""
    made = read_change(Row(2, fields), Form(NOW_MS, **form))
    assert isinstance(made, Product), made
    return made


def fault(fields: dict[str, Any]) -> Fault:
    """Return what is wrong with a row."""
    made = read_change(Row(7, fields), Form(NOW_MS))
    assert isinstance(made, Fault), made
    return made


def row(**fields: Any) -> dict[str, Any]:
    """Return a row with an id and a title."""
    return {"product_id": "P-1", "title": "Quiet fridge", **fields}


def test_a_merchant_feed_needs_no_mapping() -> None:
    """The columns of a merchant feed become the fields of the message; the shop's own category comes first."""
    made = product(MERCHANT)
    assert made.model_dump(exclude_defaults=True) == {
        "type": "product", "product_id": "P-1", "version": NOW_MS, "title": "Quiet fridge", "description": "190 l",
        "category": ("Appliances", "Refrigerators"), "brand": "Kelto", "price": 13990.0, "currency": "INR",
        "parent_id": "V-1", "url": "https://a.shop/p-1", "image_url": "https://a.shop/p-1.jpg",
        "attributes": {"color": "white", "condition": "new", "mpn": "KG-36"},
    }  # fmt: skip
    assert unused_columns(Row(2, MERCHANT), Form(NOW_MS)) == ["shipping"]
    assert lacking_columns(Row(2, MERCHANT)) == []
    assert lacking_columns(Row(2, {"sku": "P-1", "title": "Fridge"})) == ["product_id"]


def test_the_number_of_a_category_is_no_category() -> None:
    """Google's taxonomy may be given as a number, which says nothing to a reader."""
    assert product(row(google_product_category="2706")).category == ()
    assert product(row(google_product_category="Home > Ovens")).category == ("Home", "Ovens")


@pytest.mark.parametrize(
    ("text", "price", "currency"),
    [
        ("499", 499.0, None),
        ("499.00 INR", 499.0, "INR"),
        ("EUR 12,99", 12.99, "EUR"),
        ("1,29,900.50 INR", 129_900.5, "INR"),
        ("1.299,00 EUR", 1299.0, "EUR"),
        (" 0 ", 0.0, None),
    ],
)
def test_prices_are_read_as_shops_write_them(text: str, price: float, currency: str | None) -> None:
    """Currency before or behind, either decimal mark, separators of thousands."""
    made = product(row(price=text))
    assert (made.price, made.currency) == (price, currency)


@pytest.mark.parametrize(
    ("period", "price"),
    [
        ("", 80.0),
        ("2026-11-01T00:00+0530/2026-12-31T00:00+0530", 80.0),
        ("2026-10-01T00:00Z/2026-10-02T00:00Z", 100.0),
    ],
)
def test_a_sale_price_holds_while_the_sale_lasts(period: str, price: float) -> None:
    """Without dates a sale is on; with them, between them."""
    assert product(row(price="100 INR", sale_price="80 INR", sale_price_effective_date=period)).price == price


@pytest.mark.parametrize(
    ("value", "in_stock"),
    [("in_stock", True), ("In Stock", True), ("limited availability", True), ("4", True), ("yes", True), (4, True),
     ("out of stock", False), ("preorder", False), ("backorder", False), ("0", False), ("no", False), (0, False)],
)  # fmt: skip
def test_stock_is_a_word_or_a_number(value: str | int, in_stock: bool) -> None:
    """What can be bought now is in stock."""
    assert product(row(in_stock=value)).in_stock is in_stock


def test_other_fields_of_a_table_are_read_by_their_type() -> None:
    """Versions, times, numbers, ids and attributes of a table are texts."""
    made = product(
        row(product_id=17, version="3", launched_at="2026-10-02", priority="0.5", attributes='{"door": 2}',
            litres="190", code="007", colour="red"),
        attributes=["litres", "code", "colour"],
        defaults={"locale": "en-IN", "brand": "Kelto"},
    )  # fmt: skip
    assert (made.product_id, made.version, made.priority) == ("17", 3, 0.5)
    assert made.launched_at == 1_790_899_200_000
    assert made.attributes == {"litres": 190, "code": "007", "colour": "red", "door": 2}
    assert (made.locale, made.brand) == ("en-IN", "Kelto")


def test_a_message_is_taken_as_it_is() -> None:
    """Unknown fields are kept; a deletion deletes; a version that is missing is the time of import."""
    made = product({"type": "product", "product_id": "P-1", "title": "Fridge", "price": 5, "rank_hint": 3})
    assert (made.version, made.model_extra) == (NOW_MS, {"rank_hint": 3})
    gone = read_change(Row(1, {"type": "product_deleted", "product_id": "P-1", "version": 5}), Form(NOW_MS))
    assert gone == ProductDeleted(type="product_deleted", product_id="P-1", version=5)
    of_table = read_change(Row(2, {"type": "product_deleted", "product_id": "P-1", "version": "5"}), Form(NOW_MS))
    assert of_table == gone


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"title": "Fridge"}, "missing", "product_id"),
        ({"product_id": "P-1", "title": " "}, "missing", "title"),
        (row(price="cheap"), "wrong_type", "price"),
        (row(price="1.2.3,4"), "wrong_type", "price"),
        (row(in_stock="perhaps"), "wrong_type", "in_stock"),
        (row(launched_at="soon"), "wrong_type", "launched_at"),
        (row(launched_at="1995-06-01"), "wrong_type", "launched_at"),
        (row(version="v3"), "wrong_type", "version"),
        (row(version=str(2**60)), "out_of_range", "version"),
        (row(brand="x" * 300), "too_long", "brand"),
        (row(attributes="[1]"), "wrong_type", "attributes"),
        (row(attributes="{"), "malformed_json", None),
        (row(description="half \udce9"), "malformed_text", "description"),
        (row(description="x" * 99_000, notes=1, url="u" * 5_000), "too_long", "url"),
    ],
)
def test_a_fault_names_the_field_and_the_reason(fields: dict[str, Any], reason: str, field: str | None) -> None:
    """Every bad row is one fault with its line, a stable word, the field and a sentence."""
    found = fault(fields)
    assert (found.line, found.reason, found.field) == (7, reason, field)
    assert found.message.startswith(f"{field}: " if field else "")
    assert found.product_id == fields.get("product_id")
