"""Refusals: what a client is told, with which status, and what an error of Edge means."""

from collections.abc import Iterator
from contextlib import contextmanager


class ApiError(Exception):
    """A refusal that is answered in Qdrant's error form; never ends the process.

    400 the request breaks the API: wrong type, unknown field, wrong dimension. 404 no such collection, alias or point.
    408 its own timeout was over before its turn came. 409 the name is taken. 422 a value of the right type is out of
    its range. 500 the engine failed, or its disk is full. 501 a Qdrant server does this. 503 too much waits already.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def not_supported(feature: str) -> ApiError:
    """Return the refusal of what a Qdrant server has and the embedded one lacks."""
    has = f"the embedded Qdrant has no {feature}; a Qdrant server has (MILLRACE_QDRANT_URL)"
    return ApiError(501, f"Not supported: {has}")


@contextmanager
def edge_errors() -> Iterator[None]:
    """Turn what Edge raises into answers: its own refusals are the caller's fault, its panics are ours to report.

    Edge raises bare `Exception` for an operation that it refuses and ValueError for text that it cannot parse; a panic
    in it is a BaseException. Everything else is a fault of ours and passes through.
    """
    try:
        yield
    except ApiError:
        raise
    except BaseException as error:
        raise _meaning(error) from error


def _meaning(error: BaseException) -> BaseException:
    text = str(error)
    if "invalid JSON path" in text:
        return ApiError(400, "Format error in JSON body: a field is named by an invalid JSON path")
    if isinstance(error, ValueError):
        return ApiError(400, f"Format error in JSON body: {text}")
    if type(error).__name__ == "PanicException" or "Service runtime error" in text:
        return ApiError(500, f"Service internal error: {text}")
    if type(error) is not Exception:
        return error
    if text.startswith("No point with id"):
        return ApiError(404, f"Not found: {text} found")
    if text.startswith("Operation cancelled"):
        return ApiError(400, f"Wrong input: {text}; a formula over a field that some points lack needs `defaults`")
    return ApiError(400, f"Wrong input: {text}")
