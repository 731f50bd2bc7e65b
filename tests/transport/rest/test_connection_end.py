"""Who goes away: clients, and the server."""

import gc
import weakref

import pytest
from transport.rest.inferences import SECOND, Slow, get, infer, value
from transport.rest.world import World

from headrace.testing.backend import FakeModel


@pytest.mark.parametrize("how", ["lost", "half closed"])
def test_a_client_that_goes_away_cancels_what_waits(world, held, how):
    first, second = world.client(), world.client()
    first.ask(infer(1))
    second.ask(infer(2) + infer(3))
    assert world.scheduler.depth() == (2, 2)
    if how == "lost":
        second.connection.connection_lost(None)
    else:
        assert not second.connection.eof_received()
    assert world.scheduler.depth() == (0, 0)
    held.release()
    world.loop.run_until_idle()
    assert [value(answer) for answer in first.replies()] == [1]
    assert second.replies() == []
    assert world.observer.reasons == {"cancelled": 2}
    assert world.http.buffered == 0


def test_a_client_that_goes_away_before_its_request_is_taken(world):
    client = world.client()
    client.send(infer(1))
    client.connection.connection_lost(None)
    world.loop.run_until_idle()
    assert world.model.runs == []


def test_the_application_goes_on_without_its_client():
    app = Slow()
    with World(app) as world:
        client = world.client()
        client.ask(get("/a"))
        client.connection.connection_lost(None)
        app.let_go("/a")
        world.loop.run_until_idle()
        assert app.ended == ["/a"]
        assert client.replies() == []


def test_an_application_that_asks_hears_of_it():
    heard = []

    async def app(scope, receive, send):
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])

    with World(app) as world:
        client = world.client()
        client.ask(get())
        assert heard == ["http.request"]
        client.connection.connection_lost(None)
        world.loop.run_until_idle()
        assert heard == ["http.request", "http.disconnect"]


def test_an_application_that_fails_is_a_500(caplog):
    async def app(scope, receive, send):
        raise ZeroDivisionError

    with World(app) as world:
        client = world.client()
        assert [answer.status for answer in client.ask(get() + get())] == [500]
        assert client.wire.is_closing()
        assert "ZeroDivisionError" in caplog.text


# --- the end ----------------------------------------------------------------------------------------------------------


def test_shutdown_answers_what_has_begun(world, held):
    idle, partial, busy = world.client(), world.client(), world.client()
    idle.ask(get())
    partial.ask(infer(1)[:-1])
    busy.ask(infer(2) + infer(3) + infer(4)[:-1])
    world.http.leaving = True
    for client in (idle, partial, busy):
        client.connection.shutdown()
    assert [client.wire.state for client in (idle, partial, busy)] == ["closed", "closed", "open"]
    held.release()
    world.loop.run_until_idle()
    first, second = busy.replies()
    assert (value(first), second.fields["connection"]) == (2, "close")
    assert busy.wire.state == "closed"
    assert world.http.buffered == 0


def closing(world, seconds):
    """The server closes, while one client has still to take 6 MB; the client, and a task with what it comes to."""
    client = world.client()
    client.ask(infer(1))
    client.wire.unsent = 6_000_000
    task = world.loop.create_task(world.http.close(seconds))
    world.loop.run_until_idle()
    assert client.wire.state == "closed"
    return client, task


def test_who_takes_a_long_reply_slowly_gets_all_of_it(world):
    client, task = closing(world, 30)
    for _ in range(6):
        assert not task.done()
        client.wire.take(1_000_000)
        world.loop.run_for(2 * SECOND)
    assert (task.done(), task.result(), client.wire.state) == (True, True, "closed")


def test_who_takes_no_more_of_it_is_cut_off(world):
    client, task = closing(world, 30)
    client.wire.take(1_000_000)
    world.loop.run_for(2 * SECOND)
    assert not task.done()
    world.loop.run_for(2 * SECOND)
    assert (task.done(), task.result(), client.wire.state) == (True, False, "aborted")


def test_there_is_an_end_to_it(world):
    client, task = closing(world, 5)
    for _ in range(3):
        assert not task.done()
        client.wire.take(1_000_000)
        world.loop.run_for(2 * SECOND)
    assert (task.done(), task.result(), client.wire.state) == (True, False, "aborted")


def test_drain_closes_connections_behind_their_next_reply(world):
    client, idle = world.client(), world.client()
    idle.ask(get())
    assert "connection" not in client.ask(infer(1))[0].fields
    world.http.drain()
    first, second = client.ask(infer(2) + infer(3))
    assert (value(second), [one.fields.get("connection") for one in (first, second)]) == (3, [None, "close"])
    assert (client.wire.state, idle.wire.state) == ("closed", "open")
    (answer,) = world.ask(get())  # on a new connection, as probes come
    assert (answer.status, answer.fields["connection"]) == (200, "close")


def test_no_new_connections_once_the_server_has_closed(world):
    world.http._server = None
    assert world.client().wire.state == "aborted"


def test_a_surplus_connection_is_told_even_if_its_request_is_known():
    with World(max_connections=1) as world:
        world.serve(FakeModel())
        world.client().ask(infer(1))
        assert world.ask(infer(2))[0].status == 503


def test_a_connection_that_is_lost_is_gone_without_a_collection(world):
    gc.disable()
    try:
        client = world.client()
        client.ask(infer(1) + get() + infer(2))
        connection = weakref.ref(client.connection)
        client.connection.connection_lost(None)
        world.loop.run_until_idle()
        client.wire.protocol = None  # as real transports do
        del client
        assert connection() is None
    finally:
        gc.enable()
