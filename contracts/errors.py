"""Every error Millrace raises on purpose; a message that breaks its contract is a dead letter, and never retried."""

from typing import ClassVar


class MillraceError(Exception):
    """An expected failure: one line of cause, one of fix, and the exit code of the process it ends."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(MillraceError):
    """A setting, argument or file is wrong. Operator action: correct what the message names."""

    exit_code = 2


class CheckFailed(MillraceError):
    """A check ran and its answer is no. Operator action: read the named check."""

    exit_code = 3


class DependencyDown(MillraceError):
    """A server, port, disk or package is missing. Operator action: the fix in the message."""

    exit_code = 4


class TransientError(MillraceError):
    """A call failed in a way that may pass. Operator action: none unless it persists."""

    exit_code = 4

    def __init__(self, message: str, *, fix: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, fix=fix)
        self.retry_after_s = retry_after_s


class Overloaded(TransientError):
    """More is asked than can be answered soon. Operator action: more processes if it lasts."""


class Expired(MillraceError):
    """What is asked for was kept for a while and is gone. Operator action: none."""


class InvariantError(MillraceError):
    """A fact that must hold does not. Operator action: report it; the process stopped before writing anything wrong."""


class ContractError(MillraceError):
    """A message breaks its contract: a stable word for counters, and the dotted path of the field to blame, if any."""

    def __init__(self, reason: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class MalformedMessage(ContractError):
    """Not JSON, a wrong type, a missing or impossible value."""


class UnsupportedSchema(ContractError):
    """A `schema_version` that this release does not know. Operator action: upgrade the reader first."""
