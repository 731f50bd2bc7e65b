"""The connection against python-h2's client, with octets under way in both directions and every window in motion."""

import os
from itertools import chain

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transport.http2 import wire

from headrace.transport.http2.connection import Connection
from headrace.transport.http2.frames import MAX_WINDOW, ErrorCode
from headrace.transport.http2.limits import MAX_STRIKES, Limits
from headrace.transport.http2.outbound import Block
from headrace.transport.http2.stream import Stream

NOW = 10**9
MAX_STREAMS = 6
LIMITS = Limits(max_streams=MAX_STREAMS, initial_window=65_535, connection_window=100_000)
HEAD = Block([(b":status", b"200")])
TAIL = Block([(b"grpc-status", b"0")])
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
PREFIX = b"echo:"
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1000, 16_384, 16_385, 40_000]))
STREAMS = st.integers(0, MAX_STREAMS - 1)
WINDOWS = st.one_of(st.integers(0, 30), st.integers(0, 100_000))


class Echo(Stream):
    """Replies with what it was sent, when it has all; gives credit when it is told to."""

    __slots__ = ("answered", "body", "gone", "uncredited")

    def __init__(self, connection, stream_id, head):
        super().__init__(connection, stream_id, head)
        self.body = b""
        self.uncredited = 0
        self.answered = False
        self.gone = False

    def on_headers(self, end):
        if end:
            self.answer(in_pieces=False)

    def on_data(self, data, start, stop, end):
        assert not self.gone, "data for a stream that is gone"
        if self.answered:
            return  # early, and the answer waits for a window
        self.body += bytes(data[start:stop])
        self.uncredited += stop - start
        if end:
            self.answer(in_pieces=len(self.body) % 2 == 1)

    def on_reset(self):
        assert not self.gone
        self.gone = True

    def credit(self):
        self.connection.credit(self, self.uncredited)
        self.uncredited = 0

    def answer(self, *, in_pieces):
        assert not self.gone
        assert not self.answered
        self.answered = True
        outbound = self.connection.outbound
        if not in_pieces:
            outbound.respond(self, HEAD, PREFIX, self.body, TAIL)
            return
        middle = len(self.body) // 2
        outbound.headers(self, HEAD)
        for piece in (PREFIX, self.body[:middle], b"", self.body[middle:]):
            outbound.data(self, piece)
        outbound.headers(self, TAIL, end=True)


class Call:
    """What the client knows of a stream. expected: the reply, once the request is complete."""

    def __init__(self):
        self.sent = b""
        self.sending = True
        self.received = b""
        self.ends = 0
        self.reset = False
        self.cut_short = False  # the server answered early or gave the stream up


