"""What the head of an inference request says: the model, how its body is made up, and how it wants to be answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from headrace.errors import InvalidRequest, Unimplemented
from headrace.messages import LONGEST_NS
from headrace.transport.trace_context import PARENT, take_out

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = re.compile(rb"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer(?:\?[^#]*)?")
_COUNT = re.compile(rb"[0-9]{1,18}")
_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9}(?:\.[0-9]{1,9})?)\"?\s*(?:$|[,;])", re.IGNORECASE)
_CODINGS = (b"gzip", b"deflate")
_ALIASES = {b"x-gzip": b"gzip"}
"""RFC 9110, 8.4.1.3."""

WHOLE_JSON = -1


class Target(NamedTuple):
    """The model that a path names, and its version in decimal or a label of it; none is the newest."""

    name: str
    version: str

    @property
    def path(self) -> str:
        """A path that names it, percent-encoded."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{version}/infer"


class InferHead(NamedTuple):
    """Of one request; the same for all requests whose heads are the same octets.

    length: octets of the body, -1 if they come in chunks. json_length: octets of JSON at its beginning, `WHOLE_JSON`
    for all of it, 0 for none: it is then the model's only input. coding: what the body is compressed with, empty for
    nothing. reply_coding: what the reply may be compressed with. timeout_ns: how long the client waits, 0: it does not
    say. expects: it waits for 100 Continue before it sends its body. traceparent, tracestate: see `messages.ReplySink`.
    """

    target: Target
    length: int
    json_length: int
    coding: bytes
    reply_coding: bytes
    keep_alive: bool
    timeout_ns: int
    expects: bool
    traceparent: bytes = b""
    tracestate: bytes = b""


def read_target(url: bytes) -> Target | None:
    """The model of a path that asks for inference; None for any other path. Raises InvalidRequest."""
    match = _PATH.fullmatch(url)
    if match is None:
        return None
    try:
        return Target(unquote_to_bytes(match[1]).decode(), unquote_to_bytes(match[2] or b"").decode())
    except UnicodeDecodeError:
        raise InvalidRequest("the path is not UTF-8") from None


def read_head(
    target: Target, fields: Sequence[tuple[bytes, bytes]], length: int, *, keep_alive: bool, traced: bool = False
) -> InferHead:
    """The head from header fields with names in lower case. Raises InvalidRequest, Unimplemented.

    traced: with the trace that the caller says the request is part of.

    Source of `Prefer: wait`: RFC 7240, 4.3, in seconds, of which there may be fractions here; of the other deadline:
    Envoy, which sets it to how long it will wait itself. The sooner of them counts; a preference that makes no sense is
    none, as is one of 0.
    """
    json_length, coding, reply_coding, waits, expects = WHOLE_JSON, b"", b"", [], False
    for name, value in fields:
        if name == b"inference-header-content-length":
            json_length = _json_length(value)
        elif name == b"content-encoding":
            coding = _coding(value)
        elif name == b"accept-encoding":
            reply_coding = accepted(value)
        elif name == b"expect":
            expects = value.strip().lower() == b"100-continue"
        elif name == b"prefer" and (match := _WAIT.search(value)):
            waits.append(int(float(match[1]) * 1e9))
        elif name == b"x-envoy-expected-rq-timeout-ms" and _COUNT.fullmatch(value.strip()):
            waits.append(int(value) * 10**6)
    timeout = min((min(wait, LONGEST_NS) for wait in waits if wait), default=0)
    head = InferHead(target, length, json_length, coding, reply_coding, keep_alive, timeout, expects)
    if traced:
        _, parent, state = take_out([(name, value.strip(b" \t")) for name, value in fields])
        head = head._replace(traceparent=parent, tracestate=state)
    return head


_PARENT_LINE = re.compile(rb"\r\n(?i:traceparent):[ \t]*(" + PARENT + rb")[ \t]*(?=\r\n[^ \t])")


def cut_parent(head: bytes) -> tuple[bytes, bytes]:
    """(A request's octets up to its body without its traceparent, the traceparent); it is empty if there is none.

    A line that is followed by one that continues it (RFC 9112, 5.2) is left to the parser.
    """
    match = _PARENT_LINE.search(head)
    return (head[: match.start()] + head[match.end() :], match[1]) if match else (head, b"")


def accepted(value: bytes) -> bytes:
    """The coding to use by an Accept-Encoding field: gzip or deflate, whichever has the greater weight; or none.

    Source: RFC 9110, 12.5.3; a weight of 0 is a refusal. `*` alone asks for nothing in particular: nothing is done.
    """
    best, most = b"", 0.0
    for item in value.lower().split(b","):
        name, _, weight = item.partition(b";")
        coding = _ALIASES.get(name.strip(), name.strip())
        _, given, number = weight.replace(b" ", b"").partition(b"q=")
        try:
            quality = float(number) if given else 1.0
        except ValueError:
            continue
        if coding in _CODINGS and quality > most:
            best, most = coding, quality
    return best


def _json_length(value: bytes) -> int:
    value = value.strip()
    if not _COUNT.fullmatch(value):
        raise InvalidRequest(
            f"Unable to parse Inference-Header-Content-Length, got: {value[:40].decode(errors='replace')!r}, "
            "expected a number of octets"
        )
    return int(value)


def _coding(value: bytes) -> bytes:
    coding = value.strip().lower()
    coding = _ALIASES.get(coding, coding)
    if coding in (b"", b"identity"):
        return b""
    if coding not in _CODINGS:
        raise Unimplemented(
            f"Unsupported compression type: Content-Encoding {coding[:40].decode(errors='replace')!r}, "
            "expected gzip or deflate"
        )
    return coding
