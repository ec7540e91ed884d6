"""Commands that ask the search service, as any client does."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import DependencyDown, MillraceError, UsageError
from millrace.commands.looking import Json
from millrace.context import running_settings, service_url
from millrace.output import messages, out, print_json

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 10.0
SHOWN_CHARACTERS: Final = 500


def post(url: str, body: Mapping[str, Any]) -> Any:
    """Return the JSON answer to a POST.

    Raises:
        DependencyDown: the service does not answer, or says that it cannot.
        UsageError: it refuses the request.
    """
    import httpx

    try:
        answer = httpx.post(url, json=body, timeout=TIMEOUT_S)
        if answer.is_success:
            return answer.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise DependencyDown(f"{url} does not answer as it should: {exc}", fix="see `millrace status`") from exc
    raise _refusal(answer)


def _refusal(answer: "httpx.Response") -> MillraceError:
    text = f"{answer.url.path} answers {answer.status_code}: {answer.text[:SHOWN_CHARACTERS]}"
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
    body = {"query": query, "k": k, "filters": _filters(brand, max_price), "impression": "none"}
    answer = post(f"{service_url(running_settings(), 'search')}/v1/search", body)
    print_json(answer) if json else out().print(results_table(answer))
    if answer["degraded"] is not None:
        messages().print(f"degraded answer: {answer['degraded']}", markup=False)


def _filters(brand: list[str] | None, max_price: float | None) -> dict[str, Any]:
    given = {"brand": brand or None, "price": None if max_price is None else {"lte": max_price}}
    return {name: condition for name, condition in given.items() if condition is not None}


def results_table(answer: Mapping[str, Any]) -> Table:
    """Return the results of a search; the shop's texts are shown as they are, never as markup."""
    title = f"query release {answer['query_release']}, product release {answer['product_release']}"
    table = Table("#", "score", "product", "title", "price", title=title)
    for result in answer["results"]:
        price = "" if result.get("price") is None else f"{result['price']:,.2f}"
        texts = (Text(result["product_id"]), Text(result["title"]))
        table.add_row(str(result["position"]), f"{result['score']:.3f}", *texts, price)
    return table


def encode(
    texts: Annotated[list[str], typer.Argument(help="Queries to encode.")],
    json: Json = False,
) -> None:
    """Encode queries with the query tower in force, for asking Qdrant yourself.

    Example: millrace encode "quiet fridge" --json
    """
    answer = post(f"{service_url(running_settings(), 'search')}/v1/encode", {"texts": texts})
    if json:
        print_json(answer)
        return
    for text, vector in zip(texts, answer["vectors"], strict=True):
        head = ", ".join(f"{value:+.4f}" for value in vector[:6])
        out().print(f"{text!r}: {len(vector)} dimensions, [{head}, …]", markup=False)
