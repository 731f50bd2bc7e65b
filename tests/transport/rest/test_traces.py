"""A caller's trace in the headers of an HTTP request: the same whether its head is parsed or recognised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport.rest.world import World, answer

from headrace.transport.rest.head import cut_parent

PARENT = "00-000000000000000000000000000000aa-00000000000000bb-01"


def parent(number):
    return f"00-{number + 1:032x}-00000000000000bb-01"


def octets(*lines):
    head = "\r\n".join(("POST /v2/models/m/infer HTTP/1.1", "host: h", *lines, "content-length: 2"))
    return head.encode() + b"\r\n\r\n{}"


class Traced(World):
    """The server's world, whose inferences say what trace they were given. heads: how many were parsed."""

    def __enter__(self):
        super().__enter__()
        self.http.traced = True
        self.got = []
        self.doors = []

        def infer(call):
            self.got.append((call.traceparent, call.tracestate))
            self.doors.append(call.door)
            answer(call)

        self.http.infer = infer
        return self


@pytest.fixture
def world():
    with Traced() as world:
        yield world


def test_a_known_head_is_recognised_whatever_its_trace(world):
    client = world.client()
    for number in range(4):
        client.ask(octets(f"traceparent: {parent(number)}", "tracestate: a=b"))
    assert world.got == [(parent(number).encode(), b"a=b") for number in range(4)]
    assert len(world.http.heads) == 1


def test_one_without_a_trace_is_the_same_head_and_has_none(world):
    client = world.client()
    client.ask(octets(f"traceparent: {PARENT}"))
    client.ask(octets())
    assert [trace for trace, _ in world.got] == [PARENT.encode(), b""]
    assert len(world.http.heads) == 1


def test_the_door_is_scheme_and_path(world):
    client = world.client()
    client.ask(octets())
    client.ask(octets().replace(b"/m/infer", b"/a%3ab%2F/versions/3/infer?x=1"))
    world.http.scheme = "https"
    client.ask(octets())
    assert world.doors == [
        "http:/v2/models/m/infer",
        "http:/v2/models/a%3Ab%2F/versions/3/infer",
        "https:/v2/models/m/infer",
    ]


def test_without_tracing_nothing_is_cut(world):
    world.http.traced = False
    client = world.client()
    client.ask(octets())
    client.ask(octets(f"traceparent: {PARENT}"))
    assert [trace for trace, _ in world.got] == [b"", b""]
    assert len(world.http.heads) == 2


LINES = st.lists(
    st.one_of(
        st.builds(
            "{}:{}{}{}".format,
            st.sampled_from(["traceparent", "Traceparent", "TRACEPARENT", "x-traceparent"]),
            st.sampled_from(["", " ", "\t", "  "]),
            st.sampled_from([parent(0), parent(1), parent(10).upper(), "00-1-2-01", "ff" + PARENT[2:], PARENT + "-x"]),
            st.sampled_from(["", " "]),
        ),
        st.sampled_from(["x: 1", "tracestate: k=v", f"x: traceparent: {PARENT}"]),
    ),
    max_size=3,
)


@given(st.lists(LINES, min_size=1, max_size=8))
def test_a_recognised_head_says_what_a_parsed_one_does(requests):
    with Traced() as world:
        kept = world.client()
        for lines in requests:
            kept.ask(octets(*lines))
        recognised = list(world.got)
        world.got.clear()
        for lines in requests:
            world.http.heads.clear()
            world.client().ask(octets(*lines))
        assert recognised == world.got


def test_a_line_that_another_continues_is_left_to_the_parser():
    folded = octets(f"traceparent: {PARENT}", " more")
    assert cut_parent(folded) == (folded, b"")
