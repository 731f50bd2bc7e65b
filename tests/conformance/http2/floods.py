"""Attacks on HTTP/2 servers that repeat one thing without end. docs/http2.md has the limits that end them."""

from typing import NamedTuple

from transport.http2 import wire
from transport.http2.bench import ECHO, HELLO, INFER
from transport.http2.wire import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    SETTINGS,
    data,
    frame,
    get,
    goaway,
    grpc_call,
    grpc_head,
    headers,
    ping,
    post,
    priority,
    request_fields,
    rst,
    settings,
    window_update,
    word,
)

MAX_STREAMS = 256
NO_WINDOW = wire.hello((INITIAL_WINDOW, 0))
MALFORMED = ("connection", "x")
EARLY = "too many streams before the ACK of our SETTINGS"
OPEN_BLOCK = frame(HEADERS, 0, 1)
UPLOAD = grpc_head(ECHO) + data(1, b"\0" + word(90_000))
ANSWERED = grpc_head("/no/where")


class Flood(NamedTuple):
    """piece: the n-th that is sent. limit: what ends it. borne: pieces that are, at least. first: sent before."""

    name: str
    piece: object
    limit: str
    borne: int = 1000
    first: bytes = b""
    hello: bytes = HELLO

    @property
    def trickle(self):
        """Whether it is borne for ever, if it comes slowly."""
        return self.borne > 20 and self.name != EARLY


def sid(n):
    return 1 + 2 * n


def call(n):
    return grpc_call(INFER, b"m", sid(n))


def made_to_reset(name, offence, borne=1000):
    return Flood(f"made you reset: {name}", lambda n: call(n) + offence(sid(n)), "stream_errors", borne)


TWICE = MAX_STREAMS + (1000 - MAX_STREAMS) // 2
"""Where the offence counts again on a call that was refused because so many run already."""
BUDGET = 1000 + 4 * MAX_STREAMS
"""Of WINDOW_UPDATE and small DATA that nothing pays for."""

