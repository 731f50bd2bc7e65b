"""DATA frames that go straight to where a large message is gathered: the same outcome as one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transport.http2 import frames
from headrace.transport.http2.connection import Connection
from headrace.transport.http2.frames import ErrorCode
from headrace.transport.http2.hpack import encode_stateless
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.stream import Inside, Stream

FIELDS = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x")]


class Gathering(Stream):
    """Keeps all it is given, in order; lends `room` octets, of which so many are left, as often as it may."""

    def __init__(self, connection, stream_id, head):
        super().__init__(connection, stream_id, head)
        self.place = Inside()
        self.place.buffer = memoryview(bytearray(min(connection.room, 1 << 20)))
        self.taken = 0
        self.body = b""
        self.ended = self.lost = False
        self.heard = 0
        self.lend()

    def lend(self):
        if left := len(self.place.buffer) - self.place.filled:
            self.connection.lend(self, self.place, left)

    def on_data(self, data, start, stop, end):
        self.take()
        self.body += bytes(data[start:stop])
        self.heard += 1
        self.ended = end
        if not end:
            self.lend()

    def on_inside(self, octets):
        self.connection.inside += octets

    def on_reset(self):
        self.lost = True

    def take(self):
        self.body += bytes(self.place.buffer[self.taken : self.place.filled])
        self.taken = self.place.filled


def converse(octets, *, room, limits=None, fields=FIELDS, pieces=None, streams=1):
    made = []

    def open_stream(connection, stream_id, head):
        connection.room = room
        connection.inside = 0
        made.append(Gathering(connection, stream_id, head))
        return made[-1]

    connection = Connection(limits or Limits(), open_stream, lambda fields: None, lambda: None)
    opening = frames.PREFACE + frames.settings({}) + frames.frame(frames.SETTINGS, frames.ACK, 0)
    connection.receive(opening, 0)
    for index in range(streams):
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * index + 1, encode_stateless(fields))
        connection.receive(head, 0)
    for start, stop in pieces or [(0, len(octets))]:
        connection.receive(octets[start:stop], 0)
    for stream in made:
        stream.take()
        connection.take_back(stream)
        connection.take_back(stream)
    return connection, made


def body(sizes, *, end=True, seed=0, stream=1):
    """Frames of one stream, as a list, and what they carry."""
    payload = np.random.default_rng(seed).integers(0, 256, sum(sizes), np.uint8).tobytes()
    octets, at = [], 0
    for index, size in enumerate(sizes):
        last = end and index == len(sizes) - 1
        octets.append(frames.frame(frames.DATA, frames.END_STREAM if last else 0, stream, payload[at : at + size]))
        at += size
    return octets, payload


@pytest.mark.parametrize("view", [bytes, memoryview])
def test_it_is_delivered_whole_and_counts_on_both_windows(view):
    octets, payload = body([16_384] * 20 + [100])
    connection, (stream,) = converse(view(b"".join(octets)), room=len(payload))
    assert stream.body == payload
    assert connection.inside == stream.place.filled == stream.octets == 16_384 * 20
    assert stream.heard == 1
    assert stream.ended
    assert stream.recv_window == Limits().initial_window - 16_384 * 20  # without the last frame
    assert connection._window.left == Limits().connection_window - len(payload)


@pytest.mark.parametrize("step", [1000, 16_393, 16_394, 40_000])
def test_any_cutting_of_the_octets_gives_the_same(step):
    octets, payload = body([16_384] * 12 + [16_383, 16_384, 5])
    octets = b"".join(octets)
    pieces = [(at, at + step) for at in range(0, len(octets), step)]
    _, (stream,) = converse(octets, room=len(payload), pieces=pieces)
    assert stream.body == payload
    assert stream.ended


@given(
    st.lists(st.lists(st.sampled_from([1, 100, 100, 100, 1000]), max_size=30), min_size=1, max_size=4),
    st.sampled_from([0, 50, 1000, 1 << 16]),
    st.integers(20, 3000),
    st.randoms(use_true_random=False),
)
def test_streams_in_turns(sizes, room, step, random):
    """Frames of several streams in any order, in any reads: each gets its own, whatever its room."""
    queues = [(body(each, seed=index, stream=2 * index + 1)) for index, each in enumerate(sizes)]
    waiting = [list(octets) for octets, _ in queues]
    octets = b""
    while any(waiting):
        octets += random.choice([queue for queue in waiting if queue]).pop(0)
    pieces = [(at, at + step) for at in range(0, len(octets), step)]
    connection, streams = converse(octets, room=room, pieces=pieces, streams=len(sizes))
    assert not connection.closing
    assert [stream.body for stream in streams] == [payload for _, payload in queues]
    assert [stream.ended for stream in streams] == [bool(each) for each in sizes]
    assert connection.inside == sum(stream.place.filled for stream in streams)
    assert connection._window.left == Limits().connection_window - len(b"".join(payload for _, payload in queues))


def test_it_stops_where_the_room_ends_and_at_another_size():
    octets, payload = body([16_384] * 6 + [10_000] * 6)
    _, (stream,) = converse(b"".join(octets), room=16_384 * 4)
    assert stream.body == payload
    assert stream.place.filled == 16_384 * 4
    assert stream.ended


def test_it_does_not_get_past_the_windows():
    limits = Limits(initial_window=16_384 * 5)
    connection, (stream,) = converse(b"".join(body([16_384] * 9)[0]), room=1 << 20, limits=limits)
    assert stream.lost
    assert len(stream.body) == 16_384 * 5
    assert 0 < stream.place.filled <= 16_384 * 5 // 2
    assert not connection.closing
    limits = Limits(initial_window=1 << 30, connection_window=65_535)
    connection, (stream,) = converse(b"".join(body([16_384] * 300)[0]), room=1 << 20, limits=limits)
    assert connection.closed_with is ErrorCode.FLOW_CONTROL_ERROR
    assert stream.lost


def test_it_does_not_get_past_the_content_length():
    octets, _ = body([1000] * 60, end=False)
    fields = [*FIELDS, (b"content-length", b"50000")]
    connection, (stream,) = converse(b"".join(octets), room=50_000, fields=fields)
    assert stream.lost
    assert not connection.closing
    assert len(stream.body) == 50_000


def test_a_violation_behind_it_is_noticed():
    octets, payload = body([1000] * 5, end=False)
    connection, (stream,) = converse(b"".join(octets) + frames.frame(frames.DATA, 0, 99, b"x"), room=50_000)
    assert connection.closed_with is ErrorCode.PROTOCOL_ERROR
    assert stream.body == payload
    assert stream.lost
