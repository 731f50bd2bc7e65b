import pytest

from headrace.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    StateFull,
)
from headrace.messages import QueuePolicy, SequenceFlags, State
from headrace.pipeline.admission import QueueLimits
from headrace.pipeline.sequences import SequenceLimits, Sequences
from headrace.testing.requests import make_request

IDLE = 1000
STEP = 10


class World:
    """The core, and a shell that runs whatever it is told to when the test says so."""

    def __init__(self, active=8, state_bytes=1000, initial_bytes=10, requests=100, nbytes=1000):
        self.now = 1
        self.core = Sequences(
            "m", SequenceLimits(active, IDLE, state_bytes, initial_bytes), QueueLimits(requests, 0, nbytes)
        )
        self.steps = {}
        self.dropped = {}
        self.expired = 0
        self.wake_at = 0

    def request(self, sequence, start=False, end=False, **more):
        flags = None if sequence is None else SequenceFlags(sequence, start, end)
        return make_request(now=self.now, sequence=flags, **more)

    def admit(self, request, *, queued=(0, 0), draining=False):
        return self.core.admit(request, self.now, queued, STEP, draining=draining)

    def send(self, sequence, start=False, end=False, **more):
        """Admits a request, which must succeed, and returns it."""
        request = self.request(sequence, start, end, **more)
        assert self.admit(request) is None
        return request

    def refused(self, *arguments, **more):
        admission = {key: more.pop(key) for key in ("queued", "draining") if key in more}
        return self.admit(self.request(*arguments, **more), **admission)

    def decide(self, **more):
        """The requests that shall run now."""
        decision = self.core.decide(self.now, **more)
        self.steps.update({request: sequence for sequence, request in decision.take})
        self.dropped.update(decision.drop)
        self.expired += decision.expired
        self.wake_at = decision.wake_at
        return [request for _, request in decision.take]

    def done(self, request, state="state", nbytes=10):
        return self.core.done(self.steps.pop(request), state, nbytes, self.now)

    def failed(self, request):
        self.core.failed(self.steps.pop(request), self.now)

    def pass_time(self, ns):
        self.now += ns


def test_requests_of_a_sequence_run_one_after_another():
    here = World()
    first, second, last = here.send("a", start=True), here.send("a"), here.send("a", end=True)
    assert here.decide() == [first]
    assert here.decide() == []
    assert repr(here.core) == "<Sequences 1 active, 0 in the backlog, 2 requests wait>"
    here.done(first, "one")
    assert here.decide() == [second]
    assert here.steps[second].state == "one"
    here.done(second, "two")
    assert here.decide() == [last]
    assert here.steps[last].state == "two"
    here.done(last)
    assert (len(here.core), here.core.active, here.core.held, here.core.requests) == (0, 0, 0, 0)


def test_sequences_run_beside_one_another():
    here = World()
    sent = [here.send(sequence, start=True) for sequence in ("a", "b", 1, "1")]
    assert here.decide() == sent
    assert {repr(sequence) for sequence in here.core} == {
        f"<Sequence {name!r} active, 0 wait, one at work>" for name in ("a", "b", 1, "1")
    }


def test_without_start_there_is_no_sequence():
    here = World()
    text = (
        "inference request for sequence 5 to model 'm' must specify the START flag on the first request of the sequence"
    )
    assert str(here.refused(5)) == text
    only = here.send(5, start=True, end=True)
    assert str(here.refused(5)) == text  # its end has been taken
    assert here.decide() == [only]
    here.done(only)
    assert type(here.refused(5)) is InvalidRequest


@pytest.mark.parametrize("sequence", [None, 0, ""])
def test_a_sequence_has_an_id(sequence):
    error = World().refused(sequence, start=True)
    assert type(error) is InvalidRequest
    assert "must specify a non-zero or non-empty correlation ID" in str(error)


def test_a_request_is_of_one_row():
    error = World().refused(1, start=True, rows=2)
    assert "inference request to model 'm' must specify batch-size 1" in str(error)


def test_a_start_in_the_middle_begins_anew_behind_what_was_taken():
    here = World()
    old, older, new = here.send(1, start=True), here.send(1), here.send(1, start=True)
    assert here.decide() == [old]
    here.done(old, "old")
    assert here.decide() == [older]
    here.done(older, "old", 500)
    assert here.decide() == [new]
    assert here.steps[new].state is None
    assert (here.core.active, here.core.held) == (1, 10)


def test_a_sequence_behind_the_end_of_another_of_its_id_waits_like_others():
    here = World(active=1)
    first = here.send("a", start=True, end=True)
    again = here.send("a", start=True, end=True)
    other = here.send("b", start=True, end=True)
    for expected in (first, other, again):
        assert here.decide() == [expected]
        here.done(expected)
    assert here.decide() == []


