"""The dates of a certificate, which the ssl module tells of the other side's alone."""

from __future__ import annotations

from datetime import UTC, datetime

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0


def validity(der: bytes) -> tuple[int, int]:
    """The times notBefore and notAfter of an X.509 certificate, in seconds of Unix time (RFC 5280, 4.1).

    Raises ValueError where `der` is none.
    """
    try:
        at = _enter(der, _enter(der, 0))  # tbsCertificate
        if der[at] == _VERSION:
            _, _, at = _element(der, at)
        for _ in ("serialNumber", "signature", "issuer"):
            _, _, at = _element(der, at)
        before, at = _time(der, _enter(der, at))
        after, _ = _time(der, at)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("not an X.509 certificate") from error
    return before, after


def _enter(der: bytes, at: int) -> int:
    """Where the contents of the SEQUENCE at `at` begin."""
    tag, start, _ = _element(der, at)
    if tag != _SEQUENCE:
        raise ValueError("not an X.509 certificate")
    return start


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the contents of the element at `at` (X.690, 8.1)."""
    tag, size = der[at], der[at + 1]
    at += 2
    if size & 0x80:
        octets = size & 0x7F
        size = int.from_bytes(der[at : at + octets], "big")
        at += octets
    if at + size > len(der):
        raise ValueError("not an X.509 certificate")
    return tag, at, at + size


def _time(der: bytes, at: int) -> tuple[int, int]:
    """A time, and where what follows it begins. Years of two digits: 1950 to 2049 (RFC 5280, 4.1.2.5.1)."""
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not an X.509 certificate")
    return int(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()), end
