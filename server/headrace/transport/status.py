"""Errors to gRPC and HTTP status: the one table, for all transports."""

from __future__ import annotations

import logging
import secrets
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import (
    BackendFailed,
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    LoadFailed,
    MessageTooLarge,
    ModelControlDisabled,
    ModelNotFound,
    ModelNotInRepository,
    ModelNotReady,
    Overloaded,
    ProtocolError,
    QueueTimeout,
    RegionExists,
    RegionNotFound,
    RegionTooSmall,
    RequestTooSlow,
    ServiceNotFound,
    ShuttingDown,
    StateLost,
    Told,
    Unimplemented,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Code(IntEnum):
    """The status codes of gRPC, as they stand in the `grpc-status` trailer.

    grpcio's own enumeration wraps them in tuples, and the native transport does without grpcio.
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: Mapping[type[BaseException], tuple[Code, int]] = {
    InvalidRequest: (Code.INVALID_ARGUMENT, 400),
    ModelNotFound: (Code.NOT_FOUND, 404),
    ModelNotReady: (Code.UNAVAILABLE, 503),
    ServiceNotFound: (Code.NOT_FOUND, 404),
    ModelControlDisabled: (Code.UNAVAILABLE, 503),
    ModelNotInRepository: (Code.INTERNAL, 500),
    LoadFailed: (Code.INVALID_ARGUMENT, 400),
    RegionNotFound: (Code.NOT_FOUND, 404),
    RegionExists: (Code.ALREADY_EXISTS, 400),
    RegionTooSmall: (Code.INTERNAL, 500),
    Unimplemented: (Code.UNIMPLEMENTED, 501),
    MessageTooLarge: (Code.RESOURCE_EXHAUSTED, 413),
    ProtocolError: (Code.INTERNAL, 400),
    Overloaded: (Code.UNAVAILABLE, 503),
    StateLost: (Code.UNAVAILABLE, 503),
    ShuttingDown: (Code.UNAVAILABLE, 503),
    QueueTimeout: (Code.UNAVAILABLE, 503),
    DeadlineExceeded: (Code.DEADLINE_EXCEEDED, 504),
    RequestTooSlow: (Code.DEADLINE_EXCEEDED, 408),
    Cancelled: (Code.CANCELLED, 499),
    BackendFailed: (Code.INTERNAL, 500),
    BaseException: (Code.INTERNAL, 500),
}
"""(gRPC code, HTTP status) of each class of error; a class that is not here takes that of its nearest base."""


MAX_MESSAGE = 4096
"""Characters of a message that are sent: what it quotes of a request may be as long as the request."""


class Status(NamedTuple):
    """How a failed call ends on gRPC: the code, the message in Unicode, and the trailing metadata."""

    code: int
    message: str
    trailers: tuple[tuple[str, str], ...]


def grpc_status(error: BaseException) -> Status:
    """The status of a failed call. Only a HeadraceError speaks to the client; of anything else it sees an id."""
    if isinstance(error, Told):
        return Status(error.code, str(error), error.trailers)
    return Status(_entry(error)[0], client_message(error), _trailers(error))


def statuses_by_reason() -> dict[str, tuple[str, int]]:
    """(name of the gRPC code, HTTP status) by `HeadraceError.reason`."""
    classes = [HeadraceError]
    for cls in classes:
        classes += cls.__subclasses__()
    return {cls.reason: (Code(_entry_of(cls)[0]).name, _entry_of(cls)[1]) for cls in classes}


def http_status(error: BaseException) -> int:
    """The HTTP status of a failed request."""
    return _entry(error)[1]


def http_fields(error: BaseException) -> tuple[tuple[str, str], ...]:
    """Header fields of a reply with an error: its reason, and after how many seconds to come back (RFC 9110, 10.2.3).

    Where a retry would not help, or make things worse, there is no such field.
    """
    if not isinstance(error, HeadraceError):
        return ()
    reason = ("Headrace-Reason", error.reason)
    if isinstance(error, Overloaded) and error.retry_after_ms >= 0:
        return (reason, ("Retry-After", str(max(-(-error.retry_after_ms // 1000), 1))))
    return (reason,)


def client_message(error: BaseException) -> str:
    """What the client may read of an error. An unforeseen one is logged here, with the id that the client gets."""
    if isinstance(error, Told):
        return str(error)
    if isinstance(error, HeadraceError):
        text = str(error)
        return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."
    correlation_id = secrets.token_hex(8)
    logger.error("internal error, correlation id %s", correlation_id, exc_info=error)
    return f"internal error, correlation id {correlation_id}"


def _entry(error: BaseException) -> tuple[Code, int]:
    return _entry_of(type(error))


def _entry_of(kind: type[BaseException]) -> tuple[Code, int]:
    return next(STATUS[cls] for cls in kind.__mro__ if cls in STATUS)


def _trailers(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The machine-readable reason and, where a retry would make things worse, what to do about retrying.

    Source: gRFC A6, "Pushback": a delay in milliseconds, or a negative number for "do not retry". Some clients retry
    UNAVAILABLE by themselves, so without it an overload is multiplied by them.
    """
    if not isinstance(error, HeadraceError):
        return ()
    reason = ("headrace-reason", error.reason)
    if isinstance(error, Overloaded):
        return (reason, ("grpc-retry-pushback-ms", str(error.retry_after_ms)))
    if isinstance(error, ShuttingDown | QueueTimeout):
        return (reason, ("grpc-retry-pushback-ms", "-1"))
    return (reason,)
