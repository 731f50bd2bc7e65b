from hpack import Decoder, Encoder

from compare.frames import DATA, END_STREAM, HEADERS, frame, header_blocks


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
