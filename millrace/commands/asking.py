"""Commands that ask the search service, as any client does."""

from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from contracts.errors import DependencyDown, MillraceError, UsageError
from millrace.commands.looking import Json
from millrace.context import running_settings, service_url
from millrace.output import out, print_json

TIMEOUT_S = 10.0


def post(url: str, body: dict[str, Any]) -> Any:
    """Return the JSON answer to a POST.

    Raises:
        DependencyDown: the service does not answer, or says that it cannot.
        UsageError: it refuses the request.
    """
    try:
        answer = httpx.post(url, json=body, timeout=TIMEOUT_S)
    except httpx.HTTPError as exc:
        raise DependencyDown(f"{url} does not answer: {exc}", fix="see `millrace status`") from exc
    if answer.is_success:
        return answer.json()
    raise _refusal(answer)


def _refusal(answer: httpx.Response) -> MillraceError:
    text = f"{answer.url.path} answers {answer.status_code}: {answer.text[:500]}"
    if answer.is_client_error:
        return UsageError(text, fix="correct the request; `/docs` of the search service shows its form")
    return DependencyDown(text, fix="see `millrace status`")


def search(
    query: Annotated[str, typer.Argument(help="What a shopper would type.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=100, help="Number of results.")] = 10,
    brand: Annotated[list[str] | None, typer.Option(help="Only this brand; may be given more than once.")] = None,
    max_price: Annotated[float | None, typer.Option(min=0, help="Only products up to this price.")] = None,
    json: Json = False,
) -> None:
    """Search the index as the shop's site would, without writing an impression.

    Example: millrace search "quiet fridge for a bachelor" -k 5
    """
    filters: dict[str, Any] = {"brand": brand} if brand else {}
    if max_price is not None:
        filters["price"] = {"lte": max_price}
    body = {"query": query, "k": k, "filters": filters, "impression": "none"}
    answer = post(f"{service_url(running_settings(), 'search')}/v1/search", body)
    if json:
        print_json(answer)
        return
    table = Table(
        "#",
        "score",
        "product",
        "title",
        "price",
        title=f"releases {answer['query_release']}/{answer['product_release']}",
    )
    for result in answer["results"]:
        price = "" if result.get("price") is None else f"{result['price']:,.0f}"
        table.add_row(str(result["position"]), f"{result['score']:.3f}", result["product_id"], result["title"], price)
    out().print(table)


def encode(
    texts: Annotated[list[str], typer.Argument(help="Queries to encode.")],
    json: Json = False,
) -> None:
    """Encode queries with the query tower in force, for asking Qdrant yourself."""
    answer = post(f"{service_url(running_settings(), 'search')}/v1/encode", {"texts": texts})
    if json:
        print_json(answer)
        return
    for text, vector in zip(texts, answer["vectors"], strict=True):
        head = ", ".join(f"{value:+.4f}" for value in vector[:6])
        out().print(f"{text!r}: {len(vector)} dimensions, [{head}, …]", markup=False)
