import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transport.workers import records
from headrace.transport.workers.records import FINAL, HEAD_SIZE, INLINE, Kind, Malformed

EMPTY = records.request(1, 0, 1, 2, INLINE, 0, b"", b"")
MOMENT = st.integers(0, (1 << 63) - 1)
PARENT = st.sampled_from([b"", b"p" * 55])
CALL = st.integers(0, (1 << 64) - 1)


def heard(octets, kind):
    """What a handler is given of octets that begin with one record: flags, call, start and stop."""
    found = []
    handlers = {int(kind): lambda *record: found.append(record)}
    assert records.read(octets, handlers) == len(octets)
    ((flags, call, data, start, stop),) = found
    assert data is octets
    return flags, call, start, stop


@given(CALL, st.integers(0, 1), MOMENT, MOMENT, st.binary(max_size=80), PARENT, st.binary(max_size=9))
def test_a_small_request(call, flags, received, deadline, message, parent, state):
    octets = records.request(call, flags, received, deadline, INLINE, len(message), parent, state) + message
    kept = heard(octets, Kind.REQUEST)
    assert kept[:2] == (flags, call)
    said = records.read_request(octets, *kept[2:])
    assert said == (received, deadline, INLINE, len(message), parent, state if parent else b"", message)


@given(CALL, st.integers(0, INLINE - 1), st.integers(0, (1 << 32) - 1))
def test_a_large_request_lies_elsewhere(call, offset, size):
    octets = records.request(call, 0, 1, 2, offset, size, b"", b"")
    _, number, start, stop = heard(octets, Kind.REQUEST)
    assert number == call
    assert records.read_request(octets, start, stop) == (1, 2, offset, size, b"", b"", b"")


def test_a_request_in_a_large_buffer_is_not_copied():
    octets = memoryview(records.request(1, 0, 1, 2, INLINE, 5, b"p", b"s") + b"12345")
    _, _, start, stop = heard(octets, Kind.REQUEST)
    *_, parent, state, message = records.read_request(octets, start, stop)
    assert (parent, state) == (b"p", b"s")
    assert message.obj is octets.obj
    assert bytes(message) == b"12345"


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (records.head(Kind.REQUEST, 1, 3) + b"abc", "without its times"),
        (EMPTY, ""),
        (records.head(Kind.REQUEST, 1, 33) + EMPTY[HEAD_SIZE:] + b"x", "another length"),
    ],
)
def test_requests_that_are_none(octets, text):
    _, _, start, stop = heard(octets, Kind.REQUEST)
    if not text:
        records.read_request(octets, start, stop)
        return
    with pytest.raises(Malformed, match=text):
        records.read_request(octets, start, stop)


@given(CALL, st.binary(max_size=100), st.binary(max_size=100))
def test_an_ask(call, path, message):
    octets = records.ask(call, path, message)
    _, number, start, stop = heard(octets, Kind.ASK)
    assert number == call
    assert records.read_ask(octets, start, stop) == (path.decode("latin-1"), message)


def test_an_ask_that_ends_in_its_path():
    with pytest.raises(Malformed):
        records.read_ask(b"\x05\x00/ab", 0, 5)


@given(st.lists(CALL, max_size=20))
def test_numbers(values):
    octets = records.numbers(Kind.FREED, values)
    _, _, start, stop = heard(octets, Kind.FREED)
    assert records.read_numbers(octets, start, stop) == values
    if stop > start:
        with pytest.raises(Malformed):
            records.read_numbers(octets, start, stop - 1)


def test_a_reply():
    octets = records.reply(7, 3, True) + b"abc"
    assert heard(octets, Kind.REPLY) == (FINAL, 7, HEAD_SIZE, HEAD_SIZE + 3)
    assert heard(records.reply(7, 0, False), Kind.REPLY)[0] == 0


@given(st.lists(st.binary(max_size=40), max_size=10), st.data())
def test_records_cut_anywhere_are_read_whole(bodies, data):
    octets = b"".join(records.head(Kind.NOTICE, call, len(body)) + body for call, body in enumerate(bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=6)))
    found = []
    handlers = {int(Kind.NOTICE): lambda flags, call, data, start, stop: found.append((call, bytes(data[start:stop])))}
    tail = b""
    for begin, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        tail += octets[begin:end]
        tail = tail[records.read(tail, handlers) :]
    assert tail == b""
    assert found == list(enumerate(bodies))


def test_a_kind_that_nobody_expects():
    with pytest.raises(Malformed, match="kind 77"):
        records.read(b"\x4d" + bytes(15), {})


def test_the_length_of_what_has_begun():
    octets = records.head(Kind.NOTICE, 0, 1000)
    assert records.length_of(octets[:15]) == 0
    assert records.length_of(octets) == 1016