class TestBacklog:
    def test_only_so_many_are_active_and_the_oldest_is_next(self):
        here = World(active=2)
        sent = [here.send(sequence, start=True) for sequence in "abcd"]
        ends = [here.send(sequence, end=True) for sequence in "abcd"]
        assert here.decide() == sent[:2]
        assert (here.core.active, here.core.backlog) == (2, 2)
        here.done(sent[1])
        assert here.decide() == [ends[1]]
        here.done(ends[1])
        assert here.core.pending
        assert here.decide() == [sent[2]]

    def test_an_idle_sequence_makes_room_when_its_time_is_over(self):
        here = World(active=1)
        first, second = here.send("a", start=True), here.send("b", start=True)
        assert here.decide() == [first]
        here.done(first)
        assert here.decide() == []
        assert here.wake_at == here.now + IDLE
        here.pass_time(IDLE)
        assert here.decide() == [second]
        assert here.expired == 1

    def test_what_waits_in_it_is_never_idle(self):
        here = World(active=1)
        first = here.send("a", start=True)
        here.send("b", start=True)
        assert here.decide() == [first]
        here.pass_time(10 * IDLE)
        assert here.decide() == []
        assert here.expired == 0

    def test_room_for_states_is_room_for_sequences(self):
        here = World(state_bytes=25)
        sent = [here.send(sequence, start=True) for sequence in "abc"]
        assert here.decide() == sent[:2]
        here.done(sent[0])
        here.send("a", end=True)
        (last,) = here.decide()
        here.done(last)
        assert here.decide() == [sent[2]]


class TestIdle:
    def test_a_request_in_time_keeps_it(self):
        here = World()
        first = here.send(1, start=True)
        here.decide()
        here.done(first)
        here.pass_time(IDLE - 1)
        second = here.send(1)
        here.pass_time(IDLE)
        assert here.decide() == [second]
        here.done(second)
        here.decide()
        assert here.wake_at == here.now + IDLE
        here.pass_time(IDLE)
        assert here.decide() == []
        assert (here.expired, len(here.core)) == (1, 0)
        assert type(here.refused(1)) is InvalidRequest

    def test_what_runs_is_not_idle(self):
        here = World()
        here.send(1, start=True)
        here.decide()
        here.pass_time(5 * IDLE)
        here.decide()
        assert here.expired == 0

    def test_when_the_server_leaves_nobody_waits_for_idle_sequences(self):
        here = World(active=1)
        first, second = here.send("a", start=True), here.send("b", start=True)
        assert here.decide() == [first]
        here.done(first)
        assert here.decide(draining=True) == [second]
        assert here.expired == 0
        assert type(here.refused("b", draining=True)) is ShuttingDown


class TestFailures:
    def test_a_request_in_the_middle_that_fails_leaves_the_state(self):
        here = World()
        first, bad, third = here.send(1, start=True), here.send(1), here.send(1)
        here.decide()
        here.done(first, "first")
        assert here.decide() == [bad]
        here.failed(bad)
        assert here.decide() == [third]
        assert here.steps[third].state == "first"

    def test_without_its_first_request_there_is_no_sequence(self):
        here = World()
        first, second, third = here.send(1, start=True), here.send(1), here.send(1)
        here.decide()
        here.failed(first)
        assert type(here.refused(1)) is InvalidRequest  # while the others still wait
        assert here.decide() == []
        assert set(here.dropped) == {second, third}
        assert all("must specify the START flag" in str(error) for error in here.dropped.values())
        assert len(here.core) == 0

    def test_one_behind_it_begins_all_the_same(self):
        here = World()
        first, second, again, last = here.send(1, True), here.send(1), here.send(1, True), here.send(1)
        here.decide()
        here.failed(first)
        assert here.decide() == [again]
        assert set(here.dropped) == {second}
        here.done(again)
        assert here.decide() == [last]

    def test_an_end_that_fails_is_an_end(self):
        here = World()
        only = here.send(1, start=True)
        here.decide()
        here.done(only)
        last = here.send(1, end=True)
        here.decide()
        here.failed(last)
        assert len(here.core) == 0

    def test_a_state_that_does_not_fit_ends_the_sequence(self):
        here = World(state_bytes=100)
        first, second, again = here.send(1, start=True), here.send(1), here.send(1, start=True)
        other = here.send(2, start=True)
        here.decide()
        assert here.done(other, nbytes=50) is None
        error = here.done(first, nbytes=51)
        assert type(error) is StateFull
        assert str(error) == (
            "the states of 2 sequences of model 'm' take 101 bytes, at most 100 may be held: the sequence has ended"
        )
        assert here.core.held == 60
        assert here.decide() == [again]
        assert set(here.dropped) == {second}


