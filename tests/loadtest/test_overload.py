import socket
import struct
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hpack import Decoder, Encoder

from compare.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from overload import connection
from overload.arrivals import BURST_EVERY_S, BURST_S, arrivals, choices
from overload.client import outcome, report, run
from overload.connection import CANCEL, MAX_CONCURRENT_STREAMS, Call, Connection
from overload.plot import Line, svg

BODIES = [b"\0\0\0\0\3abc", b"\0\0\0\0\4defg"]
REPLY = b"\0\0\0\0\2xy"

# --- arrivals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["poisson", "bursts"])
def test_calls_come_at_the_rate_asked_for_and_in_order(pattern):
    moments = arrivals(pattern, 1000, 10, seed=0)
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert 0 <= moments[0] <= moments[-1] < 10
    assert (np.diff(moments) >= 0).all()
    assert (arrivals(pattern, 1000, 10, seed=0) == moments).all()


def test_independent_calls_are_as_irregular_as_a_poisson_process():
    counts = np.histogram(arrivals("poisson", 1000, 20, seed=1), bins=2000, range=(0, 20))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)


def test_half_of_the_calls_come_in_bursts():
    moments = arrivals("bursts", 1000, 20, seed=1)
    in_bursts = np.mean(moments % BURST_EVERY_S < BURST_S)
    assert in_bursts == pytest.approx(0.5 + 0.5 * BURST_S / BURST_EVERY_S, abs=0.03)


def test_each_kind_of_call_is_as_frequent():
    assert np.bincount(choices(9000, 3, seed=0)).tolist() == pytest.approx([3000] * 3, rel=0.1)


# --- a connection, whose server is the test ---------------------------------------------------------------------------


class Server:
    """The other end: says what a test has it say, and knows what it has heard."""

    def __init__(self, monkeypatch, now=0.0, tells=True, streams=None):
        ours, self.socket = socket.socketpair()
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
        monkeypatch.setattr(connection.socket.socket, "setsockopt", lambda *_: None)
        limits = b"" if streams is None else struct.pack(">HI", MAX_CONCURRENT_STREAMS, streams)
        self.socket.sendall(frame(SETTINGS, 0, 0, limits))
        self.now = now
        self.encoder, self.decoder = Encoder(), Decoder()
        self.client = Connection(("127.0.0.1", 1), BODIES, lambda: self.now, tells=tells)
        self.hear()

    def hear(self):
        """The frames that came: (kind, flags, stream, payload)."""
        while self.client.has_output:
            self.client.write()
        self.socket.setblocking(False)
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        data = data.removeprefix(connection.PREFACE)
        found = []
        while data:
            end = 9 + int.from_bytes(data[:3], "big")
            found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:end]))
            data = data[end:]
        return found

    def say(self, *frames):
        self.socket.sendall(b"".join(frames))
        self.client.read()

    def reply(self, stream, status=0, body=REPLY):
        """The frames of a reply."""
        head = self.encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
        tail = self.encoder.encode([("grpc-status", str(status))])
        data = frame(DATA, 0, stream, body) if body else b""
        return frame(HEADERS, END_HEADERS, stream, head) + data + frame(
            HEADERS, END_HEADERS | END_STREAM, stream, tail
        )  # fmt: skip

    def close(self):
        self.socket.close()
        self.client.socket.close()


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def serve(**options):
        servers.append(Server(monkeypatch, **options))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.mark.parametrize("tells", [True, False])
def test_a_call_says_what_is_left_of_its_deadline_or_nothing(serve, tells):
    server = serve(now=10.0, tells=tells)
    server.client.start(Call(due=9.9, until=10.05, kind=1))
    head, data = server.hear()
    fields = dict(server.decoder.decode(head[3]))
    assert fields.get("grpc-timeout") == ("50000u" if tells else None)
    assert fields[":path"].endswith("/ModelInfer")
    assert data == (DATA, END_STREAM, 1, BODIES[1])


def test_replies_end_calls(serve):
    server = serve()
    good, refused, reset = (Call(0, 1, 0) for _ in range(3))
    for call in (good, refused, reset):
        server.client.start(call)
    server.now = 0.5
    server.say(server.reply(1), server.reply(3, status=14, body=b""), frame(RST_STREAM, 0, 5, bytes(4)))
    assert [(call.status, call.octets, call.ended) for call in (good, refused, reset)] == [
        (0, len(REPLY), 0.5), (14, 0, 0.5), (-1, 0, 0.5),
    ]  # fmt: skip
    assert server.client.idle


