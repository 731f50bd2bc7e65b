"""Field blocks of requests that are part of a trace: `traceparent` differs from call to call, and is cut out.

gRPC's C core (Python, C++, Ruby, ...) writes it as a literal without indexing, name and value as plain octets: the rest
of the block is then one that is known. Any other form is decoded in full, and means the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from headrace.transport.http2.heads import HeadReader, RequestHead
from headrace.transport.http2.hpack import FIELD_OVERHEAD, HeaderListTooLarge, HpackError
from headrace.transport.trace_context import PARENT, PARENT_SIZE, TRACEPARENT, take_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.transport.http2.fields import Fields
    from headrace.transport.http2.heads import Varying
    from headrace.transport.http2.limits import Limits

# RFC 7541, 6.2.2 and 6.2.3: without indexing, or never indexed; a new name, and lengths without Huffman code.
_LITERAL = re.compile(
    rb"[\x00\x10]" + bytes((len(TRACEPARENT),)) + TRACEPARENT + re.escape(bytes((PARENT_SIZE,))) + b"(" + PARENT + b")"
)
_BLOCKS = 512
_BLOCK_SIZE = 1024
_MARGIN = 128
"""Octets that a list of fields must be below the limit for blocks to be told from it whose deadlines are longer."""


class TracedHead(RequestHead):
    """A head with a trace. traceparent: 55 octets, or none. tracestate: may be empty."""

    __slots__ = ("traceparent", "tracestate")

    def __init__(self, app: Any, content_length: int, varied: Any, traceparent: bytes, tracestate: bytes) -> None:  # noqa: ANN401
        self.app = app
        self.content_length = content_length
        self.varied = varied
        self.traceparent = traceparent
        self.tracestate = tracestate


class TracedHeadReader(HeadReader):
    """A `HeadReader` that knows traces. Its heads are those of the other, with the trace beside them.

    `_cuts`: heads by their blocks without the literal, with the position at which it was. The position is part of what
    is known: there, a field ends and another begins, which a search for octets cannot tell.
    """

    __slots__ = ("_cuts", "_cuts_version", "_most_octets")

    def __init__(
        self, limits: Limits, read_head: Callable[[Fields | None], Any], varying: Varying | None = None
    ) -> None:
        super().__init__(limits, read_head, varying)
        self._cuts: dict[tuple[bytes, int], RequestHead] = {}
        self._cuts_version = self._decoder.version
        self._most_octets = limits.max_header_list - _MARGIN

    def request(self, block: bytes) -> RequestHead:
        """See `HeadReader`."""
        head = self._heads.get(block)
        if head is not None:
            return head
        match = _LITERAL.search(block)
        if match is None:
            return super().request(block)
        at = match.start()
        rest = block[:at] + block[match.end() :]
        if self._cuts_version != self._decoder.version:  # the same octets may now mean something else
            self._cuts_version = self._decoder.version
            self._cuts.clear()
        known = self._cuts.get((rest, at))
        if known is not None:
            return TracedHead(known.app, known.content_length, known.varied, match[1], known.tracestate)
        if at == len(rest) and (head := self._repeated(rest, match[1])) is not None:
            return head
        version = self._decoder.version
        head = super().request(block)
        if self._decoder.version == version:
            self._heads.pop(block, None)  # nobody sends it again
            if head.traceparent == match[1] and len(block) <= _BLOCK_SIZE and self._ends_with_a_field(block[:at]):
                if len(self._cuts) >= _BLOCKS:
                    self._cuts.clear()
                self._cuts[rest, at] = head
        return head

    def _repeated(self, rest: bytes, traceparent: bytes) -> RequestHead | None:
        """The head of a block that is like the last one but for its deadline, and for the trace at its end."""
        varying = self._varying
        value = self._decoder.repeat(rest)
        if value is None or varying is None:
            return None
        self._forget_blocks()
        like = self._like
        varied = varying.read(value)
        if varied is not None:
            return TracedHead(like.app, like.content_length, varied, traceparent, b"")
        fields = [(name, value if name == varying.name else text) for name, text in self._like_fields]
        return self._read([*fields, (TRACEPARENT, traceparent)])

    def _ends_with_a_field(self, beginning: bytes) -> bool:
        """Whether a field ends there, in a block that was decoded and leaves the table alone."""
        try:
            self._decoder.decode(beginning)
        except (HpackError, HeaderListTooLarge):
            return False
        return True

    def _read(self, fields: Fields) -> RequestHead:
        names = [name for name, _ in fields]
        if TRACEPARENT not in names or any(name[:1] == b":" for name in names[names.index(TRACEPARENT) :]):
            return super()._read(fields)
        rest, traceparent, tracestate = take_out(fields)
        head = super()._read(rest)
        if not traceparent:
            return head
        return TracedHead(head.app, head.content_length, head.varied, traceparent, tracestate)

    def _expect(self, block: bytes, fields: Fields, varying: Varying) -> None:
        match = _LITERAL.search(block)
        if match is None:
            super()._expect(block, fields, varying)
        elif match.end() == len(block) and fields[-1] == (TRACEPARENT, match[1]):
            octets = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in fields)
            if octets <= self._most_octets:
                super()._expect(block[: match.start()], fields[:-1], varying)
