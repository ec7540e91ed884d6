"""Errors as people and programs read them: RFC 9457 problem details with the field to blame and a stable reason."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from contracts.errors import MillraceError

MEDIA_TYPE: Final = "application/problem+json"
_PLACES: Final = {"body", "query", "path", "header"}
_REASONS: Final = {"json_invalid": "malformed_json", "extra_forbidden": "unknown_field"}


def problem(
    status: int, detail: str, *, reason: str, field: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error as an HTTP answer.

    Args:
        status: HTTP status.
        detail: sentence for people.
        reason: stable word for programs.
        field: dotted path of what is to blame, where something is.
        headers: further ones.
    """
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
    }
    if field:
        body["field"] = field
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> JSONResponse:
        """Name the first thing that is wrong with a request."""
        return _refusal(error.errors())

    @app.exception_handler(MillraceError)
    async def unavailable(_request: Request, error: MillraceError) -> JSONResponse:
        """Say what is missing and when to come back."""
        detail = f"{error.message}; {error.fix}" if error.fix else error.message
        return problem(503, detail, reason="unavailable", headers={"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        """Answer unknown paths and methods."""
        reason = HTTPStatus(error.status_code).name.lower()
        return problem(error.status_code, str(error.detail), reason=reason, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        """Keep what nobody foresaw out of the answer; the log has it."""
        return problem(500, "something failed here; the log says what", reason="internal")


def _refusal(errors: Sequence[Any]) -> JSONResponse:
    """Return the first complaint about a request."""
    first = errors[0]
    path = [str(part) for part in first["loc"]]
    if path and path[0] in _PLACES:
        del path[0]
    reason = _REASONS.get(first["type"], first["type"])
    if reason == "malformed_json":
        return problem(400, "the body is not JSON", reason=reason)
    field = ".".join(path) or None
    return problem(422, f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}", reason=reason, field=field)
