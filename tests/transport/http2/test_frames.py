from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from transport.http2 import wire

from headrace.transport.http2 import frames
from headrace.transport.http2.frames import ErrorCode, ProtocolViolation, StreamViolation


def parse(octets, kind):
    (parsed,) = wire.frames_in(octets)
    assert type(parsed) is kind
    return parsed


def test_settings():
    parsed = parse(frames.settings({3: 256, 4: 2**31 - 1}), SettingsFrame)
    assert parsed.settings == {3: 256, 4: 2**31 - 1}
    assert not parsed.flags
    assert "ACK" in parse(frames.frame(frames.SETTINGS, frames.ACK, 0), SettingsFrame).flags


def test_settings_are_read_in_order_with_repetitions():
    payload = wire.settings((4, 100), (4, 1), (0xFF, 2**32 - 1))[9:]
    assert frames.parse_settings(payload) == [(4, 100), (4, 1), (0xFF, 2**32 - 1)]


def test_rst_stream():
    parsed = parse(frames.rst_stream(2**31 - 1, ErrorCode.CANCEL), RstStreamFrame)
    assert (parsed.stream_id, parsed.error_code) == (2**31 - 1, 8)


def test_window_update():
    parsed = parse(frames.window_update(3, 2**31 - 1), WindowUpdateFrame)
    assert (parsed.stream_id, parsed.window_increment) == (3, 2**31 - 1)


def test_goaway():
    parsed = parse(frames.goaway(5, ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings"), GoAwayFrame)
    assert (parsed.last_stream_id, parsed.error_code, parsed.additional_data) == (5, 11, b"too_many_pings")


def test_ping():
    assert parse(frames.ping(b"12345678"), PingFrame).opaque_data == b"12345678"
    assert "ACK" in parse(frames.ping(b"12345678", ack=True), PingFrame).flags
    assert len(frames.DRAIN_PING) == len(frames.KEEPALIVE_PING) == 8


def test_frame_lengths_take_three_octets():
    for size in (0, 255, 256, 65_535, 65_536, 2**24 - 1):
        octets = frames.frame(frames.PING, 0, 1, bytes(size))
        word, flags, stream_id = frames.unpack_header(octets, 0)
        assert (word, flags, stream_id) == (size << 8 | frames.PING, 0, 1)
        assert int.from_bytes(octets[:3], "big") == size


def test_violations_name_their_code():
    for kind in (ProtocolViolation, StreamViolation):
        violation = kind(ErrorCode.FLOW_CONTROL_ERROR, "too much")
        assert (violation.code, violation.debug) == (3, "too much")
        assert str(violation) == "FLOW_CONTROL_ERROR: too much"
