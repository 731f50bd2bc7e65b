"""The octets of replies that are not an application's: errors, and what stands before the others."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from headrace.transport.status import client_message, http_fields, http_status

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"Connection: close\r\n"


class Openings:
    """Status line and date of replies, made anew when time has passed.

    ok, ok_close: of a success, after which the connection stays open, or closes. fields: what ASGI's replies get.
    Source: RFC 9110, 6.6.1 on the date.
    """

    __slots__ = ("_date", "fields", "ok", "ok_close")

    def __init__(self, seconds: float) -> None:
        self.refresh(seconds)

    def refresh(self, seconds: float) -> None:
        """seconds: of Unix time."""
        date = formatdate(seconds, usegmt=True).encode()
        self.fields = [(b"date", date)]
        self._date = b"Date: %b\r\n" % date
        self.ok = self._opening(200)
        self.ok_close = self.ok + CLOSE

    def refusal(self, status: int, message: str, fields: Iterable[tuple[str, str]], *, close: bool) -> bytes:
        """A whole reply with an error."""
        body = error_body(message)
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return b"%b%b%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            self._opening(status), CLOSE if close else b"", lines.encode(), len(body), body,
        )  # fmt: skip

    def _opening(self, status: int) -> bytes:
        return b"HTTP/1.1 %d %b\r\n%b" % (status, phrase(status), self._date)


def error_body(message: str) -> bytes:
    """JSON in ASCII: what a message quotes of a request may not be Unicode."""
    return json.dumps({"error": message}).encode()


class HttpError(Exception):
    """A violation of HTTP itself, for which there is a status and no error of the service."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal_of(error: BaseException) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Status, message and header fields of an error."""
    if isinstance(error, HttpError):
        return error.status, str(error), ()
    return http_status(error), client_message(error), http_fields(error)


def phrase(status: int) -> bytes:
    """The reason phrase."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:  # 499 is nginx's
        return b"Client Closed Request"
