import pytest

from headrace.transport.http2.frames import ErrorCode, ProtocolViolation
from headrace.transport.http2.limits import (
    MAX_STRIKES,
    PING_INTERVAL_NS,
    Bucket,
    Glitches,
    Limits,
    PingStrikes,
    ReceiveWindow,
)

SECOND = 10**9
NOW = 7 * SECOND


def takes(bucket, now, most=10_000):
    return next(n for n in range(most) if not bucket.take(now))


def test_a_bucket_gives_a_burst_then_a_rate():
    bucket = Bucket(5, 2)
    assert takes(bucket, NOW) == 5
    assert takes(bucket, NOW + SECOND) == 2
    assert takes(bucket, NOW + SECOND + SECOND // 4) == 0
    assert takes(bucket, NOW + SECOND + SECOND // 2) == 1
    assert takes(bucket, NOW + 1000 * SECOND) == 5


def test_settings_announce_the_limits():
    limits = Limits(max_streams=10, max_header_list=2000)
    assert limits.settings() == {3: 10, 6: 2000, 4: 1 << 20}
    assert 4 not in Limits(initial_window=65_535).settings()


@pytest.mark.parametrize(("count", "burst"), [("glitch", 3), ("empty", 3), ("reset", 4)])
def test_patience_ends(count, burst):
    glitches = Glitches(Limits(glitches=3, glitches_per_second=1, resets=4, resets_per_second=1))
    step = getattr(glitches, count)
    for _ in range(burst):
        step(NOW)
    with pytest.raises(ProtocolViolation) as raised:
        step(NOW)
    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM
    step(NOW + SECOND)


def test_resets_do_not_count_as_errors():
    glitches = Glitches(Limits(glitches=1, resets=1))
    glitches.reset(NOW)
    glitches.glitch(NOW)


def test_pings_too_often_are_strikes():
    strikes = PingStrikes()
    for _ in range(1 + MAX_STRIKES):
        strikes.ping(NOW, 0)
    with pytest.raises(ProtocolViolation) as raised:
        strikes.ping(NOW, 0)
    assert (raised.value.code, raised.value.debug) == (ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")


def test_pings_at_intervals_are_free():
    strikes = PingStrikes()
    for n in range(20):
        strikes.ping(NOW + n * PING_INTERVAL_NS, 0)


def test_sending_forgives_pings():
    """As clients measure their bandwidth by a ping for each reply."""
    strikes = PingStrikes()
    for sent in range(100):
        for _ in range(1 + MAX_STRIKES):
            strikes.ping(NOW, sent)


def consume(window, octets):
    """Takes octets as a connection does; returns the increment that it announces."""
    window.left -= octets
    return window.reopen() if window.left < window.low else 0


def test_a_window_for_data():
    window = ReceiveWindow(100)
    assert [consume(window, n) for n in (49, 1, 40, 0, 30)] == [0, 50, 0, 0, 70]
    assert window.left == 100
    consume(window, 100)
    assert window.left == 100
    with pytest.raises(ProtocolViolation) as raised:
        consume(window, 101)
    assert raised.value.code is ErrorCode.FLOW_CONTROL_ERROR