FLOODS = [
    # CVE-2023-44487: the work of a reset call goes on, and counts as open
    Flood("rapid reset", lambda n: call(n) + rst(sid(n)), "rapid_reset"),
    Flood("rapid reset of requests that are not complete", lambda n: post(sid(n)) + rst(sid(n)), "rapid_reset"),
    Flood("resets of a closed stream", lambda n: rst(1), "rapid_reset", first=get()),
    # CVE-2025-8671: the same, but the client has the server reset
    made_to_reset("WINDOW_UPDATE of 0", lambda at: window_update(at, 0)),
    made_to_reset("WINDOW_UPDATE above 2^31-1", lambda at: window_update(at, 2**31 - 1)),
    made_to_reset("PRIORITY of 4 octets", lambda at: frame(wire.PRIORITY, 0, at, bytes(4)), TWICE),
    made_to_reset("PRIORITY on itself", lambda at: priority(at, at), TWICE),
    made_to_reset("HEADERS after END_STREAM", lambda at: headers(at, [("x", "y")]), TWICE),
    made_to_reset("DATA after END_STREAM", lambda at: data(at, b"x")),
    # CVE-2019-9514
    Flood("malformed requests", lambda n: get(sid(n), MALFORMED), "stream_errors"),
    Flood(
        "content-length exceeded",
        lambda n: post(sid(n), ("content-length", "1")) + data(sid(n), b"xx"),
        "stream_errors",
    ),
    Flood("DATA after the client's reset", lambda n: data(1, b"x"), "stream_errors", first=post() + rst(1)),
    Flood("HEADERS after the client's reset", lambda n: headers(1, b""), "stream_errors", first=post() + rst(1)),
    Flood("HEADERS after our reset", lambda n: headers(1, b""), "stream_errors", 999, post() + window_update(1, 0)),
    Flood("too many streams", lambda n: post(sid(n)), "stream_errors", 1000 + MAX_STREAMS),
    Flood(
        EARLY,
        lambda n: post(sid(n)),
        "stream_errors",
        1000 + 2 * MAX_STREAMS,
        hello=wire.PREFACE + settings(),
    ),
    # VU#421644, CVE-2026-33871
    Flood("CONTINUATION", lambda n: frame(CONTINUATION, 0, 1, bytes(16_000)), "field_block", 3, OPEN_BLOCK),
    Flood(
        "CONTINUATION of one octet", lambda n: frame(CONTINUATION, 0, 1, b"\0"), "field_block", 16, frame(HEADERS, 0, 1)
    ),
    Flood("empty CONTINUATION", lambda n: frame(CONTINUATION, 0, 1), "field_block", 16, OPEN_BLOCK),
    # CVE-2019-9518
    Flood("empty DATA", lambda n: data(1), "empty_frames", first=post()),
    Flood("DATA of padding alone", lambda n: data(1, padding=255), "empty_frames", first=grpc_head(ECHO)),
    Flood("empty HEADERS", lambda n: headers(sid(n), b""), "stream_errors"),
    Flood(
        "field blocks with empty frames between",
        lambda n: (
            frame(HEADERS, wire.END_STREAM, sid(n), wire.block(*request_fields()))
            + frame(CONTINUATION, 0, sid(n))
            + frame(CONTINUATION, END_HEADERS, sid(n))
        ),
        "empty_frames",
    ),
    # hyperium's budget for small DATA
    Flood(
        "DATA of one octet",
        lambda n: data(1, b"x"),
        "small_data",
        BUDGET,
        UPLOAD,
    ),
    Flood(
        "DATA of one octet and padding",
        lambda n: data(1, b"x", padding=255),
        "small_data",
        BUDGET,
        UPLOAD,
    ),
    Flood("small DATA of what is not gRPC", lambda n: data(1, b"x"), "small_data", BUDGET, post()),
    Flood(
        "small DATA on a stream that was answered",
        lambda n: data(1, b"x"),
        "small_data",
        BUDGET,
        ANSWERED,
    ),
    Flood("empty DATA on a stream that was answered", lambda n: data(1), "small_data", BUDGET, ANSWERED),
    Flood(
        "small DATA behind a reply that waits",
        lambda n: data(1, b"x"),
        "small_data",
        BUDGET,
        post() + b"".join(data(1, bytes(16_384)) for _ in range(33)),
        hello=NO_WINDOW,
    ),
    # CVE-2019-9511, and what is like it
    Flood(
        "windows opened octet by octet",
        lambda n: window_update(1, 1),
        "window_updates",
        BUDGET,
        grpc_call(ECHO, bytes(16_000)),
        hello=NO_WINDOW,
    ),
    Flood("WINDOW_UPDATE of the connection", lambda n: window_update(0, 1), "window_updates", BUDGET),
    Flood("WINDOW_UPDATE of an open stream", lambda n: window_update(1, 1), "window_updates", BUDGET, post()),
    Flood("WINDOW_UPDATE of a closed stream", lambda n: window_update(1, 1), "window_updates", BUDGET, get()),
    # CVE-2019-9512, 9513, 9515
    Flood("PING", lambda n: ping(), "too_many_pings", 3),
    Flood("PRIORITY", lambda n: priority(sid(n), sid(n + 1)), "priority"),
    Flood("SETTINGS", lambda n: settings(*((0xFF, i) for i in range(32))), "settings"),
    Flood(
        "SETTINGS that move the windows of many replies",
        lambda n: settings((INITIAL_WINDOW, n % 2)),
        "settings",
        900,
        b"".join(grpc_call(ECHO, bytes(1000), sid(n)) for n in range(200)),
        hello=NO_WINDOW,
    ),
    Flood(
        "SETTINGS of the table size",
        lambda n: settings((HEADER_TABLE_SIZE, n), (HEADER_TABLE_SIZE, 0)),
        "settings",
        999,
    ),
    # what means nothing
    Flood("frames of unknown types", lambda n: frame(0x0A + n % 200, 0xFF, n, bytes(n % 50)), "useless_frames"),
    Flood("large frames of an unknown type", lambda n: frame(0xBE, 0, 0, bytes(16_384)), "useless_frames"),
    Flood("SETTINGS ACK", lambda n: frame(SETTINGS, ACK), "useless_frames"),
    Flood("PING ACK", lambda n: ping(b"headrace", ACK), "useless_frames"),
    Flood("GOAWAY", lambda n: goaway(n, debug=bytes(1000)), "useless_frames", first=grpc_call(INFER)),
]
