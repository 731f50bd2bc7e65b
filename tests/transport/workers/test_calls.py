"""Calls from a worker's doors to the engine's desk and back."""

import pytest
from transport.workers.bench import ECHO, FAIL, REGION, SLOW, Call, Pair

from headrace.errors import Told, reason_of
from headrace.transport.workers.records import Kind, head

LARGE = bytes(range(256)) * 300
WHOLE = REGION


@pytest.fixture(params=[1 << 30, 7])
def pair(request):
    """Wires that carry much at once, or a few octets."""
    pair = Pair(request.param)
    yield pair
    pair.close()
    assert pair.desk.calls == {}


def test_a_request_and_its_reply(pair):
    call = pair.infer(b"request", deadline=9, parent=b"p" * 55, state=b"s")
    (work,) = pair.taken
    assert (work.message, type(work.message)) == (b"request", bytes)
    taken = work.call
    assert (taken.received, taken.deadline, taken.door) == (5, 9, "grpc")
    assert (taken.traceparent, taken.tracestate) == (b"p" * 55, b"s")
    assert call.request is None
    assert repr(taken) == "<RemoteCall 0 under way>"
    assert repr(call.under_way) == "<Forwarded 0 under way>"

    taken.reply(b"reply")
    pair.run()
    assert call.answers == [(b"reply", False)]
    assert repr(call.under_way) == "<Forwarded 0 finished>"
    assert pair.doors.calls == pair.desk.calls == {}


def test_on_a_stream_the_last_reply_says_so(pair):
    pair.final = True
    call = pair.infer(b"request", door="grpc_stream")
    (work,) = pair.taken
    assert work.call.door == "grpc_stream"
    work.call.reply(b"reply")
    pair.run()
    assert call.answers == [(b"reply", True)]


def test_an_error(pair):
    call = pair.infer(b"request")
    pair.taken[0].call.fail(RuntimeError("a secret"))
    pair.run()
    (error,) = call.answers
    assert type(error) is Told
    assert reason_of(error) == "internal"


def test_what_is_answered_in_one_turn_is_written_at_once(pair):
    calls = [Call(b"%d" % n) for n in range(10)]
    for call in calls:
        pair.doors.infer(call)
    pair.run()
    assert pair.up.writes == 1
    for work in pair.taken:
        work.call.reply(work.message)
    pair.run()
    assert pair.down.writes == 1
    assert [call.answers for call in calls] == [[(b"%d" % n, False)] for n in range(10)]


# --- large messages ---------------------------------------------------------------------------------------------------


def test_a_large_message_lies_where_it_was_received(pair):
    call = pair.infer(pair.large(LARGE))
    (work,) = pair.taken
    assert bytes(work.message) == LARGE
    assert len(pair.up.kept) == 0
    work.message = None
    work.call.reply(b"")
    pair.run()
    assert call.answers == [(b"", False)]
    assert pair.free == WHOLE


def test_its_memory_is_kept_while_anybody_reads_it(pair):
    pair.infer(pair.large(LARGE))
    (work,) = pair.taken
    kept = work.message[100:200]
    work.message = None
    work.call.reply(b"")
    pair.run()
    assert pair.free < WHOLE
    assert bytes(kept) == LARGE[100:200]
    del kept
    pair.desk.tick()
    pair.run()
    assert pair.free == WHOLE


def test_the_worker_too_keeps_it_as_long_as_it_needs_it(pair):
    message = pair.large(LARGE)
    pair.infer(message)
    pair.taken.pop().call.fail(ValueError())
    pair.run()
    assert bytes(message) == LARGE
    assert pair.free < WHOLE
    del message
    assert pair.free == WHOLE


def test_a_large_message_from_elsewhere_is_copied(pair):
    pair.infer(LARGE)
    (work,) = pair.taken
    assert type(work.message) is memoryview
    assert bytes(work.message) == LARGE
    assert pair.free < WHOLE