class TestDeadlines:
    def test_who_has_expired_leaves_and_the_others_go_on(self):
        here = World()
        first, late, last = here.send(1, True), here.send(1, expires=100), here.send(1, expires=200)
        assert here.decide() == [first]
        assert here.wake_at == 100
        here.now = 100
        assert here.decide() == []
        assert [type(here.dropped[late])] == [QueueTimeout]
        assert here.wake_at == 200
        here.done(first, "first")
        assert here.decide() == [last]
        assert here.steps[last].state == "first"

    def test_the_rpcs_deadline_is_told_from_others(self):
        here = World()
        here.send(1, True)
        late = here.send(1, expires=100, rpc_deadline=100)
        here.decide()
        here.now = 150
        here.decide()
        assert type(here.dropped[late]) is DeadlineExceeded

    def test_without_its_first_request_there_is_no_sequence(self):
        here = World(active=1)
        busy = here.send("a", start=True)
        first, second = here.send("b", start=True, expires=100), here.send("b")
        assert here.decide() == [busy]
        here.now = 100
        here.decide()
        assert [type(here.dropped[request]) for request in (first, second)] == [QueueTimeout, InvalidRequest]
        assert (here.core.backlog, here.core.requests, len(here.core)) == (0, 0, 1)
        assert type(here.refused("b")) is InvalidRequest

    def test_a_start_in_the_middle_that_expires_ends_what_was_before_it(self):
        here = World()
        first, _late = here.send(1, True), here.send(1, True, expires=100)
        assert here.decide() == [first]
        here.now = 100
        assert here.decide() == []
        assert type(here.refused(1)) is InvalidRequest
        here.done(first)
        assert len(here.core) == 0

    def test_one_that_begins_behind_it_begins(self):
        here = World(active=1)
        here.send("a", start=True)
        _late, again = here.send("b", True, expires=100), here.send("b", True)
        here.decide()
        here.now = 100
        here.decide()
        assert here.core.backlog == 1
        here.send("b")
        here.now += IDLE
        assert not here.dropped.keys() & {again}

    def test_an_end_that_expires_is_an_end(self):
        here = World()
        first = here.send(1, True)
        here.decide()
        here.send(1, end=True, expires=100)
        here.now = 100
        here.decide()
        here.done(first)
        assert len(here.core) == 0

    def test_one_that_can_only_be_late_is_refused_at_once(self):
        here = World()
        here.send(1, True)
        here.send(1)
        assert here.refused(1, expires=here.now + 3 * STEP) is None
        error = here.refused(1, expires=here.now + 3 * STEP)
        assert type(error) is DeadlineUnreachable
        assert "3 requests of its sequence" in str(error)
        assert type(here.refused(2, True, expires=here.now)) is QueueTimeout

    def test_a_timeout_that_only_delays(self):
        here = World()
        policy = QueuePolicy(delays=True)
        here.send(1, True)
        delayed = here.send(1, expires=100, policy=policy)
        over = here.send(1, expires=100, rpc_deadline=120, policy=policy)
        here.decide()
        here.now = 100
        here.decide()
        assert not here.dropped
        assert here.wake_at == 120
        here.now = 120
        here.decide()
        assert list(here.dropped) == [over]
        assert delayed.expires == 0


class TestCancelled:
    def test_it_runs_all_the_same(self):
        here = World()
        first, gone, last = here.send(1, True), here.send(1), here.send(1)
        here.decide()
        assert here.core.cancel(gone) == []
        here.done(first)
        assert here.decide() == [gone]
        assert gone.state is State.ABANDONED
        here.done(gone, "by the one that is gone")
        assert here.decide() == [last]
        assert here.steps[last].state == "by the one that is gone"

    def test_a_sequence_that_nobody_waits_for_does_not_begin(self):
        here = World(active=1)
        here.send("a", True)
        mine = [here.send("b", True), here.send("b")]
        here.decide()
        assert here.core.cancel(mine[1]) == []
        assert here.core.cancel(mine[0]) == mine
        assert (here.core.backlog, here.core.requests, here.core.nbytes) == (0, 0, 0)
        assert type(here.refused("b")) is InvalidRequest


class TestLimits:
    def test_requests(self):
        here = World(requests=3)
        here.send(1, True)
        here.send(1)
        assert type(here.refused(1, queued=(1, 0))) is QueueFull
        here.send(2, True)
        error = here.refused(1)
        assert type(error) is QueueFull
        assert str(error).startswith("Exceeds maximum queue size: 3 requests and 0 bytes wait; at most 3 requests and")
        assert error.retry_after_ms == 1
        here.decide()
        assert here.refused(1) is None

    def test_bytes(self):
        here = World(nbytes=100)
        here.send(1, True, nbytes=60)
        assert type(here.refused(1, nbytes=41)) is QueueFull
        assert type(here.refused(1, nbytes=40, queued=(0, 1))) is QueueFull
        assert here.refused(1, nbytes=40) is None
        error = here.refused(1, nbytes=101)
        assert type(error) is InvalidRequest
        assert "more than may ever wait" in str(error)


def test_the_end_of_all():
    here = World(active=2)
    sent = [here.send(sequence, start) for sequence in "abc" for start in (True, False)]
    for request in here.decide():
        here.failed(request)
    left = here.core.close()
    assert set(left) == {*sent} - {sent[0], sent[2]}
    assert (len(here.core), here.core.requests, here.core.active, here.core.held, here.core.wake_at) == (0, 0, 0, 0, 0)
