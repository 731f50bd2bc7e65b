"""h2spec's cases and more against the sans-I/O connection: every frame of every answer is compared."""

import pytest
from conformance.http2.beyond import BEYOND
from conformance.http2.cases import GENERIC, HPACK, HTTP2, PONG
from hypothesis import given
from hypothesis import strategies as st
from transport.http2 import wire

from headrace.transport.grpc_head import NOT_GRPC
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.outbound import Block
from headrace.transport.http2.stream import Stream

NOW = 10**9


class Refusing(Stream):
    """Answers what is not gRPC in the way of the real thing, when the request is complete."""

    def on_headers(self, end):
        if end:
            self.answer()

    def on_data(self, data, start, stop, end):
        if end:
            self.answer()

    def answer(self):
        method = self.head.app[b":method"]
        head = Block([(b":status", b"415" if method == b"POST" else b"405")])
        self.connection.outbound.headers(self, head, end=method == b"HEAD")
        if method != b"HEAD":
            self.connection.outbound.data(self, NOT_GRPC, end=True)


def serve(octets_in_pieces):
    """The transcript of a connection that is sent the pieces, and the connection."""
    connection = Connection(Limits(), Refusing, lambda fields: dict(fields or ()), lambda: None)
    reader = wire.Reader()
    lines = reader.feed(connection.outbound.take())
    for piece in octets_in_pieces:
        buffer = bytearray(piece)
        connection.receive(memoryview(buffer), NOW)
        buffer[:] = b"\xff" * len(buffer)  # the next read will overwrite it: nothing may refer to it any more
        lines += reader.feed(connection.outbound.take())
    return lines, connection


def check(case, lines):
    expected = [*case.welcome, *case.expected]
    if not case.fatal:
        expected += PONG
    assert lines == expected


def cases(*tables):
    return [pytest.param(case, id=case.name) for table in tables for case in table]


@pytest.mark.parametrize("case", cases(GENERIC))
def test_generic(case):
    lines, connection = serve([case.hello + case.octets + wire.ping(b"pingpong")])
    check(case, lines)
    assert not connection.closing


@pytest.mark.parametrize("case", cases(HTTP2, HPACK, BEYOND))
def test_http2(case):
    lines, connection = serve([case.hello + case.octets + wire.ping(b"pingpong")])
    check(case, lines)
    assert connection.closing == case.fatal
    assert connection.outbound.pending_octets >= 0


@pytest.mark.parametrize("case", cases(GENERIC, HTTP2, HPACK, BEYOND))
def test_octet_by_octet(case):
    """The same answers, however the octets arrive; a long case comes in prime pieces instead."""
    octets = case.hello + case.octets + wire.ping(b"pingpong")
    step = 1 if len(octets) < 2000 else 4093
    lines, _ = serve(octets[at : at + step] for at in range(0, len(octets), step))
    check(case, lines)


@given(st.data())
def test_any_split(data):
    """Valid and violating sessions alike give one transcript, whatever the reads bring."""
    case = data.draw(st.sampled_from([*GENERIC, *HTTP2, *HPACK]))
    octets = case.hello + case.octets + wire.ping(b"pingpong")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(octets) - 1), max_size=8)))
    lines, _ = serve(octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True))
    check(case, lines)


def test_the_tables_are_complete():
    """All 147 cases of h2spec."""
    assert (len(GENERIC), len(HTTP2), len(HPACK)) == (44, 95, 8)
