"""DATA frames that are delivered many at a time: the same outcome as one by one."""

import numpy as np
import pytest

from headrace.transport.http2 import frames
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.hpack import encode_stateless
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.stream import Stream

FIELDS = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x")]


class Gathering(Stream):
    """Keeps all it is given; takes runs of `room` octets."""

    def __init__(self, connection, stream_id, head):
        super().__init__(connection, stream_id, head)
        self.body = b""
        self.runs = 0
        self.ended = False
        self.lost = False
        self.room = connection.room

    def on_data(self, data, start, stop, end):
        self.body += bytes(data[start:stop])
        self.ended = end

    def on_run(self, rows):
        self.runs += 1
        self.body += rows.tobytes()
        self.room -= rows.size

    def on_reset(self):
        self.lost = True


def converse(octets, *, room, limits=None, fields=FIELDS, pieces=None):
    made = []

    def open_stream(connection, stream_id, head):
        connection.room = room
        made.append(Gathering(connection, stream_id, head))
        return made[-1]

    connection = Connection(limits or Limits(), open_stream, lambda fields: None, lambda: None)
    opening = frames.PREFACE + frames.settings({}) + frames.frame(frames.SETTINGS, frames.ACK, 0)
    connection.receive(opening, 0)
    connection.receive(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, encode_stateless(fields)), 0)
    for start, stop in pieces or [(0, len(octets))]:
        connection.receive(octets[start:stop], 0)
    return connection, made[0]


def body(sizes, *, end=True, seed=0):
    payload = np.random.default_rng(seed).integers(0, 256, sum(sizes), np.uint8).tobytes()
    octets, at = b"", 0
    for index, size in enumerate(sizes):
        last = end and index == len(sizes) - 1
        octets += frames.frame(frames.DATA, frames.END_STREAM if last else 0, 1, payload[at : at + size])
        at += size
    return octets, payload


@pytest.mark.parametrize("view", [bytes, memoryview])
def test_a_run_is_delivered_whole_and_counts_on_both_windows(view):
    octets, payload = body([16_384] * 20 + [100])
    _, stream = converse(view(octets), room=len(payload))
    assert stream.body == payload
    assert stream.runs == 1
    assert stream.ended
    assert stream.recv_window == Limits().initial_window - (len(payload) - 100)  # without the last frame


@pytest.mark.parametrize("step", [1000, 16_393, 16_394, 40_000])
def test_any_cutting_of_the_octets_gives_the_same(step):
    octets, payload = body([16_384] * 12 + [16_383, 16_384, 5])
    pieces = [(at, at + step) for at in range(0, len(octets), step)]
    _, stream = converse(octets, room=len(payload), pieces=pieces)
    assert stream.body == payload
    assert stream.ended


def test_a_run_stops_where_the_room_ends_and_at_another_header():
    octets, payload = body([16_384] * 6 + [10_000] * 6)
    _, stream = converse(octets, room=16_384 * 4)
    assert stream.body == payload
    assert stream.ended


def test_a_run_does_not_get_past_the_windows():
    limits = Limits(initial_window=16_384 * 5, connection_window=1 << 20)
    connection, stream = converse(body([16_384] * 9)[0], room=1 << 20, limits=limits)
    assert stream.lost
    assert len(stream.body) == 16_384 * 5
    assert frames.rst_stream(1, frames.ErrorCode.FLOW_CONTROL_ERROR) in connection.outbound.take()

    limits = Limits(initial_window=1 << 20, connection_window=16_384 * 5)
    connection, stream = converse(body([16_384] * 300)[0], room=1 << 30, limits=limits)
    assert stream.lost
    assert not connection.closing  # credited as it is taken: it is the stream's window that ran out


def test_a_run_does_not_get_past_the_content_length():
    octets, _ = body([16_384] * 9)
    fields = [*FIELDS, (b"content-length", b"50000")]
    connection, stream = converse(octets, room=1 << 20, fields=fields)
    assert stream.lost
    assert len(stream.body) <= 50_000
    assert frames.rst_stream(1, frames.ErrorCode.PROTOCOL_ERROR) in connection.outbound.take()
