"""h2spec's cases and more against the native transport on a real socket: every frame of every answer is compared."""

import asyncio

import pytest
from conformance.http2.beyond import BEYOND
from conformance.http2.cases import GENERIC, HPACK, HTTP2, PONG
from conformance.http2.dialogues import DIALOGUES
from conformance.native import Native
from transport.http2.wire import ping

from headrace.transport.grpc_head import NOT_GRPC

CASES = [*GENERIC, *HTTP2, *HPACK, *BEYOND]


@pytest.fixture(scope="module")
def native():
    with Native() as running:
        yield running


def check(native, case):
    """A violation ends in GOAWAY and then the end of the connection; anything else leaves it usable."""
    with native.connect(case.hello) as client:
        client.send(case.octets + ping(b"pingpong"))
        lines = client.end() if case.fatal else client.until(*PONG)
        assert lines == [*case.welcome, *case.expected, *(() if case.fatal else PONG)]
        for body in client.reader.bodies.values():
            assert NOT_GRPC.startswith(body)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_a_case(native, case):
    check(native, case)


@pytest.mark.parametrize("dialogue", [pytest.param(dialogue, id=name) for name, dialogue in DIALOGUES.items()])
def test_a_dialogue(start, dialogue):
    dialogue(start)


def test_the_cases_on_asyncios_own_loop():
    with Native(new_loop=asyncio.new_event_loop) as native:
        for case in CASES:
            check(native, case)


def test_the_table_is_complete():
    """All 147 cases of h2spec, and no name twice."""
    assert (len(GENERIC), len(HTTP2), len(HPACK)) == (44, 95, 8)
    names = [case.name for case in CASES] + list(DIALOGUES)
    assert len(set(names)) == len(names)
