"""What can go wrong with a request, in terms that know no transport.

`transport/status.py` maps each class to a gRPC and an HTTP status, once. The message of a `HeadraceError` is written
for the client and is sent to it; any other exception is answered with a fixed text and a correlation id.
"""

import traceback
from typing import ClassVar


class HeadraceError(Exception):
    """The root: a refusal or failure whose message the client may read.

    `reason` is the machine-readable name of the cause, sent as trailing metadata `headrace-reason` and used as a
    metric label.
    """

    reason: ClassVar[str] = "error"


class InvalidRequest(HeadraceError):
    """The request contradicts the protocol or the model's signature. Says what was wrong and what was expected."""

    reason = "invalid_request"


class RuleBroken(InvalidRequest):
    """An input breaks a rule of the model's model.toml or schema.toml. Names the rule, the element and its value."""

    reason = "rule_broken"


class ProtocolError(HeadraceError):
    """The call breaks the framing of its transport: a message cut short, a flag that does not exist."""

    reason = "protocol_error"


class ModelNotFound(HeadraceError):
    """No model, or no version of it, of that name is in the repository."""

    reason = "model_not_found"


class ModelNotReady(HeadraceError):
    """The version asked for exists and is loading, unloading, failed to load, or has lost its instances."""

    reason = "model_not_ready"


class ModelControlDisabled(HeadraceError):
    """Models are loaded and unloaded by request in mode `explicit` alone."""

    reason = "model_control_disabled"


class ModelNotInRepository(HeadraceError):
    """A model is to be loaded that the repository does not hold."""

    reason = "model_not_in_repository"


class LoadFailed(HeadraceError):
    """A model that was to be loaded could not be. What served before still does."""

    reason = "load_failed"


class RegionNotFound(HeadraceError):
    """No shared memory region of that name is registered."""

    reason = "region_not_found"


class RegionExists(HeadraceError):
    """A shared memory region of that name is registered already."""

    reason = "region_exists"


class RegionTooSmall(HeadraceError):
    """An output does not fit in the shared memory that the request gave for it."""

    reason = "region_too_small"


class ServiceNotFound(HeadraceError):
    """The health of a service was asked for that this server does not have."""

    reason = "service_not_found"


class Unimplemented(HeadraceError):
    """A feature of the protocol that this server does not have, or that is switched off."""

    reason = "unimplemented"


class MessageTooLarge(HeadraceError):
    """A message, or what a connection has buffered, is above the configured limit."""

    reason = "message_too_large"


class Overloaded(HeadraceError):
    """Refused at admission, so that what was admitted keeps its deadline. `retry_after_ms` < 0: do not retry."""

    reason = "overloaded"

    def __init__(self, message: str, retry_after_ms: int = -1) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class QueueFull(Overloaded):
    """The model's queue holds as many requests, rows or bytes as it may."""

    reason = "queue_full"


class StateFull(Overloaded):
    """The states of a model's sequences take as many bytes as they may; the sequence has ended."""

    reason = "state_full"


class StateLost(HeadraceError):
    """The instance that ran a request was lost, and with it what the model kept of the sequence; it has ended."""

    reason = "state_lost"


class DeadlineUnreachable(Overloaded):
    """By the cost model, the reply would come after the request's deadline."""

    reason = "deadline_unreachable"


class ShuttingDown(HeadraceError):
    """The server drains: it finishes what it has accepted and takes nothing new."""

    reason = "shutting_down"


class QueueTimeout(HeadraceError):
    """The request's own `timeout` parameter, or the model's objective, passed while it waited."""

    reason = "queue_timeout"


class DeadlineExceeded(HeadraceError):
    """The RPC's deadline (`grpc-timeout`) passed before the reply was ready."""

    reason = "deadline_exceeded"


class RequestTooSlow(HeadraceError):
    """The request's message began and did not arrive, or at next to no pace."""

    reason = "request_too_slow"


class Cancelled(HeadraceError):
    """The caller has gone away. Nothing is sent; the class exists for counters."""

    reason = "cancelled"


class BackendFailed(HeadraceError):
    """The model raised, or returned an output that its signature does not allow.

    The message is fixed; `detail` is for the log alone and never reaches a client.
    """

    reason = "backend_failed"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class Told(Exception):
    """An error that ended a request in another process, as its caller shall see it: what that process made of it.

    code: of gRPC. message: for the client. trailers: trailing metadata. told_reason: as `reason_of` gave it.
    """

    def __init__(self, code: int, message: str, trailers: tuple[tuple[str, str], ...], told_reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.trailers = trailers
        self.told_reason = told_reason


def reason_of(error: BaseException) -> str:
    """The reason as metrics name it; `internal` for what is not a HeadraceError."""
    if isinstance(error, Told):
        return error.told_reason
    return error.reason if isinstance(error, HeadraceError) else "internal"


class ModelLoadError(Exception):
    """A model could not be loaded. For the operator: the repository index and the log show the message."""


class ConfigError(Exception):
    """A setting is unknown or has a bad value. Names the key, the value, what is allowed and where it was set."""


def let_go(error: BaseException | None) -> None:
    """Has an error and its causes forget what was at work where they came by: somebody may keep it for a long time.

    Or it keeps itself, by the frames of its traceback, until the garbage collector comes by, which is rare here.
    """
    seen = set[int]()  # one that was raised again may be the cause of its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
