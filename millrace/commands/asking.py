"""Commands that ask the search service, as any client does."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import Process
from deploy.local.state import load_running_settings
from millrace.output import Json, messages, out, print_json
from millrace.watch.scrape import scrape_targets

TIMEOUT_S: Final = 10.0
SHOWN_CHARACTERS: Final = 500


def search_url() -> str:
    """Find the search service of the running deployment."""
    url = scrape_targets(load_running_settings()).get(Process.SEARCH)
    if url is None:
        raise DependencyDown(
            "it is not known where search runs",
            fix="start everything with `millrace up`, or set MILLRACE_SCRAPE=search=http://host:port",
        )
    return url


def post(url: str, body: Mapping[str, Any]) -> Any:
    """Post and return the JSON of the answer.

    Raises:
        DependencyDown: the service does not answer, or says that it cannot.
        UsageError: it refuses the request.
    """
    import httpx

    try:
        answer = httpx.post(url, json=body, timeout=TIMEOUT_S)
        if answer.is_success:
            return answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise DependencyDown(f"{url} does not answer as it should: {error}", fix="see `millrace status`") from error
    text = f"{answer.url.path} answers {answer.status_code}: {answer.text[:SHOWN_CHARACTERS]}"
    if answer.is_client_error:
        raise UsageError(text, fix="correct the request; `/docs` of the search service shows its form")
    raise DependencyDown(text, fix="see `millrace status`")


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
    answer = post(f"{search_url()}/v1/search", body)
    print_json(answer) if json else out().print(results_table(answer))
    if answer["degraded"] is not None:
        messages().print(f"degraded answer: {answer['degraded']}", markup=False)


def results_table(answer: Mapping[str, Any]) -> Table:
    """The results of a search; the shop's texts are shown as they are, never as markup."""
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
    answer = post(f"{search_url()}/v1/encode", {"texts": texts})
    if json:
        print_json(answer)
        return
    for text, vector in zip(texts, answer["vectors"], strict=True):
        head = ", ".join(f"{value:+.4f}" for value in vector[:6])
        out().print(f"{text!r}: {len(vector)} dimensions, [{head}, …]", markup=False)
