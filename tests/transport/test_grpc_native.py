"""The life of connections: in virtual time and without sockets."""

import logging

import pytest
from transport.http2 import bench as benches
from transport.http2 import wire
from transport.http2.bench import CHAT, ECHO, INFER, SECOND, WATCH
from transport.http2.wire import grpc_call, grpc_head, ping, rst

CALM = "ENHANCE_YOUR_CALM"
LEAVE = [f"GOAWAY {2**31 - 1} NO_ERROR", "PING headrace"]
LEFT = ping(b"headrace", wire.ACK)


@pytest.fixture
def bench():
    with benches.bench() as made:
        yield made


def drain(bench, seconds=30):
    task = bench.loop.create_task(bench.transport.drain(seconds))
    bench.loop.run_until_idle()
    return task


def goaway(code, last=0):
    return [f"GOAWAY {last} {code}"]


# --- how a connection ends --------------------------------------------------------------------------------------------


def test_an_error_is_told_before_the_end(bench):
    client = bench.connect()
    assert client.send(wire.window_update(0, 0)) == goaway("PROTOCOL_ERROR")
    assert client.socket.ended
    assert not client.socket.closing
    assert client.send(ping()) == []  # what comes now is dropped
    bench.loop.run_for(SECOND)
    assert client.socket.lost
    assert bench.counts.protocol_errors == {"PROTOCOL_ERROR": 1}


def test_who_takes_the_last_reply_slowly_gets_all_of_it(bench):
    client = bench.connect()
    client.socket.unsent = 60_000
    client.send(wire.window_update(0, 0))
    while client.socket.unsent:
        client.socket.unsent -= 20_000
        bench.loop.run_for(SECOND)
        assert not client.socket.lost
    bench.loop.run_for(SECOND)
    assert client.socket.lost


def test_who_takes_no_more_is_not_waited_for(bench):
    client = bench.connect()
    client.socket.unsent = 60_000
    client.send(wire.window_update(0, 0))
    bench.loop.run_for(SECOND)
    assert client.socket.lost


def test_a_client_that_closes_in_time_is_not_waited_for(bench):
    client = bench.connect()
    client.send(wire.window_update(0, 0))
    client.hang_up()
    assert client.peer._ending.cancelled()


def test_one_connections_end_leaves_the_others_alone(bench):
    """Also where replies to several are written in the same turn of the loop."""
    clients = [bench.connect() for _ in range(3)]
    for n, client in enumerate(clients):
        bench.loop.call_soon(client.peer.data_received, wire.window_update(0, 0) if n == 0 else grpc_call(ECHO, b"m"))
    assert clients[0].lines() == goaway("PROTOCOL_ERROR")
    for client in clients[1:]:
        client.lines()
        assert client.messages() == [b"m"]


def test_the_work_of_a_lost_connection_is_cancelled(bench):
    client = bench.connect()
    client.send(grpc_call(INFER) + grpc_call(WATCH, b"m", 3))
    client.send(wire.window_update(0, 0))
    assert bench.infer.calls[0].cancelled == 1
    assert not client.peer.tasks
    bench.infer.calls[0].sink.reply(b"too late")
    assert client.lines() == []


def test_the_client_leaves_by_goaway(bench):
    client = bench.connect()
    client.send(grpc_call(INFER) + wire.goaway())
    bench.wait(3)
    assert not client.socket.ended
    bench.infer.calls[0].sink.reply(b"reply")
    client.lines()
    bench.wait(1)
    assert client.messages() == [b"reply"]
    assert client.socket.ended


def test_counters(bench):
    one, two = bench.connect(), bench.connect()
    one.send(grpc_call(ECHO, b"m") + grpc_head(CHAT, 3))
    bench.wait(0)
    counts = bench.counts
    assert (counts.connections_open, counts.connections_total, counts.streams_total) == (2, 2, 2)
    assert counts.bytes_received == 2 * len(benches.HELLO) + len(grpc_call(ECHO, b"m") + grpc_head(CHAT, 3))
    assert counts.bytes_sent > 100
    two.hang_up()
    assert (counts.connections_open, counts.connections_total) == (1, 2)
    assert "1 connections" in repr(bench.transport)


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_client_that_says_nothing(bench):
    client = bench.connect(b"")
    bench.wait(10)
    assert not client.socket.lost
    bench.wait(1)
    assert client.socket.lost
    assert client.reader.fields == {}


