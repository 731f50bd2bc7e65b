"""What a request's field section must look like. Source: RFC 9113, 8.2 and 8.3."""

from __future__ import annotations

import re

from headrace.transport.http2.frames import ErrorCode, StreamViolation

Fields = list[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # a token (RFC 9110, 5.6.2) without upper case
_BAD_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")
_CONNECTION_SPECIFIC = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_KNOWN_LIMIT = 256
_KNOWN_SIZE = 256


def _malformed(debug: str) -> StreamViolation:
    return StreamViolation(ErrorCode.PROTOCOL_ERROR, debug)


class RequestValidator:
    """Checks the field sections of one connection; remembers the fields that it has found good.

    Clients repeat nearly all fields from call to call, and looking one up is several times cheaper than checking it.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[tuple[bytes, bytes]] = set()

    def request(self, fields: Fields) -> None:
        """Raises StreamViolation if `fields` is a malformed request."""
        known = self._known
        pseudo: dict[bytes, bytes] = {}
        regular = False
        for field in fields:
            name, value = field
            if name[:1] == b":":
                if regular:
                    raise _malformed(f"pseudo field {name!r} after a regular field")
                if name not in _REQUEST_PSEUDO:
                    raise _malformed(f"pseudo field {name!r} in a request")
                if name in pseudo:
                    raise _malformed(f"two fields {name!r}")
                pseudo[name] = value
                if field not in known:
                    self._check_value(field)
            else:
                regular = True
                if field not in known:
                    self._check_field(field)
        _check_pseudo(pseudo)
        for name, value in fields:
            if name == b"host" and value != pseudo.get(b":authority", value):
                raise _malformed("host differs from :authority")

    def trailers(self, fields: Fields) -> None:
        """Raises StreamViolation if `fields` is a malformed trailer section."""
        for field in fields:
            if field[0][:1] == b":":
                raise _malformed(f"pseudo field {field[0]!r} in trailers")
            if field not in self._known:
                self._check_field(field)

    def _check_field(self, field: tuple[bytes, bytes]) -> None:
        name, value = field
        if not _NAME.fullmatch(name):
            raise _malformed(f"field name {name!r}")
        if name in _CONNECTION_SPECIFIC:
            raise _malformed(f"connection-specific field {name!r}")
        if name == b"te" and value != b"trailers":
            raise _malformed(f"te is {value!r}, only 'trailers' is allowed")
        self._check_value(field)

    def _check_value(self, field: tuple[bytes, bytes]) -> None:
        if _BAD_VALUE.search(field[1]):
            raise _malformed(f"value of field {field[0]!r}")
        if len(field[0]) + len(field[1]) > _KNOWN_SIZE:
            return
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known.add(field)


def _check_pseudo(pseudo: dict[bytes, bytes]) -> None:
    method = pseudo.get(b":method")
    if method is None:
        raise _malformed("no :method")
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo:
            raise _malformed("CONNECT with :scheme or :path")
        return
    if b":scheme" not in pseudo:
        raise _malformed("no :scheme")
    if not pseudo.get(b":path"):
        raise _malformed("no :path, or an empty one")


def content_length(fields: Fields) -> int:
    """The value of content-length, -1 if there is none. Raises StreamViolation (RFC 9113, 8.1.1)."""
    length = -1
    for name, value in fields:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or (length >= 0 and int(value) != length):
                raise _malformed(f"content-length {value!r}")
            length = int(value)
    return length
