"""A request as the ASGI application gets it (https://asgi.readthedocs.io/en/latest/specs/www.html, 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from headrace.transport.rest.answer import HttpError

if TYPE_CHECKING:
    import asyncio


def make_scope(
    transport: asyncio.Transport, version: str, method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]
) -> dict[str, Any]:
    """The scope of a request. version: of HTTP. target: in origin form. fields: names in lower case."""
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "server": get_local_addr(transport),
        "client": get_remote_addr(transport),
        "scheme": "https" if is_ssl(transport) else "http",
        "root_path": "",
        "method": method.decode("ascii"),
        "path": unquote(path.decode("latin-1"), errors="replace"),
        "raw_path": path,
        "query_string": query,
        "headers": fields,
        "state": {},
    }


def origin_form(target: bytes) -> bytes:
    """Path and query of a target, which may be in absolute form (RFC 9112, 3.2.2). Raises HttpError."""
    if target.startswith(b"/"):
        return target
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    if parsed is None or not parsed.path:
        if target == b"*":
            return target
        raise HttpError(400, "the request's target is neither a path nor a URL")
    return parsed.path + (b"?" + parsed.query if parsed.query else b"")