def test_half_a_preface(bench):
    client = bench.connect(b"")
    client.send(wire.PREFACE[:20])
    bench.wait(11)
    assert client.socket.lost


def test_a_client_that_does_not_acknowledge_our_settings(bench):
    client = bench.connect(b"")
    client.send(wire.PREFACE + wire.settings())
    bench.wait(10)
    assert client.lines() == []
    bench.wait(1)
    assert client.lines() == goaway("SETTINGS_TIMEOUT")


def test_an_idle_connection_is_closed():
    with benches.bench(idle_timeout_s=5) as made:
        client = made.connect()
        made.wait(5)
        assert client.lines() == []
        made.wait(1)
        assert client.lines() == goaway("NO_ERROR")
        assert not made.counts.protocol_errors


def test_calls_keep_a_connection_alive():
    """Also those that no tick sees, and one that takes long."""
    with benches.bench(idle_timeout_s=5) as made:
        client = made.connect()
        for n in range(10):
            made.wait(3)
            client.send(grpc_call(ECHO, b"m", 1 + 2 * n))
        client.send(grpc_call(INFER, b"m", 21))
        made.wait(30)
        assert not client.socket.ended
        made.infer.calls[0].sink.reply(b"")
        made.wait(7)
        assert client.socket.ended


def test_idle_connections_stay_by_default(bench):
    client = bench.connect()
    bench.wait(3600)
    assert client.lines() == []
    assert not client.socket.ended


def test_keepalive():
    with benches.bench(keepalive_s=60, keepalive_timeout_s=20) as made:
        client = made.connect()
        made.wait(60)
        assert client.lines() == []
        made.wait(1)
        (line,) = client.lines()
        assert line.startswith("PING keep-hr")
        made.wait(15)
        client.send(b"\0")  # any octet is a sign of life
        made.wait(60)
        assert client.lines() == []
        made.wait(2)
        assert len(client.lines()) == 1
        made.wait(20)
        assert client.socket.lost


def test_who_reads_slowly_is_there():
    """Nothing is read of it meanwhile, and no PING can go out: its silence says nothing."""
    with benches.bench(keepalive_s=60, keepalive_timeout_s=20) as made:
        client = made.connect()
        made.wait(50)
        client.socket.unsent = 10_000_000
        client.stop_reading()
        for _ in range(300):
            made.wait(1)
            client.socket.unsent -= 1000
        assert not client.socket.lost
        client.go_on_reading()
        made.wait(2)
        assert client.lines()[-1].startswith("PING keep-hr")
        made.wait(15)
        client.stop_reading()  # before its answer has been read
        made.wait(10)
        client.go_on_reading()
        made.wait(1)
        assert not client.socket.lost
        made.wait(25)
        assert client.socket.lost


def test_a_reader_that_has_stopped(bench):
    client = bench.connect()
    client.stop_reading()
    assert not client.socket.reading
    assert client.send(grpc_call(ECHO, b"m")) == []  # what had been read before; nothing more is
    bench.wait(60)
    assert not client.socket.lost
    client.go_on_reading()
    assert client.socket.reading
    assert client.messages() == [b"m"]
    client.stop_reading()
    bench.wait(61)
    assert client.socket.lost


def test_a_reader_that_has_always_some_left_has_not_stopped(bench):
    """What it leaves is now more and now less, as replies come; in between it has taken nearly all."""
    client = bench.connect()
    for second in range(200):
        client.socket.unsent = 100_000 + 1_000 * second
        client.stop_reading()
        bench.wait(1)
        client.go_on_reading()
    assert not client.socket.lost


# --- draining ---------------------------------------------------------------------------------------------------------


def test_while_the_server_is_held_nothing_is_read(bench):
    first, second = bench.connect(), bench.connect()

    def hold(held):
        bench.transport.held = held
        for client in (first, second):
            client.peer.read()

    second.stop_reading()
    assert (first.socket.reading, second.socket.reading) == (True, False)
    hold(True)
    second.go_on_reading()
    assert (first.socket.reading, second.socket.reading) == (False, False)
    second.stop_reading()
    hold(False)
    assert (first.socket.reading, second.socket.reading) == (True, False)
    second.go_on_reading()
    assert second.socket.reading


def test_an_idle_connection_drains(bench):
    client = bench.connect()
    task = drain(bench)
    assert client.lines() == LEAVE
    assert not task.done()
    assert client.send(LEFT) == goaway("NO_ERROR")
    assert client.socket.ended
    assert client.send(ping()) == []
    client.hang_up()
    assert task.done()


