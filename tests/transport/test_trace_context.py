"""What is well-formed of a caller's trace, by W3C Trace Context."""

import pytest

from headrace.transport.trace_context import take_out

PARENT = b"00-000000000000000000000000000000aa-00000000000000bb-01"


def state(*values):
    fields = [(b"x", b"y"), (b"traceparent", PARENT), *((b"tracestate", value) for value in values)]
    rest, parent, found = take_out(fields)
    assert parent == PARENT
    left = [value for name, value in rest if name == b"tracestate"]
    return found, left


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        ((), b""),
        ((b"",), b""),
        ((b"v=1",), b"v=1"),
        ((b"a=1, b=2 ,\tc=3",), b"a=1,b=2,c=3"),
        ((b"a=1", b"b=2,c=3"), b"a=1,b=2,c=3"),  # as one field of both
        ((b"a=1,,b=2,",), b"a=1,b=2"),  # empty ones may be there
        ((b"fw529a3039@dt=FfAz==",), None),  # `=` is not of a value
        ((b"fw529a3039@dt=Ff Az",), b"fw529a3039@dt=Ff Az"),
        ((b"0a-_*/=x",), b"0a-_*/=x"),
        ((b",".join(b"k%d=v" % n for n in range(32)),), b",".join(b"k%d=v" % n for n in range(32))),
        ((b",".join(b"k%d=v" % n for n in range(33)),), None),
        ((b"=bad,,,;;",), None),
        ((b"a",), None),
        ((b"a=",), None),
        ((b"A=1",), None),
        ((b"a=1,a=2",), None),
        ((b"a=1", b"a=2"), None),
        ((b"a=\xff",), None),
        ((b"k" * 257 + b"=1",), None),
        ((b"a=" + b"v" * 256 + b",b=" + b"v" * 251,), b"a=" + b"v" * 256 + b",b=" + b"v" * 251),
        ((b"a=" + b"v" * 256 + b",b=" + b"v" * 252,), b""),  # too long, and well-formed
    ],
)
def test_a_tracestate_is_a_list_or_nothing(values, joined):
    found, left = state(*values)
    assert found == (joined or b"")
    assert left == (list(values) if joined is None else [])


def test_a_traceparent_that_is_there_twice_is_none():
    fields = [(b"traceparent", PARENT), (b"traceparent", PARENT), (b"tracestate", b"a=1")]
    assert take_out(fields) == (fields, b"", b"a=1")