def test_without_room_it_goes_along(pair):
    full = [pair.large(bytes(REGION // 4)) for _ in range(4)]
    assert pair.free == 0
    call = pair.infer(LARGE)
    (work,) = pair.taken
    assert bytes(work.message) == LARGE
    work.call.reply(LARGE)
    pair.run()
    assert call.answers == [(LARGE, False)]
    del full


# --- those who give up ------------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_while_it_runs(pair):
    call = pair.infer(b"request")
    forwarded = call.under_way
    forwarded.cancel()
    forwarded.cancel()
    assert repr(forwarded) == "<Forwarded 0 cancelled>"
    pair.run()
    (work,) = pair.taken
    assert work.cancelled == 1
    assert not forwarded.finished
    work.call.reply(b"late")

    work.finished = True
    pair.loop.run_for(10**8)
    assert forwarded.finished
    assert call.answers == []
    assert pair.doors.calls == {}


def test_that_it_has_ended_goes_along_with_what_is_written(pair):
    forwarded = pair.infer(b"request").under_way
    forwarded.cancel()
    pair.run()
    pair.taken[0].finished = True
    pair.desk.tell(anything=1)
    pair.run()
    assert forwarded.finished


def test_a_call_that_was_not_begun_when_it_was_cancelled(pair):
    pair.desk._infer = pair.taken.append
    call = pair.infer(pair.large(LARGE))
    forwarded = call.under_way
    forwarded.cancel()
    pair.run()
    assert forwarded.finished
    assert pair.taken[0].request is None
    assert pair.free == WHOLE


def test_a_reply_that_was_on_the_way(pair):
    call = pair.infer(b"request")
    forwarded = call.under_way
    pair.taken[0].call.reply(b"reply")
    forwarded.cancel()
    pair.run()
    assert call.answers == []
    assert forwarded.finished
    assert pair.taken[0].cancelled == 0


# --- other methods ----------------------------------------------------------------------------------------------------


def ask(pair, path, message=b"hello"):
    call = Call(message)
    pair.doors.unary(path)(call)
    pair.run()
    return call


def test_another_method(pair):
    assert ask(pair, ECHO).answers == [(b"hello", False)]
    (error,) = ask(pair, FAIL).answers
    assert (reason_of(error), str(error)) == ("invalid_request", "no")
    (error,) = ask(pair, "/test/None").answers
    assert reason_of(error) == "unimplemented"


@pytest.mark.parametrize(("message", "answer"), [(b"hello", b"slow hello"), (b"bad", "slowly")])
def test_one_that_takes_its_time(pair, message, answer):
    call = ask(pair, SLOW, message)
    assert call.answers == []
    pair.release.set()
    pair.run()
    (found,) = call.answers
    assert (str(found) if isinstance(found, Told) else found[0]) == answer


def test_one_that_takes_its_time_is_cancelled(pair):
    forwarded = ask(pair, SLOW).under_way
    forwarded.cancel()
    pair.loop.run_for(10**8)
    assert forwarded.finished


def test_a_task_of_the_worker_waits(pair):
    async def wait(message):
        return await pair.doors.task(SLOW)(message)

    good, bad, cancelled = (pair.loop.create_task(wait(message)) for message in (b"good", b"bad", b"never"))
    pair.run()
    cancelled.cancel()
    pair.run()
    pair.release.set()
    pair.loop.run_for(10**8)
    assert good.result() == b"slow good"
    assert isinstance(bad.exception(), Told)
    assert cancelled.cancelled()
    assert pair.doors.calls == {}


# --- the ends themselves ----------------------------------------------------------------------------------------------


def test_notices_and_load(pair):
    pair.load = 3, 2
    pair.doors.tell(ready=True)
    pair.desk.tell(serving=False)
    pair.run()
    assert sorted(map(str, pair.notices)) == ["{'ready': True}", "{'serving': False}"]
    assert pair.loads == [(3, 2)]


def test_a_worker_that_goes_takes_its_calls_along(pair):
    call = pair.infer(b"request")
    pair.desk._infer = pair.taken.append
    pair.infer(b"not begun")
    pair.up.cut()
    pair.run()
    assert pair.lost == [None, None]
    assert pair.taken[0].cancelled == 1
    assert pair.taken[1].request is None
    pair.taken[0].call.reply(b"late")
    pair.run()
    assert call.answers == []


@pytest.mark.parametrize(
    "octets",
    [
        head(Kind.REQUEST, 1, 0),
        head(Kind.REPLY, 1, 0),
        head(Kind.NOTICE, 0, 1) + b"{",
        head(Kind.LOAD, 0, 7) + bytes(7),
    ],
)
def test_a_worker_that_says_nonsense_is_cut_off(pair, octets):
    pair.doors.link.send(octets)
    pair.run()
    assert any(pair.lost)
    assert pair.down.closed


@pytest.mark.parametrize(
    "octets",
    [
        head(Kind.REPLY, 1, 0),
        head(Kind.GONE, 1, 0),
        head(Kind.ERROR, 1, 0),
        head(Kind.FREED, 0, 8) + bytes(8),
        head(Kind.NOTICE, 0, 1) + b"{",
        head(Kind.REQUEST, 1, 0),
    ],
)
def test_an_engine_that_says_nonsense_is_left(pair, octets):
    pair.desk.link.send(octets)
    pair.run()
    assert any(pair.lost)


def test_who_does_not_read_is_told(pair):
    pair.doors.link.pause_writing()
    pair.doors.link.resume_writing()
    assert pair.pauses == [True, False]


def test_representations(pair):
    assert repr(pair.doors).startswith("<Forwarding 0 calls, <Region ")
    assert repr(pair.desk) == "<Desk 0 calls, 0 lingering>"
    assert repr(pair.desk.link) == "<Link 0 to write, 0 octets of a record>"