def test_calls_finish_while_draining(bench):
    client = bench.connect()
    client.send(grpc_call(INFER, b"m", 1))
    task = drain(bench)
    assert client.lines() == LEAVE
    assert client.send(grpc_call(INFER, b"m", 3)) == []  # sent before the client heard of it
    assert client.send(LEFT) == goaway("NO_ERROR", 3)
    assert client.send(grpc_call(INFER, b"m", 5)) == []  # dropped
    assert len(bench.infer.calls) == 2
    for work in bench.infer.calls:
        assert not client.socket.ended
        work.sink.reply(b"reply")
        client.lines()
    assert client.socket.ended
    assert client.messages(1) == client.messages(3) == [b"reply"]
    bench.loop.run_for(SECOND)
    assert client.socket.lost
    assert task.done()


def test_a_reply_that_waits_for_its_window_is_not_cut_off(bench):
    client = bench.connect()
    client.send(wire.settings((wire.INITIAL_WINDOW, 3)), grpc_call(ECHO, b"message"))
    drain(bench)
    client.send(LEFT)
    bench.wait(5)
    assert not client.socket.ended
    client.send(wire.window_update(1, 100))
    assert client.messages() == [b"message"]
    assert client.socket.ended


def test_a_reply_that_waits_for_its_socket_is_not_cut_off(bench):
    client = bench.connect()
    client.send(grpc_call(INFER))
    drain(bench)
    client.send(LEFT)
    client.stop_reading()
    bench.infer.calls[0].sink.reply(b"reply")
    bench.wait(5)
    assert not client.socket.ended
    client.go_on_reading()
    assert client.messages() == [b"reply"]
    assert client.socket.ended


def test_a_client_that_does_not_answer_the_ping(bench):
    client = bench.connect()
    drain(bench)
    assert client.lines() == LEAVE
    bench.wait(5)
    assert client.lines() == []
    bench.wait(1)
    assert client.lines() == goaway("NO_ERROR")
    assert client.socket.ended


def test_streams_do_not_hold_a_drain_up(bench):
    client = bench.connect()
    client.send(grpc_call(WATCH, b"m", 1))
    task = drain(bench)
    assert client.lines() == ["HEADERS 1 trailers END_STREAM", *LEAVE]
    status, text = client.status(1)
    assert (status, text) == (14, "Server is shutting down")
    assert client.send(grpc_head(WATCH, 3)) == ["HEADERS 3 200 END_STREAM", "RST_STREAM 3 NO_ERROR"]
    assert client.status(3)[0] == 14
    client.send(LEFT)
    client.hang_up()
    assert task.done()


def test_a_drain_ends_in_time(bench, caplog):
    client = bench.connect()
    client.send(grpc_call(INFER))
    task = drain(bench, seconds=3)
    bench.loop.run_for(2 * SECOND)
    assert not task.done()
    with caplog.at_level(logging.WARNING):
        bench.loop.run_for(2 * SECOND)
    assert task.done()
    assert "1 connections have calls under way" in caplog.text
    bench.loop.run_until_complete(bench.transport.close())
    bench.loop.run_until_idle()
    assert client.socket.lost
    assert bench.infer.calls[0].cancelled == 1


def test_new_connections_are_not_taken_while_draining(bench):
    unstarted = bench.connect(b"")
    task = drain(bench)
    assert unstarted.socket.lost
    late = benches.Client(bench)
    bench.loop.run_until_idle()
    assert late.socket.lost
    assert task.done()


def test_stream_ids_run_out(bench):
    """The client is asked to go while there are some left."""
    client = bench.connect()
    client.send(grpc_call(ECHO, b"m", 2**30 + 1))
    bench.wait(10)
    assert client.lines() == []
    last = 3 * 2**29 + 1
    client.send(grpc_call(ECHO, b"m", last) + grpc_head(WATCH, last + 2))
    bench.wait(1)
    assert client.lines() == LEAVE
    client.send(wire.data(last + 2, wire.message(b"m")))
    assert client.messages(last + 2) == [b"m"]  # nobody is thrown out
    assert client.send(LEFT) == goaway("NO_ERROR", last + 2)
    assert client.send(rst(last + 2)) == []
    bench.wait(1)
    assert client.socket.ended
