import pytest

from headrace.transport.http2.closed import StreamIds
from headrace.transport.http2.frames import ErrorCode, ProtocolViolation


def never_used(ids, stream_id):
    with pytest.raises(ProtocolViolation) as raised:
        ids.check_used(stream_id, "DATA")
    return raised.value.code is ErrorCode.PROTOCOL_ERROR and str(stream_id) in raised.value.debug


def test_ids_in_order():
    ids = StreamIds()
    for stream_id in (1, 3, 5):
        assert never_used(ids, stream_id)
        ids.open(stream_id)
        ids.check_used(stream_id, "DATA")
    assert ids.last == 5
    assert all(never_used(ids, unused) for unused in (0, 2, 4, 6, 7))


def test_skipped_ids_count_as_never_used():
    ids = StreamIds()
    ids.open(3)
    ids.open(5)
    ids.open(11)
    assert all(never_used(ids, skipped) for skipped in (1, 7, 9))
    for used in (3, 5, 11):
        ids.check_used(used, "DATA")


def test_what_is_remembered_of_skips_is_bounded():
    ids = StreamIds()
    for n in range(1000):
        ids.open(5 + 6 * n)
    assert len(ids._skipped) <= 16
    assert never_used(ids, ids.last - 2)


def test_who_reset_a_stream():
    ids = StreamIds()
    for stream_id in (1, 3, 5):
        ids.open(stream_id)
    ids.reset(1, ours=True)
    ids.reset(3, ours=False)
    assert (ids.reset_by_us(1), ids.reset_by_us(3), ids.reset_by_us(5)) == (True, False, None)


def test_the_oldest_resets_are_forgotten():
    ids = StreamIds()
    for stream_id in range(1, 10_001, 2):
        ids.open(stream_id)
        ids.reset(stream_id, ours=True)
    assert len(ids._reset) == 1024
    assert ids.reset_by_us(1) is None
    assert ids.reset_by_us(9_999)