class H2Client(RuleBasedStateMachine):
    @initialize()
    def connect(self):
        self.server = Connection(LIMITS, self.open_stream, lambda fields: fields, lambda: None)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.to_server = b""
        self.echoes = {}
        self.calls = {}
        self.pings = 0
        self.settings_under_way = False
        self.exchange()

    def open_stream(self, connection, stream_id, head):
        echo = self.echoes[stream_id] = Echo(connection, stream_id, head)
        return echo

    # --- the wires ----------------------------------------------------------------------------------------------------

    def deliver_to_server(self, octets):
        self.to_server += self.client.data_to_send()
        piece, self.to_server = self.to_server[:octets], self.to_server[octets:]
        self.server.receive(piece, NOW)

    def deliver_to_client(self):
        # frame by frame, for h2 applies a new MAX_FRAME_SIZE to the next read only
        for event in chain.from_iterable(map(self.client.receive_data, wire.split(self.server.outbound.take()))):
            call = self.calls.get(getattr(event, "stream_id", None))
            assert not isinstance(event, h2.events.ConnectionTerminated), event
            if isinstance(event, h2.events.SettingsAcknowledged):
                self.settings_under_way = False
            elif isinstance(event, h2.events.DataReceived):
                call.received += event.data
            elif isinstance(event, h2.events.StreamEnded):
                call.ends += 1
            elif isinstance(event, h2.events.StreamReset):
                assert event.error_code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL), event
                assert call.cut_short
                call.reset |= event.error_code == ErrorCode.CANCEL
                call.sending = False

    def exchange(self):
        while True:
            self.deliver_to_server(1 << 30)
            if not self.server.outbound.out:
                break
            self.deliver_to_client()

    @rule(octets=st.one_of(st.integers(0, 60), st.just(1 << 30)))
    def some_octets_arrive_at_the_server(self, octets):
        self.deliver_to_server(octets)

    @rule()
    def all_octets_arrive_at_the_client(self):
        self.deliver_to_client()

    # --- the client ---------------------------------------------------------------------------------------------------

    def live(self):
        """Calls that have not ended for the client."""
        return [at for at, call in self.calls.items() if not call.reset and (call.sending or not call.ends)]

    def sending(self):
        return [at for at, call in self.calls.items() if call.sending and not call.reset]

    @precondition(lambda self: len(self.live()) < MAX_STREAMS)
    @rule(end=st.booleans())
    def open_a_stream(self, end):
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, REQUEST, end_stream=end)
        self.calls[stream_id] = call = Call()
        call.sending = not end

    @precondition(lambda self: self.sending())
    @rule(index=STREAMS, size=SIZES, padding=st.sampled_from([None, None, 0, 1, 255]), end=st.booleans())
    def send_data(self, index, size, padding, end):
        stream_id = self.sending()[index % len(self.sending())]
        overhead = 0 if padding is None else padding + 1
        room = min(self.client.local_flow_control_window(stream_id), self.client.max_outbound_frame_size) - overhead
        if room < 0:
            return
        piece = bytes((len(self.calls[stream_id].sent) + n) % 251 for n in range(min(size, room)))
        self.client.send_data(stream_id, piece, end_stream=end, pad_length=padding)
        self.calls[stream_id].sent += piece
        self.calls[stream_id].sending = not end

    @precondition(lambda self: self.sending())
    @rule(index=STREAMS)
    def send_trailers(self, index):
        stream_id = self.sending()[index % len(self.sending())]
        self.client.send_headers(stream_id, [("x-trailer", "1")], end_stream=True)
        self.calls[stream_id].sending = False

    @precondition(lambda self: self.live())
    @rule(index=STREAMS)
    def cancel(self, index):
        stream_id = self.live()[index % len(self.live())]
        self.client.reset_stream(stream_id, ErrorCode.CANCEL)
        self.calls[stream_id].reset = True

    @precondition(lambda self: self.pings <= MAX_STRIKES)
    @rule()
    def ping(self):
        self.client.ping(b"12345678")
        self.pings += 1

    def update_settings(self, values):
        self.settings_under_way = True  # h2 takes the first ACK for that of all frames under way
        self.client.update_settings(values)

    @precondition(lambda self: not self.settings_under_way)
    @rule(window=WINDOWS)
    def change_the_initial_window(self, window):
        """Of all streams, also of those whose replies are under way: their windows may become negative."""
        self.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})

    @precondition(lambda self: not self.settings_under_way)
    @rule(size=st.sampled_from([16_384, 20_000, 2**24 - 1]), table=st.sampled_from([0, 100, 4096, 65_536]))
    def change_other_settings(self, size, table):
        self.update_settings({SettingCodes.MAX_FRAME_SIZE: size, SettingCodes.HEADER_TABLE_SIZE: table})

    @precondition(lambda self: self.live())
    @rule(index=STREAMS, increment=st.integers(1, 50_000))
    def open_a_streams_window(self, index, increment):
        self.client.increment_flow_control_window(increment, self.live()[index % len(self.live())])

    @rule(increment=st.integers(1, 50_000))
    def open_the_connections_window(self, increment):
        self.client.increment_flow_control_window(increment)

    # --- the server's application -------------------------------------------------------------------------------------

    def unanswered(self):
        return [echo for echo in self.echoes.values() if not echo.answered and not echo.gone]

    @precondition(lambda self: self.unanswered())
    @rule(index=STREAMS)
    def take_what_came(self, index):
        self.unanswered()[index % len(self.unanswered())].credit()

    @precondition(lambda self: self.unanswered())
    @rule(index=STREAMS, in_pieces=st.booleans())
    def answer_early(self, index, in_pieces):
        echo = self.unanswered()[index % len(self.unanswered())]
        self.calls[echo.id].cut_short = True
        echo.answer(in_pieces=in_pieces)

    @precondition(lambda self: self.server.streams)
    @rule(index=STREAMS)
    def give_up(self, index):
        echo = list(self.server.streams.values())[index % len(self.server.streams)]
        self.calls[echo.id].cut_short = True
        echo.gone = True
        self.server.reset(echo, ErrorCode.CANCEL)

    # --- what holds ---------------------------------------------------------------------------------------------------

    @invariant()
    def windows_are_kept(self):
        outbound = self.server.outbound
        assert 0 <= outbound.window <= MAX_WINDOW
        waiting = [item for stream in self.server.streams.values() for item, _ in stream.pending or ()]
        assert outbound.pending_octets == sum(len(item) for item in waiting if not isinstance(item, Block))
        for stream in self.server.streams.values():
            assert 0 <= stream.recv_window <= LIMITS.initial_window
            assert outbound.initial_window + stream.send_delta <= MAX_WINDOW

    @invariant()
    def the_server_lives(self):
        assert not self.server.closing, self.server
        assert len(self.server.streams) <= MAX_STREAMS

    def teardown(self):
        """All is let through: every call has ended, and nothing is left of it."""
        if not hasattr(self, "server"):
            return
        self.exchange()
        for echo in self.unanswered():
            echo.credit()
        self.exchange()
        for stream_id in self.sending():
            self.client.end_stream(stream_id)
        self.exchange()
        self.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        self.client.increment_flow_control_window(1 << 24)
        self.exchange()
        for stream_id, call in self.calls.items():
            if not call.reset and not call.ends:
                self.client.increment_flow_control_window(1 << 20, stream_id)
        self.exchange()
        for stream_id, call in self.calls.items():
            if not call.reset:
                assert call.ends == 1
                assert call.received == PREFIX + self.echoes[stream_id].body
                assert call.cut_short or self.echoes[stream_id].body == call.sent
        assert not self.server.streams
        assert self.server.outbound.pending_octets == 0
        assert "0 streams blocked" in repr(self.server.outbound)


EXAMPLES = int(os.environ.get("HEADRACE_FUZZ_EXAMPLES", "150"))
H2Client.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, report_multiple_bugs=False)
TestConnectionAgainstH2 = H2Client.TestCase
