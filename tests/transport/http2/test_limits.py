import pytest

from headrace.transport.http2.frames import ErrorCode, ProtocolViolation
from headrace.transport.http2.limits import (
    MAX_STRIKES,
    PING_INTERVAL_NS,
    SMALL,
    Bucket,
    Budget,
    Glitches,
    Limit,
    LimitReached,
    Limits,
    PingStrikes,
    ReceiveWindow,
    SmallFrames,
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


@pytest.mark.parametrize(
    ("step", "burst", "limit"),
    [
        (lambda glitches, now: glitches.glitch(now, Limit.PRIORITY), 3, Limit.PRIORITY),
        (lambda glitches, now: glitches.reset(now, 0), 4, Limit.RAPID_RESET),
    ],
)
def test_patience_ends(step, burst, limit):
    glitches = Glitches(Limits(glitches=3, glitches_per_second=1, resets=4, resets_per_second=1))
    for _ in range(burst):
        step(glitches, NOW)
    with pytest.raises(LimitReached) as raised:
        step(glitches, NOW)
    assert (raised.value.code, raised.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, limit)
    step(glitches, NOW + SECOND)


def test_glitches_of_all_kinds_share_a_bucket_that_names_the_last():
    glitches = Glitches(Limits(glitches=2, glitches_per_second=1))
    glitches.glitch(NOW, Limit.PRIORITY)
    glitches.glitch(NOW, Limit.SETTINGS)
    with pytest.raises(LimitReached) as raised:
        glitches.glitch(NOW, Limit.EMPTY_FRAMES)
    assert raised.value.limit is Limit.EMPTY_FRAMES


def test_resets_do_not_count_as_errors():
    glitches = Glitches(Limits(glitches=1, resets=1))
    glitches.reset(NOW, 0)
    glitches.glitch(NOW, Limit.STREAM_ERRORS)


def test_a_budget_is_earned_and_then_a_bucket():
    budget = Budget(5, 2)
    assert all(budget.take(NOW, earned) for earned in range(1, 100))
    assert [budget.take(NOW, 99) for _ in range(6)] == [True] * 5 + [False]
    assert [budget.take(NOW + SECOND, 99) for _ in range(3)] == [True, True, False]
    assert [budget.take(NOW + SECOND, 101) for _ in range(3)] == [True, True, False]


def test_a_budget_is_not_hoarded():
    budget = Budget(5, 1)
    assert [budget.take(NOW, 10**6) for _ in range(11)] == [True] * 10 + [False]


FEW = Limits(max_streams=1, window_updates=6, window_updates_per_second=1, small_frames=6, small_frames_per_second=1)


@pytest.mark.parametrize(
    ("step", "limit"), [(SmallFrames.window_update, Limit.WINDOW_UPDATES), (SmallFrames.data, Limit.SMALL_DATA)]
)
def test_small_frames_are_paid_for_by_replies_and_octets(step, limit):
    frames = SmallFrames(FEW)
    for calls in range(1, 100):
        for _ in range(4):
            step(frames, NOW, calls, 0)
    for kib in range(1, 100):
        step(frames, NOW, 99, kib << 10)
    for _ in range(10):
        step(frames, NOW, 99, 99 << 10)
    with pytest.raises(LimitReached) as raised:
        step(frames, NOW, 99, 99 << 10)
    assert raised.value.limit is limit
    assert SMALL == 256


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
    assert window.received == 120
    consume(window, 100)
    assert window.left == 100
    with pytest.raises(ProtocolViolation) as raised:
        consume(window, 101)
    assert raised.value.code is ErrorCode.FLOW_CONTROL_ERROR
