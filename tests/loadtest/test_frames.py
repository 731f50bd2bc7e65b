import socket
import struct

from hpack import Decoder, Encoder

from compare.frames import DATA, END_STREAM, HEADERS, SETTINGS, Connection, frame, header_blocks


def decoded(blocks):
    decoder = Decoder()
    return [dict(decoder.decode(block)) for block in blocks]


def test_a_frame_is_length_kind_flags_stream_and_payload():
    assert frame(DATA, END_STREAM, 5, b"abc") == b"\0\0\3\0\1\0\0\0\5abc"
    assert frame(HEADERS, 0, 2**31 - 1, b"")[:9] == b"\0\0\0\1\0\x7f\xff\xff\xff"


def test_every_call_has_another_timeout_in_grpc_form():
    calls = decoded(header_blocks(200, "127.0.0.1:1", "varying", Encoder(), seed=0))
    timeouts = [call["grpc-timeout"] for call in calls]
    assert len(set(timeouts)) > 190
    assert all(value.endswith("u") and 5_000_000 <= int(value[:-1]) < 10_000_000 for value in timeouts)
    assert all(call[":path"].endswith("/ModelInfer") and call["te"] == "trailers" for call in calls)


def test_a_varying_timeout_never_repeats_a_block_and_the_others_settle():
    varying = header_blocks(200, "127.0.0.1:1", "varying", Encoder(), seed=0)
    assert len(set(varying)) > 190
    for timeouts in ("none", "constant"):
        blocks = header_blocks(200, "127.0.0.1:1", timeouts, Encoder(), seed=0)
        assert len(set(blocks[1:])) == 1


def test_without_timeouts_there_is_no_such_field():
    assert all("grpc-timeout" not in call for call in decoded(header_blocks(3, "a", "none", Encoder(), seed=0)))
    constant = decoded(header_blocks(3, "a", "constant", Encoder(), seed=0))
    assert [call["grpc-timeout"] for call in constant] == ["10S"] * 3


def bodies(monkeypatch, **options):
    """Of four calls that a connection sends at once; its peer is this test."""
    ours, peer = socket.socketpair()
    with ours, peer:
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
        monkeypatch.setattr(ours.__class__, "setsockopt", lambda *_: None)
        peer.sendall(frame(SETTINGS, 0, 0, b""))
        connection = Connection(("127.0.0.1", 1), 4, b"the message" + bytes(4), **options)
        peer.recv(1 << 16)
        connection.prepare([b"block"] * 4)
        connection.send()
        sent = peer.recv(1 << 16)
    size = len(frame(HEADERS, 0, 1, b"block"))
    each = size + 9 + 15
    assert len(sent) == 4 * each
    return [sent[at * each + size + 9 : (at + 1) * each] for at in range(4)]


def test_messages_are_alike_unless_they_are_to_vary(monkeypatch):
    assert bodies(monkeypatch) == [b"the message" + bytes(4)] * 4
    numbers = iter([0.25, 0.5, 0.75, 0.0])
    found = bodies(monkeypatch, vary=lambda: next(numbers))
    assert {body[:-4] for body in found} == {b"the message"}
    assert [struct.unpack("<f", body[-4:])[0] for body in found] == [0.25, 0.5, 0.75, 0.0]
