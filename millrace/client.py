"""A client of the search service for shops that run Python: typed requests and answers, pages, and query vectors."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from contracts.errors import DependencyDown, Expired, Overloaded, UsageError
from contracts.http import EncodeAnswer, SearchAnswer, SearchRequest

TIMEOUT_S: Final = 10.0
SHOWN_CHARACTERS: Final = 500
GONE: Final = 410
TOO_MANY: Final = 429
RETRY_AFTER_S: Final = 1.0
"""Where an answer gives no seconds."""
PROBLEM: Final = "application/problem+json"

A = TypeVar("A", bound=BaseModel)


class SearchClient:
    """Asks one search service, from any thread, over connections that it keeps.

    Args:
        url: of the service, such as `http://127.0.0.1:8081`.
        timeout_s: how long a call may wait for the service to connect, take it, or go on answering; the service itself
            answers a search within a second, or refuses.

    Raises:
        UsageError: that is no address.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        if not re.match(r"https?://[^/]", url):
            raise UsageError(f"{url!r} is no address of a service", fix="give it as http://host:8081")
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout_s)
        except httpx.InvalidURL as error:
            raise UsageError(
                f"{url!r} is no address of a service: {error}", fix="give it as http://host:8081"
            ) from error

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def search(self, request: SearchRequest | str) -> SearchAnswer:
        """Search; a text alone asks for the first ten.

        Raises:
            Overloaded: there is too much to do; come again after `retry_after_s`.
            DependencyDown: the service does not answer, or says that it cannot.
            UsageError: it refuses the request.
            Expired: the list whose page is asked for is not kept any more.
        """
        asked = SearchRequest(query=request) if isinstance(request, str) else request
        return self._post("/v1/search", asked.model_dump(mode="json", exclude_none=True), SearchAnswer)

    def next_page(self, request: SearchRequest, answer: SearchAnswer) -> SearchAnswer | None:
        """The page behind an answer to a request; None behind the last. One whose list is gone is ranked anew.

        Raises:
            MillraceError: as `search` does, but for `Expired`.
        """
        if not answer.has_more:
            return None
        following = request.model_copy(update={"search_id": answer.search_id, "page": answer.page + 1})
        try:
            return self.search(following)
        except Expired:
            return self.search(following.model_copy(update={"search_id": None}))

    def pages(self, request: SearchRequest) -> Iterator[SearchAnswer]:
        """All pages from the requested one on.

        Raises:
            MillraceError: as `search` does, but for `Expired`.
        """
        answer: SearchAnswer | None = self.search(request)
        while answer is not None:
            yield answer
            answer = self.next_page(request, answer)

    def encode(self, texts: Sequence[str]) -> EncodeAnswer:
        """Query vectors of texts, for whoever asks the vector store by himself.

        Raises:
            MillraceError: as `search` does, but for `Expired`.
        """
        return self._post("/v1/encode", {"texts": list(texts)}, EncodeAnswer)

    def _post(self, path: str, body: Mapping[str, Any], form: type[A]) -> A:
        said = post(path, body, client=self._http)
        try:
            return form.model_validate(said)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            what = ".".join(map(str, problem["loc"])) or "the answer"
            raise DependencyDown(
                f"{_whole(path, self._http)} gives no answer that is known here: {what}: {problem['msg']}",
                fix="is it the search service, and of this version?",
            ) from error


def post(url: str, body: Mapping[str, Any], *, client: httpx.Client | None = None) -> Any:
    """Post and return the JSON of the answer.

    Args:
        url: whole, or a path for a client that knows the rest.
        body: of the request.
        client: whose connections are used; a new one if None.

    Raises:
        Overloaded: there is too much to do; come again after `retry_after_s`.
        DependencyDown: the service does not answer, or says that it cannot.
        UsageError: it refuses the request, or JSON cannot hold it.
        Expired: what is asked for is not kept any more.
    """
    try:
        asked = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        fix = "send finite numbers, and texts that are Unicode"
        raise UsageError(f"the request cannot be written as JSON: {error}", fix=fix) from error
    try:
        sent: dict[str, Any] = {"content": asked, "headers": {"Content-Type": "application/json"}}
        answer = httpx.post(url, **sent, timeout=TIMEOUT_S) if client is None else client.post(url, **sent)
        if answer.is_success:
            return answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise DependencyDown(
            f"{_whole(url, client)} does not answer as it should: {error}", fix="see `millrace status`"
        ) from error
    problem = _problem(answer)
    reason = f" [{problem['reason']}]" if problem.get("reason") else ""
    said = problem.get("detail") or problem.get("title") or answer.text[:SHOWN_CHARACTERS]
    text = f"{answer.url.path} answers {answer.status_code}: {said}{reason}"
    if answer.status_code == GONE:
        raise Expired(text, fix="ask without search_id")
    if answer.status_code == TOO_MANY or problem.get("reason") == "busy":
        after = answer.headers.get("Retry-After", "")
        retry_after_s = float(after) if after.isdecimal() else RETRY_AFTER_S
        raise Overloaded(text, fix="send it again later", retry_after_s=retry_after_s)
    if answer.is_client_error:
        raise UsageError(text, fix="correct the request; `/docs` of the search service shows its form")
    raise DependencyDown(text, fix="see `millrace status`")


def _whole(url: str, client: httpx.Client | None) -> str:
    return url if client is None else f"{client.base_url}".rstrip("/") + url


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem details of an answer, of which RFC 9457 requires no member; nothing if there are none."""
    if answer.headers.get("Content-Type", "").partition(";")[0].strip().lower() != PROBLEM:
        return {}
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
