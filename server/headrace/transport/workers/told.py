"""Errors on their way from the engine to the worker whose call they end."""

from __future__ import annotations

import json

from headrace.errors import Told, reason_of
from headrace.transport.status import grpc_status
from headrace.transport.workers.records import Malformed


def tell(error: BaseException) -> bytes:
    """What a worker has to know of an error. An unforeseen one is logged here, as `status.client_message` says."""
    code, message, trailers = grpc_status(error)
    return json.dumps((int(code), message, trailers, reason_of(error))).encode()


def told(octets: bytes) -> Told:
    """The error as the caller shall see it. Raises Malformed."""
    try:
        code, message, trailers, reason = json.loads(octets)
        return Told(int(code), str(message), tuple((str(name), str(value)) for name, value in trailers), str(reason))
    except (ValueError, TypeError) as error:
        raise Malformed("an ERROR that is none") from error
