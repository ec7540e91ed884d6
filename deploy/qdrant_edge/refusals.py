"""What an error of Edge means to the client.

Edge raises bare `Exception` for an operation that it refuses and ValueError for text that it cannot parse; a panic in
it is a BaseException. Everything else is a fault of ours and passes through.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from deploy.qdrant_edge.errors import ApiError, BadRequest, InternalError, NotFound


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what Edge raises into answers: its own refusals are the caller's fault, its panics are ours to report."""
    try:
        yield
    except ApiError:
        raise
    except BaseException as exc:
        raise _refusal(exc) from exc


def _refusal(exc: BaseException) -> BaseException:
    """Return the answer for an error of Edge, or the error itself where it is not one."""
    text = str(exc)
    if isinstance(exc, ValueError) and "as UUID" in text:
        return BadRequest(f"Format error in JSON body: {text}; a point ID is an unsigned integer or a UUID")
    if "invalid JSON path" in text:
        return BadRequest("Format error in JSON body: a field is named by an invalid JSON path")
    if isinstance(exc, ValueError):
        return BadRequest(f"Format error in JSON body: {text}")
    if type(exc).__name__ == "PanicException" or "Service runtime error" in text:
        return InternalError(f"Service internal error: {text}")
    if type(exc) is not Exception:
        return exc
    if text.startswith("No point with id"):
        return NotFound(f"Not found: {text} found")
    if text.startswith("Operation cancelled"):
        return BadRequest(f"Wrong input: {text}; a formula over a field that some points lack needs `defaults`")
    return BadRequest(f"Wrong input: {text}")
