"""Answers that refuse a request, with the status and the sentence the client sees.

ApiError            any refusal
|- BadRequest   400 the request breaks the API: wrong type, unknown field, wrong dimension
|- NotFound     404 no such collection, alias or point
|- Conflict     409 the name is taken
|- Unprocessable 422 a value of the right type is out of its range
|- NotSupported 501 a Qdrant server does this, the embedded one does not
`- InternalError 500 the engine failed
   `- DiskFull  500 the disk has no room for a write
"""

from typing import ClassVar


class ApiError(Exception):
    """A refusal that is answered in Qdrant's error form; never ends the process."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(ApiError):
    """The request breaks the API. Operator action: correct what the sentence names."""

    status = 400


class NotFound(ApiError):
    """Nothing has that name or id. Operator action: check the name; list the collections."""

    status = 404


class Conflict(ApiError):
    """The name is taken. Operator action: choose another, or delete the old one first."""

    status = 409


class Unprocessable(ApiError):
    """A value is of the right type and out of its range. Operator action: correct what the sentence names."""

    status = 422


class NotSupported(ApiError):
    """The embedded Qdrant cannot do it. Operator action: leave it out, or run a Qdrant server (MILLRACE_QDRANT_URL)."""

    status = 501

    def __init__(self, feature: str) -> None:
        super().__init__(
            f"Not supported: the embedded Qdrant has no {feature}; a Qdrant server has (MILLRACE_QDRANT_URL)"
        )


class InternalError(ApiError):
    """The engine failed in a way that no request should cause. Operator action: report it with the log line."""

    status = 500


class DiskFull(InternalError):
    """The disk has no room for a write; reads go on. Operator action: free some space; the writer tries again."""
