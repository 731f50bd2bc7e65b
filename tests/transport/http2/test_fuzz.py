"""Sessions that went wrong: whatever arrives, only HTTP/2 comes back, and nobody else is the worse for it.

HEADRACE_FUZZ_EXAMPLES raises the number of sessions.
"""

import asyncio
import contextlib
import gzip
import os

import pytest
import uvloop
from conformance.http2.beyond import BEYOND
from conformance.http2.cases import GENERIC, HPACK, HTTP2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import BREAK, CHAT, COUNT, CRASH, ECHO, FAIL, FIRST, INFER, WATCH
from transport.http2.wire import data, grpc_call, grpc_head, message, ping, rst, window_update

from headrace.clock import monotonic_ns
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.stream import Stream

EXAMPLES = int(os.environ.get("HEADRACE_FUZZ_EXAMPLES", "400"))
bounded = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

PATHS = st.sampled_from([ECHO, FAIL, CRASH, INFER, CHAT, COUNT, WATCH, FIRST, BREAK, "/nothing/Here"])
IDS = st.sampled_from([1, 3, 5, 7, 9, 11])
HEADS = st.sampled_from(
    [(), (("grpc-timeout", "1S"),), (("grpc-encoding", "gzip"),), (("x", "1", 0x40),), (("content-length", "6"),)]
)
BODIES = st.sampled_from([b"", b"m", b"\x00" * 300, message(b"x"), gzip.compress(b"y"), bytes(16_379)])

FRAME = st.one_of(
    st.builds(grpc_call, PATHS, BODIES, IDS),
    st.builds(lambda path, at, more: grpc_head(path, at, *more), PATHS, IDS, HEADS),
    st.builds(
        lambda at, body, end, padding: data(at, body, end=end, padding=padding),
        IDS,
        BODIES,
        st.booleans(),
        st.sampled_from([None, None, 0, 200]),
    ),
    st.builds(lambda at, body, flag: data(at, message(body, flag)), IDS, BODIES, st.sampled_from([0, 0, 1, 2])),
    st.builds(rst, IDS),
    st.builds(window_update, st.sampled_from([0, 1, 3, 5]), st.sampled_from([1, 70_000, 2**31 - 1, 0])),
    st.builds(lambda size: wire.settings((wire.INITIAL_WINDOW, size)), st.sampled_from([0, 1, 65_535, 2**31 - 1])),
    st.builds(lambda size: wire.settings((wire.MAX_FRAME, size)), st.sampled_from([16_384, 70_000])),
    st.builds(wire.get, IDS),
    st.builds(wire.priority, IDS, IDS),
    st.just(ping()),
    st.just(wire.goaway()),
)
NONSENSE = st.builds(
    wire.frame,
    st.integers(0, 16),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1]),
    st.binary(max_size=40),
)
CASES = st.sampled_from([case.octets for case in (*GENERIC, *HTTP2, *HPACK, *BEYOND) if len(case.octets) < 2000])


@st.composite
def sessions(draw):
    """What a client might send, and then again what none would: good frames, with damage here and there."""
    frames = draw(st.lists(st.one_of(FRAME, FRAME, FRAME, CASES, NONSENSE), max_size=12))
    octets = bytearray(draw(st.sampled_from([wire.hello(), benches.HELLO])) + b"".join(frames))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 5]))):
        at = draw(st.integers(0, len(octets) - 1))
        match draw(st.sampled_from(["set", "flip", "delete", "insert", "cut", "repeat"])):
            case "set":
                octets[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
            case "flip":
                octets[at] ^= 1 << draw(st.integers(0, 7))
            case "delete":
                del octets[at : at + draw(st.integers(1, 20))]
            case "insert":
                octets[at:at] = draw(st.binary(min_size=1, max_size=20))
            case "cut":
                del octets[at:]
            case "repeat":
                octets[at:at] = octets[at : at + 60]
        if not octets:
            break
    return bytes(octets)


def reads(draw, octets):
    cuts = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=4)))
    return [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]


def check(lines, connection):
    """Only frames that a server sends, and a GOAWAY for an error is the last of them."""
    errors = [line for line in lines if line.startswith("GOAWAY")]
    assert len(errors) <= 1
    assert connection.closing == bool(errors)
    if errors:
        assert lines[-1] == errors[0]
        assert "INTERNAL" not in errors[0]
        assert "NO_ERROR" not in errors[0]


@bounded
@given(st.binary(max_size=400), st.booleans())
def test_random_octets(octets, greeted):
    connection = Connection(Limits(), Stream, lambda fields: fields, lambda: None)
    connection.receive((wire.hello() if greeted else b"") + octets, 1)
    check(wire.Reader().feed(connection.outbound.take()), connection)


@bounded
@given(st.data())
def test_sessions_with_damage(source):
    """Through the whole transport; `benches.bench` checks that nothing is left and nothing was raised."""
    with benches.bench() as bench:
        if source.draw(st.booleans()):
            bench.infer.answer = lambda sink: sink.reply(b"at once")
        other, client = bench.connect(), bench.connect(b"")
        octets = source.draw(sessions())
        lines = []
        for read in reads(source.draw, octets):
            lines += client.send(read)
        for work in bench.infer.calls:
            work.sink.reply(b"later")
        lines += client.lines()
        check(lines, client.connection)
        assert client.peer.buffered <= bench.transport.http2.max_buffered_bytes
        assert len(client.connection.streams) <= 2 * bench.transport.limits.max_streams
        other.send(grpc_call(ECHO, b"unharmed"))
        assert other.messages() == [b"unharmed"]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@given(st.lists(sessions(), min_size=1, max_size=20))
@settings(max_examples=max(1, EXAMPLES // 15), suppress_health_check=list(HealthCheck))
def test_others_are_served_meanwhile(new_loop, octets):
    problems = []

    async def damaged(port, sent):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            writer.write_eof()
            while await reader.read(1 << 16):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def served(port, replies):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        wires = wire.Reader()
        writer.write(benches.HELLO)
        for n in range(50):
            stream_id = 1 + 2 * n
            writer.write(grpc_call(ECHO, b"%d" % n, stream_id))
            lines = []
            while f"HEADERS {stream_id} trailers END_STREAM" not in lines:
                lines += wires.feed(await reader.read(1 << 16))
            replies += wires.messages(stream_id)
        writer.close()
        await writer.wait_closed()

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        transport = benches.native(asyncio.get_running_loop(), monotonic_ns, benches.Infer())
        port = await transport.start()
        replies = []
        try:
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                group.create_task(served(port, replies))
                for sent in octets:
                    group.create_task(damaged(port, sent))
        finally:
            await transport.close()
        assert replies == [b"%d" % n for n in range(50)]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert not problems, problems