def test_a_call_that_is_over_is_cancelled_and_a_late_reply_to_it_is_nobodys(serve):
    server = serve()
    call = Call(0, 0.1, 0)
    server.client.start(call)
    server.hear()
    server.client.expire(0.05)
    assert server.hear() == []
    server.now = 0.2
    server.client.expire(0.2)
    assert server.hear() == [(RST_STREAM, 0, 1, CANCEL.to_bytes(4, "big"))]
    server.say(server.reply(1))
    assert (call.cancelled, call.octets, call.status) == (True, 0, None)


def test_the_servers_limits_are_kept_and_what_waits_for_them_expires(serve):
    server = serve(streams=2)
    calls = [Call(0, until, 0) for until in (1, 1, 0.1, 1)]
    for call in calls:
        server.client.start(call)
    assert [kind for kind, *_ in server.hear()] == [HEADERS, DATA] * 2
    server.client.expire(0.2)
    assert calls[2].cancelled
    server.say(server.reply(1))
    assert [(kind, stream) for kind, _, stream, _ in server.hear()] == [(HEADERS, 5), (DATA, 5)]


def test_a_full_window_holds_calls_back(serve):
    server = serve()
    server.client._peer.window = len(BODIES[0])
    for _ in range(2):
        server.client.start(Call(0, 1, 0))
    assert len(server.hear()) == 2
    server.say(frame(WINDOW_UPDATE, 0, 0, (100).to_bytes(4, "big")))
    assert len(server.hear()) == 2


def test_what_keeps_a_connection_alive_is_answered(serve):
    server = serve()
    server.say(frame(PING, 0, 0, b"12345678"))
    assert server.hear() == [(PING, ACK, 0, b"12345678")]
    with pytest.raises(ConnectionError, match="GOAWAY"):
        server.say(frame(GOAWAY, 0, 0, bytes(8)))


def test_all_calls_are_made_and_told_of(serve):
    server = serve(now=0.5)
    calls = [Call(0.5, 1.0, at % 2) for at in range(3)]
    server.socket.setblocking(True)
    server.socket.sendall(server.reply(1) + server.reply(3, status=4, body=b"") + server.reply(5, body=b"another one"))
    late = run([server.client], calls, lambda: server.now, tells=True, until=2.0)
    told = report(calls, late, len(REPLY), kinds=2)
    assert late == [0.0] * 3
    assert {key: told[key] for key in ("calls", "in_time", "late", "refused", "wrong")} == {
        "calls": 3, "in_time": 1, "late": 0, "refused": 1, "wrong": 1,
    }  # fmt: skip
    assert told["statuses"] == {4: 1}
    assert [kind["calls"] for kind in told["by_kind"]] == [2, 1]


# --- what became of a call --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (Call(0, 1, 0, ended=0.9, octets=7, status=0), "in_time"),
        (Call(0, 1, 0, ended=1.1, octets=7, status=0), "late"),
        (Call(0, 1, 0), "late"),
        (Call(0, 1, 0, ended=1.0, cancelled=True), "late"),
        (Call(0, 1, 0, ended=0.1, octets=0, status=14), "refused"),
        (Call(0, 1, 0, ended=0.1, octets=0, status=-1), "refused"),
        (Call(0, 1, 0, ended=0.1, octets=6, status=0), "wrong"),
        (Call(0, 1, 0, ended=0.1, octets=7, status=None), "wrong"),
    ],
)
def test_only_the_right_reply_before_the_deadline_counts(call, what):
    assert outcome(call, 7) == what


def test_the_picture_has_a_line_for_each_server_and_no_names_on_one_another():
    lines = [Line("one & only", [(0.5, 0.5), (1, 1), (2, 1)]), Line("another", [(0.5, 0.5), (1, 0.9), (2, 0.99)])]
    root = ET.fromstring(svg("in time", lines))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 3
    assert [dot.find(f"{space}title").text for dot in root.findall(f"{space}circle")][:2] == [
        "one & only, 50% asked: 50.0%", "one & only, 100% asked: 100.0%",
    ]  # fmt: skip
    names = {text.text: float(text.get("y")) for text in root.findall(f"{space}text") if text.text in dict(lines)}
    assert abs(names["one & only"] - names["another"]) >= 16
