"""Traces in field blocks: whatever form a client's HPACK gives them, heads are those of the plain reader."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.http2.wire import literal, request_fields

from headrace.transport.grpc_head import VARYING
from headrace.transport.http2.frames import ProtocolViolation, StreamViolation
from headrace.transport.http2.heads import HeadReader, Varying
from headrace.transport.http2.limits import Limits
from headrace.transport.http2.traced_heads import TracedHeadReader

PLAIN = b"".join(literal(*field) for field in request_fields())


def parent(number, flags="01"):
    return f"00-{number:032x}-{number + 7:016x}-{flags}".encode()


def traced(number):
    return literal("traceparent", parent(number).decode())


class Heads:
    """A reader whose application keeps the fields, and counts how often it was asked; and how much was decoded."""

    def __init__(self, kind=TracedHeadReader, varying: Varying | None = VARYING, **limits):
        self.asked = self.decoded = 0
        self.reader = kind(Limits(**limits), self.read_head, varying)
        decode = self.reader._decoder.decode

        def counted(block):
            self.decoded += 1
            return decode(block)

        self.reader._decoder.decode = counted

    def read_head(self, fields):
        self.asked += 1
        return fields

    def request(self, block):
        return self.reader.request(block)


def test_what_a_c_core_client_sends_is_told_without_decoding():
    heads = Heads()
    first = heads.request(PLAIN + traced(1))
    assert first.traceparent == parent(1)
    decoded = heads.decoded
    for number in range(2, 50):
        head = heads.request(PLAIN + traced(number))
        assert head.traceparent == parent(number)
        assert head.app is first.app
    assert heads.asked == 1
    assert heads.decoded == decoded


def test_with_a_deadline_on_each_call_too():
    encoder = hpack.Encoder()
    heads = Heads()
    for number in range(40):
        fields = [*request_fields(), ("grpc-timeout", f"{1000 + number}m")]
        head = heads.request(encoder.encode(fields, huffman=False) + traced(number))
        assert head.traceparent == parent(number)
        assert head.varied == (1000 + number) * 10**6
    assert heads.asked == 1
    assert heads.decoded < 5


def test_tracestate_is_kept_with_what_is_known():
    heads = Heads()
    for number in range(5):
        head = heads.request(PLAIN + traced(number) + literal("tracestate", "a=b"))
        assert (head.traceparent, head.tracestate) == (parent(number), b"a=b")
    assert heads.asked == 1


def test_requests_without_a_trace_have_none():
    heads = Heads()
    heads.request(PLAIN + traced(1))
    assert heads.request(PLAIN).traceparent == b""


def test_octets_inside_a_value_are_no_trace():
    """Cut out of the middle of a value, they would leave a block that is known."""
    heads = Heads()
    inner = traced(5)
    note = b"\x00\x06x-note" + bytes((2 + len(inner),)) + b"ab"
    rest = b"c" * len(inner)
    heads.request(PLAIN + note + rest + traced(1))
    assert heads.request(PLAIN + note + rest + traced(2)).traceparent == parent(2)
    with pytest.raises(ProtocolViolation):  # behind the value, the rest is no field
        heads.request(PLAIN + note + inner + rest)
    with pytest.raises(StreamViolation):  # NUL in a value
        Heads().request(PLAIN + note + inner)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-0-0-01",
        parent(0xABC).upper(),
        parent(1) + b"-x",  # version 00 has no more
        b"ff" + parent(1)[2:],
        b"x" * 55,
    ],
)
def test_a_malformed_trace_is_none(value):
    head = Heads().request(PLAIN + literal("traceparent", value.decode()))
    assert head.traceparent == b""


def test_of_a_later_version_what_is_known_is_read():
    value = b"01" + parent(1)[2:] + b"-more"
    assert Heads().request(PLAIN + literal("traceparent", value.decode())).traceparent == value[:55]


def test_two_traces_are_none():
    heads = Heads()
    for number in (1, 2):
        assert heads.request(PLAIN + traced(number) + traced(number + 1)).traceparent == b""


def test_a_change_of_the_table_forgets_what_is_known():
    heads = Heads()
    encoder = hpack.Encoder()
    block = encoder.encode([*request_fields(), ("x", "1")])
    heads.request(block)
    again = encoder.encode([*request_fields(), ("x", "1")])  # of indices alone
    assert dict(heads.request(again + traced(1)).app)[b"x"] == b"1"
    heads.request(PLAIN + literal("x", "2", 0x40))  # moves the indices
    moved = Heads(HeadReader)
    for earlier in (block, again + traced(1), PLAIN + literal("x", "2", 0x40)):
        moved.request(earlier)
    fields = [field for field in moved.request(again + traced(2)).app if field[0] != b"traceparent"]
    assert heads.request(again + traced(2)).app == fields


FIELDS = st.sampled_from(
    [("x-a", "1"), ("x-b", "2"), ("tracestate", "k=v"), ("grpc-timeout", "5S"), ("grpc-timeout", "71m"), ("x", "é")]
)
CALLS = st.lists(
    st.tuples(
        st.lists(st.tuples(FIELDS, st.sampled_from(["plain", "never", "insert"])), max_size=4),
        st.integers(0, 4),  # where the trace stands
        st.sampled_from(["none", "plain", "never", "insert", "huffman", "raw", "raw", "raw"]),
        st.integers(0, 5),
    ),
    min_size=2,
    max_size=12,
)


def pieces(encoder, fields, at, form, number):
    """The octets of each field of a call, in order, the trace's at position `at`."""
    octets = [encoder.encode([field_of(*field, how)], huffman=how == "plain") for field, how in fields[:at]]
    if form == "raw":
        octets.append(traced(number))
    elif form != "none":
        octets.append(encoder.encode([field_of("traceparent", parent(number).decode(), form)], huffman=form != "plain"))
    return octets + [encoder.encode([field_of(*field, how)], huffman=how == "plain") for field, how in fields[at:]]


def field_of(name, value, how):
    return hpack.NeverIndexedHeaderTuple(name, value) if how in ("never", "huffman") else hpack.HeaderTuple(name, value)


@given(CALLS)
def test_every_form_of_hpack_gives_the_heads_of_the_plain_reader(calls):
    encoder = hpack.Encoder()
    plain, reader = Heads(HeadReader), Heads()
    for fields, at, form, number in calls:
        if len({name for (name, _), _ in fields}) < len(fields):
            fields = fields[:1]
        opening = encoder.encode(request_fields(), huffman=False)
        block = opening + b"".join(pieces(encoder, fields, at, form, number))
        expected, head = plain.request(block), reader.request(block)
        assert head.traceparent == (parent(number) if form != "none" else b"")
        assert head.varied == expected.varied
        assert head.content_length == expected.content_length
        left_out = (b"traceparent", *((b"tracestate",) if form != "none" else ()))
        blank = [(n, b"" if n == b"grpc-timeout" else v) for n, v in expected.app if n not in left_out]
        assert [(n, b"" if n == b"grpc-timeout" else v) for n, v in head.app] == blank
        state = dict(expected.app).get(b"tracestate", b"")
        assert head.tracestate == (state if form != "none" else b"")
